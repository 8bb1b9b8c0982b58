"""The class, which C builds, and the function that pickles of it call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _C, memory
from .ops import checks
from .packing import AWQPacking

_DOC = """A torch.Tensor of uint8 codes 0..15 that stores the payload AWQ kernels read.

AWQPackedTensor(data, packing, reorder, size, stride, requires_grad=False)
AWQPackedTensor(packed, requires_grad=False), which is nn.Parameter(packed, requires_grad=False)

Args:
    data: the payload: int32 ``(..., N, K / 8)`` for V1, int16 ``(..., N / 4, K)`` for V2, int32
        ``(..., K / 16, 2 * N)`` for Marlin.
    packing: an ``AWQPacking``.
    reorder: whether V1 words hold their columns in AutoAWQ's gemm order.
    size, stride: of the codes ``(..., N, K)``; strides of a dense tensor in any dimension order.
    requires_grad: must be false.

``AWQPackedTensor.pack(codes)`` makes one; ``unpack()`` returns the codes. ``detach``, copies and moves towards CUDA
and XPU stay packed; every other op runs on unpacked codes and returns a plain tensor; an op that writes into a packed
tensor repacks it. A view (``p[0]``, ``p.t()``, ``p.narrow(...)``) is a copy: write with ``p[0] = codes``, not
``p[0].copy_(codes)``.

Raises:
    ValueError: the payload's dtype, layout or shape, or size and stride, do not fit the packing.
    TypeError: data is no tensor, or packing no AWQPacking.
"""


def rebuild_packed_tensor(
    payload: torch.Tensor,
    packing: int,
    reorder: bool,
    size: Sequence[int],
    stride: Sequence[int],
    is_param: bool,
) -> torch.Tensor:
    """What copy and pickle call. Checks everything: the arguments may come from a file."""
    tensor = AWQPackedTensor(payload, AWQPacking(packing), reorder, size, stride)
    if is_param:
        tensor._is_param = True
    return tensor


def _pack(
    cls: type[torch.Tensor],
    t: torch.Tensor,
    packing: AWQPacking = AWQPacking.V1,
    reorder: bool = False,
    *,
    validate: bool = True,
) -> torch.Tensor:
    """A packed tensor of the uint8 codes ``t``, on the device of ``t``.

    Args:
        t: uint8 codes 0..15, ``(..., out_features, in_features)``, of any strides. A dense tensor's stride order is
            recorded, so that ``pack(w.t()).unpack()`` has the strides of ``w.t()``.
        packing, reorder, validate: as in :func:`awqpack.pack`.

    Raises:
        ValueError: dtype or shape do not fit the packing, or a code is above 15 (the first one is named).
        TypeError: an argument is of another type.
    """
    if torch.compiler.is_compiling():  # the same steps where Dynamo can see them: it cannot enter a C function
        payload = torch.ops.awqpack.pack.default(t, packing.value, reorder, validate)
        return cls(payload, packing, reorder, t.shape, _recorded_stride(t))
    return _C.pack_tensor(cls, t, packing, reorder, validate)


def _recorded_stride(t: torch.Tensor) -> tuple[int, ...]:
    """Strides that a packed t records, where tracing tells dense tensors apart: contiguous, or with the last two
    dimensions exchanged; all others record contiguous strides."""
    if t.dim() >= 2 and not t.is_contiguous() and t.transpose(-1, -2).is_contiguous():
        return t.stride()
    return checks.ordered_strides(t.shape, None)


def _stable_hash_for_caching(self: AWQPackedTensor) -> str:
    """What distinguishes this tensor from others in AOTAutograd's cache: everything but its values."""
    payload = self.payload
    _, metadata = self.__tensor_flatten__()
    return repr(
        (
            tuple(self.shape),
            self.stride(),
            metadata,
            payload.dtype,
            payload.device,
            tuple(payload.shape),
            payload.stride(),
        )
    )


def _written_through_codes(name: str) -> Callable[..., torch.Tensor]:
    """Tensor.<name> for a packed tensor, where the op writes into a view of its argument and never reaches dispatch."""

    def method(self: AWQPackedTensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        codes = self.unpack()
        getattr(codes, name)(*args, **kwargs)
        return self.copy_(codes)

    method.__name__ = name
    method.__qualname__ = f"AWQPackedTensor.{name}"
    return method


def _dlpack(self: AWQPackedTensor, **kwargs: Any) -> Any:
    """Exports a copy of the codes; the payload can be exported as p.payload."""
    return self.unpack().__dlpack__(**kwargs)


def _dlpack_device(self: AWQPackedTensor) -> Any:
    return self.payload.__dlpack_device__()


rebuild_packed_tensor.__module__ = "awqpack"

AWQPackedTensor = _C.create_class(AWQPacking, rebuild_packed_tensor, _DOC)
_pack.__name__ = "pack"
_pack.__qualname__ = "AWQPackedTensor.pack"
AWQPackedTensor.pack = classmethod(_pack)
AWQPackedTensor._stable_hash_for_caching = _stable_hash_for_caching
AWQPackedTensor.__dlpack__ = _dlpack
AWQPackedTensor.__dlpack_device__ = _dlpack_device
for _name, _function in memory.METHODS.items():
    setattr(AWQPackedTensor, _name, _function)
for _name in ("fill_diagonal_", "apply_", "map_"):
    setattr(AWQPackedTensor, _name, _written_through_codes(_name))

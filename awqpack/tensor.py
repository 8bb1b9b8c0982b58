"""The class: what Python says of it. Its fields, dispatch and every method that a hot path calls are in csrc/python."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from . import _C, functional, memory
from .formats import format_of
from .ops import checks
from .packing import AWQPacking

if TYPE_CHECKING:
    import numpy.typing as npt


def _written_through_codes(name: str) -> Callable[..., torch.Tensor]:
    """Tensor.<name> for a packed tensor, where the op writes into a view of its argument and never reaches dispatch."""

    def method(self: AWQPackedTensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.compiler.is_compiling():
            codes = self.unpack()
            getattr(codes, name)(*args, **kwargs)
            return self.copy_(codes)
        _C.edit_codes(self, lambda codes: getattr(codes, name)(*args, **kwargs))
        return self

    method.__name__ = name
    method.__qualname__ = f"AWQPackedTensor.{name}"
    return method


class AWQPackedTensor(torch.Tensor):
    """A torch.Tensor of uint8 codes 0..15 that stores the payload AWQ kernels read.

    Called as ``AWQPackedTensor(data, packing, reorder, size, stride, requires_grad=False)``, or as
    ``AWQPackedTensor(packed, requires_grad=False)``, which is ``nn.Parameter(packed, requires_grad=False)``.

    Args:
        data: the payload: int32 ``(..., N, K / 8)`` for V1, int16 ``(..., N / 4, K)`` for V2, int32
            ``(..., K / 16, 2 * N)`` for Marlin.
        packing: an ``AWQPacking``.
        reorder: whether V1 words hold their columns in AutoAWQ's gemm order.
        size, stride: of the codes ``(..., N, K)``; strides of a dense tensor in any dimension order.
        requires_grad: must be false.

    ``AWQPackedTensor.pack(codes)`` makes one, ``from_payload(payload, packing)`` wraps a payload; ``unpack()`` returns
    the codes. ``detach``, copies, moves towards CUDA and XPU and views of the whole (``p[...]``) stay packed; every
    other op runs on unpacked codes and returns a plain tensor; an op that writes into a packed tensor repacks it. A
    view of a part (``p[0]``, ``p.t()``, ``p.narrow(...)``) is a copy: write with ``p[0] = codes``, not
    ``p[0].copy_(codes)``.

    Raises:
        ValueError: the payload's dtype, layout or shape, or size and stride, do not fit the packing.
        TypeError: data is no tensor, or packing no AWQPacking.
    """

    __module__ = "awqpack"
    __slots__ = ("_data", "_meta")
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    if TYPE_CHECKING:  # what _C.install adds
        _data: torch.Tensor
        _meta: tuple[Any, ...]

        @overload
        def __new__(
            cls, data: AWQPackedTensor, *, requires_grad: bool = False, **attributes: Any
        ) -> AWQPackedTensor: ...
        @overload
        def __new__(
            cls,
            data: torch.Tensor,
            packing: AWQPacking,
            reorder: bool,
            size: Sequence[int],
            stride: Sequence[int],
            requires_grad: bool = False,
        ) -> AWQPackedTensor: ...
        def __new__(cls, *args: Any, **kwargs: Any) -> AWQPackedTensor: ...
        @property
        def payload(self) -> torch.Tensor: ...
        @property
        def packing(self) -> AWQPacking: ...
        @property
        def reorder(self) -> bool: ...
        @property
        def _packing(self) -> AWQPacking: ...
        @property
        def _reorder(self) -> bool: ...
        def detach(self) -> AWQPackedTensor: ...
        def unpack(self, *, out: torch.Tensor | None = None) -> torch.Tensor: ...
        def numpy(self, *, force: bool = False) -> npt.NDArray[np.uint8]: ...
        def offload(
            self,
            device: torch.device | str | int = "cpu",
            *,
            pin_memory: bool = False,
            non_blocking: bool = False,
        ) -> AWQPackedTensor: ...
        def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]: ...
        @staticmethod
        def __tensor_unflatten__(
            inner_tensors: dict[str, torch.Tensor],
            metadata: dict[str, Any],
            outer_size: Sequence[int],
            outer_stride: Sequence[int],
        ) -> AWQPackedTensor: ...

    @classmethod
    def pack(
        cls,
        t: torch.Tensor | npt.NDArray[Any],
        packing: AWQPacking = AWQPacking.V1,
        reorder: bool = False,
        *,
        validate: bool = True,
    ) -> AWQPackedTensor:
        """A packed tensor of the uint8 codes ``t``, on the device of ``t``.

        Args:
            t: uint8 codes 0..15, ``(..., out_features, in_features)``, of any strides; a ``torch.Tensor`` or a
                ``numpy.ndarray``. A dense tensor's stride order is recorded, so that ``pack(w.t()).unpack()`` has the
                strides of ``w.t()``.
            packing, reorder, validate: as in :func:`awqpack.pack`.

        Raises:
            ValueError: dtype or shape do not fit the packing, or a code is above 15 (the first one is named).
            TypeError: an argument is of another type.
        """
        if torch.compiler.is_compiling():  # the same steps where Dynamo can see them: it cannot enter a C function
            payload = torch.ops.awqpack.pack.default(t, packing.value, reorder, validate)
            return cls(payload, packing, reorder, t.shape, _recorded_stride(t))  # type: ignore[arg-type]
        if isinstance(t, np.ndarray):
            payload = torch.from_numpy(functional.pack(t, packing, reorder, validate=validate))
            return cls(payload, packing, reorder, t.shape, _array_stride(t))
        return _C.pack_tensor(cls, t, packing, reorder, validate)  # type: ignore[return-value]

    @classmethod
    def from_payload(cls, payload: torch.Tensor, packing: AWQPacking, reorder: bool = False) -> AWQPackedTensor:
        """A packed tensor around a payload, which it shares: of the size that the payload holds, and contiguous.

        An AutoAWQ ``gemm`` checkpoint stores ``W.t()``, the weight as (in_features, out_features):
        ``from_payload(qweight, AWQPacking.V1, reorder=True)`` is that, and ``.unpack().t()`` is ``W``. A payload may
        have any strides: ``from_payload(qweight.t(), AWQPacking.V1)`` of a GPTQ checkpoint is ``W``.

        Args:
            payload: int32 ``(..., N, K / 8)`` for V1, int16 ``(..., N / 4, K)`` for V2, int32 ``(..., K / 16, 2 * N)``
                for Marlin.
            packing, reorder: how it was packed, as in :func:`awqpack.unpack`.

        Raises:
            ValueError: the payload's dtype, layout or shape do not fit the packing.
            TypeError: an argument is of another type.
        """
        number = functional.number_of(packing, reorder)
        if not isinstance(payload, torch.Tensor):
            raise TypeError(f"from_payload expects a torch.Tensor; got {type(payload)}")
        size = checks.codes_shape(payload, number)
        return cls(payload, packing, reorder, size, checks.ordered_strides(size, None))

    # --- copies and pickles, as torch's own tensors make them: class, attributes and what is shared stay ---

    def __copy__(self) -> AWQPackedTensor:
        copied = self.detach()
        copied.__setstate__(_attributes(self))
        return copied

    def __deepcopy__(self, memo: dict[Any, Any]) -> AWQPackedTensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        payload = copy.deepcopy(self._data, memo)
        twins = memo.setdefault("awqpack", {})  # by payload: what shared one before shares one again
        twin = twins.get(id(payload))
        if twin is not None and type(twin) is type(self) and twin._meta == self._meta:
            copied: AWQPackedTensor = twin.detach()
        else:
            copied = AWQPackedTensor.__new__(type(self), payload, self.packing, self.reorder, self.shape, self.stride())
            twins[id(payload)] = copied
        memo[id(self)] = copied  # before the attributes, which may lead back here
        copied.__setstate__(copy.deepcopy(_attributes(self), memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        attributes = _attributes(self)
        is_param = attributes.pop("_is_param", False) is True
        arguments = (self._data, self.packing.value, self.reorder, tuple(self.shape), self.stride(), is_param)
        if type(self).__module__ != AWQPackedTensor.__module__:  # no pickle can name the classes that rebuilt.py makes
            arguments = (*arguments, type(self))  # type: ignore[assignment]
        return (rebuild_packed_tensor, arguments, attributes) if attributes else (rebuild_packed_tensor, arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes attributes that others gave a tensor; what it holds itself is not theirs to change."""
        if not isinstance(state, dict) or not state.keys().isdisjoint(AWQPackedTensor.__slots__):
            raise ValueError(f"an AWQPackedTensor expects as its state a dict of attributes of others; got {state!r}")
        slots = copyreg._slotnames(type(self))  # type: ignore[attr-defined]
        for name, value in state.items():
            if name in slots:
                setattr(self, name, value)
            else:
                vars(self)[name] = value

    # --- what others ask of a tensor ---

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Shape, packing, reorder, device and the first codes, without touching values that are not there."""
        prefix = "Parameter containing:\n" if getattr(self, "_is_param", False) is True else ""
        says = f"shape={tuple(self.shape)}, packing={self.packing.name}, reorder={self.reorder}"
        return f"{prefix}AWQPackedTensor({says}, device='{self.payload.device}'{_first_codes(self)})"

    def tolist(self) -> Any:
        """The codes as nested lists of ints."""
        return self.unpack().tolist()

    def data_ptr(self) -> int:
        """The payload's address: it tells ties from copies. What lies there are not the codes."""
        return self.payload.data_ptr()

    def share_memory_(self) -> AWQPackedTensor:
        """Moves the payload into memory that other processes can map; returns self."""
        self.payload.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def is_shared(self) -> bool:
        """Whether the payload is in shared memory."""
        return bool(self.payload.is_shared())  # type: ignore[no-untyped-call]

    def _stable_hash_for_caching(self) -> str:
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

    def __dlpack__(self, **kwargs: Any) -> Any:
        """Exports a copy of the codes; the payload can be exported as p.payload."""
        if kwargs.get("copy") is False:
            raise BufferError(
                "an AWQPackedTensor exports a copy of its codes, and copy=False allows none; p.payload exports itself"
            )
        return self.unpack().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.payload.__dlpack_device__()

    untyped_storage = memory.untyped_storage
    storage = memory.storage
    __cuda_array_interface__ = property(memory.cuda_array_interface)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Indexing gives a plain copy, so an assignment goes through the codes and back into the payload."""
        _C.edit_codes(self, lambda codes: codes.__setitem__(key, value))

    fill_diagonal_ = _written_through_codes("fill_diagonal_")
    apply_ = _written_through_codes("apply_")
    map_ = _written_through_codes("map_")


_C.install(AWQPackedTensor, AWQPacking)


def rebuild_packed_tensor(
    payload: torch.Tensor,
    packing: int,
    reorder: bool,
    size: Sequence[int],
    stride: Sequence[int],
    is_param: bool,
    cls: type[AWQPackedTensor] = AWQPackedTensor,
) -> AWQPackedTensor:
    """What pickles call. Checks everything: the arguments may come from a file."""
    tensor = AWQPackedTensor.__new__(cls, payload, AWQPacking(packing), reorder, size, stride)
    if is_param:
        tensor._is_param = True
    return tensor


rebuild_packed_tensor.__module__ = "awqpack"


def _first_codes(packed: AWQPackedTensor) -> str:
    """ ", codes=[0, 1, 2, ...]" of the first row; nothing where there are no values, which a repr is not to ask for."""
    payload = packed.payload
    # torch <= 2.11 calls repr() while compiling
    if type(payload) is not torch.Tensor or payload.is_meta or torch._C._len_torch_dispatch_stack() > 0:
        return ""
    try:
        corner = payload.flatten(0, -2)[:1, : format_of(packed.packing.value).block_items]
        codes = functional.unpack(corner, packed.packing, packed.reorder)[0, :8].tolist()
    except Exception:  # an empty one, or one that lost its memory
        return ""
    return f", codes=[{', '.join(map(str, codes))}, ...]" if codes else ""


def _attributes(tensor: AWQPackedTensor) -> dict[str, Any]:
    """What users, subclasses and torch put on a packed tensor, beside what it holds itself."""
    slots = copyreg._slotnames(type(tensor))  # type: ignore[attr-defined]
    theirs = [name for name in slots if name not in AWQPackedTensor.__slots__ and hasattr(tensor, name)]
    return {**vars(tensor), **{name: getattr(tensor, name) for name in theirs}}


def _recorded_stride(t: torch.Tensor) -> tuple[int, ...]:
    """Strides that a packed t records, where tracing tells dense tensors apart: contiguous, or with the last two
    dimensions exchanged; all others record contiguous strides."""
    if t.dim() >= 2 and not t.is_contiguous() and t.transpose(-1, -2).is_contiguous():
        return t.stride()
    return checks.ordered_strides(t.shape, None)


def _array_stride(array: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    """Strides that a packed array records: its own, which are in bytes as in codes, where it is dense."""
    order = sorted(range(array.ndim), key=lambda d: (array.shape[d] != 1, -array.strides[d]))
    dense = checks.ordered_strides(array.shape, order)
    dims = zip(array.shape, array.strides, dense, strict=True)
    is_dense = all(size == 1 or given == expected for size, given, expected in dims)
    return dense if is_dense else checks.ordered_strides(array.shape, None)

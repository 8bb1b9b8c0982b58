"""The class, which C builds, and the function that pickles of it call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import _C
from .packing import AWQPacking

_DOC = """A torch.Tensor of uint8 codes 0..15 that stores the payload AWQ kernels read.

AWQPackedTensor(data, packing, reorder, size, stride, requires_grad=False)

Args:
    data: the payload: int32 ``(..., N, K / 8)`` for V1, int16 ``(..., N / 4, K)`` for V2.
    packing: ``AWQPacking.V1`` or ``AWQPacking.V2``.
    reorder: whether V1 words hold their columns in AutoAWQ's gemm order.
    size, stride: of the codes ``(..., N, K)``; strides of a dense tensor in any dimension order.
    requires_grad: must be false.

``AWQPackedTensor.pack(codes)`` makes one; ``unpack()`` returns the codes. ``detach``, copies and moves towards CUDA
and XPU stay packed; every other op runs on unpacked codes and returns a plain tensor; an op that writes into a packed
tensor repacks it.

Raises:
    ValueError: the payload's dtype, layout or shape, or size and stride, do not fit the packing.
    TypeError: data is no tensor, or packing no AWQPacking.
"""


def rebuild_packed_tensor(
    payload: torch.Tensor, packing: int, reorder: bool, size: Sequence[int], stride: Sequence[int], is_param: bool
) -> torch.Tensor:
    """What copy and pickle call. Checks everything: the arguments may come from a file."""
    tensor = AWQPackedTensor(payload, AWQPacking(packing), reorder, size, stride)
    if is_param:
        tensor._is_param = True
    return tensor


rebuild_packed_tensor.__module__ = "awqpack"

AWQPackedTensor = _C.create_class(AWQPacking, rebuild_packed_tensor, _DOC)

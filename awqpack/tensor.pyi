"""Types of the class that C builds."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from .packing import AWQPacking

class AWQPackedTensor(torch.Tensor):
    """A torch.Tensor of uint8 codes 0..15 that stores the payload AWQ kernels read."""

    _data: torch.Tensor
    _meta: tuple[Any, ...]

    @overload
    def __new__(cls, data: AWQPackedTensor, *, requires_grad: bool = False, **attributes: Any) -> AWQPackedTensor: ...
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
    @classmethod
    def pack(
        cls,
        t: torch.Tensor,
        packing: AWQPacking = ...,
        reorder: bool = False,
        *,
        validate: bool = True,
    ) -> AWQPackedTensor: ...
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
    def unpack(self) -> torch.Tensor: ...
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

def rebuild_packed_tensor(
    payload: torch.Tensor,
    packing: int,
    reorder: bool,
    size: Sequence[int],
    stride: Sequence[int],
    is_param: bool,
) -> AWQPackedTensor: ...

"""Types of the C extension module."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .packing import AWQPacking

def pack_array(
    array: object,
    packing: int,
    reorder: bool,
    validate: bool,
    out: npt.NDArray[Any] | None,
    variant: str | None,
    /,
) -> npt.NDArray[Any]:
    """Packs a NumPy array of codes with the named CPU variant, or the active one."""

def unpack_array(
    array: object, packing: int, reorder: bool, out: npt.NDArray[Any] | None, variant: str | None, /
) -> npt.NDArray[np.uint8]:
    """Unpacks a NumPy array with the named CPU variant, or the active one."""

def pack_tensor(
    cls: type[torch.Tensor], t: object, packing: AWQPacking, reorder: bool, validate: bool, /
) -> torch.Tensor:
    """What AWQPackedTensor.pack calls."""

def variants() -> list[str]:
    """Names of the kernels this CPU can run, slowest first."""

def build_info() -> dict[str, Any]:
    """What the module was built with and what it uses."""

def register_cuda() -> bool:
    """Sends CUDA tensors to the CUDA kernels; false when this build has none."""

def unregister_cuda() -> None:
    """Sends CUDA tensors to the portable kernels."""

def probe_cuda(device: int, /) -> str | None:
    """None when the CUDA kernels run on this device, else why they do not."""

def keep_value_errors(op: Callable[..., Any], /) -> Callable[..., Any]:
    """Calls op, and raises ValueError where torch made RuntimeError of an op's own."""

def install(cls: type[torch.Tensor], packing_enum: type[AWQPacking], /) -> None:
    """Adds to AWQPackedTensor what C holds of it: fields, methods, construction and dispatch."""

def edit_codes(packed: torch.Tensor, change: Callable[[torch.Tensor], Any], /) -> None:
    """Calls change(codes) and stores the codes; no other write comes between."""

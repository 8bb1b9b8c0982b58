"""What those find who look for the memory of a packed tensor's codes: there is none.

Writers of files, stagers of checkpoints and sharers between processes take a tensor's storage and read ``numel`` bytes.
A packed tensor's storage only tells torch what aliases what; torch would answer about invalid storages, or crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from .tensor import AWQPackedTensor

_ADVICE = (
    "awqpack.save_file saves packed tensors; after awqpack.store_as_payloads(module) any other writer saves its "
    "state_dict; p.payload and p.unpack() are plain tensors"
)


def _refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:
    raise RuntimeError(f"the storage of an AWQPackedTensor holds no codes: {_ADVICE}")


class CodesStorage(torch.UntypedStorage):
    """A packed tensor's storage in Python's eyes: it has a size and can be compared; its bytes can only be staged."""

    _held: tuple[torch.Tensor, int, bool, list[int] | None]  # what it stands for: a payload, and how it is packed

    def __new__(cls, *args: Any, **kwargs: Any) -> StagedCodes:  # type: ignore[misc]
        """Stagers of checkpoints make ``type(storage)(size)`` and copy into it."""
        return StagedCodes(*args, **kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def _new_shared(cls, size: int, *, device: str = "cpu") -> torch.UntypedStorage:
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size, device=device)  # type: ignore[no-untyped-call]
        storage.__class__ = StagedCodes
        return storage

    def _share_filename_cpu_(self, *args: Any, **kwargs: Any) -> Any:
        """What processes that share a packed tensor share is its payload."""
        return self._held[0].untyped_storage()._share_filename_cpu_(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<the storage of an AWQPackedTensor of {self.nbytes()} codes, which holds none>"


_TOUCHING = """
    data_ptr copy_ fill_ tolist clone cpu cuda to _to type byteswap _byteswap pin_memory share_memory_ _share_fd_cpu_
    _share_cuda_ _write_file _set_from_file __getitem__ __setitem__ __copy__ __deepcopy__ __reduce__
"""
for _name in _TOUCHING.split():
    setattr(CodesStorage, _name, _refuse)


class StagedCodes(torch.UntypedStorage):
    """Memory that a stager copies the storage of a packed tensor into: there the codes get bytes."""

    def copy_(self, source: Any, non_blocking: Any = None) -> Any:
        if isinstance(source, CodesStorage):
            source = torch.ops.awqpack.unpack.default(*source._held).untyped_storage()
        return super().copy_(source, non_blocking)


class TracedStorage(CodesStorage):
    """While torch.compile traces: AOTAutograd tells by `_weak_ref` which inputs alias one that is written to."""

    def _weak_ref(self) -> Any:
        return self._held[0].untyped_storage()._weak_ref()


# Up to 2.13 torch gives traced wrappers the storages that it sees here, and shares them as the real ones are.
_TRACED_WRAPPERS_SHARE = torch.__version__ < "2.14.0a0"


def untyped_storage(self: AWQPackedTensor) -> Any:
    is_traced = isinstance(self.payload, FakeTensor)
    if is_traced and not _TRACED_WRAPPERS_SHARE:
        return self.payload.untyped_storage()
    storage: Any = torch.Tensor.untyped_storage(self)
    if type(storage) is torch.UntypedStorage:
        storage.__class__ = TracedStorage if is_traced else CodesStorage
    packing, reorder, order, *_ = self._meta
    storage._held = (self.payload, packing.value, reorder, order)
    return storage


class TypedStorage:
    """What storage() gives: a size, for which torch 2.10's checkpoints ask; all else is refused.

    Writers of files ask for its address where untyped_storage() has none; NotImplementedError would say meta.
    """

    def __init__(self, packed: AWQPackedTensor) -> None:
        self._of = f"AWQPackedTensor of shape {tuple(packed.shape)} as {packed.packing.name}"
        self._size = packed.numel()

    def size(self) -> int:
        return self._size

    __getitem__ = __setitem__ = __len__ = __copy__ = __deepcopy__ = __reduce_ex__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # asked whether it is there
        raise RuntimeError(f"{self._of} has no storage of codes: {_ADVICE}")


def storage(self: AWQPackedTensor) -> TypedStorage:
    return TypedStorage(self)


def cuda_array_interface(self: AWQPackedTensor) -> NoReturn:
    """torch's own would offer the payload's memory as codes, of which it holds half as many bytes."""
    raise AttributeError(f"AWQPackedTensor has no memory of codes: {_ADVICE}")

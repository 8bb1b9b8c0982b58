"""One safetensors file: its header, and its tensors as views of the mapped file."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import torch

from ..layouts import TensorSpec
from .errors import CheckpointError

# As safetensors' own writer sorts tensors: wide dtypes first, so that each lies on its alignment.
DTYPE_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
TORCH_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_NORESERVE = 0x4000  # MAP_NORESERVE: the mapping is never written, so that it may exceed the memory
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14: one call instead of a fault for every few pages


class Entry(NamedTuple):
    """A tensor of a file; begin and end are offsets into the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def spec(self) -> TensorSpec:
        """As layouts see it: a dtype that none of them uses counts as bool."""
        return TensorSpec(TORCH_DTYPES.get(self.dtype, torch.bool), self.shape)


class Shard:
    """A safetensors file, open for reading."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError when the file cannot be read or is no whole safetensors file."""
        self.path = path
        try:
            # the library checks what a header may say: names, sizes, offsets that cover the file
            with safetensors.safe_open(path, framework="numpy"):
                pass
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file, or cut short ({error})") from None
        try:
            flags = mmap.MAP_PRIVATE | _NORESERVE
            self._map = mmap.mmap(self._fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            length = int.from_bytes(self._map[:8], "little")
            header = json.loads(self._map[8 : 8 + length])
        except OSError as error:
            os.close(self._fd)
            raise CheckpointError(f"{path}: cannot be mapped ({error.strerror or error})") from None
        except BaseException:
            os.close(self._fd)
            raise
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        begin = 8 + length
        self.entries: dict[str, Entry] = {
            name: Entry(
                value["dtype"],
                tuple(value["shape"]),
                begin + value["data_offsets"][0],
                begin + value["data_offsets"][1],
            )
            for name, value in header.items()
        }

    @property
    def fd(self) -> int:
        return self._fd

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A view of the mapped file, not to be written; a copy where the file has it off its alignment."""
        entry = self.entries[name]
        dtype = TORCH_DTYPES[entry.dtype] if dtype is None else dtype
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=dtype)
        self._advise(_POPULATE_READ, entry)
        raw = torch.from_numpy(np.frombuffer(self._map, np.uint8, entry.nbytes, entry.begin))
        if raw.data_ptr() % dtype.itemsize != 0:
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)

    def bytes_of(self, name: str) -> torch.Tensor:
        """A tensor of any dtype as its bytes."""
        entry = self.entries[name]
        if entry.nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.from_numpy(np.frombuffer(self._map, np.uint8, entry.nbytes, entry.begin))

    def release(self, name: str) -> None:
        """Lets go of the memory that reading a tensor took; the file's cache keeps it."""
        self._advise(mmap.MADV_DONTNEED, self.entries[name])

    def _advise(self, advice: int, entry: Entry) -> None:
        begin = entry.begin // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            self._map.madvise(advice, begin, entry.end - begin)
        except (OSError, ValueError):
            return  # advice alone: an older kernel does without

    def close(self) -> None:
        """Closes the file. The mapping goes with the last tensor that was taken from it."""
        os.close(self._fd)


def header_bytes(entries: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    """The start of a safetensors file; offsets of the entries count from the end of this header."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def arranged(specs: dict[str, tuple[str, tuple[int, ...], int]]) -> dict[str, Entry]:
    """Entries for tensors given as (dtype, shape, bytes), in the order that safetensors' own writer gives them."""
    names = sorted(specs)
    names.sort(key=lambda name: DTYPE_ORDER.index(specs[name][0]), reverse=True)
    entries, begin = {}, 0
    for name in names:
        dtype, shape, nbytes = specs[name]
        entries[name] = Entry(dtype, shape, begin, begin + nbytes)
        begin += nbytes
    return entries

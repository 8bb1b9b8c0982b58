"""One safetensors file: its header, and its tensors, read when they are asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch

from ..layouts import TensorSpec
from ..layouts.weight import TakeBytes
from .errors import CheckpointError
from .files import Closing, open_regular, read_at, require_no_pointer, unreadable

# As safetensors' own writer sorts tensors: wide dtypes first, so that each lies on its alignment.
DTYPE_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
# Every dtype that torch has; F6 it has not, and F4 only in pairs.
TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def _fresh(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


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
        """As layouts see it: a dtype that torch does not have counts as bits."""
        return TensorSpec(TORCH_DTYPES.get(self.dtype, torch.bits8), self.shape)


class Shard(Closing):
    """A safetensors file, open for reading. Nothing is mapped: a file that others cut short is an error, no SIGBUS."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError when the file cannot be read or is no whole safetensors file."""
        self.path = path
        self.fd = open_regular(path)
        try:
            self._stamp = self._read_stamp()
            require_no_pointer(path, os.pread(self.fd, 64, 0))
            # the library checks what a header may say: names, sizes, offsets that cover the file
            with safetensors.safe_open(path, framework="numpy"):
                pass
            length = int.from_bytes(self._read(0, 8), "little")
            header = json.loads(bytes(self._read(8, length)))
        except OSError as error:
            os.close(self.fd)
            raise unreadable(path, error) from None
        except safetensors.SafetensorError as error:
            os.close(self.fd)
            raise CheckpointError(f"{path}: not a safetensors file, or cut short ({error})") from None
        except BaseException:
            os.close(self.fd)
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

    def tensor(self, name: str, take: TakeBytes = _fresh) -> torch.Tensor:
        """A tensor, read into memory that is fresh, or given."""
        entry = self.entries[name]
        return self.bytes_of(name, 0, entry.nbytes, take).view(TORCH_DTYPES[entry.dtype]).view(entry.shape)

    def rows(self, name: str, begin: int, end: int, take: TakeBytes = _fresh) -> torch.Tensor:
        """Rows begin..end of a tensor."""
        entry = self.entries[name]
        row_bytes = entry.nbytes // entry.shape[0]
        raw = self.bytes_of(name, begin * row_bytes, end * row_bytes, take)
        return raw.view(TORCH_DTYPES[entry.dtype]).view(end - begin, *entry.shape[1:])

    def matrix(self, name: str, rows: int, begin: int, end: int, take: TakeBytes = _fresh) -> torch.Tensor:
        """Rows begin..end of a tensor that is looked at as so many rows, whatever its dimensions are."""
        entry = self.entries[name]
        row_bytes = entry.nbytes // rows
        raw = self.bytes_of(name, begin * row_bytes, end * row_bytes, take)
        return raw.view(TORCH_DTYPES[entry.dtype]).view(end - begin, -1)

    def strided(
        self, name: str, begin: int, stride: int, shape: tuple[int, int], take: TakeBytes = _fresh
    ) -> torch.Tensor:
        """Part of a tensor: rows that begin so many bytes after each other, from that byte on."""
        entry = self.entries[name]
        dtype = TORCH_DTYPES[entry.dtype]
        rows, nbytes = shape[0], shape[1] * dtype.itemsize
        raw = take(rows * nbytes)
        data = raw.numpy().data
        for row in range(rows):
            read_at(self.fd, self.path, data[row * nbytes : (row + 1) * nbytes], entry.begin + begin + row * stride)
        return raw.view(dtype).view(shape)

    def bytes_of(self, name: str, begin: int, end: int, take: TakeBytes = _fresh) -> torch.Tensor:
        """Bytes begin..end of a tensor of any dtype."""
        raw = take(end - begin)
        if end > begin:
            read_at(self.fd, self.path, raw.numpy().data, self.entries[name].begin + begin)
        return raw

    def _read(self, offset: int, count: int) -> bytearray:
        buffer = bytearray(count)
        read_at(self.fd, self.path, memoryview(buffer), offset)
        return buffer

    def _read_stamp(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def require_unchanged(self) -> None:
        """Raises CheckpointError when somebody has written to the file since it was opened."""
        if self._read_stamp() != self._stamp:
            raise CheckpointError(f"{self.path}: changed while it was read")

    def close(self) -> None:
        os.close(self.fd)


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

"""Tensors that come one after the other, whose number nobody knows yet: files of them that are cut as they fill."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .files import copied
from .index import rewritten_index
from .shard import DTYPE_NAMES, Entry, Shard, arranged, header_bytes

_CHUNK_BYTES = 1 << 23


class Spool:
    """Files of at most so many bytes of tensors. What comes lies in a file of its own until a file of them is full.

    Args:
        folder: where the files go.
        limit: bytes of a file; what is put together stays together, however large.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._path = folder / ".spool"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._held: dict[str, Entry] = {}  # in the spool
        self._end = 0
        self._full: list[list[str]] = []  # tensors of each whole file
        self.specs: dict[str, tuple[str, tuple[int, ...], int]] = {}

    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes tensors that stay in one file."""
        self._make_room(sum(tensor.nbytes for tensor in tensors.values()))
        for name, tensor in tensors.items():
            raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            self._hold(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), len(raw))
            begin, done = self._held[name].begin, 0
            while done < len(raw):
                done += os.pwrite(self._fd, raw[done : done + _CHUNK_BYTES], begin + done)

    def copy(self, name: str, shard: Shard) -> None:
        """Takes a tensor of a file, byte for byte."""
        entry = shard.entries[name]
        self._make_room(entry.nbytes)
        self._hold(name, entry.dtype, entry.shape, entry.nbytes)
        for _ in copied(shard.fd, shard.path, self._fd, entry.nbytes, entry.begin, self._held[name].begin):
            pass

    def _make_room(self, nbytes: int) -> None:
        if self._held and self._end + nbytes > self._limit:
            self._cut()

    def _hold(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        self._held[name] = Entry(dtype, shape, self._end, self._end + nbytes)
        self._end += nbytes
        self.specs[name] = (dtype, shape, nbytes)

    def _cut(self) -> None:
        """Makes a file of what is held, as safetensors' own writer would."""
        entries = arranged({name: self.specs[name] for name in self._held})
        header = header_bytes(entries, {"format": "pt"})
        path = self._folder / _unnumbered(len(self._full))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb"):
            os.pwrite(fd, header, 0)
            for name, entry in entries.items():
                begin = self._held[name].begin
                for _ in copied(self._fd, self._path, fd, entry.nbytes, begin, len(header) + entry.begin):
                    pass
        self._full.append(list(entries))
        self._held, self._end = {}, 0
        os.truncate(self._fd, 0)

    def finish(self) -> None:
        """Names the files by their number, with an index where there are several."""
        if self._held:
            self._cut()
        self.close()
        self._path.unlink()
        count = len(self._full)
        names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        names = ["model.safetensors"] if count == 1 else names
        for i, name in enumerate(names):
            (self._folder / _unnumbered(i)).rename(self._folder / name)
        if count > 1:
            where = {tensor: name for name, tensors in zip(names, self._full, strict=True) for tensor in tensors}
            file, text = rewritten_index(None, where, sum(nbytes for _, _, nbytes in self.specs.values()))
            (self._folder / file).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Closes the spool; a second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _unnumbered(index: int) -> str:
    return f".shard-{index:05}"

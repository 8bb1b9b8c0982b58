"""Output files of a conversion, filled from any number of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .files import Closing, copied
from .plan import OutputFile
from .shard import Shard

_CHUNK_BYTES = 1 << 20  # written at a time: shorter and longer writes were slower, and progress shows


class Writer(Closing):
    """Writes tensors to where the headers of their files say. A context manager: leaving it closes the files.

    Args:
        folder: where the files go; they are made at once, of their full length.
        files: what they are.
        on_bytes: called with every count of bytes written, from the thread that wrote them, one call at a time.
        on_file: called with the name of each file that is whole.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[OutputFile],
        on_bytes: Callable[[int], None],
        on_file: Callable[[str], None],
    ) -> None:
        self._on_bytes = on_bytes
        self._on_file = on_file
        self._lock = threading.Lock()
        self._fds: dict[str, int] = {}
        self._left = {file.name: file.nbytes for file in files}
        try:
            for file in files:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fds[file.name] = os.open(folder / file.name, flags, 0o644)
                os.truncate(self._fds[file.name], file.nbytes)
                self._put(file, memoryview(file.header), 0)
        except BaseException:
            self.close()
            raise

    def write(self, file: OutputFile, name: str, tensor: torch.Tensor, begin: int = 0) -> None:
        """Writes a CPU tensor, or what of it begins at that byte."""
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        self._put(file, raw.numpy().data, len(file.header) + file.entries[name].begin + begin)

    def _put(self, file: OutputFile, data: memoryview, offset: int) -> None:
        fd = self._fds[file.name]
        done = 0
        while done < len(data):
            written = os.pwrite(fd, data[done : done + _CHUNK_BYTES], offset + done)
            done += written
            self._count(file, written)

    def copy(self, file: OutputFile, name: str, shard: Shard, source: str, begin: int = 0) -> None:
        """Copies the bytes of a tensor from a source file, to what begins at that byte of this one."""
        entry = shard.entries[source]
        offset = len(file.header) + file.entries[name].begin + begin
        for count in copied(shard.fd, shard.path, self._fds[file.name], entry.nbytes, entry.begin, offset):
            self._count(file, count)

    def _count(self, file: OutputFile, nbytes: int) -> None:
        with self._lock:
            self._on_bytes(nbytes)
            self._left[file.name] -= nbytes
            if self._left[file.name] == 0:
                self._on_file(file.name)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)

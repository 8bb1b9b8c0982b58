"""Output files, filled by a thread of their own while the next tensor is converted."""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch

from .plan import OutputFile
from .shard import Shard

_BUFFERS = 2  # one is filled while the other is written
_COPY_BYTES = 1 << 22  # at a time: longer writes were slower, and progress shows
_NOT_THERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Writer:
    """Writes tensors to where the headers of their files say. A context manager: leaving it waits, or gives up.

    Args:
        folder: where the files go.
        on_bytes: called from the writing thread with every count of bytes written.
        on_file: called with the name of each file that is whole.
    """

    def __init__(self, folder: Path, on_bytes: Callable[[int], None], on_file: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_bytes = on_bytes
        self._on_file = on_file
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="awqpack-writer")
        self._pending: list[Future[None]] = []
        self._fds: dict[str, int] = {}
        self._left: dict[str, int] = {}
        self._buffers: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._buffers.put(torch.empty(0, dtype=torch.uint8))

    def buffer(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory for a tensor that `write` gives back; waits until some is free. Its pages are touched already."""
        self._raise_failures()
        nbytes = dtype.itemsize * shape[0] * shape[1]
        memory = self._buffers.get()
        if memory.numel() < nbytes:
            memory = torch.empty(nbytes, dtype=torch.uint8)
        return memory[:nbytes].view(dtype).view(shape)

    def open(self, file: OutputFile) -> None:
        """Makes a file of its full length, with its header."""
        if file.name not in self._fds:
            fd = os.open(self._folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._fds[file.name] = fd
            self._left[file.name] = file.nbytes
            os.truncate(fd, file.nbytes)
            self._submit(self._put, file, memoryview(file.header), 0)

    def write(self, file: OutputFile, name: str, tensor: torch.Tensor, *, is_buffer: bool = False) -> None:
        """Writes a contiguous CPU tensor, which must not change until then; `is_buffer`: it came from `buffer`."""
        self.open(file)
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        offset = len(file.header) + file.entries[name].begin
        self._submit(self._put, file, raw.numpy().data, offset, tensor if is_buffer else None)

    def copy(self, file: OutputFile, name: str, shard: Shard, source: str) -> None:
        """Copies the bytes of a tensor from a source file."""
        self.open(file)
        self._submit(self._copy, file, shard, source, len(file.header) + file.entries[name].begin)

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        self._raise_failures()
        self._pending.append(self._pool.submit(work, *arguments))

    def _raise_failures(self) -> None:
        while self._pending and self._pending[0].done():
            self._pending.pop(0).result()

    def _put(self, file: OutputFile, data: memoryview, offset: int, buffer: torch.Tensor | None = None) -> None:
        try:
            for begin in range(0, len(data), _COPY_BYTES):
                part = data[begin : begin + _COPY_BYTES]
                done = 0
                while done < len(part):
                    done += os.pwrite(self._fds[file.name], part[done:], offset + begin + done)
                self._count(file, len(part))
        finally:
            if buffer is not None:
                self._buffers.put(torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage()))

    def _copy(self, file: OutputFile, shard: Shard, source: str, offset: int) -> None:
        entry = shard.entries[source]
        begin = entry.begin
        while begin < entry.end:
            count = min(entry.end - begin, _COPY_BYTES)
            done = _copy_range(shard.fd, self._fds[file.name], count, begin, offset + begin - entry.begin)
            begin += done
            self._count(file, done)

    def _count(self, file: OutputFile, nbytes: int) -> None:
        self._on_bytes(nbytes)
        self._left[file.name] -= nbytes
        if self._left[file.name] == 0:
            self._on_file(file.name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)
            if kind is None:
                for future in self._pending:
                    future.result()
        finally:
            for fd in self._fds.values():
                os.close(fd)


def _copy_range(source: int, target: int, count: int, begin: int, offset: int) -> int:
    """Copies up to count bytes inside the kernel, where it can; returns how many."""
    try:
        done = os.copy_file_range(source, target, count, begin, offset)
        if done > 0:
            return done
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    data = os.pread(source, count, begin)
    if not data:
        raise OSError(errno.EIO, "a source file became shorter")
    return os.pwrite(target, data, offset)

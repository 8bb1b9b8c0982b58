"""Threads that each convert whole layers, so that one computes while another waits for the disk."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Task = Callable[[], None]
Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8  # each holds a layer in memory; more than this are no faster than the disk


def run_all(tasks: Mapping[str, Iterable[Task]]) -> None:
    """Runs tasks on several threads; the first exception ends it, once running tasks have ended.

    Args:
        tasks: by the file that they write. A system lets one thread at a time write into a file, and so each thread
            stays with a file of its own while there are enough.
    """
    queue = _Queue(tasks)
    with _threads() as (pool, count):
        try:
            done, _ = wait([pool.submit(queue.work) for _ in range(count)], return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            queue.stop()


def map_all(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of a function in the order of the items, worked out on several threads."""
    with _threads() as (pool, _):
        return list(pool.map(function, items))


@contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """As many threads as torch may use. Each works with one thread of torch's: more would compete with the others."""
    of_torch = torch.get_num_threads()
    count = min(of_torch, _MOST)
    pool = ThreadPoolExecutor(count, "awqpack", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool, count
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(of_torch)


class _Queue:
    """Tasks by file, and how many threads are at each file."""

    def __init__(self, tasks: Mapping[str, Iterable[Task]]) -> None:
        self._lock = threading.Lock()
        self._tasks = {file: deque(of_file) for file, of_file in tasks.items()}
        self._threads: Counter[str] = Counter()

    def work(self) -> None:
        """Runs tasks until none is left."""
        file: str | None = None
        while True:
            file, task = self._take(file)
            if task is None:
                return
            task()

    def _take(self, file: str | None) -> tuple[str | None, Task | None]:
        """The next task of this file; once it has none, of the first file among those with the fewest threads."""
        with self._lock:
            if file is None or not self._tasks[file]:
                if file is not None:
                    self._threads[file] -= 1
                waiting = [name for name, tasks in self._tasks.items() if tasks]
                if not waiting:
                    return None, None
                file = min(waiting, key=self._threads.__getitem__)
                self._threads[file] += 1
            return file, self._tasks[file].popleft()

    def stop(self) -> None:
        """Leaves out what has not begun."""
        with self._lock:
            for tasks in self._tasks.values():
                tasks.clear()


class Buffers(threading.local):
    """Memory that each thread reuses: fresh memory costs page faults, several times the packing."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, purpose: str, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
        """An uninitialised tensor, which the next call for the same purpose overwrites."""
        count = shape[0] * shape[1] * dtype.itemsize
        memory = self._memory.get(purpose)
        if memory is None or memory.numel() < count:
            self._memory.pop(purpose, None)
            memory = None  # before there is more of it
            memory = self._memory[purpose] = _in_large_pages(count)
        return memory[:count].view(dtype).view(shape)


def _in_large_pages(count: int) -> torch.Tensor:
    """Memory in pages of 2 MiB where the system has them: the columns of a weight are met a small page apart."""
    try:
        memory = mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE)
    except OSError:  # which would be taken for a file's
        return torch.empty(count, dtype=torch.uint8)
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)

"""Threads that each convert whole layers, so that one computes while another waits for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

_MOST = 8  # each holds a layer in memory; more than this are no faster than the disk


def run_all(tasks: Iterable[Callable[[], None]]) -> None:
    """Runs tasks on as many threads as torch may use; the first exception ends it, once running tasks have ended.

    While it runs, torch works on each task with one thread: its own threads would compete with these.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(threads, _MOST), "awqpack", initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = [pool.submit(task) for task in tasks]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


class Buffers(threading.local):
    """Memory that each thread reuses: fresh memory costs page faults, several times the packing."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, dtype: torch.dtype, shape: tuple[int, int]) -> torch.Tensor:
        """An uninitialised tensor, which the next call overwrites."""
        nbytes = dtype.itemsize * shape[0] * shape[1]
        if self._memory.numel() < nbytes:
            self._memory = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[:nbytes].view(dtype).view(shape)

"""The processes that carry out one conversion: one alone, or the ranks that torchrun started.

Ranks exchange a few short texts through the store that torchrun keeps for them, and no tensor: no process group is
needed. One that waits sees within a second that another failed or died.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError
from .journal import difference
from .staging import is_free, rank_lock
from .workers import map_all

Item = TypeVar("Item")
_POLL_SECONDS = 0.3
_TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class _Told(CheckpointError):
    """What every rank says in the same words."""


class Team:
    """One process alone; what is said of ranks here is what :class:`Ranks` does."""

    rank = 0
    count = 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around all that ranks do together: what one raises, all raise."""
        yield

    def exchange(self, value: Any) -> list[Any]:
        """What each rank gave, in their order, once all have: anything that JSON holds."""
        return [value]

    def poll(self) -> None:
        """Raises CheckpointError when another rank has failed or died; a call now and then costs nothing."""

    def count_own(self, nbytes: int, file: str | None = None) -> None:
        """Tells the first rank of bytes that this one wrote, and of a file that is whole."""

    def show_others(self, advance: Callable[[int], None], finish: Callable[[str], None]) -> None:
        """From here on, a rank that polls hears of bytes that others wrote, and of their files."""

    def hold(self, folder: Path) -> None:
        """From here on, a lock in a folder says that this rank lives."""

    def may_speak(self) -> bool:
        """Whether to print how it ended: true in one rank."""
        return True

    def dead(self) -> str | None:
        """Which other rank died, in words."""
        return None

    def map(self, function: Callable[[Item], str | None], items: Iterable[Item]) -> list[str | None]:
        """Results in the order of the items, of which each rank works out a part, on several threads."""
        return map_all(function, items)

    def all(self, is_true: Callable[[Item], bool], items: Sequence[Item]) -> bool:
        """Whether that holds for every item, of which each rank looks at a part."""
        return all(map(is_true, items))

    def require_same(self, identity: Mapping[str, str]) -> None:
        """Raises CheckpointError when ranks were given different arguments, or see different files."""


class Ranks(Team):
    """One of several processes.

    Args:
        rank, count: which, and of how many.
        store: torch's, which all of them reach.
    """

    def __init__(self, rank: int, count: int, store: Any) -> None:
        self.rank = rank
        self.count = count
        self._store = store
        self._step = 0
        self._polled = 0.0
        self._folder: Path | None = None
        self._lock: int | None = None
        self._own: tuple[int, list[str]] = (0, [])
        self._seen: dict[int, tuple[int, int]] = {}  # rank -> bytes and files that were shown
        self._show: tuple[Callable[[int], None], Callable[[str], None]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except _Told:
            raise
        except CheckpointError as error:
            text = f"rank {self.rank} of {self.count}: {error}"
            self._tell(text)
            raise _Told(text) from None
        except Exception as error:
            self._tell(f"rank {self.rank} of {self.count}: {type(error).__name__}: {error}")
            raise
        finally:
            with suppress(RuntimeError):
                self._store.set(f"left/{self.rank}", "")
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _tell(self, text: str) -> None:
        with suppress(RuntimeError):
            self._store.set("failed", text)

    def exchange(self, value: Any) -> list[Any]:
        self._step += 1
        keys = [f"{self._step}/{rank}" for rank in range(self.count)]
        try:
            self._pass_progress()
            self._store.set(keys[self.rank], json.dumps(value))
            pause = 0.001
            while not self._store.check(keys):
                self.poll()
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            self._pass_progress()
            return [json.loads(self._store.get(key)) for key in keys]
        except RuntimeError as error:
            raise _lost(error) from None

    def poll(self) -> None:
        now = time.monotonic()
        if now - self._polled < _POLL_SECONDS:
            return
        self._polled = now
        try:
            if self._store.check(["failed"]):
                raise _Told(self._store.get("failed").decode())
            if (dead := self.dead()) is not None:
                raise _Told(dead)
            self._pass_progress()
        except RuntimeError as error:
            raise _lost(error) from None

    def count_own(self, nbytes: int, file: str | None = None) -> None:
        written, files = self._own
        self._own = written + nbytes, files if file is None else [*files, file]

    def show_others(self, advance: Callable[[int], None], finish: Callable[[str], None]) -> None:
        self._show = advance, finish

    def _pass_progress(self) -> None:
        self._store.set(f"progress/{self.rank}", json.dumps(self._own))
        if self._show is None:
            return
        for rank in range(self.count):
            key = f"progress/{rank}"
            if rank == self.rank or not self._store.check([key]):
                continue
            nbytes, files = json.loads(self._store.get(key))
            shown, shown_files = self._seen.get(rank, (0, 0))
            self._seen[rank] = nbytes, len(files)
            self._show[0](nbytes - shown)
            for name in files[shown_files:]:
                self._show[1](name)

    def hold(self, folder: Path) -> None:
        self._lock = os.open(rank_lock(folder, self.rank), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.exchange(None)
        self._folder = folder

    def dead(self) -> str | None:
        if self._folder is None:
            return None
        for rank in range(self.count):
            if rank == self.rank or not is_free(rank_lock(self._folder, rank)):
                continue
            with suppress(RuntimeError):
                if not self._store.check([f"left/{rank}"]):
                    return f"rank {rank} of {self.count} died; files that are whole are kept, and --resume goes on"
        return None

    def may_speak(self) -> bool:
        try:
            return bool(self._store.add("spoken", 1) == 1)
        except RuntimeError:
            return self.rank == 0

    def map(self, function: Callable[[Item], str | None], items: Iterable[Item]) -> list[str | None]:
        given = list(items)
        parts = self.exchange(map_all(function, given[self.rank :: self.count]))
        return [parts[i % self.count][i // self.count] for i in range(len(given))]

    def all(self, is_true: Callable[[Item], bool], items: Sequence[Item]) -> bool:
        return all(self.exchange(all(map(is_true, items[self.rank :: self.count]))))

    def require_same(self, identity: Mapping[str, str]) -> None:
        everyone = self.exchange(dict(identity))
        for rank, other in enumerate(everyone):
            found = difference(everyone[0], other)
            if found is not None:
                key, first, there = found
                raise _Told(f"ranks differ: rank 0 has {first} for {key}; rank {rank} has {there}")


def team_of_environment() -> Team:
    """The ranks that torchrun started, if it started this process and others; otherwise this one alone.

    Raises:
        CheckpointError: torchrun's store cannot be reached.
    """
    environment = os.environ
    if not all(name in environment for name in _TORCHRUN) or int(environment["WORLD_SIZE"]) < 2:
        return Team()
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, count = next(rendezvous("env://"))
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from None
    return Ranks(rank, count, PrefixStore("awqpack", store))


def _lost(error: Exception) -> CheckpointError:
    return _Told(f"the store of the ranks cannot be reached ({str(error).splitlines()[0]})")

"""Writing beside the target and renaming at the end, so that a target is whole or not there, whenever a run stops."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from .errors import CheckpointError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class Staging:
    """A hidden folder beside a target. Entering it makes it, leaving it removes it; `commit` puts its content in place.

    What a killed run left behind is recognised by its name, and removed by the next run for the same target. A lock on
    a file in the folder tells it from one that is still at work.
    """

    def __init__(self, target: Path, *, force: bool) -> None:
        """Raises CheckpointError when the target is there and force is not set, or cannot be written."""
        self.target = target
        self._force = force
        self._parent = target.parent
        self._folder = self._parent / f".{target.name}.awqpack-partial"
        self._old = self._parent / f".{target.name}.awqpack-old"
        self.content = self._folder / "content"  # what becomes the target
        self._lock: int | None = None

    def check(self) -> None:
        """Raises CheckpointError when the target cannot be written; changes nothing."""
        if not self._parent.is_dir():
            raise CheckpointError(f"{self.target}: the directory {self._parent} does not exist")
        if os.path.lexists(self.target) and not self._force:
            raise CheckpointError(f"{self.target}: exists already; --force (force=True) replaces it")
        if not os.access(self._parent, os.W_OK):
            raise CheckpointError(f"{self.target}: {self._parent} is not writable")

    def require_space(self, nbytes: int) -> None:
        """Raises CheckpointError when the file system has less room than that."""
        free = shutil.disk_usage(self._parent).free
        if free < nbytes:
            raise CheckpointError(f"{self.target}: needs {nbytes} bytes; {self._parent} has {free} free")

    def __enter__(self) -> Staging:
        self.check()
        try:
            self._folder.mkdir(exist_ok=True)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{self.target}: another awqpack is writing it") from None
            self._recover()
            _remove(self.content)
            if self.target.suffix != ".safetensors":
                self.content.mkdir()
        except OSError as error:
            self._unlock()
            raise CheckpointError(f"{self.target}: cannot be written ({error.strerror or error})") from None
        except BaseException:
            self._unlock()
            raise
        return self

    def _recover(self) -> None:
        """Ends what a run was killed at while it put its content in place without an atomic exchange."""
        if not os.path.lexists(self._old):
            return
        if os.path.lexists(self.target):
            _remove(self._old)
        else:
            self._old.rename(self.target)

    def commit(self) -> None:
        """The content becomes the target; an earlier target goes only once it is there."""
        try:
            if not os.path.lexists(self.target):
                self.content.rename(self.target)
            elif _exchange(self.content, self.target):
                _remove(self.content)
            else:
                self.target.rename(self._old)
                self.content.rename(self.target)
                _remove(self._old)
        except OSError as error:
            raise CheckpointError(f"{self.target}: cannot be put in place ({error.strerror or error})") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self._folder)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two paths at once; False where the C library or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))

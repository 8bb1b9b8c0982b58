"""Writing beside the target and renaming at the end, so that a target is whole or not there, whenever a run stops."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType

from .errors import CheckpointError

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_LOCK = "lock"
_RANK = "rank-"


class Staging:
    """A hidden folder beside a target. Entering it makes it, leaving it removes it; `commit` puts its content in place.

    What a killed run left behind is recognised by its name, and removed by the next run for the same target. A lock on
    a file in the folder tells it from one that is still at work.

    Args:
        target: what will appear.
        force: replace one that is there.
        resume: leave what a killed run left behind, until ``clear``.
        is_kept: leave the folder when a run fails, for one that goes on from it.
    """

    def __init__(self, target: Path, *, force: bool, resume: bool = False, is_kept: bool = False) -> None:
        self.target = target
        self._force = force
        self._resume = resume
        self._is_kept = is_kept
        self._parent = target.parent
        self.folder = self._parent / f".{target.name}.awqpack-partial"
        self._old = self._parent / f".{target.name}.awqpack-old"
        self.content = self.folder / "content"  # what becomes the target
        self._lock: int | None = None

    def check(self) -> None:
        """Raises CheckpointError when the target cannot be written; changes nothing."""
        if not self._parent.is_dir():
            raise CheckpointError(f"{self.target}: the directory {self._parent} does not exist")
        if os.path.lexists(self.target) and not self._force:
            raise CheckpointError(f"{self.target}: exists already; --force (force=True) replaces it")
        if os.path.lexists(self.target):
            self._require_replaceable()
        if not os.access(self._parent, os.W_OK):
            raise CheckpointError(f"{self.target}: {self._parent} is not writable")

    def _require_replaceable(self) -> None:
        """Force replaces checkpoints; whatever else is there was hardly meant."""
        target = self.target
        if target.resolve() in (Path.cwd(), *Path.cwd().parents):
            raise CheckpointError(f"{target}: is the current directory, or above it, which is not replaced")
        is_checkpoint = (
            any(target.glob("*.safetensors")) or not any(target.iterdir())
            if target.is_dir()
            else target.suffix == ".safetensors"
        )
        if not is_checkpoint:
            raise CheckpointError(f"{target}: is no checkpoint; only one, or an empty directory, is replaced")

    def require_space(self, nbytes: int) -> None:
        """Raises CheckpointError when the file system has less room than that."""
        free = shutil.disk_usage(self._parent).free
        if free < nbytes:
            raise CheckpointError(f"{self.target}: needs {nbytes} bytes; {self._parent} has {free} free")

    def __enter__(self) -> Staging:
        self.check()
        try:
            self._take_lock()
            self._require_nobody()
            self._recover()
            if not self._resume:
                self.clear()
        except OSError as error:
            self._unlock()
            raise CheckpointError(f"{self.target}: cannot be written ({error.strerror or error})") from None
        except BaseException:
            self._unlock()
            raise
        return self

    def _take_lock(self) -> None:
        path = self.folder / _LOCK
        while True:
            if self.folder.is_symlink():
                raise CheckpointError(f"{self.folder}: is a link, which awqpack never makes; remove it")
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{self.target}: another awqpack is writing it") from None
            # whoever held it may have removed the file in between: then this lock is on nothing
            if path.exists() and os.path.samestat(os.fstat(self._lock), os.stat(path)):
                return
            self._unlock()

    def _require_nobody(self) -> None:
        """The lock is that of the first rank alone: others of its run may have outlived it."""
        for path in self.folder.glob(f"{_RANK}*"):
            if not is_free(path):
                raise CheckpointError(f"{self.target}: another awqpack is writing it")

    def clear(self, kept: Collection[Path] = ()) -> None:
        """Removes what a killed run left behind, but for some of it; nobody else is at work, as the lock is held."""
        around = {folder for path in kept for folder in path.parents}
        folders = [self.folder]
        while folders:
            for path in list(folders.pop().iterdir()):
                if path in around:
                    folders.append(path)
                elif path not in kept and path != self.folder / _LOCK:
                    _remove(path)
        if self.target.suffix != ".safetensors":
            self.content.mkdir(exist_ok=True)

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
            if not self._force or not os.path.lexists(self.target):
                _rename_new(self.content, self.target)
            elif _exchange(self.content, self.target):
                _remove(self.content)
            else:
                self.target.rename(self._old)
                self.content.rename(self.target)
                _remove(self._old)
        except FileExistsError:
            raise CheckpointError(
                f"{self.target}: appeared while it was written elsewhere; nothing was replaced"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{self.target}: cannot be put in place ({error.strerror or error})") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._is_kept:
            _remove(self.folder)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def rank_lock(folder: Path, rank: int) -> Path:
    """The file in a staging folder that one of several processes locks while it lives."""
    return folder / f"{_RANK}{rank}"


def is_free(path: Path) -> bool:
    """Whether a lock file is there and nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_remove_read_only)
    else:
        path.unlink(missing_ok=True)


def _remove_read_only(function: Callable[[str], object], path: str, failure: object) -> None:
    """Once more, in a directory made writable; what still cannot be removed stays."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.dirname(path), 0o700)
        os.chmod(path, 0o700)
        function(path)


def _rename_new(source: Path, target: Path) -> None:
    """Renames to a name that must be free: FileExistsError otherwise."""
    if _renameat2(source, target, _RENAME_NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two paths at once; False where that cannot be done."""
    return _renameat2(first, second, _RENAME_EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Renames as the flags say; False where the C library or the file system cannot. Raises OSError for all else."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))

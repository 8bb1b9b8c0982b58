"""Files of a checkpoint's directory: opened, listed and copied, whatever lies there."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import CheckpointError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
_OF_THE_KERNEL = ("/proc/", "/sys/")  # regular files by their mode, of any contents
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_MOST = 1024  # bytes of a Git LFS pointer
# They hold, and describe, the weights as they were.
_LEFT_BEHIND = (Path(".git"), Path(".cache"))
_CHUNK_BYTES = 1 << 20  # copied at a time, so that progress shows
Own = TypeVar("Own", bound="Closing")


class Closing(ABC):
    """A context manager that closes what it has open."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def open_regular(path: Path) -> int:
    """A file descriptor to read from. Raises CheckpointError for what is no regular file, or cannot be read."""
    try:
        if os.path.realpath(path).startswith(_OF_THE_KERNEL):
            raise CheckpointError(f"{path}: leads to {os.path.realpath(path)}, which is not read")
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind == stat.S_IFREG:
            # not to wait for a pipe that took its place meanwhile
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            if kind == stat.S_IFREG:
                return fd
            os.close(fd)
    except OSError as error:
        raise unreadable(path, error) from None
    raise CheckpointError(f"{path}: is {_KINDS.get(kind, 'no file')}; only regular files are read")


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to raise for an error of reading."""
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")


def read_at(fd: int, path: Path, buffer: memoryview, offset: int) -> None:
    """Fills a buffer from an offset on. Raises CheckpointError when the file cannot be read, or has become shorter."""
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, [buffer[done:]], offset + done)
        except OSError as error:
            raise unreadable(path, error) from None
        if count == 0:
            raise CheckpointError(f"{path}: became shorter while it was read")
        done += count


def require_no_pointer(path: Path, head: bytes) -> None:
    """Raises CheckpointError for the start of what Git LFS leaves in the place of a file."""
    if head.startswith(_LFS):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file itself: git lfs pull gets that")


def is_pointer(path: Path) -> bool:
    """Whether Git LFS left a pointer in the place of this file."""
    if path.stat().st_size > _LFS_MOST:
        return False
    with open(path, "rb") as file:
        return file.read(len(_LFS)) == _LFS


def copied(fd: int, path: Path, target: int, nbytes: int, begin: int, offset: int) -> Iterator[int]:
    """Copies bytes from begin on to an offset, inside the kernel where it can; gives how many, a chunk after the other.

    Raises:
        CheckpointError: the source cannot be read.
        OSError: the target cannot be written.
    """
    done = 0
    while done < nbytes:
        count = _copy_range(fd, path, target, min(nbytes - done, _CHUNK_BYTES), begin + done, offset + done)
        done += count
        yield count


def _copy_range(fd: int, path: Path, target: int, count: int, begin: int, offset: int) -> int:
    """Copies up to count bytes; returns how many."""
    try:
        done = os.copy_file_range(fd, target, count, begin, offset)
        if done > 0:
            return done
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        # whichever of the two it was, it will say so
    buffer = memoryview(bytearray(count))
    read_at(fd, path, buffer, begin)
    return os.pwrite(target, buffer, offset)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raises CheckpointError for what cannot be written meanwhile."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise CheckpointError(f"{target}: cannot be written ({what})") from None


def other_entries(root: Path, own: Collection[str]) -> list[Path]:
    """Files, links to directories and empty directories below `root`, relative to it.

    `own` are names of files at its top that are left out, as is what Git and the Hugging Face Hub keep there. Raises
    CheckpointError for a directory that cannot be read, and for a file that is no regular one.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error)

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        base = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if base / name not in _LEFT_BEHIND]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [base / name for name in links]
        found += [base / name for name in names if base != Path() or name not in (*own, ".git")]
        if not folders and not names and base != Path():
            found.append(base)
    for path in found:
        if not (root / path).is_dir():
            os.close(open_regular(root / path))
    return sorted(found)


def link_text(root: Path, path: Path) -> str:
    """What a copy of a link to a directory says: the way to it inside the checkpoint, or else the whole path."""
    text = os.readlink(root / path)
    leads_to, top = os.path.realpath(root / path), os.path.realpath(root)
    if leads_to != top and not leads_to.startswith(top + os.sep):
        return leads_to
    return os.path.relpath(leads_to, os.path.realpath(root / path.parent)) if os.path.isabs(text) else text


def copy_entry(root: Path, path: Path, target: Path) -> None:
    """Copies what `other_entries` found."""
    source = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and source.is_dir():
        target.symlink_to(link_text(root, path))
    elif source.is_dir():
        target.mkdir()
    else:
        _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> None:
    fd = open_regular(source)
    try:
        with open(target, "xb") as out:
            for _ in copied(fd, source, out.fileno(), os.fstat(fd).st_size, 0, 0):
                pass
    finally:
        os.close(fd)
    shutil.copystat(source, target)

"""What a conversion notes of the files that it has written, so that another run can keep those that are whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError

if TYPE_CHECKING:
    from .from_floats import FloatCheckpoint
    from .plan import OutputFile
    from .source import Checkpoint

VERSION = 1  # of what is written here
_HEAD = "journal.json"
_NOTES = "whole"  # the folder of notes: one for each file that is whole
_ANEW = "without --resume it is written anew"


def identity_of(checkpoint: Checkpoint | FloatCheckpoint, arguments: Mapping[str, object]) -> dict[str, str]:
    """What a conversion comes from, in words: its arguments, and the files of the source with sizes and times."""
    files = checkpoint.files
    stats = {name: os.stat(files.root / name) for name in [*files.names, *checkpoint.configs.files]}
    described = {name: f"{stat.st_size} bytes of {stat.st_mtime_ns} ns" for name, stat in stats.items()}
    return {key: repr(value) for key, value in arguments.items()} | described


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The first name that two identities have something else for, and what: (name, of one, of the other)."""
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            return key, one.get(key, "nothing"), other.get(key, "nothing")
    return None


def boot_id() -> str:
    """A name for the time since this machine started; after that, what no one waited for may be lost on its disk."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


class Journal:
    """Notes in the folder of a conversion.

    Args:
        folder: where notes go.
        content: the folder of the files that they are about.
        files: the tensor files that the conversion writes.
        identity: as `identity_of` gives it.
        is_synced: wait for the disk before a file counts as whole, so that it does after a crash of the system, too.
    """

    def __init__(
        self, folder: Path, content: Path, files: Sequence[OutputFile], identity: Mapping[str, str], *, is_synced: bool
    ) -> None:
        self._folder = folder
        self._content = content
        self._files = files
        self._is_synced = is_synced
        self._identity = dict(identity)
        self._identity["the planned files"] = _digest(files)

    def begin(self, token: str) -> None:
        """Writes who this is; the token tells whether another process sees the same folder."""
        (self._folder / _NOTES).mkdir(exist_ok=True)
        self._write(self._folder / _HEAD, {"version": VERSION, "token": token, "identity": self._identity})

    @property
    def token(self) -> str | None:
        """What `begin` was given; None where it wrote nothing that is seen here."""
        try:
            return str(json.loads((self._folder / _HEAD).read_bytes())["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def kept(self, boots: Collection[str]) -> list[str]:
        """Names of files of an interrupted run that are whole; none where there was no such run.

        Args:
            boots: what `boot_id` gives where this conversion runs.

        Raises:
            CheckpointError: that run was of another version, or of something else.
        """
        path = self._folder / _HEAD
        if not path.exists():
            return []
        try:
            head = json.loads(path.read_bytes())
            version, identity = head["version"], head.get("identity")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path}: is no journal of an interrupted run; {_ANEW}") from None
        if version != VERSION:
            raise CheckpointError(f"{path}: is of version {version!r}; this awqpack reads {VERSION}; {_ANEW}")
        found = difference(identity, self._identity) if isinstance(identity, dict) else ("identity", "none", "one")
        if found is not None:
            key, before, now = found
            raise CheckpointError(f"{path}: the interrupted run had {before} for {key}; this has {now}; {_ANEW}")
        return [file.name for file in self._files if self._is_whole(file, boots)]

    def paths(self, names: Collection[str]) -> list[Path]:
        """Those files and their notes."""
        return [path for name in names for path in (self._content / name, self._note(name))]

    def _note(self, name: str) -> Path:
        return self._folder / _NOTES / f"{name}.json"

    def record(self, name: str) -> None:
        """Notes that a file is whole."""
        if self._is_synced:
            fd = os.open(self._content / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        boot = None if self._is_synced else boot_id()
        self._write(self._note(name), {"boot": boot, "stamp": _stamp(self._content / name)})

    def missing(self, boots: Collection[str]) -> list[str]:
        """Names of files that are planned and not whole."""
        return [file.name for file in self._files if not self._is_whole(file, boots)]

    def _is_whole(self, file: OutputFile, boots: Collection[str]) -> bool:
        try:
            note = json.loads(self._note(file.name).read_bytes())
            stamp = _stamp(self._content / file.name)
            is_on_disk = note["boot"] is None or note["boot"] in boots
            return is_on_disk and note["stamp"] == stamp and stamp[0] == file.nbytes
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _write(self, path: Path, content: object) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(content))
        partial.replace(path)


def _stamp(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _digest(files: Iterable[OutputFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.nbytes} ".encode())
        digest.update(file.header)
    return digest.hexdigest()

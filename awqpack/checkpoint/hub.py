"""From what a user calls a checkpoint to its path: folders of the Hugging Face Hub's cache, names of models there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import CheckpointError

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+-]*):/+(?P<rest>.*)")
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CACHE_FOLDER = re.compile(r"models--(?P<id>[\w.-]+)")


def located(given: str | Path) -> Path:
    """The path of a checkpoint, given as a path or as the name of a model in the local cache.

    Raises:
        CheckpointError: a URL, a folder of the cache that is above a model, a name with a NUL.
    """
    path = plain_path(given)
    match = _URL.match(os.fspath(given))
    if match is not None and not path.exists():
        url = f"{match['scheme']}://{match['rest']}"
        id = re.match(r"(?:[\w.]+/)?([\w.-]+/[\w.-]+)", match["rest"])
        advice = (
            "" if id is None or "huggingface" not in url else f": hf download {id[1]} --local-dir {Path(id[1]).name}"
        )
        raise CheckpointError(f"{url}: is a URL; download it, and name the folder{advice}")
    if os.path.lexists(path):
        _require_no_cache_folder(path)
        return path
    if _ID.fullmatch(str(path)) and not path.parent.exists():
        return _snapshot(_cache() / f"models--{str(path).replace('/', '--')}") or path
    return path


def plain_path(given: str | Path) -> Path:
    """A path. Raises CheckpointError for one that no file can have."""
    if "\0" in os.fspath(given):
        raise CheckpointError(f"{os.fspath(given)!r}: expects a path; a NUL cannot be part of one")
    return Path(given)


def advice(path: Path) -> str:
    """How to get what is not there, where its name is one of the Hub's; empty otherwise."""
    if _ID.fullmatch(str(path)) and not path.parent.exists():
        return f"; to get a model of the Hugging Face Hub: hf download {path} --local-dir {path.name}"
    return ""


def _require_no_cache_folder(path: Path) -> None:
    match = _CACHE_FOLDER.fullmatch(path.absolute().name)
    if match is None or not (path / "snapshots").is_dir():
        return
    snapshot = _snapshot(path)
    if snapshot is None:
        raise CheckpointError(f"{path}: is a folder of the Hugging Face Hub's cache, without a snapshot of the model")
    raise CheckpointError(f"{path}: is a folder of the Hugging Face Hub's cache; name the snapshot in it: {snapshot}")


def _snapshot(folder: Path) -> Path | None:
    """The snapshot that the branch main names, or the newest; None where there is none."""
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        if named.is_dir():
            return named
    if not (folder / "snapshots").is_dir():
        return None
    return max((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, default=None)


def _cache() -> Path:
    """The Hub's cache, as its own client finds it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface")
    return Path(home) / "hub"

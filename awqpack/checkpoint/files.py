"""What lies in a checkpoint's directory beside its tensors and configuration."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from .errors import CheckpointError


def other_entries(root: Path, own: Collection[str]) -> list[Path]:
    """Files, links to directories and empty directories below `root`, relative to it.

    `own` are names of files at its top that are left out. Raises CheckpointError for a directory that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})")

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        base = Path(folder).relative_to(root)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [base / name for name in links]
        found += [base / name for name in names if base != Path() or name not in own]
        if not folders and not names and base != Path():
            found.append(base)
    return sorted(found)

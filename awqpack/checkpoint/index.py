"""The index of a sharded checkpoint: which file has which tensor. Read, and written for another set of files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .json_files import dump_like, read_json

INDEX_SUFFIX = ".safetensors.index.json"
_USUAL_NAME = "model" + INDEX_SUFFIX


@dataclass(frozen=True)
class Index:
    """An index file."""

    path: Path
    content: dict[str, Any]
    text: str

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file name."""
        found: dict[str, str] = self.content["weight_map"]
        return found

    @property
    def total_size(self) -> Any:
        """What its metadata says of the bytes of all tensors; None where nothing."""
        metadata = self.content.get("metadata")
        return metadata.get("total_size") if isinstance(metadata, dict) else None


def find_index(folder: Path) -> Index | None:
    """The index of a folder, the usual one where there are several. Raises CheckpointError for one that is none."""
    found = sorted(folder.glob("*" + INDEX_SUFFIX))
    preferred = [path for path in found if path.name == _USUAL_NAME] or found
    if not preferred:
        return None
    path = preferred[0]
    index = Index(path, *read_json(path))
    _require_weight_map(path, index.content.get("weight_map"))
    return index


def _require_weight_map(path: Path, weight_map: object) -> None:
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: expects a weight_map of tensor names to file names")
    for tensor, name in weight_map.items():
        # a name that holds a directory could lead anywhere
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or "\\" in name:
            raise CheckpointError(f"{path}: expects plain file names; {tensor} is in {name!r}")
        if not os.path.isfile(path.parent / name):  # Path.is_file raises for a name that no file system takes
            raise CheckpointError(f"{path}: names {name}, which is missing")


def rewritten_index(index: Index | None, where: Mapping[str, str], total_size: int) -> tuple[str, str]:
    """Name and text of the index of these tensors, in the style of the one that is there.

    Args:
        index: the source's.
        where: tensor name -> file name.
        total_size: bytes of all tensors.
    """
    content = copy.deepcopy(index.content) if index is not None else {}
    if not isinstance(content.get("metadata"), dict):
        content["metadata"] = {}
    content["metadata"]["total_size"] = total_size
    content["weight_map"] = dict(sorted(where.items()))
    if index is None:
        return _USUAL_NAME, json.dumps(content, indent=2) + "\n"
    return index.path.name, dump_like(content, index.text)

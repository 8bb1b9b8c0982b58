"""Files of awqpack.save_file: packed tensors by themselves, without the scales that make layers of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..formats import format_of
from ..serialization import packed_entries
from .errors import CheckpointError
from .hub import located
from .shard import Shard


@dataclass(frozen=True)
class PackedInfo:
    """A packed tensor: how it is packed, the shape of its codes, the bytes of its payload."""

    name: str
    packing: str
    reorder: bool
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class PackedFile:
    """What `inspect_packed` found; other tensors are those that are not packed."""

    path: str
    tensors: tuple[PackedInfo, ...]
    other_tensors: int
    other_bytes: int


def inspect_packed(path: str | Path) -> PackedFile | None:
    """Reads the header of a file that awqpack.save_file wrote; None for anything else.

    Raises:
        CheckpointError: the file cannot be read, or its header does not fit its tensors.
    """
    path = located(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with Shard(path) as shard:
        try:
            entries = packed_entries(shard.metadata, path)
            stored = {entry["key"] for entry in entries.values()}
            tensors = tuple(
                PackedInfo(
                    name=name,
                    packing=format_of(entry["packing"], entry["reorder"]).name,
                    reorder=entry["reorder"],
                    shape=tuple(entry["size"]),
                    nbytes=shard.entries[entry["key"]].nbytes,
                )
                for name, entry in entries.items()
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the header of packed tensors does not fit the file ({error})") from None
    if not tensors:
        return None
    others = [entry for name, entry in shard.entries.items() if name not in stored]
    return PackedFile(str(path), tensors, len(others), sum(entry.nbytes for entry in others))

"""The safetensors files of a checkpoint, open, and which of them has which tensor."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from .errors import CheckpointError
from .files import unreadable
from .hub import advice
from .index import Index, find_index
from .packed import holds_any_codes
from .shard import Entry, Shard

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SAVE_ANEW = "safetensors.torch.save_file writes one of what torch.load(path, weights_only=True) reads"


class TensorFiles:
    """The files of a directory that hold its tensors, or one file.

    Attributes:
        path: as it was given.
        is_file: whether it is one file.
        index: of a sharded checkpoint; None otherwise.
        shards: by file name, in the order in which the index first names them, then those of ``side``.
        side: names of files with quantized layers that are no part of the index, or beside model.safetensors.
        where: tensor name -> name of its shard.
        problems: where index and files disagree, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError when nothing is there, or a file is missing or no whole safetensors file."""
        self.path = path
        try:
            self.is_file = path.is_file()
        except OSError as error:
            raise unreadable(path, error) from None
        _require_safetensors(path)
        self.index: Index | None = None if self.is_file else find_index(path)
        self.shards: dict[str, Shard] = {}
        self.side: frozenset[str] = frozenset()
        self.problems: list[str] = []
        try:
            for name in self._model_files():
                self.shards[name] = Shard(self.root / name)
            if not self.is_file:
                self._open_side_files()
            self.where = self._place_tensors()
        except BaseException:
            self.close()
            raise

    @property
    def root(self) -> Path:
        """The directory that the files are in."""
        return self.path.parent if self.is_file else self.path

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()
        self.shards = {}

    def _model_files(self) -> list[str]:
        if self.is_file:
            return [self.path.name]
        if self.index is not None:
            return list(dict.fromkeys(self.index.weight_map.values()))
        names = sorted(path.name for path in self.path.glob("*.safetensors"))
        if "model.safetensors" in names:
            return ["model.safetensors"]
        if not names:
            pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in _PICKLED)
            raise CheckpointError(
                f"{self.path}: holds no .safetensors file" + (f" but {pickled[0]}; {_SAVE_ANEW}" if pickled else "")
            )
        _require_every_part(self.path, names)
        return names

    def _open_side_files(self) -> None:
        """Opens what holds quantized layers beside the model, such as those that predict further tokens."""
        side = []
        for path in sorted(self.path.glob("*.safetensors")):
            if path.name not in self.shards and holds_layers(path):
                self.shards[path.name] = Shard(path)
                side.append(path.name)
        self.side = frozenset(side)

    def _place_tensors(self) -> dict[str, str]:
        where: dict[str, str] = {}
        for name, shard in self.shards.items():
            for tensor in shard.entries:
                if tensor in where:
                    raise CheckpointError(f"{self.path}: {tensor} is in {where[tensor]} and in {name}")
                where[tensor] = name
        if self.index is not None:
            listed = self.index.weight_map
            for tensor, name in listed.items():
                if where.get(tensor) != name:
                    self.problems.append(f"{tensor} is not in {name}, where the index has it")
            self.problems += [
                f"{tensor} in {where[tensor]} is missing in the index"
                for tensor in where.keys() - listed
                if where[tensor] not in self.side
            ]
        return where

    @property
    def names(self) -> list[str]:
        """Of the files, and of their index."""
        return [*self.shards, *([] if self.index is None else [self.index.path.name])]

    @property
    def metadata(self) -> dict[str, str]:
        """Of all files; where they differ, the first one's."""
        merged: dict[str, str] = {}
        for shard in self.shards.values():
            merged = {**shard.metadata, **merged}
        return merged

    def shard(self, tensor: str) -> Shard:
        """The file of a tensor."""
        return self.shards[self.where[tensor]]

    def entry(self, tensor: str) -> Entry:
        """What the header says of a tensor."""
        return self.shard(tensor).entries[tensor]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, read into fresh memory."""
        return self.shard(name).tensor(name)

    def require_unchanged(self) -> None:
        """Raises CheckpointError when somebody has written to a file since it was opened."""
        for shard in self.shards.values():
            shard.require_unchanged()


def holds_layers(path: Path) -> bool:
    """Whether a file is a safetensors file with quantized layers."""
    try:
        with Shard(path) as shard:
            return any(holds_any_codes(tensor, entry.spec) for tensor, entry in shard.entries.items())
    except CheckpointError:
        return False


def _require_every_part(folder: Path, names: list[str]) -> None:
    """Raises CheckpointError for a file without the others that its name counts: half a download."""
    for match in filter(None, map(_PART.fullmatch, names)):
        count = int(match["count"])
        # as many names at most as are there, whatever a name says
        for number in range(1, min(count, len(names) + 1) + 1):
            name = f"{match['stem']}-{number:0{len(match['number'])}}-of-{match['count']}.safetensors"
            if name not in names:
                raise CheckpointError(f"{folder}: {name} is missing, of the {count} that {match[0]} is one of")


def _require_safetensors(path: Path) -> None:
    """Raises CheckpointError for a path that is nothing, or a file of another kind; says how to get the right one."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: no such file or directory{advice(path)}")
    if path.suffix in _PICKLED and path.is_file():
        raise CheckpointError(f"{path}: expects a directory or a .safetensors file; {_SAVE_ANEW}")

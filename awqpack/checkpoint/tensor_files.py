"""The safetensors files of a checkpoint, open, and which of them has which tensor."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .errors import CheckpointError
from .hub import advice
from .index import Index, find_index
from .shard import Entry, Shard

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SAVE_ANEW = "safetensors.torch.save_file writes one of what torch.load(path, weights_only=True) reads"


class TensorFiles:
    """The files of a directory that hold its tensors, or one file.

    Attributes:
        path: as it was given.
        is_file: whether it is one file.
        index: of a sharded checkpoint; None otherwise.
        shards: by file name, in the order in which the index first names them.
        where: tensor name -> name of its shard.
        problems: where index and files disagree, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError when nothing is there, or a file is missing or no whole safetensors file."""
        self.path = path
        self.is_file = path.is_file()
        _require_safetensors(path)
        self.index: Index | None = None if self.is_file else find_index(path)
        self.shards: dict[str, Shard] = {}
        self.problems: list[str] = []
        try:
            for name in self._names():
                self.shards[name] = Shard(self.root / name)
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

    def _names(self) -> list[str]:
        if self.is_file:
            return [self.path.name]
        if self.index is not None:
            return self.index.files
        names = sorted(path.name for path in self.path.glob("*.safetensors"))
        if "model.safetensors" in names:
            return ["model.safetensors"]
        if not names:
            pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in _PICKLED)
            raise CheckpointError(
                f"{self.path}: holds no .safetensors file" + (f" but {pickled[0]}; {_SAVE_ANEW}" if pickled else "")
            )
        return names

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
                f"{tensor} in {where[tensor]} is missing in the index" for tensor in where.keys() - listed
            ]
        return where

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
        """A tensor's values, not to be written."""
        return self.shard(name).tensor(name)

    def release(self, tensor: str) -> None:
        """Lets go of the memory that reading a tensor took."""
        self.shard(tensor).release(tensor)


def _require_safetensors(path: Path) -> None:
    """Raises CheckpointError for a path that is nothing, or a file of another kind; says how to get the right one."""
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: no such file or directory{advice(path)}")
    if path.suffix in _PICKLED and path.is_file():
        raise CheckpointError(f"{path}: expects a directory or a .safetensors file; {_SAVE_ANEW}")

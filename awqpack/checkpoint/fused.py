"""Tensors that hold the same layer of several experts, one after the other along their first dimension."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..layouts import TensorSpec
from ..layouts.weight import TakeBytes
from .packed import holds_fused_codes
from .shard import Shard
from .tensor_files import TensorFiles

# What follows the name of a parameter, in compressed-tensors' and in gpt-oss' checkpoints: the layout's name for it.
_OF_PARAMETERS = {
    "_packed": {f"_{part}": f"weight_{part}" for part in ("packed", "scale", "zero_point", "shape")},
    "_blocks": {"_blocks": "blocks", "_scales": "scales"},
}
_OF_MODULES = ("weight", "scales", "biases")  # MLX's
MLX_EXPERTS = "switch_mlp"
MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}  # its experts, whose names MLX replaces
_GATE_AND_UP = "gate_up_proj"


@dataclass(frozen=True)
class Experts:
    """Where a layer lies among the rows of several experts.

    Attributes:
        name: of the parameter or module that they are.
        count: of experts.
        rows: out_features of each expert.
        begin, end: rows of the layer, counted through all experts.
        is_parameter: they are one tensor in floats too.
    """

    name: str
    count: int
    rows: int
    begin: int
    end: int
    is_parameter: bool

    @property
    def bias(self) -> str:
        """Full name of the bias, where they have one."""
        return f"{self.name}_bias" if self.is_parameter else f"{self.name}.bias"

    def rows_of(self, stored: int) -> tuple[int, int, int]:
        """Rows begin..end of a tensor that has this many for an expert, and how many it has altogether."""
        return self.begin * stored // self.rows, self.end * stored // self.rows, self.count * stored

    def share_of(self, nbytes: int) -> int:
        """Bytes of a tensor that are this layer's."""
        return nbytes * (self.end - self.begin) // (self.count * self.rows)


@dataclass(frozen=True)
class FusedTensors:
    """Tensors of one parameter or module.

    Attributes:
        name: of it.
        tensors: by the layout's name for each, the tensor's full name.
        specs: of one expert's part of them.
        count: of experts.
        is_parameter: as in Experts.
    """

    name: str
    tensors: dict[str, str]
    specs: dict[str, TensorSpec]
    count: int
    is_parameter: bool


def rows_of(shard: Shard, tensor: str, experts: Experts | None, begin: int, end: int, take: TakeBytes) -> torch.Tensor:
    """Rows begin..end of a layer's weight: all of a tensor, or where it lies among experts."""
    if experts is None:
        return shard.rows(tensor, begin, end, take)
    first, _, rows = experts.rows_of(experts.rows)
    return shard.matrix(tensor, rows, first + begin, first + end, take)


def names_of_experts(name: str, count: int, rows: int, *, is_parameter: bool) -> Iterator[tuple[str, Experts]]:
    """The layers of each expert, by the names that they have where each is a module of its own.

    Args:
        name: of the parameter or module that the experts are together.
        count: of experts.
        rows: out_features of each.
        is_parameter: as in Experts.
    """
    parent, _, last = name.rpartition(".")
    parent = parent.removesuffix(f".{MLX_EXPERTS}")
    names = [last]
    if is_parameter and last == _GATE_AND_UP:
        names = ["gate_proj", "up_proj"]
    elif parent.endswith("block_sparse_moe"):
        names = [MIXTRAL.get(last, last)]
    parent = parent if parent.rpartition(".")[2] == "experts" else f"{parent}.experts"
    length = rows // len(names)
    for expert in range(count):
        for number, of_one in enumerate(names):
            begin = expert * rows + number * length
            yield f"{parent}.{expert}.{of_one}", Experts(name, count, rows, begin, begin + length, is_parameter)


def fused_tensors(files: TensorFiles, tensor: str) -> FusedTensors | None:
    """What belongs to codes of several experts; None for a tensor that is none of theirs."""
    spec = files.entry(tensor).spec
    dims = len(spec.shape)
    for suffix, names in _OF_PARAMETERS.items():
        if holds_fused_codes(tensor, spec) and tensor.endswith(suffix) and dims == (4 if suffix == "_blocks" else 3):
            stem = tensor.removesuffix(suffix)
            tensors = {name: stem + end for end, name in names.items() if stem + end in files.where}
            return _fused(files, stem, tensors, is_parameter=True)
    module, _, last = tensor.rpartition(".")
    is_of_mlx = last == "weight" and spec.dtype == torch.uint32 and dims == 3
    if is_of_mlx and module.split(".")[-2:-1] in ([MLX_EXPERTS], ["experts"]):
        tensors = {name: f"{module}.{name}" for name in _OF_MODULES if f"{module}.{name}" in files.where}
        return _fused(files, module, tensors, is_parameter=False)
    return None


def _fused(files: TensorFiles, name: str, tensors: dict[str, str], *, is_parameter: bool) -> FusedTensors:
    specs = {key: files.entry(tensor).spec for key, tensor in tensors.items()}
    of_one = {key: TensorSpec(spec.dtype, _of_expert(key, spec.shape)) for key, spec in specs.items()}
    count = next(iter(specs.values())).shape[0]
    return FusedTensors(name, tensors, of_one, count, is_parameter)


def _of_expert(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one expert's part; blocks of a row are one after the other."""
    if name == "weight_shape":
        return (shape[0] - 1,) if shape else shape
    return (shape[1], math.prod(shape[2:])) if name == "blocks" else shape[1:]

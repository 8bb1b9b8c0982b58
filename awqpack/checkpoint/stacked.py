"""Layers of several experts as one tensor for each part, where a layout's readers have them so."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

import torch

from ..layouts import TensorSpec
from .fused import MIXTRAL, MLX_EXPERTS
from .work import Job, Output, Sink, prefixed
from .workers import Buffers

_EXPERT = re.compile(r"(?P<parent>.+)\.experts\.(?P<number>\d+)\.(?P<name>[^.]+)")
_OF_MIXTRAL = {theirs: ours for ours, theirs in MIXTRAL.items()}
_CALLED_EXPERTS = ("llama4", "llama4_text", "gpt_oss")  # models of mlx-lm that do not call them switch_mlp


def stacked(jobs: Sequence[Job], plain: Container[str], model_type: str | None) -> list[Job]:
    """The jobs, with those of the experts of one layer as one; all others as they are.

    Args:
        jobs: of layers by the names of modules, one for each expert.
        plain: names of tensors that stay; experts with a bias of their own are left as they are.
        model_type: of the model, by which its readers name the experts.
    """
    groups: dict[str, dict[int, Job]] = {}
    for job in jobs:
        match = _EXPERT.fullmatch(job.name)
        name = None if match is None else _name_of(match["parent"], match["name"], model_type)
        if match is not None and name is not None and prefixed(job.name, "bias") not in plain:
            groups.setdefault(name, {})[int(match["number"])] = job
    first: dict[str, Job] = {}
    replaced: set[str] = set()
    for name, of_number in groups.items():
        parts = [job for _, job in sorted(of_number.items())]
        if sorted(of_number) == list(range(len(parts))) and len({_shape_of(job) for job in parts}) == 1:
            first[parts[0].name] = _Stacked(name, parts)
            replaced.update(job.name for job in parts)
    return [first.get(job.name, job) for job in jobs if job.name in first or job.name not in replaced]


def _name_of(parent: str, name: str, model_type: str | None) -> str | None:
    """What MLX calls this layer of all experts; None for one that it has under no such name."""
    if parent.endswith("block_sparse_moe"):
        name = _OF_MIXTRAL.get(name, name)
    elif name in _OF_MIXTRAL:
        return None
    return f"{parent}.{'experts' if model_type in _CALLED_EXPERTS else MLX_EXPERTS}.{name}"


def _shape_of(job: Job) -> tuple[tuple[str, TensorSpec], ...]:
    return tuple((name.removeprefix(job.name), output.spec) for name, output in job.outputs.items())


class _Stacked(Job):
    """The same layer of several experts, one after the other in each tensor."""

    def __init__(self, name: str, parts: Sequence[Job]) -> None:
        self.name, self.weight, self._parts = name, parts[0].weight, parts
        self.outputs = {
            name + own.removeprefix(parts[0].name): Output(TensorSpec(spec.dtype, (len(parts), *spec.shape)), home)
            for own, (spec, home) in parts[0].outputs.items()
        }

    def layers(self) -> list[str]:
        return [part.name for part in self._parts]

    def write(self, sink: Sink, buffers: Buffers) -> None:
        for number, part in enumerate(self._parts):
            part.write(_PartOf(sink, self.name, part, number), buffers)


class _PartOf:
    """Where the tensors of one expert go: behind those of the experts before it."""

    def __init__(self, sink: Sink, name: str, part: Job, number: int) -> None:
        self._sink, self._name, self._part, self._number = sink, name, part, number

    def _stacked(self, name: str) -> str:
        return self._name + name.removeprefix(self._part.name)

    def _begin(self, name: str) -> int:
        return self._number * self._part.outputs[name].spec.nbytes

    def wants(self, name: str) -> bool:
        return self._sink.wants(self._stacked(name))

    def write(self, name: str, tensor: torch.Tensor, begin: int = 0) -> None:
        self._sink.write(self._stacked(name), tensor, self._begin(name) + begin)

    def copy(self, name: str, tensor: str, begin: int = 0) -> None:
        self._sink.copy(self._stacked(name), tensor, self._begin(name) + begin)

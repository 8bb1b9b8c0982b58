"""What a target makes of a checkpoint, before it is laid out in files: layers that become others, and what stays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from ..layouts import TensorSpec
from .errors import CheckpointError
from .workers import Buffers


class Output(NamedTuple):
    """A tensor of a target, and the source's tensor in whose file it lies where files are kept one for one."""

    spec: TensorSpec
    home: str


class Sink(Protocol):
    """Where the tensors of a target go, by their full names."""

    def wants(self, name: str) -> bool:
        """Whether that is written here; otherwise another process does, and it need not be worked out."""

    def write(self, name: str, tensor: torch.Tensor, begin: int = 0) -> None:
        """Writes a CPU tensor, or what of it begins at that byte."""

    def copy(self, name: str, tensor: str, begin: int = 0) -> None:
        """Copies the bytes of a tensor of the source, to what begins at that byte."""


class Job(ABC):
    """A layer that becomes other tensors.

    Attributes:
        name: of the module.
        weight: the source's tensor that has most of it, and tells its place among the others.
        outputs: what it becomes, by full name; the first one has most of the bytes.
    """

    name: str
    weight: str
    outputs: dict[str, Output]

    def layers(self) -> list[str]:
        """Names of the layers that it is about."""
        return [self.name]

    @abstractmethod
    def write(self, sink: Sink, buffers: Buffers) -> None:
        """Writes every output, or those that the sink wants.

        Raises LayoutError and CheckpointError for values that the target cannot hold.
        """


@dataclass
class Work:
    """All that is to be done.

    Attributes:
        jobs: layers that become others.
        copies: tensors whose bytes stay as they are.
        texts: of configuration files that change, by their names; None for one that is left out.
        warnings: what readers of the target may stumble over, a sentence each.
        leaves_layout: no layer may stay as it is, in files beside the checkpoint's either.
    """

    jobs: list[Job]
    copies: list[str]
    texts: dict[str, str | None]
    warnings: list[str] = field(default_factory=list)
    leaves_layout: bool = True


def require_all(target: str, reasons: Mapping[str, str | None], advice: str = "") -> None:
    """Raises CheckpointError that names every layer for which there is a reason that the target cannot hold it."""
    refused = [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]
    if refused:
        raise CheckpointError(
            f"{target} cannot hold {len(refused)} of {len(reasons)} layers: {', '.join(refused)}{advice}"
        )


def prefixed(module: str, suffix: str) -> str:
    """Full name of a tensor of a module."""
    return f"{module}.{suffix}" if module else suffix

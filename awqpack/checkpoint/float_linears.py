"""The linear weights of a model in floats: tensors of their own, or parts of one that several experts share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from ..layouts import TensorSpec
from ..layouts.weight import Rows, TakeBytes
from .fused import Experts, names_of_experts, rows_of
from .shard import Shard
from .tensor_files import TensorFiles

_OF_EXPERTS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
_ALTERNATING = ("gpt_oss",)  # models whose gate and up take turns, row by row


@dataclass(frozen=True)
class FloatLinear:
    """A linear weight ``(N, K)``.

    Attributes:
        name: of the module.
        tensor: full name of the tensor that it is, or is in.
        spec: dtype, N and K.
        experts: where in the tensor it lies; None where it is all of it.
        is_turned: the tensor has in_features before out_features.
    """

    name: str
    tensor: str
    spec: TensorSpec
    experts: Experts | None = None
    is_turned: bool = False

    def reader(self, shard: Shard) -> Rows:
        """Gives rows begin..end of the weight, of any strides, in memory that is taken anew or overwritten."""
        experts = self.experts
        if experts is None or not self.is_turned:
            return partial(rows_of, shard, self.tensor, experts)
        whole: list[torch.Tensor] = []  # once it is read: what a few columns are is spread over all rows

        def columns(begin: int, end: int, take: TakeBytes) -> torch.Tensor:
            n, k = self.spec.shape
            if not whole:
                number, column = divmod(experts.begin, experts.rows)
                line = self.spec.dtype.itemsize * experts.rows
                at = number * k * line + column * self.spec.dtype.itemsize
                whole.append(shard.strided(self.tensor, at, line, (k, n), take))
            return whole[0][:, begin:end].t()

        return columns


def float_linears(
    files: TensorFiles, hidden_size: int | None, model_type: str | None
) -> tuple[list[FloatLinear], dict[str, str]]:
    """All of them, of any float dtype, in the order of the files, and tensors of experts left out, with the reasons.

    Args:
        files: where to look.
        hidden_size: of the model, by which it is told whether experts have out_features or in_features first.
        model_type: of the model.
    """
    found: list[FloatLinear] = []
    left_out: dict[str, str] = {}
    for tensor in files.where:
        spec = files.entry(tensor).spec
        if not spec.dtype.is_floating_point:
            continue
        if tensor.endswith(".weight") and len(spec.shape) == 2:
            found.append(FloatLinear(tensor.removesuffix(".weight"), tensor, spec))
        elif len(spec.shape) == 3 and "experts" in tensor.split("."):
            is_turned = _is_turned(files, tensor, hidden_size)
            reason = _reason_kept(files, tensor, model_type)
            if reason is not None:
                left_out[tensor] = reason
            elif is_turned is None:
                left_out[tensor] = "no size tells its out_features"
            else:
                found += _of_experts(tensor, spec, is_turned)
    return found, left_out


def _reason_kept(files: TensorFiles, tensor: str, model_type: str | None) -> str | None:
    last = tensor.rpartition(".")[2]
    if last not in _OF_EXPERTS:
        return f"none of {', '.join(_OF_EXPERTS)}"
    if f"{tensor}_bias" in files.where:
        return "has a bias of all experts"
    return "gate and up take turns in it" if model_type in _ALTERNATING else None


def _is_turned(files: TensorFiles, tensor: str, hidden_size: int | None) -> bool | None:
    """Whether in_features come first; None where neither its own sizes nor those of its like beside it tell."""
    parent = tensor.rpartition(".")[0]
    for name in (tensor, *(f"{parent}.{last}" for last in _OF_EXPERTS)):
        shape = files.entry(name).shape if name in files.where else ()
        if len(shape) == 3 and (shape[1] == hidden_size) != (shape[2] == hidden_size):
            return (shape[1] == hidden_size) != name.endswith(".down_proj")
    return None


def _of_experts(tensor: str, spec: TensorSpec, is_turned: bool) -> list[FloatLinear]:
    count, rows, columns = spec.shape
    if is_turned:
        rows, columns = columns, rows
    return [
        FloatLinear(name, tensor, TensorSpec(spec.dtype, (part.end - part.begin, columns)), part, is_turned)
        for name, part in names_of_experts(tensor, count, rows, is_parameter=True)
    ]

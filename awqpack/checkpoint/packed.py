"""Which tensors hold codes, by what a header says of them."""

from __future__ import annotations

import re

import torch

from ..layouts import SOURCES, TensorSpec

WEIGHTS = frozenset(layout.names["weight"] for layout in SOURCES.values())
# What some layouts call their codes is what every module calls its floats.
_PLAIN_NAME = frozenset(layout.weight.dtype for layout in SOURCES.values() if layout.names["weight"] == "weight")
_FUSED = re.compile(r".+_(packed|qweight|blocks)")


def holds_codes(tensor: str, spec: TensorSpec) -> bool:
    """Whether a tensor is the weight of a quantized layer, in some layout, fitting or not."""
    name = tensor.rpartition(".")[2]
    return name in WEIGHTS and (name != "weight" or spec.dtype in _PLAIN_NAME)


def holds_fused_codes(tensor: str, spec: TensorSpec) -> bool:
    """Whether a tensor is a parameter packed as such, as the experts of a layer may be: gate_up_proj_packed."""
    name = tensor.rpartition(".")[2]
    is_fused = name not in WEIGHTS and _FUSED.fullmatch(name) is not None
    return is_fused and (not name.endswith("_blocks") or spec.dtype == torch.uint8)


def holds_any_codes(tensor: str, spec: TensorSpec) -> bool:
    """Whether a tensor is quantized, one way or the other."""
    return holds_codes(tensor, spec) or holds_fused_codes(tensor, spec)

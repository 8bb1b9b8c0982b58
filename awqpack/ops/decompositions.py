"""What exporters replace our ops by: pack, unpack and dequantize in functional operations of core ATen.

No shifts, which core ATen lacks, and no integer division but of what it divides, as ONNX divides in float32. A graph
raises nothing about values: pack takes the low nibbles of codes, as with validate=False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from ..formats import format_of
from . import checks, floats


def _in_order(tensor: torch.Tensor, order: Sequence[int] | None) -> torch.Tensor:
    """The tensor with its dimensions in memory in `order`, outermost first."""
    if order is None:
        return tensor
    return tensor.permute(*order).contiguous().permute(*sorted(range(len(order)), key=lambda i: order[i]))


def _codes(payload: torch.Tensor, packing: int, reorder: bool) -> torch.Tensor:
    form = format_of(packing, reorder)
    words = payload.to(torch.int64)
    nibbles = [torch.div(words & (15 << 4 * i), 1 << 4 * i, rounding_mode="floor") for i in range(form.item_codes)]
    blocks = payload.shape[-1] // form.block_items
    digits = torch.stack(nibbles, -1).reshape(*payload.shape[:-1], blocks, *(digit.size for digit in form.digits))
    return form.codes(digits)


def unpack(
    payload: torch.Tensor, packing: int, reorder: bool, stride_order: Sequence[int] | None = None
) -> torch.Tensor:
    checks.codes_shape(payload, packing)
    return _in_order(_codes(payload, packing, reorder).to(torch.uint8), stride_order)


def pack(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True) -> torch.Tensor:
    shape = checks.payload_shape(codes, packing)
    form = format_of(packing, reorder)
    nibbles = form.nibbles(codes.to(torch.int32) & 15)
    places: list[Any] = [(..., *place) for place in product(*map(range, form.item_digits))]
    # The highest nibble holds the sign: -8..7, so that the sum is a payload's own value.
    terms = [nibbles[place] * (1 << 4 * i) for i, place in enumerate(places[:-1])]
    highest = (torch.remainder(nibbles[places[-1]] + 8, 16) - 8) * (1 << 4 * (form.item_codes - 1))
    return torch.stack([*terms, highest]).sum(0, dtype=torch.int32).to(form.dtype).reshape(shape)


def dequantize(
    payload: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    dtype: torch.dtype,
    stride_order: Sequence[int] | None = None,
) -> torch.Tensor:
    floats.weight_shape(payload, scales, zeros, packing, dtype)
    return _in_order(floats.restored(_codes(payload, packing, reorder), scales, zeros, dtype), stride_order)


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {"unpack": unpack, "pack": pack, "dequantize": dequantize}


def decompositions() -> dict[torch._ops.OperatorBase, Callable[..., torch.Tensor]]:
    """How exporters replace awqpack's ops by core ATen's, for ``ExportedProgram.run_decompositions``::

        table = torch.export.default_decompositions()
        table.update(awqpack.decompositions())
        program = torch.export.export(model, arguments).run_decompositions(table)
        torch.onnx.export(program, dynamo=True)  # for one

    They are not in torch's own table: inductor refuses an op that is there wherever the variable CI is set. The graph
    checks no values: ``pack`` takes the low four bits of each code.
    """
    return {getattr(torch.ops.awqpack, name).default: function for name, function in _FUNCTIONS.items()}

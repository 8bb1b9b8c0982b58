"""The ops in torch's own vectorised operations, for devices without kernels of ours (XPU first).

They are bit-equal to the kernels and several times slower; tests run them on the CPU beside the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch

from ..formats import format_of
from . import checks, registry


def pack(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True) -> torch.Tensor:
    shape = checks.payload_shape(codes, packing)
    form = format_of(packing, reorder)
    if validate:
        checks.require_codes(codes)
    nibbles, digits = form.nibbles(codes), form.item_digits
    payload = torch.zeros(nibbles.shape[: -len(digits)], dtype=form.dtype, device=codes.device)
    places: Iterator[Any] = product([...], *map(range, digits))
    for i, place in enumerate(places):
        payload |= (nibbles[place].to(form.dtype) & 15) << (4 * i)
    return payload.reshape(shape)


def unpack(
    payload: torch.Tensor, packing: int, reorder: bool, stride_order: Sequence[int] | None = None
) -> torch.Tensor:
    shape = checks.codes_shape(payload, packing)
    strides = checks.ordered_strides(shape, stride_order)
    form = format_of(packing, reorder)
    codes = torch.empty_strided(shape, strides, dtype=torch.uint8, device=payload.device)
    nibbles = torch.stack([((payload >> (4 * i)) & 15).to(torch.uint8) for i in range(form.item_codes)], -1)
    blocks = payload.shape[-1] // form.block_items
    digits = nibbles.reshape(*payload.shape[:-1], blocks, *(digit.size for digit in form.digits))
    return codes.copy_(form.codes(digits))


def pack_out(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True, *, out: torch.Tensor) -> None:
    checks.require_out(out, codes, checks.payload_dtype(packing), checks.payload_shape(codes, packing))
    out.copy_(pack(codes, packing, reorder, validate))


def unpack_out(payload: torch.Tensor, packing: int, reorder: bool, *, out: torch.Tensor) -> None:
    checks.require_out(out, payload, torch.uint8, checks.codes_shape(payload, packing))
    out.copy_(unpack(payload, packing, reorder))


def register() -> None:
    """Sends every backend without a kernel of its own here; sparse and quantized tensors too, to be refused by name."""
    kernels: dict[str, Callable[..., object]] = {
        "pack": pack,
        "unpack": unpack,
        "pack_out": pack_out,
        "unpack_out": unpack_out,
    }
    for name, kernel in kernels.items():
        registry.impl(name, kernel)

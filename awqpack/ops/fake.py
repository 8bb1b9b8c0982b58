"""Fake kernels: what the ops return for meta and fake tensors, so that torch.compile and export can trace them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks, registry


def _pack(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True) -> torch.Tensor:
    return codes.new_empty(checks.payload_shape(codes, packing), dtype=checks.payload_dtype(packing))


def _unpack(
    payload: torch.Tensor, packing: int, reorder: bool, stride_order: Sequence[int] | None = None
) -> torch.Tensor:
    shape = checks.codes_shape(payload, packing)
    strides = checks.ordered_strides(shape, stride_order)
    return payload.new_empty_strided(shape, strides, dtype=torch.uint8)


def _pack_out(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True, *, out: torch.Tensor) -> None:
    checks.require_out(out, codes, checks.payload_dtype(packing), checks.payload_shape(codes, packing))


def _unpack_out(payload: torch.Tensor, packing: int, reorder: bool, *, out: torch.Tensor) -> None:
    checks.require_out(out, payload, torch.uint8, checks.codes_shape(payload, packing))


def register() -> None:
    """Registers the fake kernels."""
    registry.fake("pack", _pack)
    registry.fake("unpack", _unpack)
    registry.fake("pack_out", _pack_out)
    registry.fake("unpack_out", _unpack_out)

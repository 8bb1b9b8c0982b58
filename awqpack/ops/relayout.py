"""The op between payloads: its fake kernel, and its portable one for devices without one of ours."""

from __future__ import annotations

import torch

from . import checks, registry


def _target_shape(payload: torch.Tensor, source: int, target: int, transpose: bool) -> tuple[int, ...]:
    """Shape of the target's payload; ValueError where there is none."""
    *batch, rows, cols = checks.codes_shape(payload, source)
    return checks.shape_in((*batch, cols, rows) if transpose else (*batch, rows, cols), target)


def _fake(
    payload: torch.Tensor, source: int, source_reorder: bool, target: int, target_reorder: bool, transpose: bool
) -> torch.Tensor:
    shape = _target_shape(payload, source, target, transpose)
    return payload.new_empty(shape, dtype=checks.payload_dtype(target))


def _fake_out(
    payload: torch.Tensor,
    source: int,
    source_reorder: bool,
    target: int,
    target_reorder: bool,
    transpose: bool,
    *,
    out: torch.Tensor,
) -> None:
    shape = _target_shape(payload, source, target, transpose)
    checks.require_out(out, payload, checks.payload_dtype(target), shape)


def relayout(
    payload: torch.Tensor, source: int, source_reorder: bool, target: int, target_reorder: bool, transpose: bool
) -> torch.Tensor:
    """By way of all the codes, with the kernels of the payload's device."""
    _target_shape(payload, source, target, transpose)
    codes = torch.ops.awqpack.unpack.default(payload, source, source_reorder)
    codes = codes.transpose(-1, -2) if transpose else codes
    return torch.ops.awqpack.pack.default(codes, target, target_reorder, False)  # type: ignore[no-any-return]


def relayout_out(
    payload: torch.Tensor,
    source: int,
    source_reorder: bool,
    target: int,
    target_reorder: bool,
    transpose: bool,
    *,
    out: torch.Tensor,
) -> None:
    _fake_out(payload, source, source_reorder, target, target_reorder, transpose, out=out)
    out.copy_(relayout(payload, source, source_reorder, target, target_reorder, transpose))


def register() -> None:
    """Registers both kernels."""
    registry.fake("relayout", _fake)
    registry.fake("relayout_out", _fake_out)
    registry.impl("relayout", relayout)
    registry.impl("relayout_out", relayout_out)

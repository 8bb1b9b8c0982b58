"""Weights of a layout as floats and floats in a layout, a chunk of rows at a time: beside what is stored, no more than
a chunk is in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from .. import floats
from .parts import LayoutError
from .rounding import lift_zeros
from .weight import Rows, Take, WeightFormat, bytes_for

# Elements at a time: their floats stay in the last-level cache until they are written.
_CHUNK_ELEMENTS = 1 << 20
# Rows at least of formats that run along K: their words are then whole lines of the cache.
_LEAST_ROWS = 128


def dequantize_runs(
    rows: Rows,
    features: tuple[int, int],
    source: WeightFormat,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    order: torch.Tensor | None,
    dtype: torch.dtype,
    take: Take,
) -> Iterator[torch.Tensor]:
    """The weight ``(N, K)`` as runs of whole rows, one after the other; the next may overwrite the last.

    Args:
        rows: gives rows begin..end of what is stored, on the CPU.
        features: ``(out_features, in_features)``.
        source: the format of what is stored.
        scales, zeros: ``(N, G)``.
        order: the group of each column, int32 ``(K,)``; None where columns are in the order of their groups.
        dtype: of the weight.
        take: memory for a purpose, which may be what it gave for that before.
    """
    n, k = features
    whole = rows(0, source.shape(n, k)[0], bytes_for(take, "whole")) if source.runs_along_k else None
    take_rows = bytes_for(take, "rows")
    columns = None if order is None else order.long()
    for begin, end in _chunks(source, n, k):
        if whole is None:
            stored = rows(source.shape(begin, k)[0], source.shape(end, k)[0], take_rows)
        else:
            stored = source.part(whole, False, begin, end)
        scale, zero = scales[begin:end], zeros[begin:end]
        if columns is not None:
            scale, zero = scale[:, columns], zero[:, columns]
        weight = take("weight", dtype, (end - begin, k))
        if source.is_linear and bool((scale < 0).any()):  # which kernels refuse, and MLX writes
            width = k // scale.shape[1]
            factor, offset = (t.float().repeat_interleave(width, 1) for t in (scale, zero))
            weight.copy_((source.unpack(stored).float() - offset) * factor)
        else:
            source.dequantize_into(stored, scale, zero, weight)
        yield weight


def quantize_runs(
    rows: Rows,
    features: tuple[int, int],
    target: WeightFormat,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    formula: str,
    lowest_zero: int,
    take: Take,
) -> Iterator[torch.Tensor]:
    """What is stored of a float weight, rounded to the nearest, as runs of whole rows; the next may overwrite the last.

    Args:
        rows: gives rows begin..end of the weight ``(N, K)``, on the CPU.
        features: ``(out_features, in_features)``.
        target: the format. One whose rows run along K is one run, of all that is stored.
        scales, zeros: ``(N, G)``, which are written.
        formula: as for :func:`awqpack.min_max_scales`.
        lowest_zero: that the target holds.
        take: memory for a purpose, which may be what it gave for that before.

    Raises:
        LayoutError: a weight is not finite, or a scale none in the dtype of scales; either is named.
    """
    n, k = features
    whole = take("whole", target.dtype, target.shape(n, k)) if target.runs_along_k else None
    take_rows = bytes_for(take, "rows")
    for begin, end in _chunks(target, n, k):
        weight, scale, zero = rows(begin, end, take_rows), scales[begin:end], zeros[begin:end]
        try:
            floats.min_max_scales(weight, k // scales.shape[1], formula=formula, out=(scale, zero))
        except ValueError as error:
            raise LayoutError(_of_whole(str(error), begin)) from None
        lift_zeros(weight, scale, zero, lowest_zero, begin)
        if whole is not None:
            run = target.part(whole, False, begin, end)
        else:
            run = take("stored", target.dtype, target.shape(end - begin, k))
        target.quantize_into(weight, scale, zero, run, validate=False)
        if whole is None:
            yield run
    if whole is not None:
        yield whole


def _of_whole(text: str, begin: int) -> str:
    """What was expected of rows from that one on, and found, as the whole weight counts them."""
    expected, _, found = re.sub(r"\[(\d+)", lambda row: f"[{begin + int(row[1])}", text, count=1).partition("; ")
    return f"{found}, where {expected}" if found else expected


def _chunks(form: WeightFormat, out_features: int, in_features: int) -> Iterator[tuple[int, int]]:
    """Runs of out_features."""
    unit = max(form.unit()[0], _LEAST_ROWS if form.runs_along_k else 8)
    step = max(_CHUNK_ELEMENTS // in_features // unit * unit, unit)
    for begin in range(0, out_features, step):
        yield begin, min(begin + step, out_features)

"""A layer, read a chunk at a time and given in the format of another layout, or as floats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

from ..layouts import WeightFormat, dequantize_runs, relayout, relayout_runs
from ..layouts.weight import TakeBytes, bytes_for
from .layers import SourceLayer
from .source import Checkpoint
from .workers import Buffers

_RUN_BYTES = 1 << 20
_CPU = torch.device("cpu")


def relayout_read(
    source: Checkpoint, layer: SourceLayer, target: WeightFormat, buffers: Buffers, device: torch.device = _CPU
) -> Iterable[torch.Tensor]:
    """What the target stores of a layer's codes, as runs of whole rows; the next one may overwrite the last.

    Args:
        source, layer: the layer.
        target: the format; what is stored in it is read as it is.
        buffers: memory that this thread uses again.
        device: where codes are repacked.
    """
    form, (n, k, _) = layer.layout.weight, layer.geometry
    if form == target:
        return _stored_read(source, layer, bytes_for(buffers.take, "rows"))
    if device.type != "cpu":
        return [relayout(source.weight(layer).to(device), form, target).cpu()]
    return relayout_runs(partial(source.weight_rows, layer), (n, k), form, target, buffers.take)


def _stored_read(source: Checkpoint, layer: SourceLayer, take: TakeBytes) -> Iterator[torch.Tensor]:
    n, k, _ = layer.geometry
    rows, width = layer.layout.weight.shape(n, k)
    step = max(_RUN_BYTES // (width * layer.layout.weight.dtype.itemsize), 1)
    for begin in range(0, rows, step):
        yield source.weight_rows(layer, begin, min(begin + step, rows), take)


def dequantized_read(
    source: Checkpoint, layer: SourceLayer, dtype: torch.dtype, buffers: Buffers
) -> Iterable[torch.Tensor]:
    """The weight of a layer in floats, as runs of whole rows; the next one may overwrite the last."""
    n, k, _ = layer.geometry
    scales, zeros = source.scales_and_zeros(layer)
    order = layer.layout.decode_order(layer.geometry, source.side_tensors(layer))

    rows = partial(source.weight_rows, layer)
    return dequantize_runs(rows, (n, k), layer.layout.weight, scales, zeros, order, dtype, buffers.take)

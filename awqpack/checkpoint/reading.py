"""The codes of a layer, read a chunk at a time and given in the format of another layout."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..layouts import WeightFormat, relayout, relayout_runs
from .layers import SourceLayer
from .source import Checkpoint
from .workers import Buffers


def relayout_read(
    source: Checkpoint, layer: SourceLayer, target: WeightFormat, buffers: Buffers, device: torch.device
) -> Iterable[torch.Tensor]:
    """What the target stores of a layer's codes, as runs of whole rows; the next one may overwrite the last.

    Args:
        source, layer: the layer, whose own format is another one.
        target: the format.
        buffers: memory that this thread uses again.
        device: where codes are repacked.
    """
    shard = source.files.shard(layer.weight)
    form, (n, k, _) = layer.layout.weight, layer.geometry
    if device.type != "cpu":
        return [relayout(shard.tensor(layer.weight).to(device), form, target).cpu()]

    def rows(begin: int, end: int) -> torch.Tensor:
        return shard.rows(layer.weight, begin, end, buffers.bytes)

    return relayout_runs(rows, (n, k), form, target, buffers.take)

"""Floats as a target: the ordinary model that a quantized one stands for."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ..layouts import LayoutError, TensorSpec
from .layers import SourceLayer
from .reading import dequantized_read
from .source import Checkpoint
from .team import Team
from .to_layout import require_applied
from .work import Job, Output, Sink, Work, prefixed, require_all
from .workers import Buffers

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 5 * 10**9  # floats are four times the source's files, and more


def to_floats(source: Checkpoint, dtype: torch.dtype, team: Team) -> Work:
    """What it takes to have a checkpoint in floats. Other tensors keep their dtype.

    Raises:
        CheckpointError: layers have weights that the dtype does not reach; all are named.
    """
    name = str(dtype).removeprefix("torch.")
    require_applied(source, name, False)
    reasons = team.map(lambda layer: _reason_not_held(source, layer, dtype), source.layers.values())
    require_all(name, dict(zip(source.layers, reasons, strict=True)))
    layers = {layer.name: layer for layer in map(_in_floats, source.layers.values())}
    jobs: list[Job] = [_Dequantize(source, layer, dtype) for layer in layers.values()]
    kept = [tensor for tensor in source.plain_tensors if not _is_scale_of_cache(source, tensor)]
    return Work(jobs, kept, source.configs.without_quantization(name))


def _in_floats(layer: SourceLayer) -> SourceLayer:
    """The layer whose floats are one tensor: all experts together where they are one parameter."""
    return layer.whole() if layer.experts is not None and layer.experts.is_parameter else layer


class _Dequantize(Job):
    """A layer that becomes a weight in floats; its bias stays."""

    def __init__(self, source: Checkpoint, layer: SourceLayer, dtype: torch.dtype) -> None:
        self._source, self._layer, self._dtype = source, layer, dtype
        self.name, self.weight = layer.name, layer.weight
        n, k, _ = layer.geometry
        shape: tuple[int, ...] = (n, k)
        self._output = prefixed(layer.name, "weight")
        if layer.experts is not None and layer.experts.is_parameter:
            count, rows = layer.experts.count, layer.experts.rows
            shape = (count, k, rows) if layer.layout.floats_are_turned else (count, rows, k)
            self._output = layer.experts.name
        self.outputs = {self._output: Output(TensorSpec(dtype, shape), layer.weight)}

    def write(self, sink: Sink, buffers: Buffers) -> None:
        is_turned, done = self._layer.layout.floats_are_turned, 0
        for layer in self._layer.by_expert():  # whose scales alone are in memory
            runs = dequantized_read(self._source, layer, self._dtype, buffers)
            for run in [self._turned(layer, runs, buffers)] if is_turned else runs:
                sink.write(self._output, run, done)
                done += run.nbytes

    def _turned(self, layer: SourceLayer, runs: Iterable[torch.Tensor], buffers: Buffers) -> torch.Tensor:
        """The weight of these runs of rows, in_features first."""
        n, k, _ = layer.geometry
        turned, begin = buffers.take("turned", self._dtype, (k, n)), 0
        for run in runs:
            turned[:, begin : begin + len(run)].copy_(run.t())
            begin += len(run)
        return turned


def _is_scale_of_cache(source: Checkpoint, tensor: str) -> bool:
    """Whether a tensor is a scale of keys or values, which a model in floats keeps as they are."""
    return tensor.rpartition(".")[2] in ("k_scale", "v_scale") and math.prod(source.files.entry(tensor).shape) == 1


def _reason_not_held(source: Checkpoint, layer: SourceLayer, dtype: torch.dtype) -> str | None:
    reasons = (_reason_part_not_held(source, part, dtype) for part in layer.by_expert())
    return next((reason for reason in reasons if reason is not None), None)


def _reason_part_not_held(source: Checkpoint, layer: SourceLayer, dtype: torch.dtype) -> str | None:
    side = source.side_tensors(layer)
    try:
        layer.layout.decode_order(layer.geometry, side)
        scales, zeros = layer.layout.decode_side(layer.geometry, side)
    except LayoutError as error:
        return str(error)
    form = layer.layout.weight
    bound = form.largest(torch.zeros(1, dtype=zeros.dtype)) * scales.float().abs().amax((0, 1))
    if bool(bound.to(dtype).isfinite().all()):  # most models: then no group has to be looked at
        return None
    largest = form.largest(zeros) * scales.float().abs()
    is_beyond = ~largest.to(dtype).isfinite()
    if bool(is_beyond.any()):
        row, group = is_beyond.nonzero()[0].tolist()
        name = str(dtype).removeprefix("torch.")
        return f"weights of row {row}, group {group} may be {float(largest[row, group]):g}, which no {name} is"
    return None

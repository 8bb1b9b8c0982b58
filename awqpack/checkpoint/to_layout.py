"""Layouts as targets: every code, zero and scale as it is, in other tensors."""

from __future__ import annotations

import dataclasses
from collections import Counter

import torch

from ..layouts import HEAD, SYMMETRIC_ZERO, Layout, LayoutError, QuantizationConfig, TensorSpec
from .errors import CheckpointError
from .layers import SourceLayer
from .modules import is_embedding, with_names_for
from .reading import relayout_read
from .source import Checkpoint
from .stacked import stacked
from .team import Team
from .work import Job, Output, Sink, Work, prefixed, require_all
from .workers import Buffers


def to_layout(
    source: Checkpoint, target: Layout, scale_dtype: torch.dtype | None, device: torch.device, team: Team
) -> Work:
    """What it takes to have a checkpoint in a layout.

    Args:
        source: what to convert.
        target: the layout.
        scale_dtype: of scales in the target; None keeps the source's.
        device: where codes are repacked.
        team: the processes that do it, each of which looks at the values of some layers beforehand.

    Raises:
        CheckpointError: the target cannot hold some layers, all of which are named, or say what is left out.
    """
    # experts that are one parameter become layers of their own, which readers of every layout take
    is_new = target is not source.layout or any(
        layer.experts is not None and layer.experts.is_parameter for layer in source.layers.values()
    )
    if is_new and not source.layout.weight.is_linear:
        raise CheckpointError(
            f"{source.path}: {source.layout.name} holds 4-bit floats, whose values are no whole numbers times a scale, "
            f"as {target.name} has them; convert it --to bfloat16, and quantize that --to {target.name}"
        )
    if is_new:
        require_applied(source, target.name, target.has_scaled_activations)
    if is_new or scale_dtype is not None:
        _require_held(source, target, scale_dtype, team)
    config = _target_config(source, target, team)
    if is_new and source.config is not None:
        _require_one_size(source, target, config)
    reason = target.reason_not_said(config) if is_new and source.config is not None else None
    if reason is not None:
        raise CheckpointError(f"{source.path}: {target.name} {reason}")
    if not is_new and scale_dtype is None:  # only names of files change
        return Work([], list(source.files.where), {}, _warnings(source), leaves_layout=False)
    drops_zeros = config.is_symmetric and not target.stores_symmetric_zeros
    dropped = {target.names.get("zeros", "")} if drops_zeros else set()
    jobs: list[Job] = [
        _Relayout(source, layer, target, scale_dtype, dropped, device) for layer in source.layers.values()
    ]
    if target.stacks_experts:
        jobs = stacked(jobs, source.plain_tensors, source.configs.model_type)
    texts = source.configs.rewritten(target, config) if is_new else {}
    warnings = _warnings(source)
    if is_new and config.has_head and not target.ignores_by_name:
        warnings.append(f"{HEAD} is quantized, which vLLM and GPTQModel read, and AutoAWQ and transformers do not")
    caution = target.caution(config) if is_new and source.config is not None else None
    if caution is not None:
        warnings.append(caution)
    return Work(jobs, list(source.plain_tensors), texts, warnings, is_new)


class _Relayout(Job):
    """A layer in another layout, or with scales of another dtype."""

    def __init__(
        self,
        source: Checkpoint,
        layer: SourceLayer,
        target: Layout,
        scale_dtype: torch.dtype | None,
        dropped: set[str],
        device: torch.device,
    ) -> None:
        self._source, self._layer, self._target = source, layer, target
        self._scale_dtype, self._device = scale_dtype, device
        self.name, self.weight = layer.name, layer.weight
        n, k, _ = layer.geometry
        dtype = scale_dtype or source.files.entry(layer.scales).spec.dtype
        codes = TensorSpec(target.weight.dtype, target.weight.shape(n, k))
        specs = {target.names["weight"]: codes, **target.side_specs(layer.geometry, dtype)}
        self.outputs = {
            prefixed(layer.name, suffix): Output(spec, self._home(suffix))
            for suffix, spec in specs.items()
            if suffix not in dropped
        }

    def _home(self, suffix: str) -> str:
        """The tensor with the same part in the layer; the weight where there is none."""
        role = next(role for role, name in self._target.names.items() if name == suffix)
        return self._layer.tensors.get(self._layer.layout.names.get(role, ""), self.weight)

    def write(self, sink: Sink, buffers: Buffers) -> None:
        source, layer, target = self._source, self._layer, self._target
        name = prefixed(layer.name, target.names["weight"])
        if not sink.wants(name):
            pass
        elif layer.layout.weight == target.weight and layer.experts is None:
            sink.copy(name, layer.weight)
        else:
            done = 0
            for run in relayout_read(source, layer, target.weight, buffers, self._device):
                sink.write(name, run, done)
                done += run.nbytes
        if not any(sink.wants(other) for other in self.outputs if other != name):
            return
        scales, zeros = source.scales_and_zeros(layer)
        scales = scales if self._scale_dtype is None else scales.to(self._scale_dtype)
        order = layer.layout.decode_order(layer.geometry, source.side_tensors(layer))
        side = target.encode_side(layer.geometry, scales, zeros)
        side |= target.encode_order(layer.geometry, order, scales.device)
        for suffix, value in side.items():
            name = prefixed(layer.name, suffix)
            if name in self.outputs:
                sink.write(name, value)


def _warnings(source: Checkpoint) -> list[str]:
    if source.config is not None or source.files.is_file:
        return []
    return [f"{source.path} has no quantization_config, and so the target has none: engines need one"]


def _target_config(source: Checkpoint, target: Layout, team: Team) -> QuantizationConfig:
    """What the target's configuration says; symmetric where every zero is really 8, if that matters there."""
    config = source.config or QuantizationConfig(None, False, None, {})
    sizes = {layer.geometry.group_size for layer in source.layers.values()}
    if config.group_size is None and len(sizes) == 1:
        config = dataclasses.replace(config, group_size=sizes.pop())
    asks = config.is_symmetric or not target.stores_symmetric_zeros
    layers = list(source.layers.values())
    is_symmetric = asks and team.all(lambda layer: _has_symmetric_zeros(source, layer), layers)
    return with_names_for(source, target, dataclasses.replace(config, is_symmetric=is_symmetric))


def _require_one_size(source: Checkpoint, target: Layout, config: QuantizationConfig) -> None:
    """Raises CheckpointError that names layers with groups of another size than most, where no size is said of all."""
    if config.group_size is not None:
        return
    sizes = Counter(layer.geometry.group_size for layer in source.layers.values())
    (most, _), *others = sizes.most_common()
    if others:
        named = [
            f"{layer.name} ({layer.geometry.group_size})"
            for layer in source.layers.values()
            if layer.geometry.group_size != most
        ]
        raise CheckpointError(
            f"{source.path}: {target.name} has one group size for all layers; most have {most}, but "
            f"{len(named)} of {len(source.layers)} others: {', '.join(named)}"
        )


def _has_symmetric_zeros(source: Checkpoint, layer: SourceLayer) -> bool:
    if layer.layout.names.get("zeros") not in layer.tensors:
        return True
    _, zeros = source.scales_and_zeros(layer)
    return not bool((zeros ^ SYMMETRIC_ZERO).any())  # ten times as fast as a comparison of each


def require_applied(source: Checkpoint, target: str, has_scaled_activations: bool) -> None:
    """Raises CheckpointError for scales of an activation, unless the target's readers apply them or all are 1."""
    if has_scaled_activations:
        return
    for tensor in source.plain_tensors:
        spec = source.files.entry(tensor).spec
        is_one = tensor.rpartition(".")[2] == "scales" and len(spec.shape) == 1 and spec.dtype.is_floating_point
        if is_one and bool((source.files.tensor(tensor) != 1).any()):
            raise CheckpointError(
                f"{source.path}: {tensor} divides the output of an activation, as AutoAWQ has it; "
                f"no reader of {target} does that"
            )


def _require_held(source: Checkpoint, target: Layout, scale_dtype: torch.dtype | None, team: Team) -> None:
    """Raises CheckpointError that names every layer the target cannot hold."""

    def reason_of(layer: SourceLayer) -> str | None:
        if is_embedding(layer.name) and not target.has_embeddings:
            return "an embedding, which its readers expect in floats"
        if layer.experts is not None and layer.experts.bias in source.files.where:
            return f"{layer.experts.bias} is one tensor of all experts, which only a model in floats has"
        return target.reason_not_held(layer.geometry) or _reason_values_not_held(source, layer, target, scale_dtype)

    require_all(target.name, dict(zip(source.layers, team.map(reason_of, source.layers.values()), strict=True)))


def _reason_values_not_held(
    source: Checkpoint, layer: SourceLayer, target: Layout, scale_dtype: torch.dtype | None
) -> str | None:
    """Why zeros or scales would be lost, or zeros are none already, where one side stores them as floats."""
    side = source.side_tensors(layer)
    try:
        if layer.layout.decode_order(layer.geometry, side) is not None and target.reason_without_order() is not None:
            return target.reason_without_order()
        stored = layer.layout.decode_scales(layer.geometry, side)
        scales = stored if scale_dtype is None else stored.to(scale_dtype)
        if scale_dtype is not None and not torch.equal(scales.float(), stored.float()):
            row, group = (scales.float() != stored.float()).nonzero()[0].tolist()
            name = str(scale_dtype).removeprefix("torch.")
            return f"no {name} is {float(stored[row, group]):.9g}, the scale of row {row}, group {group}"
        if layer.layout.stores_scaled_zeros or not target.holds_every_zero(scales):
            _, zeros = layer.layout.decode_side(layer.geometry, side)
            if not target.holds_every_zero(scales):
                target.encode_side(layer.geometry, scales, zeros)
    except LayoutError as error:
        return str(error)
    return None

"""What a checkpoint holds, and what about it is inconsistent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..layouts import SYMMETRIC_ZERO, LayoutError
from .layers import SourceLayer
from .source import Checkpoint


@dataclass(frozen=True)
class LayerInfo:
    """A quantized layer: N = out_features, K = in_features, dtypes by tensor, the bytes of all its tensors."""

    name: str
    out_features: int
    in_features: int
    group_size: int
    dtypes: dict[str, str]
    nbytes: int
    has_bias: bool


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        path: where it is.
        layout: of the quantized layers, a name in ``awqpack.layouts.LAYOUTS``.
        is_configured: a quantization_config was found, and says so; otherwise the tensors do.
        group_size: what the configuration says; -1 is one group a row.
        is_symmetric: every zero is 8, as it says or as the zeros are; None without one.
        not_converted: what it says is not quantized, as AutoAWQ names it.
        files: the safetensors files.
        layers: those whose tensors fit.
        other_tensors: how many tensors are no part of a quantized layer.
        quantized_bytes, other_bytes: of the tensors.
        problems: what is inconsistent, a sentence each.
    """

    path: str
    layout: str
    is_configured: bool
    group_size: int | None
    is_symmetric: bool | None
    not_converted: tuple[str, ...] | None
    files: tuple[str, ...]
    layers: tuple[LayerInfo, ...]
    other_tensors: int
    quantized_bytes: int
    other_bytes: int
    problems: tuple[str, ...]


def inspect(path: str | Path, *, layout: str = "auto", group_size: int | None = None) -> Inspection:
    """Reads the headers of a checkpoint, its configuration, and its scales and zeros.

    Args:
        path: a directory with safetensors files, or one such file.
        layout, group_size: as in :func:`convert`.

    Raises:
        CheckpointError: it cannot be read, or is no AWQ checkpoint. ``problems`` says what is wrong with its layers.
    """
    with Checkpoint(path, layout=layout, group_size=group_size, is_strict=False) as checkpoint:
        values = [_values_of(checkpoint, layer) for layer in checkpoint.layers.values()]
        problems = [*checkpoint.problems, *(problem for problem, _ in values if problem), *_orphans(checkpoint)]
        problems += _wrong_total(checkpoint) + _unread_configs(checkpoint)
        layers = tuple(_layer_info(checkpoint, layer) for layer in checkpoint.layers.values())
        config = checkpoint.config
        of_layers = {tensor for layer in checkpoint.layers.values() for tensor in layer.tensors.values()}
        others = [tensor for tensor in checkpoint.files.where if tensor not in of_layers]
        return Inspection(
            path=str(checkpoint.path),
            layout=checkpoint.layout.name,
            is_configured=config is not None,
            group_size=None if config is None else config.group_size,
            is_symmetric=None
            if config is None
            else config.is_symmetric or all(is_symmetric for _, is_symmetric in values),
            not_converted=None if config is None else config.not_converted,
            files=tuple(checkpoint.files.shards),
            layers=layers,
            other_tensors=len(others),
            quantized_bytes=sum(layer.nbytes for layer in layers),
            other_bytes=sum(checkpoint.files.entry(tensor).nbytes for tensor in others),
            problems=tuple(problems),
        )


def _layer_info(checkpoint: Checkpoint, layer: SourceLayer) -> LayerInfo:
    entries = {suffix: checkpoint.files.entry(tensor) for suffix, tensor in layer.tensors.items()}
    n, k, group_size = layer.geometry
    return LayerInfo(
        name=layer.name,
        out_features=n,
        in_features=k,
        group_size=group_size,
        dtypes={suffix: entry.dtype for suffix, entry in entries.items()},
        nbytes=sum(layer.share_of(entry.nbytes) for entry in entries.values()),
        has_bias="bias" in layer.tensors,
    )


def _values_of(checkpoint: Checkpoint, layer: SourceLayer) -> tuple[str | None, bool]:
    """What is wrong with the values of a layer, and whether every zero is 8: scales that are no numbers, zeros out of
    range or, where the configuration promises 8, different."""
    try:
        scales, zeros = layer.layout.decode_side(layer.geometry, checkpoint.side_tensors(layer))
    except LayoutError as error:
        return f"{layer.name}: {error}", False
    others = zeros != SYMMETRIC_ZERO
    is_symmetric = not bool(others.any())
    if not bool(scales.isfinite().all()):
        row, group = (~scales.isfinite()).nonzero()[0].tolist()
        return f"{layer.name}: the scale of row {row}, group {group} is {float(scales[row, group])}", is_symmetric
    if checkpoint.config is not None and checkpoint.config.is_symmetric and not is_symmetric:
        row, group = others.nonzero()[0].tolist()
        return (
            f"{layer.name}: the configuration is symmetric, so that zeros are {SYMMETRIC_ZERO}; "
            f"that of row {row}, group {group} is {int(zeros[row, group])}"
        ), False
    return None, is_symmetric


def _orphans(checkpoint: Checkpoint) -> list[str]:
    """Zeros of layers whose weight is missing."""
    zeros = checkpoint.layout.names.get("zeros")
    weight = checkpoint.layout.names["weight"]
    return [
        f"{tensor} has no {weight} beside it"
        for tensor in checkpoint.files.where
        if tensor.rpartition(".")[2] == zeros and f"{tensor[: -len(zeros)]}{weight}" not in checkpoint.files.where
    ]


def _unread_configs(checkpoint: Checkpoint) -> list[str]:
    """Configurations that awqpack understands and engines do not."""
    problems = []
    for place in checkpoint.configs.places:
        missing = checkpoint.layout.missing_keys(place.quantization) if place.keys else []
        if missing:
            why = "without which no engine reads it" if "quant_method" in missing else "which vLLM asks for"
            problems.append(f"{place.file}: {'.'.join(place.keys)} has no {', '.join(missing)}, {why}")
    return problems


def _wrong_total(checkpoint: Checkpoint) -> list[str]:
    listed = None if checkpoint.files.index is None else checkpoint.files.index.total_size
    files = checkpoint.files
    total = sum(files.entry(tensor).nbytes for tensor, home in files.where.items() if home not in files.side)
    if listed is None or listed == total:
        return []
    return [f"the index says a total_size of {listed}; the tensors have {total} bytes"]

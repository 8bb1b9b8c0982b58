"""What a conversion writes: every output file and tensor, and where each comes from, before anything is written."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..layouts import HEAD, SYMMETRIC_ZERO, Layout, LayoutError, QuantizationConfig, TensorSpec
from .config_files import CONFIG_FILE
from .errors import CheckpointError
from .files import is_pointer, other_entries
from .index import rewritten_index
from .layers import SourceLayer
from .modules import is_embedding, with_names_for
from .shard import DTYPE_NAMES, Entry, arranged, header_bytes
from .source import Checkpoint
from .tensor_files import holds_layers
from .workers import map_all

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass
class OutputFile:
    """A safetensors file to write; entries count from the end of the header."""

    name: str
    entries: dict[str, Entry]
    header: bytes

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(entry.nbytes for entry in self.entries.values())


@dataclass
class Plan:
    """A conversion, ready to be carried out.

    Attributes:
        files: in the order of the source's.
        where: output tensor -> its file.
        layers: layers to convert, with the names of the tensors each becomes.
        copies: tensors whose bytes stay as they are: output name -> source name.
        others: what of the source directory is copied as it is, relative to it.
        warnings: what its readers may stumble over, a sentence each.
        config: what the target's quantization_config says.
        scale_dtype: of scales in the target; None keeps the source's.
    """

    source: Checkpoint
    target: Layout
    config: QuantizationConfig
    scale_dtype: torch.dtype | None = None
    files: list[OutputFile] = field(default_factory=list)
    where: dict[str, OutputFile] = field(default_factory=dict)
    layers: list[tuple[SourceLayer, dict[str, str]]] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def has_new_layout(self) -> bool:
        """Whether the target is in another layout."""
        return self.target is not self.source.layout

    @property
    def changes_layers(self) -> bool:
        """Whether layers become others; otherwise only names of files change."""
        return self.has_new_layout or self.scale_dtype is not None

    def configs(self) -> dict[str, str | None]:
        """Text of each configuration file that changes, by its name; None for one that is left out."""
        return self.source.configs.rewritten(self.target, self.config) if self.has_new_layout else {}

    def index(self) -> tuple[str, str] | None:
        """Name and text of the index; None for a checkpoint of one file that had none."""
        files = self.source.files
        listed = [file for file in self.files if file.name not in files.side]
        names = [file.name for file in listed]
        if files.is_file or (len(names) == 1 and (files.index is None or names[0] not in files.shards)):
            return None
        if files.index is None and [name for name in files.shards if name not in files.side] == names:
            return None
        entries = {tensor: (file.name, entry.nbytes) for file in listed for tensor, entry in file.entries.items()}
        where = {tensor: name for tensor, (name, _) in entries.items()}
        return rewritten_index(files.index, where, sum(nbytes for _, nbytes in entries.values()))


def parse_size(text: str | int) -> int:
    """Bytes of "5GB", "500MB", "2GiB" or a number. Raises ValueError."""
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f'expects a size such as "5GB" or "500MB"; got {text!r}')
        size = min(int(min(float(match[1]), 1e15) * _UNITS[match[2].upper()]), 1 << 62)
    if size < 1:
        raise ValueError(f"expects at least one byte; got {text!r}")
    return size


def make_plan(
    source: Checkpoint,
    target: Layout,
    max_shard_size: int | None = None,
    scale_dtype: torch.dtype | None = None,
) -> Plan:
    """Plans a conversion.

    Args:
        source: what to convert.
        target: the layout to write.
        max_shard_size: bytes; None keeps the source's files, one for one.
        scale_dtype: of scales in the target; None keeps the source's.

    Raises:
        CheckpointError: the target cannot hold some layers; all of them are named.
    """
    if target is not source.layout:
        _require_applied(source, target)
    if target is not source.layout or scale_dtype is not None:
        _require_held(source, target, scale_dtype)
    plan = Plan(source, target, _target_config(source, target), scale_dtype)
    reason = target.reason_not_said(plan.config) if target is not source.layout and source.config is not None else None
    if reason is not None:
        raise CheckpointError(f"{source.path}: {target.name} {reason}")
    drops_zeros = plan.config.is_symmetric and not target.stores_symmetric_zeros
    specs: dict[str, tuple[str, tuple[int, ...], int]] = {}
    homes: dict[str, str] = {}  # output tensor -> the source file it comes from
    for tensor in source.plain_tensors if plan.changes_layers else source.files.where:
        entry = source.files.entry(tensor)
        plan.copies[tensor] = tensor
        specs[tensor] = (entry.dtype, entry.shape, entry.nbytes)
        homes[tensor] = source.files.where[tensor]
    for layer in source.layers.values() if plan.changes_layers else ():
        outputs = _layer_specs(source, layer, target, scale_dtype)
        if drops_zeros:
            outputs.pop(target.names.get("zeros", ""), None)
        prefix = f"{layer.name}." if layer.name else ""
        plan.layers.append((layer, {suffix: prefix + suffix for suffix in outputs}))
        for suffix, spec in outputs.items():
            name = prefix + suffix
            if name in specs or name in homes:
                raise CheckpointError(f"{source.path}: {name} is there already, beside {layer.name}'s own tensors")
            size = spec.dtype.itemsize
            for length in spec.shape:
                size *= length
            specs[name] = (DTYPE_NAMES[spec.dtype], spec.shape, size)
            homes[name] = _home(source, layer, target, suffix)
    _arrange(plan, specs, homes, max_shard_size)
    if not source.files.is_file:
        plan.others = _other_files(plan)
    plan.warnings = _warnings(plan)
    return plan


def _other_files(plan: Plan) -> list[Path]:
    """Raises CheckpointError for layers in a folder below, which would stay in the old layout."""
    files = plan.source.files
    replaced = {*files.shards, *plan.configs()}
    if files.index is not None:
        replaced.add(files.index.path.name)
    others = other_entries(files.path, replaced)
    for path in others if plan.has_new_layout else []:
        # a folder with a configuration of its own is another checkpoint
        has_own_config = (files.path / path.parent / CONFIG_FILE).is_file() and path.parent != Path()
        if path.suffix == ".safetensors" and not has_own_config and holds_layers(files.path / path):
            raise CheckpointError(f"{files.path}: {path} holds quantized layers too, and would stay as it is")
    return others


def _warnings(plan: Plan) -> list[str]:
    source, target = plan.source, plan.target
    warnings = []
    if source.config is None and not source.files.is_file:
        warnings.append(f"{source.path} has no quantization_config, and so the target has none: engines need one")
    warnings += [
        f"{source.path / path} is a Git LFS pointer, which is copied as it is: git lfs pull gets the file"
        for path in plan.others
        if not (source.path / path).is_dir() and is_pointer(source.path / path)
    ]
    if plan.has_new_layout and plan.config.has_head and not target.ignores_by_name:
        warnings.append(f"{HEAD} is quantized, which vLLM and GPTQModel read, and AutoAWQ and transformers do not")
    return warnings


def _target_config(source: Checkpoint, target: Layout) -> QuantizationConfig:
    """What the target's configuration says; symmetric where every zero is really 8, if that matters there."""
    config = source.config or QuantizationConfig(None, False, None, {})
    sizes = {layer.geometry.group_size for layer in source.layers.values()}
    if config.group_size is None and len(sizes) == 1:
        config = dataclasses.replace(config, group_size=sizes.pop())
    asks = config.is_symmetric or not target.stores_symmetric_zeros
    is_symmetric = asks and all(_has_symmetric_zeros(source, layer) for layer in source.layers.values())
    return with_names_for(source, target, dataclasses.replace(config, is_symmetric=is_symmetric))


def _has_symmetric_zeros(source: Checkpoint, layer: SourceLayer) -> bool:
    if layer.layout.names.get("zeros") not in layer.tensors:
        return True
    _, zeros = source.scales_and_zeros(layer)
    return bool((zeros == SYMMETRIC_ZERO).all())


def _require_applied(source: Checkpoint, target: Layout) -> None:
    """Raises CheckpointError for scales of an activation, unless the target's readers apply them or all are 1."""
    if target.has_scaled_activations:
        return
    for tensor in source.plain_tensors:
        spec = source.files.entry(tensor).spec
        is_one = tensor.rpartition(".")[2] == "scales" and len(spec.shape) == 1 and spec.dtype.is_floating_point
        if is_one and bool((source.files.tensor(tensor) != 1).any()):
            raise CheckpointError(
                f"{source.path}: {tensor} divides the output of an activation, as AutoAWQ has it; "
                f"no reader of {target.name} does that"
            )


def _require_held(source: Checkpoint, target: Layout, scale_dtype: torch.dtype | None) -> None:
    """Raises CheckpointError that names every layer the target cannot hold."""

    def reason_of(layer: SourceLayer) -> str | None:
        if is_embedding(layer.name) and not target.has_embeddings:
            return "an embedding, which its readers expect in floats"
        return target.reason_not_held(layer.geometry) or _reason_values_not_held(source, layer, target, scale_dtype)

    layers = source.layers.values()
    refused = [
        f"{layer.name} ({reason})"
        for layer, reason in zip(layers, map_all(reason_of, layers), strict=True)
        if reason is not None
    ]
    if refused:
        raise CheckpointError(
            f"{target.name} cannot hold {len(refused)} of {len(source.layers)} layers: {', '.join(refused)}"
        )


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


def _layer_specs(
    source: Checkpoint, layer: SourceLayer, target: Layout, scale_dtype: torch.dtype | None
) -> dict[str, TensorSpec]:
    n, k, _ = layer.geometry
    dtype = scale_dtype or source.files.entry(layer.scales).spec.dtype
    weight = TensorSpec(target.weight.dtype, target.weight.shape(n, k))
    return {target.names["weight"]: weight, **target.side_specs(layer.geometry, dtype)}


def _home(source: Checkpoint, layer: SourceLayer, target: Layout, suffix: str) -> str:
    """The source file of the tensor with the same part in the layer; that of the weight where there is none."""
    role = next(role for role, name in target.names.items() if name == suffix)
    tensor = layer.tensors.get(layer.layout.names.get(role, ""), layer.weight)
    return source.files.where[tensor]


def _arrange(
    plan: Plan,
    specs: dict[str, tuple[str, tuple[int, ...], int]],
    homes: dict[str, str],
    max_shard_size: int | None,
) -> None:
    shards = plan.source.files.shards
    by_file: dict[str, list[str]] = {name: [] for name in shards}
    if max_shard_size is None:
        for tensor, home in homes.items():
            by_file[home].append(tensor)
        metadata = {name: shard.metadata for name, shard in shards.items()}
    else:
        by_file = _resharded(plan, specs, max_shard_size)
        metadata = dict.fromkeys(by_file, plan.source.files.metadata)
        for name in plan.source.files.side:
            by_file[name] = [tensor for tensor, home in homes.items() if home == name]
            metadata[name] = shards[name].metadata
        kept = {path.name for path in plan.source.path.iterdir()} - shards.keys()
        clash = sorted(kept & by_file.keys())
        if clash:
            raise CheckpointError(
                f"{plan.source.path}: has a file {clash[0]} that is no part of it, and would be replaced"
            )
    for name, tensors in by_file.items():
        entries = arranged({tensor: specs[tensor] for tensor in tensors})
        file = OutputFile(name, entries, header_bytes(entries, metadata[name]))
        plan.files.append(file)
        plan.where |= dict.fromkeys(entries, file)


def _resharded(plan: Plan, specs: dict[str, tuple[str, tuple[int, ...], int]], limit: int) -> dict[str, list[str]]:
    """Files of at most `limit` bytes of tensors, in the source's order; a layer stays together, and is never cut."""
    of_tensor = {tensor: [tensor] for tensor in plan.copies}
    for layer, outputs in plan.layers:
        of_tensor[layer.weight] = list(outputs.values())
    shards: list[list[str]] = [[]]
    room = limit
    for tensor, home in plan.source.files.where.items():
        unit = of_tensor.get(tensor, []) if home not in plan.source.files.side else []
        size = sum(specs[name][2] for name in unit)
        if unit and size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1] += unit
        room -= size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}

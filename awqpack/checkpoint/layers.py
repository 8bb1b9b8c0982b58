"""The quantized layers among the tensors of a checkpoint."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from ..layouts import SOURCES, AmbiguousGroupError, Geometry, LayoutError, QuantizationConfig, StoredLayout, detect
from .errors import CheckpointError
from .fused import Experts, FusedTensors, fused_tensors, names_of_experts
from .packed import WEIGHTS, holds_codes, holds_fused_codes
from .tensor_files import TensorFiles

_ORDERS = {"g_idx", "weight_g_idx"}  # which group each column is in, which not every layout says
# what follows a module's name in a quantized layer
_SUFFIXES = sorted({name for layout in SOURCES.values() for name in layout.names.values()} | {"bias"} | _ORDERS)


@dataclass(frozen=True)
class SourceLayer:
    """A quantized layer of a checkpoint, found but not read.

    Attributes:
        name: of the module.
        layout: that it is in.
        geometry: its sizes.
        tensors: by the layout's name for each, the tensor's full name.
        experts: where in these it lies, when they hold others too; None when they are its own.
    """

    name: str
    layout: StoredLayout
    geometry: Geometry
    tensors: dict[str, str]
    experts: Experts | None = None

    @property
    def weight(self) -> str:
        """Full name of the tensor with the codes."""
        return self.tensors[self.layout.names["weight"]]

    @property
    def scales(self) -> str:
        """Full name of the tensor with the scales."""
        return self.tensors[self.layout.names["scales"]]

    def share_of(self, nbytes: int) -> int:
        """Bytes of one of its tensors that are its own."""
        return nbytes if self.experts is None else self.experts.share_of(nbytes)

    def whole(self) -> SourceLayer:
        """All that its tensors hold, as one layer, of a layer of one of several experts."""
        if self.experts is None:
            return self
        rows = self.experts.count * self.experts.rows
        geometry = self.geometry._replace(out_features=rows)
        return replace(
            self, name=self.experts.name, geometry=geometry, experts=replace(self.experts, begin=0, end=rows)
        )

    def by_expert(self) -> list[SourceLayer]:
        """The layers of each expert, of one that holds several."""
        if self.experts is None or self.experts.end - self.experts.begin <= self.experts.rows:
            return [self]
        rows = self.experts.rows
        parts = [replace(self.experts, begin=i * rows, end=(i + 1) * rows) for i in range(self.experts.count)]
        return [replace(self, geometry=self.geometry._replace(out_features=rows), experts=part) for part in parts]


def layout_of_tensors(files: TensorFiles) -> StoredLayout:
    """The layout of the first layer, by its tensors alone. Raises CheckpointError when there is none."""
    for tensor in files.where:
        fused = fused_tensors(files, tensor)
        if fused is None and not holds_codes(tensor, files.entry(tensor).spec):
            continue
        name, tensors = _tensors_beside(files, tensor)
        specs = {suffix: files.entry(tensor).spec for suffix, tensor in tensors.items()}
        try:
            return detect(specs if fused is None else fused.specs)
        except LayoutError as error:
            raise CheckpointError(f"{files.path}: {name or 'the layer'}: {error}") from None
    raise _no_layer(files)


def find_layers(
    files: TensorFiles, layout: StoredLayout, group_size: int | None, config: QuantizationConfig | None
) -> tuple[dict[str, SourceLayer], list[str]]:
    """The layers by module name, in the order of their weights in the files, and what is inconsistent about others.

    Args:
        files: where to look.
        layout: what the layers are in.
        group_size: of all of them; -1 is one group a row, None asks the shapes.
        config: of the checkpoint, where it has one.

    Raises:
        CheckpointError: not one is there.
    """
    layers: dict[str, SourceLayer] = {}
    problems = []
    for tensor in files.where:
        spec = files.entry(tensor).spec
        fused = fused_tensors(files, tensor)
        if fused is None and holds_fused_codes(tensor, spec):
            problems.append(f"{tensor}: packed as one parameter, but not as experts are, which have three dimensions")
        if fused is None and not holds_codes(tensor, spec):
            continue
        name, tensors = _tensors_beside(files, tensor)
        try:
            if fused is None:
                found = [_source_layer(files, name, tensors, layout, group_size, config)]
            else:
                name = fused.name
                found = _layers_of_experts(files, fused, layout, group_size, config)
        except LayoutError as error:
            problems.append(f"{name or 'the layer'}: {error}")
            continue
        problems += [f"{layer.name}: is there twice" for layer in found if layer.name in layers]
        layers |= {layer.name: layer for layer in found}
    if not layers and not problems:
        raise _no_layer(files)
    return layers, problems


def _no_layer(files: TensorFiles) -> CheckpointError:
    if "awqpack" in files.metadata:
        return CheckpointError(f"{files.path}: holds packed tensors, which awqpack.load_file reads, and no layers")
    return CheckpointError(
        f"{files.path}: holds no quantized layer ({len(files.where)} tensors, none of them packed); "
        "`awqpack quantize` rounds floats"
    )


def _tensors_beside(files: TensorFiles, tensor: str) -> tuple[str, dict[str, str]]:
    """The module of a layer's codes, and its tensors."""
    module = tensor.rpartition(".")[0]
    prefix = f"{module}." if module else ""
    return module, {name: prefix + name for name in _SUFFIXES if prefix + name in files.where}


def _layers_of_experts(
    files: TensorFiles,
    fused: FusedTensors,
    layout: StoredLayout,
    group_size: int | None,
    config: QuantizationConfig | None,
) -> list[SourceLayer]:
    """The layers of each expert; 4-bit floats, which become floats alone, are one layer."""
    if layout.names["weight"] not in fused.specs:
        raise LayoutError(f"{layout.name} expects {layout.names['weight']}; got {', '.join(sorted(fused.specs))}")
    specs = {name: spec for name, spec in fused.specs.items() if name != layout.names.get("shape")}
    geometry = layout.geometry(specs, group_size, None if config is None else config.is_symmetric)
    rows, columns, _ = geometry
    shape = fused.tensors.get(layout.names.get("shape", ""))
    if shape is not None and files.tensor(shape).tolist() != [fused.count, rows, columns]:
        raise LayoutError(f"{shape} expects {[fused.count, rows, columns]}; got {files.tensor(shape).tolist()}")
    if not layout.weight.is_linear:
        geometry = geometry._replace(out_features=fused.count * rows)
        whole = Experts(fused.name, fused.count, rows, 0, fused.count * rows, fused.is_parameter)
        return [SourceLayer(fused.name, layout, geometry, fused.tensors, whole)]
    parts = list(names_of_experts(fused.name, fused.count, rows, is_parameter=fused.is_parameter))
    has_words = layout.names.get("zeros") in specs and specs[layout.names["zeros"]].shape[0] != rows
    for name, part in parts:
        if has_words and (part.end - part.begin) % 8 != 0:  # a word would hold zeros of two of them
            raise LayoutError(f"{name} has {part.end - part.begin} rows, not a multiple of 8, and zeros")
    return [
        SourceLayer(name, layout, geometry._replace(out_features=part.end - part.begin), fused.tensors, part)
        for name, part in parts
    ]


def _source_layer(
    files: TensorFiles,
    name: str,
    tensors: dict[str, str],
    layout: StoredLayout,
    group_size: int | None,
    config: QuantizationConfig | None,
) -> SourceLayer:
    specs = {suffix: files.entry(tensor).spec for suffix, tensor in tensors.items()}
    if layout.names["weight"] not in specs:
        found = sorted(WEIGHTS & set(specs))
        raise LayoutError(f"{layout.name} expects {layout.names['weight']}; got {', '.join(found)}")
    is_symmetric = None if config is None else config.is_symmetric
    try:
        geometry = layout.geometry(specs, group_size, is_symmetric)
    except AmbiguousGroupError:
        _, k = layout.weight.features(specs[layout.names["weight"]].shape)
        used = layout.used_group_size(k, files.tensor(tensors[layout.names["scales"]]))
        geometry = layout.geometry(specs, used, is_symmetric)
    except LayoutError as error:
        other = layout
        with contextlib.suppress(LayoutError):
            other = detect(specs)
        if other is not layout:
            raise LayoutError(f"not {layout.name} but {other.name}, by its tensors ({error})") from None
        raise
    for name_of_order in sorted(_ORDERS & set(specs) - set(layout.names.values())):
        raise LayoutError(f"{name_of_order} is there, which {layout.name} does not have")
    kept = {*layout.names.values(), "bias"}
    return SourceLayer(name, layout, geometry, {k: v for k, v in tensors.items() if k in kept})

"""The quantized layers among the tensors of a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..layouts import SOURCES, AmbiguousGroupError, Geometry, LayoutError, QuantizationConfig, StoredLayout, detect
from .errors import CheckpointError
from .packed import WEIGHTS, holds_codes, holds_fused_codes
from .tensor_files import TensorFiles

_ORDERS = {"g_idx", "weight_g_idx"}  # which group each column is in, which not every layout says
# what follows a module's name in a quantized layer
_SUFFIXES = sorted({name for layout in SOURCES.values() for name in layout.names.values()} | {"bias"} | _ORDERS)


@dataclass(frozen=True)
class SourceLayer:
    """A quantized layer of a checkpoint, found but not read."""

    name: str
    layout: StoredLayout
    geometry: Geometry
    tensors: dict[str, str]  # by the layout's name for each, the tensor's full name

    @property
    def weight(self) -> str:
        """Full name of the tensor with the codes."""
        return self.tensors[self.layout.names["weight"]]

    @property
    def scales(self) -> str:
        """Full name of the tensor with the scales."""
        return self.tensors[self.layout.names["scales"]]


def layout_of_tensors(files: TensorFiles) -> StoredLayout:
    """The layout of the first layer, by its tensors alone. Raises CheckpointError when there is none."""
    for name, tensors in _tensors_by_layer(files):
        try:
            return detect({suffix: files.entry(tensor).spec for suffix, tensor in tensors.items()})
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
    layers, problems = {}, []
    for name, tensors in _tensors_by_layer(files):
        try:
            layers[name] = _source_layer(files, name, tensors, layout, group_size, config)
        except LayoutError as error:
            problems.append(f"{name or 'the layer'}: {error}")
    problems += [
        f"{tensor}: packed as one parameter, as fused experts are; layouts hold linears, expert by expert"
        for tensor in files.where
        if holds_fused_codes(tensor)
    ]
    if not layers and not problems:
        raise _no_layer(files)
    return layers, problems


def _no_layer(files: TensorFiles) -> CheckpointError:
    if "awqpack" in files.metadata:
        return CheckpointError(f"{files.path}: holds packed tensors, which awqpack.load_file reads, and no layers")
    return CheckpointError(f"{files.path}: holds no quantized layer ({len(files.where)} tensors, none of them packed)")


def _tensors_by_layer(files: TensorFiles) -> Iterator[tuple[str, dict[str, str]]]:
    for tensor in files.where:
        module = tensor.rpartition(".")[0]
        if holds_codes(tensor, files.entry(tensor).spec):
            prefix = f"{module}." if module else ""
            yield module, {name: prefix + name for name in _SUFFIXES if prefix + name in files.where}


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

"""A checkpoint on disk: its files, its configuration, and the quantized layers among its tensors."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..layouts import (
    LAYOUTS,
    AmbiguousGroupError,
    Geometry,
    Layer,
    Layout,
    LayoutError,
    QuantizationConfig,
    detect,
    layout_of_config,
)
from .errors import CheckpointError
from .shard import Entry, Shard

CONFIG_KEY = "quantization_config"
OLD_CONFIG_KEY = "compression_config"  # llm-compressor's, before that name was common
CONFIG_FILE = "config.json"
LEGACY_CONFIG_FILE = "quant_config.json"  # AutoAWQ before 0.1.7
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SAVE_ANEW = "safetensors.torch.save_file writes one of what torch.load(path, weights_only=True) reads"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INDEX_SUFFIX = ".safetensors.index.json"
# what follows a module's name in a quantized layer; g_idx is there so that GPTQ is recognised
_SUFFIXES = sorted(
    {name for layout in LAYOUTS.values() for name in layout.names.values()} | {"bias", "g_idx", "weight_g_idx"}
)
_WEIGHTS = {layout.names["weight"] for layout in LAYOUTS.values()}


@dataclass(frozen=True)
class SourceLayer:
    """A quantized layer of a checkpoint, found but not read."""

    name: str
    layout: Layout
    geometry: Geometry
    tensors: dict[str, str]  # by the layout's name for each, the tensor's full name


@dataclass(frozen=True)
class FoundConfig:
    """A quantization_config, the file it stands in, and the keys that lead to it there."""

    path: Path
    keys: tuple[str, ...]
    content: dict[str, Any]  # of the whole file
    text: str
    quantization: dict[str, Any]


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """An object and the text it was read from."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expects a JSON object; got {type(content).__name__}")
    return content, text


class Checkpoint:
    """A directory of safetensors files with their configuration, or one such file. A context manager that closes them.

    Attributes:
        path: as it was given.
        is_file: whether it is one file.
        index_path, index: of a sharded checkpoint; None otherwise.
        shards: by file name, in the order in which the index first names them.
        where: tensor name -> name of its shard.
        found_config: where the quantization_config stands; None without one.
        config: what it says, in AutoAWQ's words; None without one.
        layout: of the quantized layers.
        layers: by module name, in the order of their weights in the files.
        problems: what is inconsistent, a sentence each; a strict opening raises instead.
    """

    def __init__(
        self, path: str | Path, *, layout: str = "auto", group_size: int | None = None, is_strict: bool = True
    ) -> None:
        """
        Args:
            path: a directory, or a .safetensors file.
            layout: of the layers, or "auto": what the configuration says, or else the tensors.
            group_size: where no configuration says it and the shapes do not tell; -1 is one group a row.
            is_strict: raise for the first layers that are inconsistent, rather than collect ``problems``.

        Raises:
            CheckpointError: nothing there, not AWQ, cut short, inconsistent, ...
        """
        self.path = Path(path)
        self.problems: list[str] = []
        self.shards: dict[str, Shard] = {}
        self.index_path: Path | None = None
        self.index: dict[str, Any] | None = None
        self.is_file = self.path.is_file()
        _require_safetensors(self.path)
        try:
            for name in self._shard_names():
                self.shards[name] = Shard(self.root / name)
            self.where = self._place_tensors()
            self.found_config = None if self.is_file else self._find_config()
            self.layout, self.config = self._read_config(layout)
            if group_size is not None and self.config is not None and self.config.group_size != group_size:
                raise CheckpointError(
                    f"{self._config_name}: group_size is {self.config.group_size}; {group_size} was asked for"
                )
            self._group_size = group_size if self.config is None else self.config.group_size
            self.layers = self._find_layers()
            if self.problems and is_strict:
                raise CheckpointError(f"{self.path}: {_some(self.problems)}")
        except BaseException:
            self.close()
            raise

    @property
    def root(self) -> Path:
        """The directory that the files are in."""
        return self.path.parent if self.is_file else self.path

    @property
    def _config_name(self) -> Path:
        return self.path if self.found_config is None else self.found_config.path

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()
        self.shards = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- files ---

    def _shard_names(self) -> list[str]:
        if self.is_file:
            return [self.path.name]
        indices = sorted(self.path.glob("*" + _INDEX_SUFFIX))
        preferred = [index for index in indices if index.name == "model" + _INDEX_SUFFIX] or indices
        if preferred:
            self.index_path = preferred[0]
            self.index, _ = read_json(self.index_path)
            return self._names_in_index(self.index_path, self.index)
        names = sorted(path.name for path in self.path.glob("*.safetensors"))
        if "model.safetensors" in names:
            return ["model.safetensors"]
        if not names:
            pickled = sorted(path.name for path in self.path.iterdir() if path.suffix in _PICKLED)
            raise CheckpointError(
                f"{self.path}: holds no .safetensors file" + (f" but {pickled[0]}; {_SAVE_ANEW}" if pickled else "")
            )
        return names

    @staticmethod
    def _names_in_index(path: Path, index: dict[str, Any]) -> list[str]:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path}: expects a weight_map of tensor names to file names")
        for tensor, name in weight_map.items():
            # a name that holds a directory could lead anywhere
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..") or "\\" in name:
                raise CheckpointError(f"{path}: expects plain file names; {tensor} is in {name!r}")
            if not (path.parent / name).is_file():
                raise CheckpointError(f"{path}: names {name}, which is missing")
        return list(dict.fromkeys(weight_map.values()))

    def _place_tensors(self) -> dict[str, str]:
        where: dict[str, str] = {}
        for name, shard in self.shards.items():
            for tensor in shard.entries:
                if tensor in where:
                    raise CheckpointError(f"{self.path}: {tensor} is in {where[tensor]} and in {name}")
                where[tensor] = name
        if self.index is not None:
            listed: dict[str, str] = self.index["weight_map"]
            for tensor, name in listed.items():
                if where.get(tensor) != name:
                    self.problems.append(f"{tensor} is not in {name}, where the index has it")
            self.problems += [
                f"{tensor} in {where[tensor]} is missing in the index" for tensor in where.keys() - listed
            ]
        return where

    @property
    def metadata(self) -> dict[str, str]:
        """Of all files; where they differ, the first one's."""
        merged: dict[str, str] = {}
        for shard in self.shards.values():
            merged = {**shard.metadata, **merged}
        return merged

    def entry(self, tensor: str) -> Entry:
        return self.shards[self.where[tensor]].entries[tensor]

    def tensor(self, name: str) -> torch.Tensor:
        return self.shards[self.where[name]].tensor(name)

    # --- configuration ---

    def _find_config(self) -> FoundConfig | None:
        path = self.path / CONFIG_FILE
        if path.is_file():
            content, text = read_json(path)
            for keys in ((CONFIG_KEY,), ("text_config", CONFIG_KEY), (OLD_CONFIG_KEY,)):
                found: Any = content
                for key in keys:
                    found = found.get(key) if isinstance(found, dict) else None
                if isinstance(found, dict):
                    return FoundConfig(path, keys, content, text, found)
                if found is not None:
                    raise CheckpointError(f"{path}: {'.'.join(keys)} expects an object; got {found!r}")
        legacy = self.path / LEGACY_CONFIG_FILE
        if legacy.is_file():
            content, text = read_json(legacy)
            return FoundConfig(legacy, (), content, text, content)
        return None

    def _read_config(self, wish: str) -> tuple[Layout, QuantizationConfig | None]:
        if wish != "auto" and wish not in LAYOUTS:
            raise CheckpointError(f"layout expects auto or one of {', '.join(LAYOUTS)}; got {wish!r}")
        found = self.found_config
        if found is None:
            return (self._layout_of_tensors() if wish == "auto" else LAYOUTS[wish]), None
        try:
            named = layout_of_config(found.quantization)
            config = named.read_config(found.quantization)
        except LayoutError as error:
            raise CheckpointError(f"{found.path}: {error}") from None
        layout = named if wish == "auto" else LAYOUTS[wish]
        return layout, config

    def _layout_of_tensors(self) -> Layout:
        for name, tensors in self._tensors_by_layer():
            try:
                return detect({suffix: self.entry(tensor).spec for suffix, tensor in tensors.items()})
            except LayoutError as error:
                raise CheckpointError(f"{self.path}: {name or 'the layer'}: {error}") from None
        raise CheckpointError(f"{self.path}: holds no quantized layer ({len(self.where)} tensors, none of them packed)")

    # --- layers ---

    def _tensors_by_layer(self) -> Iterator[tuple[str, dict[str, str]]]:
        for tensor in self.where:
            module, _, suffix = tensor.rpartition(".")
            if suffix in _WEIGHTS:
                prefix = f"{module}." if module else ""
                yield module, {name: prefix + name for name in _SUFFIXES if prefix + name in self.where}

    def _find_layers(self) -> dict[str, SourceLayer]:
        layers = {}
        count = 0
        for name, tensors in self._tensors_by_layer():
            count += 1
            try:
                layers[name] = self._source_layer(name, tensors)
            except LayoutError as error:
                self.problems.append(f"{name or 'the layer'}: {error}")
        if count == 0:
            raise CheckpointError(
                f"{self.path}: holds no quantized layer ({len(self.where)} tensors, none of them packed)"
            )
        return layers

    def _source_layer(self, name: str, tensors: dict[str, str]) -> SourceLayer:
        layout = self.layout
        specs = {suffix: self.entry(tensor).spec for suffix, tensor in tensors.items()}
        if layout.names["weight"] not in specs:
            found = sorted(_WEIGHTS & set(specs))
            raise LayoutError(f"{layout.name} expects {layout.names['weight']}; got {', '.join(found)}")
        if "g_idx" in specs or "weight_g_idx" in specs:
            detect(specs)
        is_symmetric = None if self.config is None else self.config.is_symmetric
        try:
            geometry = layout.geometry(specs, self._group_size, is_symmetric)
        except AmbiguousGroupError:
            _, k = layout.weight.features(specs[layout.names["weight"]].shape)
            group_size = layout.used_group_size(k, self.tensor(tensors[layout.names["scales"]]))
            geometry = layout.geometry(specs, group_size, is_symmetric)
        except LayoutError as error:
            other = layout
            with contextlib.suppress(LayoutError):
                other = detect(specs)
            if other is not layout:
                raise LayoutError(f"not {layout.name} but {other.name}, by its tensors ({error})") from None
            raise
        kept = {*layout.names.values(), "bias"}
        return SourceLayer(name, layout, geometry, {k: v for k, v in tensors.items() if k in kept})

    def side_tensors(self, layer: SourceLayer) -> dict[str, torch.Tensor]:
        """Every tensor of a layer but its weight and bias."""
        skipped = {layer.layout.names["weight"], "bias"}
        return {suffix: self.tensor(tensor) for suffix, tensor in layer.tensors.items() if suffix not in skipped}

    def scales_and_zeros(self, layer: SourceLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """``(N, G)`` each. Raises CheckpointError for a zero that is none of 0..15."""
        try:
            return layer.layout.decode_side(layer.geometry, self.side_tensors(layer))
        except LayoutError as error:
            raise CheckpointError(f"{self.path}: {layer.name}: {error}") from None

    def decode(self, name: str) -> Layer:
        """A layer's codes, scales, zeros and bias."""
        layer = self.layers[name]
        scales, zeros = self.scales_and_zeros(layer)
        codes = layer.layout.weight.unpack(self.tensor(layer.tensors[layer.layout.names["weight"]]))
        bias = self.tensor(layer.tensors["bias"]) if "bias" in layer.tensors else None
        return Layer(codes, scales, zeros, layer.geometry.group_size, bias)

    def release(self, tensor: str) -> None:
        """Lets go of the memory that reading a tensor took."""
        self.shards[self.where[tensor]].release(tensor)

    @property
    def plain_tensors(self) -> list[str]:
        """Every tensor that is no part of a quantized layer, or is its bias."""
        parts = {
            tensor for layer in self.layers.values() for suffix, tensor in layer.tensors.items() if suffix != "bias"
        }
        return [tensor for tensor in self.where if tensor not in parts]


def _require_safetensors(path: Path) -> None:
    """Raises CheckpointError for a path that is nothing, or a file of another kind; says how to get the right one."""
    if not os.path.lexists(path):
        advice = ""
        if _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
            advice = f"; to get a model of the Hugging Face Hub: hf download {path} --local-dir {path.name}"
        raise CheckpointError(f"{path}: no such file or directory{advice}")
    if path.suffix in _PICKLED and path.is_file():
        raise CheckpointError(f"{path}: expects a directory or a .safetensors file; {_SAVE_ANEW}")


def _some(problems: list[str]) -> str:
    """All of a few, the first of many."""
    shown = "; ".join(problems[:3])
    return shown if len(problems) <= 3 else f"{shown}; and {len(problems) - 3} more (awqpack inspect lists them)"

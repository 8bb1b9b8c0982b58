"""A checkpoint on disk: its files, its configuration, and the quantized layers among its tensors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from ..layouts import SOURCES, Layer, LayoutError, QuantizationConfig, StoredLayout
from ..layouts.weight import TakeBytes
from .config_files import ConfigFiles
from .errors import CheckpointError
from .files import Closing
from .fused import rows_of
from .hub import located
from .layers import SourceLayer, find_layers, layout_of_tensors
from .tensor_files import TensorFiles


class Checkpoint(Closing):
    """A directory of safetensors files with their configuration, or one such file. A context manager that closes them.

    Attributes:
        path: as it was given.
        files: the safetensors files, and which has which tensor.
        configs: the files that say how it is quantized.
        config: what they say, in AutoAWQ's words; None where they say nothing.
        layout: of the quantized layers.
        layers: by module name, in the order of their weights in the files.
        problems: what is inconsistent, a sentence each; a strict opening raises instead.
    """

    def __init__(
        self, path: str | Path, *, layout: str = "auto", group_size: int | None = None, is_strict: bool = True
    ) -> None:
        """
        Args:
            path: a directory, or a .safetensors file, or the name of a model in the Hugging Face Hub's local cache.
            layout: of the layers, or "auto": what the configuration says, or else the tensors.
            group_size: where no configuration says it and the shapes do not tell; -1 is one group a row.
            is_strict: raise for the first layers that are inconsistent, rather than collect ``problems``.

        Raises:
            CheckpointError: nothing there, not AWQ, cut short, inconsistent, ...
        """
        self.path = located(path)
        self.files = TensorFiles(self.path)
        self.problems = list(self.files.problems)
        try:
            self.configs = ConfigFiles(None if self.files.is_file else self.path)
            self.layout, self.config = self._read_config(layout)
            if self.config is not None and group_size not in (None, self.config.group_size):
                raise CheckpointError(
                    f"{self.config_path}: group_size is {self.config.group_size}; {group_size} was asked for"
                )
            of_all = group_size if self.config is None else self.config.group_size
            self.layers, problems = find_layers(self.files, self.layout, of_all, self.config)
            self.problems += problems
            if self.problems and is_strict:
                raise CheckpointError(f"{self.path}: {_some(self.problems)}")
        except BaseException:
            self.close()
            raise

    def _read_config(self, wish: str) -> tuple[StoredLayout, QuantizationConfig | None]:
        if wish != "auto" and wish not in SOURCES:
            raise CheckpointError(f"layout expects auto or one of {', '.join(SOURCES)}; got {wish!r}")
        named = None if wish == "auto" else SOURCES[wish]
        found = self.configs.read(named)
        if found is None:
            return named or layout_of_tensors(self.files), None
        layout, config, problems = found
        self.problems += problems
        return layout, config

    @property
    def config_path(self) -> Path:
        """The file with the quantization_config; the checkpoint itself where there is none."""
        return self.configs.path or self.path

    def close(self) -> None:
        self.files.close()

    def side_tensors(self, layer: SourceLayer) -> dict[str, torch.Tensor]:
        """Every tensor of a layer but its weight and bias."""
        names = layer.layout.names
        skipped = {names["weight"], "bias"} | ({names.get("shape")} if layer.experts is not None else set())
        return {suffix: self._part(layer, tensor) for suffix, tensor in layer.tensors.items() if suffix not in skipped}

    def weight_rows(self, layer: SourceLayer, begin: int, end: int, take: TakeBytes) -> torch.Tensor:
        """Rows begin..end of the tensor with a layer's codes, of the layer's own."""
        return rows_of(self.files.shard(layer.weight), layer.weight, layer.experts, begin, end, take)

    def weight(self, layer: SourceLayer) -> torch.Tensor:
        """All of these rows."""
        return self._part(layer, layer.weight)

    def _part(self, layer: SourceLayer, tensor: str) -> torch.Tensor:
        if layer.experts is None:
            return self.files.tensor(tensor)
        begin, end, rows = layer.experts.rows_of(self.files.entry(tensor).shape[1])
        return self.files.shard(tensor).matrix(tensor, rows, begin, end)

    def scales_and_zeros(self, layer: SourceLayer) -> tuple[torch.Tensor, torch.Tensor]:
        """``(N, G)`` each. Raises CheckpointError for a zero that is none of 0..15."""
        try:
            return layer.layout.decode_side(layer.geometry, self.side_tensors(layer))
        except LayoutError as error:
            raise CheckpointError(f"{self.path}: {layer.name}: {error}") from None

    def codes(self, layer: SourceLayer) -> torch.Tensor:
        """uint8 ``(N, K)``."""
        return layer.layout.weight.unpack(self.weight(layer))

    def decode(self, name: str) -> Layer:
        """A layer's codes, scales, zeros and bias. Raises CheckpointError for 4-bit floats, which no Layer holds."""
        layer = self.layers[name]
        if not layer.layout.weight.is_linear:
            raise CheckpointError(f"{self.path}: {name}: {layer.layout.name} holds floats, and no codes times a scale")
        scales, zeros = self.scales_and_zeros(layer)
        bias = self.files.tensor(layer.tensors["bias"]) if "bias" in layer.tensors else None
        order = layer.layout.decode_order(layer.geometry, self.side_tensors(layer))
        return Layer(self.codes(layer), scales, zeros, layer.geometry.group_size, bias, order)

    @cached_property
    def plain_tensors(self) -> dict[str, None]:
        """Names of the tensors that are no part of a quantized layer, or its bias, in order."""
        parts = {
            tensor for layer in self.layers.values() for suffix, tensor in layer.tensors.items() if suffix != "bias"
        }
        return {tensor: None for tensor in self.files.where if tensor not in parts}


def _some(problems: list[str]) -> str:
    """All of a few, the first of many."""
    shown = "; ".join(problems[:3])
    return shown if len(problems) <= 3 else f"{shown}; and {len(problems) - 3} more (awqpack inspect lists them)"

"""Writer: a checkpoint that a quantizer writes layer by layer, whole at the end or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..layouts import HEAD, LAYOUTS, Layer, LayoutError, QuantizationConfig
from .config_files import CONFIG_FILE, quantized_texts
from .convert import limit_of, require_apart
from .errors import CheckpointError
from .files import copy_entry, other_entries, writing
from .from_floats import FloatCheckpoint
from .hub import plain_path
from .modules import is_embedding
from .spool import Spool
from .staging import Staging
from .work import prefixed


class Writer:
    """Writes a quantized checkpoint as its layers come. A context manager: leaving it puts the checkpoint in place, and
    leaving it by an exception leaves nothing.

    One layer is in memory at a time. Config, index and what else a reader asks for are written at the end::

        with Writer("Llama-AWQ", "gemm") as writer:
            for name, linear in linears:
                scales, zeros = search(linear.weight)
                writer.add(name, linear.weight, scales, zeros)
            writer.copy("Llama")
    """

    def __init__(
        self,
        target: str | Path,
        layout: str,
        *,
        config: Mapping[str, Any] | None = None,
        max_shard_size: str | int = "5GB",
        force: bool = False,
    ) -> None:
        """
        Args:
            target: a directory, which appears when it is whole.
            layout: a name in ``awqpack.layouts.LAYOUTS``.
            config: what config.json says of the model, such as ``model.config.to_dict()``; that of what is copied
                without it.
            max_shard_size: bytes of tensors of a file.
            force: replace a target that exists and is a checkpoint.

        Raises:
            CheckpointError: an argument is none of these, or the target cannot be written.
        """
        if layout not in LAYOUTS:
            raise CheckpointError(f"layout expects one of {', '.join(LAYOUTS)}; got {layout!r}")
        self._layout = LAYOUTS[layout]
        self._target = Path(os.path.abspath(plain_path(target)))
        if self._target.suffix == ".safetensors":
            raise CheckpointError(f"{target}: expects a directory")
        self._config = None if config is None else dict(config)
        self._config_text = '{\n  "\n}\n'
        self._limit = limit_of(max_shard_size)
        self._staging = Staging(self._target, force=force)
        self._staging.check()
        self._spool: Spool | None = None
        self._layers: dict[str, tuple[int, int]] = {}  # group size, groups
        self._is_symmetric: bool | None = None

    def add(
        self,
        name: str,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Writes a layer.

        Args:
            name: of the module.
            weight: uint8 codes ``(N, K)``, or floats, which are rounded to the codes of these scales.
            scales: float16, bfloat16 or float32 ``(N, G)``.
            zeros: uint8 ``(N, G)``, 0..15; None for a symmetric layer, as all are then.
            bias: ``(N,)``; without it the one of what is copied stays.

        Raises:
            CheckpointError: the layout cannot hold the layer, or it does not fit those before it.
        """
        spool = self._open()
        if self._is_symmetric not in (None, zeros is None):
            raise CheckpointError(f"{name}: zeros expects those of every layer, or of none")
        try:
            with torch.no_grad():
                tensors = (
                    self._layout.encode(Layer(weight, scales, zeros, _group_size(weight, scales), bias))
                    if weight.dtype == torch.uint8
                    else self._layout.encode_float(weight, scales, zeros, bias)
                )
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from None
        self._is_symmetric = zeros is None
        layers = {**self._layers, name: (_group_size(weight, scales), scales.shape[1])}
        if len({size for size, _ in layers.values()}) > 1 and any(groups > 1 for _, groups in layers.values()):
            raise CheckpointError(f"{name}: expects groups of the size of the layers before it; got {layers[name][0]}")
        self._layers = layers
        self._require_new(name, prefixed(name, "weight"), *(prefixed(name, suffix) for suffix in tensors))
        with writing(self._target):
            spool.put({prefixed(name, suffix): tensor for suffix, tensor in tensors.items()})

    def tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Writes a tensor that is no part of a layer, by its full name."""
        spool = self._open()
        self._require_new(name, name)
        with writing(self._target):
            spool.put({name: tensor})

    def copy(self, source: str | Path) -> None:
        """Copies what a checkpoint in floats has beside the layers that were added: tensors, config.json, other files.

        Args:
            source: a directory with safetensors files.

        Raises:
            CheckpointError: it cannot be read, is quantized, or lies where the target does.
        """
        spool = self._open()
        with FloatCheckpoint(source) as checkpoint, writing(self._target):
            files = checkpoint.files
            if files.is_file:
                raise CheckpointError(f"{files.path}: expects a directory")
            require_apart(files.path, self._target)
            missing = [name for name in self._layers if prefixed(name, "weight") not in files.where]
            if missing:
                raise CheckpointError(
                    f"{files.path}: has no {prefixed(missing[0], 'weight')}, of a layer that was added"
                )
            replaced = {prefixed(name, "weight") for name in self._layers}
            for tensor in files.where:
                if tensor not in replaced and tensor not in spool.specs:
                    spool.copy(tensor, files.shard(tensor))
            for path in other_entries(files.path, [CONFIG_FILE, *files.names]):
                copy_entry(files.path, path, self._staging.content / path)
            files.require_unchanged()
            if self._config is None and CONFIG_FILE in checkpoint.configs.files:
                self._config, self._config_text = checkpoint.configs.files[CONFIG_FILE]

    def _open(self) -> Spool:
        if self._spool is None:
            raise CheckpointError(f"{self._target}: Writer expects to be entered (with Writer(...) as writer)")
        return self._spool

    def _require_new(self, what: str, *names: str) -> None:
        there = [name for name in names if name in self._open().specs]
        if there:
            raise CheckpointError(f"{what}: {there[0]} is written already")

    def __enter__(self) -> Writer:
        self._staging.__enter__()
        try:
            with writing(self._target):
                self._spool = Spool(self._staging.content, self._limit)
        except BaseException as error:
            self._staging.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing(self._target):
                    self._finish(self._open())
        finally:
            self._open().close()
            self._spool = None
            self._staging.__exit__(kind, error, trace)

    def _finish(self, spool: Spool) -> None:
        if not self._layers:
            raise CheckpointError(f"{self._target}: expects a layer at least; none was added")
        texts = quantized_texts(self._config or {}, self._config_text, self._layout, self._quantization(spool))
        spool.finish()
        for name, text in texts.items():
            (self._staging.content / name).write_text(text, encoding="utf-8")
        self._staging.commit()

    def _quantization(self, spool: Spool) -> QuantizationConfig:
        sizes = {size for size, _ in self._layers.values()}
        plain = [
            name.removesuffix(".weight")
            for name, (_, shape, _) in spool.specs.items()
            if name.endswith(".weight") and len(shape) == 2
        ]
        kept = tuple(name for name in plain if name not in self._layers and name != HEAD and not is_embedding(name))
        config = QuantizationConfig(
            sizes.pop() if len(sizes) == 1 else -1, bool(self._is_symmetric), None, {}, kept, HEAD in self._layers
        )
        reason = self._layout.reason_not_said(config)
        if reason is not None:
            raise CheckpointError(f"{self._target}: {self._layout.name} {reason}")
        return config


def _group_size(weight: torch.Tensor, scales: torch.Tensor) -> int:
    """Columns that share a scale. Raises LayoutError."""
    if weight.dim() != 2 or scales.dim() != 2 or scales.shape[1] == 0 or weight.shape[1] % scales.shape[1] != 0:
        raise LayoutError(
            f"expects a weight (N, K) and scales (N, G), G a divisor of K; got {tuple(weight.shape)} and "
            f"{tuple(scales.shape)}"
        )
    return weight.shape[1] // scales.shape[1]

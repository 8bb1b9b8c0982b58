"""GPTQ as AutoGPTQ and GPTQModel write it: gptqmodel/nn_modules/qlinear/__init__.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .. import functional
from ..packing import AWQPacking
from .auto_round import in_words_of
from .base import Layout
from .names import PATTERN, part_or_pattern, pattern_of
from .parts import Geometry, LayoutError, QuantizationConfig, TensorSpec
from .reading import Role
from .weight import PackedWeight

QUANT_METHOD = "gptq"
_LEFT_OUT = "-:"  # GPTQModel's dynamic: {"-:PATTERN": {}} leaves out the modules that match


class Gptq(Layout):
    """qweight int32 (K/8, N), eight columns a word; qzeros int32 (G, N/8), each zero minus one; scales (G, N);
    g_idx int32 (K,), the group of each column."""

    name = "gptq"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales", "order": "g_idx"}
    weight = PackedWeight(AWQPacking.V1, is_turned=True)
    source = "GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py"
    keeps_order = True
    group_dim = 0
    lowest_zero = 1
    config_files = ("quantize_config.json",)
    formats: ClassVar[tuple[str | None, ...]] = (
        "gptq",
        None,
    )  # checkpoint_format; the first is the one that is written

    def is_optional(self, role: Role) -> bool:
        return role == "order"

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        n, groups = geometry.out_features, geometry.groups
        return {
            "qzeros": TensorSpec(torch.int32, (groups, n // 8)),
            "scales": TensorSpec(dtype, (groups, n)),
            "g_idx": TensorSpec(torch.int32, (geometry.in_features,)),
        }

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "qzeros": functional.pack(self._stored(zeros).t(), AWQPacking.V1),
            "scales": scales.t().contiguous(),
        }

    def encode_order(
        self, geometry: Geometry, order: torch.Tensor | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        return {"g_idx": _in_turn(geometry, device) if order is None else order}

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        return self._read(functional.unpack(tensors["qzeros"], AWQPacking.V1).t())

    def decode_order(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        order = tensors.get("g_idx")
        if order is None or torch.equal(order, _in_turn(geometry, order.device)):
            return None
        low, high = order.aminmax()
        if low < 0 or high >= geometry.groups:
            raise LayoutError(f"g_idx expects groups 0..{geometry.groups - 1}; got {int(low)}..{int(high)}")
        return order

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        return False

    def _stored(self, zeros: torch.Tensor) -> torch.Tensor:
        """What is packed of zeros ``(N, G)``. Raises LayoutError for a zero of 0."""
        if not bool(zeros.all()):  # fifty times as fast as a comparison of each
            row, group = (zeros == 0).nonzero()[0].tolist()
            raise LayoutError(
                f"a zero is stored minus one, which has no place for the 0 of row {row}, group {group}: gptq_v2 has"
            )
        return zeros - 1

    def _read(self, stored: torch.Tensor) -> torch.Tensor:
        """The inverse of _stored."""
        if not bool((15 - stored).all()):
            row, group = (stored == 15).nonzero()[0].tolist()
            raise LayoutError(
                f"qzeros expects zeros minus one, 0..14; qzeros[{group}] has 15 for row {row}, "
                "which some readers take for a zero of 16 and others for 0"
            )
        return stored + 1

    def claims(self, config: Mapping[str, Any]) -> bool:
        config = in_words_of(QUANT_METHOD, config)
        return config.get("quant_method") == QUANT_METHOD and _format_of(config) in self.formats

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        if config.get("quant_method", QUANT_METHOD) != QUANT_METHOD:
            return []
        return [key for key in ("quant_method", "bits", "group_size", "desc_act", "sym") if key not in config]

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        raw, config = config, in_words_of(QUANT_METHOD, config)
        if config.get("bits", 4) != 4:
            raise LayoutError(f"bits expects 4; got {config['bits']!r}")
        group_size = config.get("group_size", 128)
        if type(group_size) is not int or (group_size < 1 and group_size != -1):
            raise LayoutError(f"group_size expects a positive number or -1; got {group_size!r}")
        sym = config.get("sym", True)
        if not isinstance(sym, bool):
            raise LayoutError(f"sym expects true or false; got {sym!r}")
        if config.get("pack_dtype", "int32") != "int32":
            raise LayoutError(f"pack_dtype expects int32; got {config['pack_dtype']!r}")
        left_out = _left_out(config.get("dynamic") or {}, group_size)
        return QuantizationConfig(group_size, sym, left_out, raw, has_head=config.get("lm_head") is True)

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """Keys that only some engine knows stay as the source of a GPTQ configuration has them."""
        raw = config.raw if config.raw.get("quant_method") == QUANT_METHOD else {}
        entries = [name if name.startswith(PATTERN) else pattern_of(name) for name in config.not_converted or ()]
        entries += [f"{PATTERN}{re.escape(name)}$" for name in config.exact]
        dynamic: dict[str, Any] = {entry.replace(PATTERN, _LEFT_OUT, 1): {} for entry in entries}
        written = {
            **raw,
            "bits": 4,
            "checkpoint_format": self.formats[0],
            "desc_act": raw.get("desc_act", False),
            "group_size": config.group_size,
            "lm_head": config.has_head,
            "pack_dtype": "int32",
            "quant_method": QUANT_METHOD,
            "sym": config.is_symmetric,
        }
        if "format" in raw:
            written["format"] = self.formats[0]
        if dynamic or "dynamic" in raw:
            written["dynamic"] = dynamic
        return written if raw else dict(sorted(written.items()))

    def caution(self, config: QuantizationConfig) -> str | None:
        if config.is_symmetric:
            return None
        return "GPTQModel reads zeros other than 8 from gptq_v2 alone"


class GptqV2(Gptq):
    """gptq with its zeros stored as they are."""

    name = "gptq_v2"
    formats = ("gptq_v2",)
    lowest_zero = 0

    def caution(self, config: QuantizationConfig) -> str | None:
        return None

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        return True

    def _stored(self, zeros: torch.Tensor) -> torch.Tensor:
        return zeros

    def _read(self, stored: torch.Tensor) -> torch.Tensor:
        return stored


def _format_of(config: Mapping[str, Any]) -> str | None:
    named = config.get("checkpoint_format") or config.get("format")
    return None if named is None else str(named).lower()


def _in_turn(geometry: Geometry, device: torch.device) -> torch.Tensor:
    """g_idx of columns whose groups follow each other."""
    return torch.arange(geometry.in_features, dtype=torch.int32, device=device) // geometry.group_size


def _left_out(dynamic: Any, group_size: int) -> tuple[str, ...] | None:
    """Modules that GPTQModel's dynamic leaves out, as parts of names and patterns. Raises LayoutError for any other."""
    if not isinstance(dynamic, dict):
        raise LayoutError(f"dynamic expects an object; got {dynamic!r}")
    patterns = []
    for pattern, says in dynamic.items():
        if pattern.startswith(_LEFT_OUT):
            patterns.append(part_or_pattern(pattern.replace(_LEFT_OUT, PATTERN, 1)))
        elif not isinstance(says, dict) or says.get("bits", 4) != 4 or says.get("group_size", group_size) != group_size:
            raise LayoutError(f"dynamic expects layers of 4 bits and groups of {group_size}; {pattern} has {says!r}")
    return tuple(patterns) or None

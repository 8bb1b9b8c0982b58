"""What AutoAWQ's own layouts share: their quantization_config, and how gemv and gemv_fast pad their groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .base import Geometry, Layout, LayoutError, QuantizationConfig

QUANT_METHOD = "awq"


class AwqLayout(Layout):
    """A layout that a ``version`` of ``quant_method: awq`` names."""

    versions: ClassVar[tuple[str, ...]]  # the first is the one that is written

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method", QUANT_METHOD) == QUANT_METHOD and self.version_of(config) in self.versions

    @staticmethod
    def version_of(config: Mapping[str, Any]) -> str:
        """The version in lower case; checkpoints of transformers' llm-awq backend name that instead."""
        if config.get("backend") == "llm-awq":
            return "llm-awq"
        return str(config.get("version") or config.get("format") or "gemm").lower()

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        # AutoAWQ's older quant_config.json has names of its own
        bits = config.get("bits", config.get("w_bit", 4))
        if bits != 4:
            raise LayoutError(f"bits expects 4; got {bits!r}")
        group_size = config.get("group_size", config.get("q_group_size", 128))
        if type(group_size) is not int or (group_size < 1 and group_size != -1):
            raise LayoutError(f"group_size expects a positive number or -1; got {group_size!r}")
        not_converted = config.get("modules_to_not_convert")
        if not_converted is not None and (
            not isinstance(not_converted, list) or not all(isinstance(name, str) for name in not_converted)
        ):
            raise LayoutError(f"modules_to_not_convert expects a list of names; got {not_converted!r}")
        zero_point = config.get("zero_point", True)
        if not isinstance(zero_point, bool):
            raise LayoutError(f"zero_point expects true or false; got {zero_point!r}")
        return QuantizationConfig(
            group_size, not zero_point, None if not_converted is None else tuple(not_converted), config
        )

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        if config.raw.get("quant_method", QUANT_METHOD) == QUANT_METHOD:
            # every other key is some engine's, and stays
            written = {key: value for key, value in config.raw.items() if key != "backend" or value != "llm-awq"}
            if "format" in written and "version" not in written:
                return written | {"format": self.versions[0]}
            version = written.get("version")
            is_upper = isinstance(version, str) and version.isupper()
            return written | {"version": self.versions[0].upper() if is_upper else self.versions[0]}
        return {
            "bits": 4,
            "group_size": config.group_size,
            "modules_to_not_convert": [*(config.not_converted or ()), *config.exact] or None,
            "quant_method": QUANT_METHOD,
            "version": self.versions[0],
            "zero_point": not config.is_symmetric,
        }


# AutoAWQ, awq/utils/packing_utils.py and modules/linear/gemv.py (calculate_zeros_width)
_WIDTH_MULTIPLES = {64: 2, 32: 4}


class PaddedLayout(AwqLayout):
    """A layout whose scales and zeros have a zero tail, up to whole words and multiples of them."""

    group_dim: ClassVar[int]  # of the scales as they are stored

    def words(self, geometry: Geometry) -> int:
        """zw: int32 words that the zeros of a row take."""
        multiple = 1 if geometry.group_size >= 128 else _WIDTH_MULTIPLES[geometry.group_size]
        words = -(-geometry.groups // 8)
        return -(-words // multiple) * multiple

    def reason_not_held(self, geometry: Geometry) -> str | None:
        reason = super().reason_not_held(geometry)
        if reason is None and geometry.group_size < 128 and geometry.group_size not in _WIDTH_MULTIPLES:
            return f"group size {geometry.group_size} is none of 32, 64 and 128 or more"
        return reason

    def groups(self, specs: Mapping[str, Any]) -> int | None:
        return None

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        stored = tensors["scales"] if self.group_dim == 1 else tensors["scales"].t()
        groups = geometry.groups
        if bool((stored[:, groups:] != 0).any()):
            used = self.used_groups(tensors["scales"])
            raise LayoutError(
                f"scales has values up to group {used - 1}, past the {groups} groups of {geometry.group_size} columns"
            )
        return stored[:, :groups]

    def used_groups(self, scales: torch.Tensor) -> int:
        """Groups before the zero tail."""
        used = (scales != 0).any(dim=1 - self.group_dim).nonzero()
        return int(used[-1]) + 1 if len(used) > 0 else 0

    def used_group_size(self, in_features: int, scales: torch.Tensor) -> int:
        groups = self.used_groups(scales)
        if groups == 0 or in_features % groups != 0:
            raise LayoutError(f"scales have {groups} groups before their zero tail, no divisor of {in_features}")
        return in_features // groups

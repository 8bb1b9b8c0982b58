"""What AutoAWQ's own layouts share: their quantization_config, and how gemv and gemv_fast pad their groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .auto_round import in_words_of
from .base import Layout
from .names import list_of_names
from .parts import Geometry, LayoutError, QuantizationConfig

QUANT_METHOD = "awq"


class AwqLayout(Layout):
    """A layout that a ``version`` of ``quant_method: awq`` names."""

    config_files = ("quant_config.json", "quantize_config.json")  # AutoAWQ's, before 0.1.7, and GPTQModel's
    has_scaled_activations = True
    versions: ClassVar[tuple[str, ...]]  # the first is the one that is written

    def claims(self, config: Mapping[str, Any]) -> bool:
        config = in_words_of(QUANT_METHOD, config)
        return _is_own(config) and self.version_of(config) in self.versions

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        of_awq = ("quant_method", "bits", "group_size", "zero_point")
        return [key for key in of_awq if key not in config and config.get("quant_method", QUANT_METHOD) == QUANT_METHOD]

    @staticmethod
    def version_of(config: Mapping[str, Any]) -> str:
        """The version in lower case; checkpoints of transformers' llm-awq backend name that instead."""
        if config.get("backend") == "llm-awq":
            return "llm-awq"
        return str(config.get("version") or config.get("format") or "gemm").lower()

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        raw, config = config, in_words_of(QUANT_METHOD, config)
        names = _names_of(config)
        bits = config.get(names["bits"], 4)
        if bits != 4:
            raise LayoutError(f"bits expects 4; got {bits!r}")
        group_size = config.get(names["group_size"], 128)
        if type(group_size) is not int or (group_size < 1 and group_size != -1):
            raise LayoutError(f"group_size expects a positive number or -1; got {group_size!r}")
        not_converted = config.get("modules_to_not_convert")
        if not_converted is not None:
            not_converted = tuple(list_of_names("modules_to_not_convert", not_converted))
        zero_point = config.get("zero_point", True)
        if not isinstance(zero_point, bool):
            raise LayoutError(f"zero_point expects true or false; got {zero_point!r}")
        return QuantizationConfig(
            group_size,
            not zero_point,
            not_converted,
            raw,
            has_head=config.get("lm_head") is True,
        )

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """Keys that only some engine knows stay as the source of an AWQ configuration has them."""
        raw = config.raw if _is_own(config.raw) else {}
        written = {key: value for key, value in raw.items() if key != "backend" or value != "llm-awq"}
        names = _names_of(raw)
        not_converted = [*(config.not_converted or ()), *config.exact]
        # zeros are stored, of a symmetric model too: engines that hear of none take slower kernels, or refuse
        zero_point = not config.is_symmetric or raw.get("zero_point", True)
        written |= {names["bits"]: 4, names["group_size"]: config.group_size, "zero_point": zero_point}
        if not_converted or written.get("modules_to_not_convert") or not raw:
            written["modules_to_not_convert"] = not_converted or None
        if names["bits"] == "bits":
            written["quant_method"] = QUANT_METHOD
        if config.has_head or "lm_head" in written:
            written["lm_head"] = config.has_head
        written |= self._versions(raw)
        return written if raw else dict(sorted(written.items()))

    def _versions(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """Every key that says which layout this is, as GPTQModel has several."""
        keys = [key for key in ("version", "format", "checkpoint_format") if key in raw]
        if not {"version", "format"} & set(keys):
            keys.append("version")
        written = {key: self.versions[0].upper() if str(raw.get(key)).isupper() else self.versions[0] for key in keys}
        if "pack_dtype" in raw:
            written["pack_dtype"] = str(self.weight.dtype).removeprefix("torch.")
        return written


def _is_own(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is AWQ's: older ones name no method."""
    if "quant_method" in config:
        return bool(config["quant_method"] == QUANT_METHOD)
    return any(key in config for key in ("version", "zero_point", "w_bit", "q_group_size"))


def _names_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The keys for bits and group_size; AutoAWQ's older quant_config.json has names of its own."""
    is_older = "w_bit" in config or "q_group_size" in config
    return {"bits": "w_bit", "group_size": "q_group_size"} if is_older else {"bits": "bits", "group_size": "group_size"}


# AutoAWQ, awq/utils/packing_utils.py and modules/linear/gemv.py (calculate_zeros_width)
_WIDTH_MULTIPLES = {64: 2, 32: 4}


class PaddedLayout(AwqLayout):
    """A layout whose scales and zeros have a zero tail, up to whole words and multiples of them."""

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
        stored = super().decode_scales(geometry, tensors)
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

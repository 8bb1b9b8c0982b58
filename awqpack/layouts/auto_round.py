"""auto-round's configuration, for tensors of others' layouts: auto_round/export/export_to_autoround/export.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .parts import LayoutError

QUANT_METHODS = ("auto-round", "intel/auto-round")
# packing_format, without "auto_round:" before it -> whose tensors they are, and which format of GPTQ's
_TENSORS = {
    "auto_awq": ("awq", None),
    "awq": ("awq", None),
    "auto_gptq": ("gptq", "gptq"),
    "gptq": ("gptq", "gptq"),
    "gptqmodel": ("gptq", "gptq_v2"),
    "auto_round": ("gptq", "gptq_v2"),
}
_FLOAT_BITS = (16, 32)  # of a layer that is not quantized


def in_words_of(method: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the keys of another method; itself where it is not auto-round's for that method's tensors.

    Args:
        method: "awq" or "gptq", whose tensors a ``packing_format`` such as ``auto_round:auto_gptq`` names.
        config: a quantization_config.

    Raises:
        LayoutError: it names layers of other bits one by one (extra_config).
    """
    packing_format = str(config.get("packing_format", "auto_gptq")).removeprefix("auto_round:")
    of_method, of_gptq = _TENSORS.get(packing_format, (None, None))
    if config.get("quant_method") not in QUANT_METHODS or of_method != method:
        return config
    extra = config.get("extra_config") or {}
    if not isinstance(extra, dict) or not all(isinstance(value, dict) for value in extra.values()):
        raise LayoutError(f"extra_config expects an object for each layer; got {extra!r}")
    bits = {name: value.get("bits", config.get("bits", 4)) for name, value in extra.items()}
    others = [f"{name} has {number!r}" for name, number in bits.items() if number != 4 and number not in _FLOAT_BITS]
    if others:
        raise LayoutError(f"extra_config expects layers of 4 bits, or 16; {', '.join(others)}")
    left_out = [name for name, number in bits.items() if number in _FLOAT_BITS]
    shared = {"quant_method": method, "bits": config.get("bits", 4), "group_size": config.get("group_size", 128)}
    if method == "awq":
        return {
            **shared,
            "version": "gemm",
            "zero_point": not config.get("sym", False),  # zeros are stored, and read, unless they are said to be 8
            "modules_to_not_convert": left_out or None,
        }
    dynamic: dict[str, Any] = {f"-:{re.escape(name)}$": {} for name in left_out}
    return {**shared, "checkpoint_format": of_gptq, "sym": config.get("sym", True), "dynamic": dynamic}

"""Which layout a layer or a configuration is in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .parts import AmbiguousGroupError, LayoutError, TensorSpec
from .reading import StoredLayout
from .registry import FLOAT_LAYOUTS, LAYOUTS, SOURCES

# quant_method -> what to call it, for those that are met most and are taken for AWQ
_OTHERS = {"bitsandbytes": "bitsandbytes", "fp8": "FP8", "hqq": "HQQ", "quanto": "optimum-quanto"}


def layout_of_config(config: Mapping[str, Any]) -> StoredLayout:
    """The layout that a quantization_config names.

    Raises:
        LayoutError: it is of another quantization method, or of an AWQ version that is not known.
    """
    for layout in (*FLOAT_LAYOUTS.values(), *LAYOUTS.values()):
        if layout.claims(config):
            return layout
    known = ", ".join(LAYOUTS)
    method = config.get("quant_method")
    if isinstance(method, str) and method != method.lower():
        return layout_of_config({**config, "quant_method": method.lower()})
    if method not in (None, "awq"):
        named = _OTHERS.get(str(method), str(method))
        raise LayoutError(f"quant_method is {method!r}: a {named} checkpoint, not an AWQ one (AWQ layouts: {known})")
    raise LayoutError(f"version expects an AWQ layout ({known}); got {config.get('version')!r}")


def detect(specs: Mapping[str, TensorSpec]) -> StoredLayout:
    """The layout of a layer, from the names, dtypes and shapes of its tensors.

    Args:
        specs: by what follows the module's name: ``qweight``, ``weight_packed``, ...

    Raises:
        LayoutError: no layout has such tensors. GPTQ's are taken for the first version's: only a configuration tells.
    """
    if "weight_g_idx" in specs:
        raise LayoutError("weight_g_idx: columns that are not in the order of their groups (actorder)")
    reasons = []
    for layout in SOURCES.values():
        if layout.names["weight"] not in specs:
            continue
        try:
            layout.geometry(specs)
            return layout
        except AmbiguousGroupError:
            return layout
        except LayoutError as error:
            reasons.append(f"not {layout.name}: {error}")
    raise LayoutError("; ".join(reasons) or f"none of {', '.join(SOURCES)} has tensors {', '.join(sorted(specs))}")

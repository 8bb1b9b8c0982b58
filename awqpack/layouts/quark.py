"""AMD Quark's 4-bit weights, as its Hugging Face export writes them: quark/torch/utils/pack.py and export/."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from ..packing import AWQPacking
from .gemm import GemmTensors
from .names import list_of_names, of_shell, shell_names
from .parts import HEAD, LayoutError, QuantizationConfig
from .reading import Role
from .weight import PackedWeight

QUANT_METHOD = "quark"


class Quark(GemmTensors):
    """weight int32 (K, N/8), as gemm's qweight; weight_zero_point int32 (G, N/8), as qzeros; weight_scale (G, N)."""

    name = "quark"
    names: ClassVar[Mapping[Role, str]] = {
        "weight": "weight",
        "zeros": "weight_zero_point",
        "scales": "weight_scale",
    }
    source = "AMD Quark, quark/torch/utils/pack.py"
    ignores_by_name = True
    dtype: ClassVar[str] = "uint4"  # as the configuration has it

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == QUANT_METHOD and _weight_spec(config).get("dtype") == self.dtype

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        spec = _weight_spec(config)
        if spec.get("qscheme") != "per_group" or spec.get("ch_axis") not in (1, -1):
            raise LayoutError(
                "global_quant_config.weight expects qscheme per_group along ch_axis 1; "
                f"got {spec.get('qscheme')!r} and {spec.get('ch_axis')!r}"
            )
        group_size = spec.get("group_size")
        if type(group_size) is not int or group_size < 1:
            raise LayoutError(f"global_quant_config.weight expects a group_size; got {group_size!r}")
        everywhere = config.get("global_quant_config") or {}
        for key in ("input_tensors", "output_tensors", "bias"):
            if everywhere.get(key) is not None:
                raise LayoutError(f"global_quant_config.{key} expects null: only weights are converted")
        for key in ("layer_quant_config", "layer_type_quant_config"):
            if config.get(key):
                raise LayoutError(f"{key} expects nothing: one scheme for all layers; got {config[key]!r}")
        export = config.get("export") or {}
        if not isinstance(export, dict) or export.get("pack_method", "reorder") != "reorder":
            raise LayoutError(f"export expects the pack_method reorder; got {export!r}")
        exclude = list_of_names("exclude", config.get("exclude") or [])
        entries = tuple(of_shell(name) for name in exclude if name != HEAD)
        return QuantizationConfig(
            group_size, bool(spec.get("symmetric", False)), entries or None, config, has_head=HEAD not in exclude
        )

    def reason_not_said(self, config: QuantizationConfig) -> str | None:
        return (
            None if (config.group_size or 0) > 0 else "expects groups of one size; these are whole rows, or of several"
        )

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """What the source's configuration, where it is Quark's, says of other things stays."""
        is_own = config.raw.get("quant_method") == QUANT_METHOD
        written: dict[str, Any] = copy.deepcopy(dict(config.raw)) if is_own else copy.deepcopy(_EMPTY)
        spec = written["global_quant_config"]["weight"]
        spec |= {"dtype": self.dtype, "group_size": config.group_size, "symmetric": config.is_symmetric}
        written["exclude"] = shell_names(config)
        return written


class QuarkInt4(Quark):
    """quark with codes and zeros minus 8, in two's complement: a nibble has its highest bit flipped."""

    name = "quark-int4"
    weight = PackedWeight(AWQPacking.V1, reorder=True, is_transposed=True, is_signed=True)
    dtype = "int4"


_EMPTY: dict[str, Any] = {
    "algo_config": None,
    "exclude": [],
    "export": {
        "kv_cache_group": [],
        "min_kv_scale": 0.0,
        "pack_method": "reorder",
        "weight_format": "real_quantized",
        "weight_merge_groups": None,
    },
    "global_quant_config": {
        "bias": None,
        "input_tensors": None,
        "output_tensors": None,
        "target_device": None,
        "weight": {
            "ch_axis": -1,
            "dtype": "uint4",
            "group_size": 128,
            "is_dynamic": False,
            "observer_cls": "PerGroupMinMaxObserver",
            "qscheme": "per_group",
            "round_method": "half_even",
            "scale_type": "float",
            "symmetric": False,
        },
    },
    "layer_quant_config": {},
    "layer_type_quant_config": {},
    "quant_method": QUANT_METHOD,
    "quant_mode": "eager_mode",
}


def _weight_spec(config: Mapping[str, Any]) -> Mapping[str, Any]:
    everywhere = config.get("global_quant_config")
    spec = everywhere.get("weight") if isinstance(everywhere, dict) else None
    return spec if isinstance(spec, dict) else {}

"""NVIDIA ModelOpt's W4A16_AWQ: modelopt/torch/export/quant_utils.py (pack_int4_in_uint8)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .base import Layout
from .names import list_of_names, of_shell, shell_names
from .parts import HEAD, SYMMETRIC_ZERO, Geometry, LayoutError, QuantizationConfig, TensorSpec
from .reading import Role
from .weight import PairedRows

QUANT_METHOD = "modelopt"
ALGORITHM = "W4A16_AWQ"


class ModelOpt(Layout):
    """weight uint8 (N/2, K), rows 2n and 2n + 1 in a byte, each code minus 8; weight_scale (N, G); no zeros: all are 8;
    pre_quant_scale (K), by which the activations are multiplied."""

    name = "modelopt"
    names: ClassVar[Mapping[Role, str]] = {
        "weight": "weight",
        "scales": "weight_scale",
        "activations": "pre_quant_scale",
    }
    weight = PairedRows()
    source = "ModelOpt, modelopt/torch/export/quant_utils.py"
    ignores_by_name = True
    stores_symmetric_zeros = False
    config_files = ("hf_quant_config.json",)

    def is_optional(self, role: Role) -> bool:
        return role == "activations"

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        return {
            "weight_scale": TensorSpec(dtype, (geometry.out_features, geometry.groups)),
            "pre_quant_scale": TensorSpec(dtype, (geometry.in_features,)),
        }

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        is_other = zeros != SYMMETRIC_ZERO
        if bool(is_other.any()):
            row, group = is_other.nonzero()[0].tolist()
            raise LayoutError(f"zeros are none but 8; row {row}, group {group} has {int(zeros[row, group])}")
        # engines ask for it: one of ones leaves the activations as they are
        ones = torch.ones(geometry.in_features, dtype=scales.dtype, device=scales.device)
        return {"weight_scale": scales.contiguous(), "pre_quant_scale": ones}

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scales, factors = tensors["weight_scale"], tensors.get("pre_quant_scale")
        if factors is None or bool((factors == 1).all()):
            return scales
        by_group = factors.view(geometry.groups, geometry.group_size)
        if not bool((by_group == by_group[:, :1]).all()):
            raise LayoutError("pre_quant_scale scales the columns of a group one by one, which only modelopt can say")
        exact = scales.double() * by_group[:, 0].double()
        folded: torch.Tensor = exact.to(scales.dtype)
        if not torch.equal(folded.double(), exact):
            raise LayoutError(f"pre_quant_scale times weight_scale is no {str(scales.dtype).removeprefix('torch.')}")
        return folded

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        return False

    def _fits(self, name: str, spec: TensorSpec, expected: TensorSpec) -> bool:
        is_factor = name == "pre_quant_scale" and spec.dtype.is_floating_point
        return spec == expected or (is_factor and spec.shape == expected.shape)

    def claims(self, config: Mapping[str, Any]) -> bool:
        return said(config).get("quant_algo") == ALGORITHM

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        return [] if isinstance(config.get("quantization"), dict) or "quant_method" in config else ["quant_method"]

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        says = said(config)
        if says.get("has_zero_point"):
            raise LayoutError("has_zero_point expects false: W4A16_AWQ is symmetric")
        if says.get("kv_cache_quant_algo") or says.get("kv_cache_scheme"):
            raise LayoutError("kv_cache_quant_algo expects null: no layout quantizes the cache")
        return read_modelopt(config)

    def reason_not_said(self, config: QuantizationConfig) -> str | None:
        return (
            None if (config.group_size or 0) > 0 else "expects groups of one size; these are whole rows, or of several"
        )

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """What stands in config.json or, for one that came from there, in hf_quant_config.json."""
        left_out = shell_names(config)
        if isinstance(config.raw.get("quantization"), dict):
            written = copy.deepcopy(dict(config.raw))
            written["quantization"] |= {"group_size": config.group_size, "exclude_modules": left_out}
            return written
        raw = config.raw if self.claims(config.raw) else {"quant_algo": ALGORITHM, "quant_method": QUANT_METHOD}
        return {**raw, "ignore": left_out}

    def own_files(self, config: QuantizationConfig) -> dict[str, dict[str, Any]]:
        says = {
            "quant_algo": ALGORITHM,
            "kv_cache_quant_algo": None,
            "group_size": config.group_size,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "exclude_modules": shell_names(config),
        }
        return {"hf_quant_config.json": {"producer": {"name": "awqpack"}, "quantization": says}}


def said(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What either file says: config.json's quantization_config, or hf_quant_config.json."""
    nested = config.get("quantization")
    if isinstance(nested, dict):
        return nested
    return config if config.get("quant_method") == QUANT_METHOD else {}


def read_modelopt(config: Mapping[str, Any]) -> QuantizationConfig:
    """What either file says of a symmetric quantization, whatever its algorithm."""
    says = said(config)
    group_size = says.get("group_size")
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        raise LayoutError(f"group_size expects a positive number; got {group_size!r}")
    left_out = list_of_names("exclude_modules", says.get("exclude_modules", says.get("ignore")) or [])
    entries = tuple(of_shell(name) for name in left_out if name != HEAD)
    return QuantizationConfig(group_size, True, entries or None, config, has_head=HEAD not in left_out)

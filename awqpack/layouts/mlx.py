"""MLX's affine quantization, as mlx-lm writes it: mlx.core.quantize, and mlx_lm/utils.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from ..packing import AWQPacking
from . import scaled_zeros
from .base import Layout
from .parts import Geometry, LayoutError, QuantizationConfig, TensorSpec
from .reading import Role
from .weight import PackedWeight

_GROUP_SIZES = (32, 64, 128)  # that MLX has kernels for
_OWN_KEYS = {"group_size", "bits", "mode"}


class Mlx(Layout):
    """weight uint32 (N, K/8), as gemv's qweight; biases (N, G) = -(scale * zero); scales (N, G)."""

    name = "mlx"
    names: ClassVar[Mapping[Role, str]] = {"weight": "weight", "zeros": "biases", "scales": "scales"}
    weight = PackedWeight(AWQPacking.V1, stored_as=torch.uint32)
    source = "MLX, mlx/ops.cpp (affine_quantize)"
    stores_scaled_zeros = True
    config_keys = ("quantization", "quantization_config")
    names_no_modules = True
    has_embeddings = True
    stacks_experts = True

    def reason_not_held(self, geometry: Geometry) -> str | None:
        reason = super().reason_not_held(geometry)
        if reason is None and geometry.group_size not in _GROUP_SIZES:
            return f"group size {geometry.group_size} is none of {', '.join(map(str, _GROUP_SIZES))}"
        return reason

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        spec = TensorSpec(dtype, (geometry.out_features, geometry.groups))
        return {"biases": spec, "scales": spec}

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        biases = torch.empty(scales.shape, dtype=scales.dtype, device=scales.device)
        scaled_zeros.write_scaled(scales, zeros, biases)
        return {"biases": biases, "scales": scales.contiguous()}

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        return scaled_zeros.read_zeros(tensors["biases"], scales, "biases")

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        return scaled_zeros.holds_every_zero(scales)

    def claims(self, config: Mapping[str, Any]) -> bool:
        return is_of_mlx(config)

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        return [key for key in ("group_size", "bits") if key not in config]

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        if config.get("mode", "affine") != "affine":
            raise LayoutError(f"mode expects affine; got {config['mode']!r}")
        shared = {"bits": config.get("bits"), "group_size": config.get("group_size")}
        if shared["bits"] != 4:
            raise LayoutError(f"bits expects 4; got {shared['bits']!r}")
        if type(shared["group_size"]) is not int or shared["group_size"] < 1:
            raise LayoutError(f"group_size expects a positive number; got {shared['group_size']!r}")
        others = [
            f"{name} has {says!r}"
            for name, says in config.items()
            if isinstance(says, dict) and {key: says.get(key, shared[key]) for key in shared} != shared
        ]
        if others:
            raise LayoutError(f"quantization expects layers of 4 bits and groups of one size; {', '.join(others)}")
        left_out = tuple(name for name, says in config.items() if says is False)
        return QuantizationConfig(shared["group_size"], False, None, config, exact=left_out)

    def reason_not_said(self, config: QuantizationConfig) -> str | None:
        return None if config.group_size in _GROUP_SIZES else f"expects groups of one size; got {config.group_size}"

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """Readers look for a layer's scales, and so modules that are not quantized need no names."""
        raw = config.raw if is_of_mlx(config.raw) else {}
        return {**raw, "group_size": config.group_size, "bits": 4, "mode": "affine"}


def is_of_mlx(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is MLX's, which names no method: its own keys, and maybe layers by their paths."""
    others = [value for key, value in config.items() if key not in _OWN_KEYS]
    return (
        {"group_size", "bits"} <= set(config)
        and all(isinstance(value, (dict, bool)) for value in others)
        and ("mode" in config or not any(key in config for key in ("quant_method", "version", "zero_point", "sym")))
    )

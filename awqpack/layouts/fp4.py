"""Layouts of FP4 weights: MXFP4 and NVFP4 as compressed-tensors, ModelOpt and gpt-oss store them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .compressed_tensors import CompressedTensorsFormat
from .e2m1 import E2M1Layout
from .modelopt import read_modelopt, said
from .names import list_of_names
from .parts import Geometry, LayoutError, QuantizationConfig, TensorSpec
from .reading import Role

_EXPONENT_BIAS = 127
_NVFP4_ALGORITHMS = ("NVFP4", "W4A16_NVFP4")  # ModelOpt's, with activations in FP4 and without


def scales_of_exponents(exponents: torch.Tensor) -> torch.Tensor:
    """float32 powers of two, from the E8M0 exponents of the Microscaling Formats; 255 is NaN there."""
    stored = exponents.view(torch.uint8)
    powers = torch.ldexp(torch.ones(stored.shape), stored.int() - _EXPONENT_BIAS)
    return powers.masked_fill_(stored == 255, torch.nan)


class _OfCompressedTensors(E2M1Layout, CompressedTensorsFormat):
    """What both formats share: names, and how the configuration says 4-bit floats."""

    def _read_weights(self, where: str, group: Mapping[str, Any], weights: Mapping[str, Any]) -> tuple[int, bool]:
        expected = {"num_bits": 4, "type": "float", "group_size": self.group_size, "symmetric": True}
        says = {key: weights.get(key, True if key == "symmetric" else None) for key in expected}
        if says != expected:
            raise LayoutError(f"{where}.weights expects {expected}; got {says}")
        return self.group_size, True


class _MxScales(E2M1Layout):
    """Exponents of two plus 127 (N, K/32)."""

    group_size = 32

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return scales_of_exponents(tensors[self.names["scales"]])


class Mxfp4(_MxScales, _OfCompressedTensors):
    """weight_packed uint8 (N, K/2), weight_scale (N, K/32): exponents of two plus 127, as uint8 or float8_e8m0fnu."""

    name = format = "mxfp4-pack-quantized"
    names: ClassVar[Mapping[Role, str]] = {"weight": "weight_packed", "scales": "weight_scale"}
    source = "compressed-tensors, compressors/mxfp4"
    scale_dtypes = (torch.uint8, torch.float8_e8m0fnu)


class GptOss(_MxScales):
    """blocks uint8 (N, K/32, 16), scales uint8 (N, K/32), of every expert: what transformers calls mxfp4."""

    name = "mxfp4"
    names: ClassVar[Mapping[Role, str]] = {"weight": "blocks", "scales": "scales"}
    source = "transformers, integrations/mxfp4.py"
    scale_dtypes = (torch.uint8,)
    floats_are_turned = True

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == "mxfp4"

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        left_out = config.get("modules_to_not_convert")
        if left_out is not None:
            left_out = tuple(list_of_names("modules_to_not_convert", left_out))
        return QuantizationConfig(self.group_size, True, left_out, config)


class _NvfpScales(E2M1Layout):
    """float8_e4m3 scales (N, K/16) beside one float32 for all of them."""

    group_size = 16
    scale_dtypes = (torch.float8_e4m3fn,)

    def is_optional(self, role: Role) -> bool:
        return role == "activations"

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        one = TensorSpec(torch.float32, (1,))
        specs = {name: one for role, name in self.names.items() if role in ("global scale", "activations")}
        return super().side_specs(geometry, dtype) | specs

    def _fits(self, name: str, spec: TensorSpec, expected: TensorSpec) -> bool:
        return spec == expected or (expected.shape == (1,) and spec == (expected.dtype, ()))


class Nvfp4(_NvfpScales, _OfCompressedTensors):
    """weight_packed uint8 (N, K/2), weight_scale float8_e4m3 (N, K/16), divided by weight_global_scale float32 (1,);
    input_global_scale (1,), which is for activations."""

    name = format = "nvfp4-pack-quantized"
    names: ClassVar[Mapping[Role, str]] = {
        "weight": "weight_packed",
        "scales": "weight_scale",
        "global scale": "weight_global_scale",
        "activations": "input_global_scale",
    }
    source = "compressed-tensors, compressors/nvfp4"

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return tensors["weight_scale"].float() / tensors["weight_global_scale"]


class ModelOptNvfp4(_NvfpScales):
    """weight uint8 (N, K/2), weight_scale float8_e4m3 (N, K/16), times weight_scale_2 float32 (); input_scale (), which
    is for activations."""

    name = "modelopt-nvfp4"
    names: ClassVar[Mapping[Role, str]] = {
        "weight": "weight",
        "scales": "weight_scale",
        "global scale": "weight_scale_2",
        "activations": "input_scale",
    }
    source = "ModelOpt, modelopt/torch/quantization/qtensor/nvfp4_tensor.py"
    ignores_by_name = True

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return tensors["weight_scale"].float() * tensors["weight_scale_2"]

    def claims(self, config: Mapping[str, Any]) -> bool:
        return said(config).get("quant_algo") in _NVFP4_ALGORITHMS

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        return [] if "quantization" in config or "quant_method" in config else ["quant_method"]

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        return read_modelopt(config)

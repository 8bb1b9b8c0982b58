"""compressed-tensors' pack-quantized, which vLLM reads: compressors/pack_quantized in that project."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .. import functional
from ..packing import AWQPacking
from .base import Layout, padded
from .names import list_of_names, part_or_pattern, pattern_of
from .parts import HEAD, Geometry, LayoutError, QuantizationConfig, TensorSpec
from .reading import Role, StoredLayout
from .weight import PackedWeight

QUANT_METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
MIXED = "mixed-precision"  # several groups, each of which has its own


class CompressedTensorsFormat(StoredLayout):
    """A layout that a format of compressed-tensors names: what its configuration says, whatever the format."""

    format: ClassVar[str]
    ignores_by_name = True

    def claims(self, config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == QUANT_METHOD and _formats(config) == {self.format}

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        if config.get("format") not in (self.format, MIXED, None):
            raise LayoutError(f"compressed-tensors format expects {self.format}; got {config.get('format')!r}")
        if config.get("transform_config"):
            raise LayoutError("transform_config expects nothing: no AWQ layout transforms weights as they are used")
        sparsity = config.get("sparsity_config") or {}
        if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
            raise LayoutError(f"sparsity_config expects the format dense; got {sparsity!r}")
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise LayoutError(f"config_groups expects at least one group; got {groups!r}")
        found = {self._read_group(name, group) for name, group in groups.items()}
        sizes = {size for size, _ in found}
        if len({is_symmetric for _, is_symmetric in found}) != 1:
            raise LayoutError("config_groups expects every group to be symmetric, or none")
        group_size, is_symmetric = found.pop()
        group_size = group_size if len(sizes) == 1 else None  # the tensors of each layer tell
        ignore = list_of_names("ignore", config.get("ignore") or [])
        return QuantizationConfig(group_size, is_symmetric, _not_converted(ignore), config)

    def _read_group(self, name: str, group: Any) -> tuple[int | None, bool]:
        """Of one of the config_groups: its group size, None where only tensors tell, and whether it is symmetric."""
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise LayoutError(f"config_groups.{name} expects weights; got {weights!r}")
        if group.get("format") not in (self.format, None):
            raise LayoutError(f"config_groups.{name}.format expects {self.format}; got {group['format']!r}")
        return self._read_weights(f"config_groups.{name}", group, weights)

    @abstractmethod
    def _read_weights(
        self, where: str, group: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> tuple[int | None, bool]:
        """What a group says of its weights, likewise."""


def _formats(config: Mapping[str, Any]) -> set[str]:
    """Of the groups, each of which may have its own."""
    groups = config.get("config_groups")
    values = groups.values() if isinstance(groups, dict) else ()
    own = [group.get("format") for group in values if isinstance(group, dict)]
    return {str(of_group or config.get("format")) for of_group in own or [None]}


class CompressedTensors(CompressedTensorsFormat, Layout):
    """weight_packed int32 (N, K/8), weight_zero_point int32 (N/8, G) along the rows unless symmetric,
    weight_scale (N, G), weight_shape int64 (2,)."""

    name = "compressed-tensors"
    format = FORMAT
    names: ClassVar[Mapping[Role, str]] = {
        "weight": "weight_packed",
        "zeros": "weight_zero_point",
        "scales": "weight_scale",
        "shape": "weight_shape",
    }
    weight = PackedWeight(AWQPacking.V1)
    source = "compressed-tensors, compressors/pack_quantized"
    stores_symmetric_zeros = False
    formulas = ("asymmetric/zero", "absmax/7.5")

    def is_optional(self, role: Role) -> bool:
        return role in ("zeros", "shape")

    def reason_not_held(self, geometry: Geometry) -> str | None:
        """Rows may be as many as they are: zeros are padded to whole words."""
        n, k, group = geometry
        return super().reason_not_held(Geometry(-(-n // 8) * 8, k, group))

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        n, groups = geometry.out_features, geometry.groups
        return {
            "weight_zero_point": TensorSpec(torch.int32, (-(-n // 8), groups)),
            "weight_scale": TensorSpec(dtype, (n, groups)),
            "weight_shape": TensorSpec(torch.int64, (2,)),
        }

    def _fits(self, name: str, spec: TensorSpec, expected: TensorSpec) -> bool:
        # older writers store the shape as int32
        return spec == expected or (name == "weight_shape" and spec == (torch.int32, (2,)))

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = geometry.out_features
        whole = zeros if rows % 8 == 0 else padded(zeros, 0, -(-rows // 8) * 8)
        return {
            "weight_zero_point": functional.pack(whole.t(), AWQPacking.V1).t().contiguous(),
            "weight_scale": scales.contiguous(),
            "weight_shape": torch.tensor([rows, geometry.in_features]),
        }

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        shape = tensors.get("weight_shape")
        n, k, _ = geometry
        if shape is not None and shape.tolist() == [n, k // 2]:
            raise LayoutError("weight_packed holds 8-bit codes, by its weight_shape")
        if shape is not None and n == shape.tolist()[0] and k - 8 < shape.tolist()[1] < k:
            raise LayoutError(f"in_features {shape.tolist()[1]} is not a multiple of 8, up to which it is padded")
        if shape is not None and shape.tolist() != [n, k]:
            raise LayoutError(
                f"weight_shape expects {[geometry.out_features, geometry.in_features]}, as weight_packed has it; "
                f"got {shape.tolist()}"
            )
        return tensors["weight_scale"]

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        return functional.unpack(tensors["weight_zero_point"].t(), AWQPacking.V1).t()[: geometry.out_features]

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whatever the format, unless a layout of its own has claimed it before."""
        return config.get("quant_method") == QUANT_METHOD

    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        if config.get("kv_cache_scheme") is not None:
            raise LayoutError("kv_cache_scheme expects null: no AWQ layout quantizes the cache")
        read = super().read_config(config)
        bits = {name: group["weights"]["num_bits"] for name, group in config["config_groups"].items()}
        if 4 not in bits.values():
            raise LayoutError(f"config_groups.{next(iter(bits))}.weights expects 4-bit int; got num_bits 8")
        return read

    def _read_weights(
        self, where: str, group: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> tuple[int | None, bool]:
        for key in ("input_activations", "output_activations"):
            if group.get(key) is not None:
                raise LayoutError(f"{where}.{key} expects null: no AWQ layout quantizes activations")
        if weights.get("num_bits") not in (4, 8) or weights.get("type", "int") != "int":
            raise LayoutError(
                f"{where}.weights expects 4-bit int; got num_bits {weights.get('num_bits')!r}, "
                f"type {weights.get('type')!r}"
            )
        if weights.get("actorder") not in (None, "weight", "static"):
            raise LayoutError(f"{where}.weights.actorder expects null: AWQ groups are runs of columns")
        strategy, size = weights.get("strategy"), weights.get("group_size")
        if strategy == "channel":
            size = -1
        elif strategy not in ("group", None) or type(size) is not int:
            raise LayoutError(
                f"{where}.weights expects strategy group with a group_size, or channel; got {strategy!r} and {size!r}"
            )
        # layers of 8 bits are named by their tensors
        return size if weights["num_bits"] == 4 else None, bool(weights.get("symmetric", True))

    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        if self.claims(config.raw):
            return dict(config.raw)
        parts = [pattern_of(name) for name in config.not_converted or () if name != HEAD]
        # modules have other prefixes in newer versions of transformers than in the files
        exact = [rf"re:(.*\.)?{re.escape(name)}$" for name in config.exact]
        head = [] if config.has_head else [HEAD]
        is_whole_row = config.group_size in (-1, None)
        return {
            "config_groups": {
                "group_0": {
                    "format": FORMAT,
                    "input_activations": None,
                    "output_activations": None,
                    "targets": ["Linear"],
                    "weights": {
                        "actorder": None,
                        "dynamic": False,
                        "group_size": None if is_whole_row else config.group_size,
                        "num_bits": 4,
                        "strategy": "channel" if is_whole_row else "group",
                        "symmetric": config.is_symmetric,
                        "type": "int",
                    },
                }
            },
            "format": FORMAT,
            "ignore": [*head, *parts, *exact],
            "quant_method": QUANT_METHOD,
            "quantization_status": "compressed",
        }


def _not_converted(ignore: list[str]) -> tuple[str, ...] | None:
    """The names as AWQ has them: parts of module names. A pattern that is no such part stays a pattern."""
    return tuple(part_or_pattern(entry) for entry in ignore if entry != HEAD) or None

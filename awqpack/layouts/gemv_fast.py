"""AutoAWQ's gemv_fast: awq/modules/linear/gemv_fast.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ..packing import AWQPacking
from . import scaled_zeros
from .awq import PaddedLayout
from .base import padded
from .parts import Geometry, TensorSpec
from .reading import Role
from .weight import PackedWeight


class GemvFast(PaddedLayout):
    """qweight int16 (N/4, K), qzeros (8*zw, N) = -(scale * zero), scales (8*zw, N)."""

    name = "gemv_fast"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales"}
    weight = PackedWeight(AWQPacking.V2)
    versions = ("gemv_fast",)
    source = "AutoAWQ, awq/modules/linear/gemv_fast.py"
    group_dim = 0
    stores_scaled_zeros = True

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        shape = (8 * self.words(geometry), geometry.out_features)
        return {self.names["zeros"]: TensorSpec(dtype, shape), "scales": TensorSpec(dtype, shape)}

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        lines, groups = 8 * self.words(geometry), geometry.groups
        scaled = torch.empty((lines, geometry.out_features), dtype=scales.dtype, device=scales.device)
        scaled[groups:].zero_()
        scaled_zeros.write_scaled(scales, zeros, scaled[:groups].t())
        return {self.names["zeros"]: scaled, "scales": padded(scales.t(), 0, lines)}

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        groups, name = geometry.groups, self.names["zeros"]
        return scaled_zeros.read_zeros(tensors[name][:groups], tensors["scales"][:groups], name).t()

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        return scaled_zeros.holds_every_zero(scales)

"""AutoAWQ's gemv_fast: awq/modules/linear/gemv_fast.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ..packing import AWQPacking
from .awq import PaddedLayout
from .base import Geometry, LayoutError, Role, TensorSpec, padded
from .weight import WeightFormat


class GemvFast(PaddedLayout):
    """qweight int16 (N/4, K), qzeros (8*zw, N) = -(scale * zero), scales (8*zw, N)."""

    name = "gemv_fast"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales"}
    weight = WeightFormat(AWQPacking.V2)
    versions = ("gemv_fast",)
    source = "AutoAWQ, awq/modules/linear/gemv_fast.py"
    group_dim = 0

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        shape = (8 * self.words(geometry), geometry.out_features)
        return {self.names["zeros"]: TensorSpec(dtype, shape), "scales": TensorSpec(dtype, shape)}

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = 8 * self.words(geometry)
        scaled = -(scales.float() * zeros.float()).to(scales.dtype)
        if not torch.equal(_zeros_of(scaled, scales), zeros.float()):
            row, group = (_zeros_of(scaled, scales) != zeros.float()).nonzero()[0].tolist()
            raise LayoutError(
                f"{self.name} stores scale * zero and would lose zero {int(zeros[row, group])} of row {row}, "
                f"group {group}, whose scale is {float(scales[row, group]):.6g}"
            )
        return {
            self.names["zeros"]: padded(scaled, columns).t().contiguous(),
            "scales": padded(scales, columns).t().contiguous(),
        }

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return tensors["scales"][: geometry.groups].t().contiguous()

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        name = self.names["zeros"]
        scaled = tensors[name][: geometry.groups].t().contiguous()
        zeros = _zeros_of(scaled, scales)
        is_wrong = ~((zeros >= 0) & (zeros <= 15))
        if bool(is_wrong.any()):
            row, group = is_wrong.nonzero()[0].tolist()
            raise LayoutError(
                f"{name} expects -(scale * zero) with a zero of 0..15; {name}[{group}, {row}] is "
                f"{float(scaled[row, group]):.6g} beside a scale of {float(scales[row, group]):.6g}"
            )
        return zeros.to(torch.uint8)


def _zeros_of(scaled: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 zeros; those of a zero scale, which multiplies whatever they are to nothing, are 0."""
    zeros = (-scaled.float() / scales.float()).round()
    return torch.where((scaled == 0) & (scales == 0), torch.zeros_like(zeros), zeros)

"""AutoAWQ's gemv: awq/modules/linear/gemv.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from .. import functional
from ..packing import AWQPacking
from .awq import PaddedLayout
from .base import padded
from .parts import Geometry, TensorSpec
from .reading import Role
from .weight import PackedWeight


class Gemv(PaddedLayout):
    """qweight int32 (N, K/8), qzeros int32 (N, zw) along the groups, scales (N, 8*zw)."""

    name = "gemv"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales"}
    weight = PackedWeight(AWQPacking.V1)
    versions = ("gemv",)
    source = "AutoAWQ, awq/modules/linear/gemv.py"

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        n, words = geometry.out_features, self.words(geometry)
        return {
            "qzeros": TensorSpec(torch.int32, (n, words)),
            "scales": TensorSpec(dtype, (n, 8 * words)),
        }

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = 8 * self.words(geometry)
        return {
            "qzeros": functional.pack(padded(zeros, 1, columns), AWQPacking.V1),
            "scales": padded(scales, 1, columns),
        }

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        return functional.unpack(tensors["qzeros"], AWQPacking.V1)[:, : geometry.groups]

"""AutoAWQ's gemm, which vLLM, SGLang and transformers read: awq/modules/linear/gemm.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ..packing import AWQPacking
from .awq import AwqLayout
from .base import Layout
from .parts import Geometry, TensorSpec
from .reading import Role
from .weight import PackedWeight


class GemmTensors(Layout):
    """Codes int32 (K, N/8), zeros packed as they are, int32 (G, N/8), scales (G, N)."""

    weight = PackedWeight(AWQPacking.V1, reorder=True, is_transposed=True)
    group_dim = 0

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        n, groups = geometry.out_features, geometry.groups
        return {
            self.names["zeros"]: TensorSpec(torch.int32, (groups, n // 8)),
            self.names["scales"]: TensorSpec(dtype, (groups, n)),
        }

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.names["zeros"]: self.weight.pack(zeros), self.names["scales"]: scales.t().contiguous()}

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        return self.weight.unpack(tensors[self.names["zeros"]])


class Gemm(GemmTensors, AwqLayout):
    """qweight int32 (K, N/8), qzeros int32 (G, N/8), scales (G, N)."""

    name = "gemm"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales"}
    # exllama and ipex are other kernels for the same tensors
    versions = ("gemm", "exllama", "ipex")
    source = "AutoAWQ, awq/modules/linear/gemm.py"

"""AutoAWQ's gemm, which vLLM, SGLang and transformers read: awq/modules/linear/gemm.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from .. import functional
from ..packing import AWQPacking
from .awq import AwqLayout
from .parts import Geometry, TensorSpec
from .reading import Role
from .weight import PackedWeight


class Gemm(AwqLayout):
    """qweight int32 (K, N/8), qzeros int32 (G, N/8), scales (G, N)."""

    name = "gemm"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales"}
    weight = PackedWeight(AWQPacking.V1, reorder=True, is_transposed=True)
    # exllama and ipex are other kernels for the same tensors
    versions = ("gemm", "exllama", "ipex")
    source = "AutoAWQ, awq/modules/linear/gemm.py"

    def groups(self, specs: Mapping[str, TensorSpec]) -> int | None:
        shape = specs["scales"].shape
        return shape[0] if len(shape) == 2 else 0

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        n, groups = geometry.out_features, geometry.groups
        return {
            "qzeros": TensorSpec(torch.int32, (groups, n // 8)),
            "scales": TensorSpec(dtype, (groups, n)),
        }

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "qzeros": functional.pack(zeros.t(), AWQPacking.V1, reorder=True),
            "scales": scales.t().contiguous(),
        }

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return tensors["scales"].t()

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        return functional.unpack(tensors["qzeros"], AWQPacking.V1, reorder=True).t()

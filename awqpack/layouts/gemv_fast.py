"""AutoAWQ's gemv_fast: awq/modules/linear/gemv_fast.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from ..packing import AWQPacking
from .awq import PaddedLayout
from .base import Geometry, LayoutError, Role, TensorSpec, padded
from .weight import WeightFormat

_CHUNK = 1 << 15


class GemvFast(PaddedLayout):
    """qweight int16 (N/4, K), qzeros (8*zw, N) = -(scale * zero), scales (8*zw, N)."""

    name = "gemv_fast"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "qzeros", "scales": "scales"}
    weight = WeightFormat(AWQPacking.V2)
    versions = ("gemv_fast",)
    source = "AutoAWQ, awq/modules/linear/gemv_fast.py"
    group_dim = 0
    stores_scaled_zeros = True

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        shape = (8 * self.words(geometry), geometry.out_features)
        return {self.names["zeros"]: TensorSpec(dtype, shape), "scales": TensorSpec(dtype, shape)}

    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        columns = 8 * self.words(geometry)
        scaled = zeros.float().mul_(scales).neg_().to(scales.dtype)
        if not self.holds_every_zero(scales):
            _require_held(scaled, scales, zeros)
        return {
            self.names["zeros"]: padded(scaled.t(), 0, columns),
            "scales": padded(scales.t(), 0, columns),
        }

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        name, groups = self.names["zeros"], geometry.groups
        scaled, stored = tensors[name][:groups], tensors["scales"][:groups]
        result = torch.empty(stored.shape, dtype=torch.uint8, device=stored.device)
        # A few thousand at a time: the memory for all would be asked of the system, page by page, at each step.
        step = max(_CHUNK // max(stored.shape[1], 1), 1)
        for begin in range(0, groups, step):
            some, beside = scaled[begin : begin + step], stored[begin : begin + step]
            zeros = _zeros_of(some, beside)
            # rounded twice, a true one is off by less; the product tells, as it does not divide by a zero scale
            off = (zeros * beside + some).abs() > beside.abs() / 8
            if not _is_within(zeros) or bool(off.any()):
                group, row = (~((zeros >= 0) & (zeros <= 15)) | off).nonzero()[0].tolist()
                raise LayoutError(
                    f"{name} expects -(scale * zero) with a zero of 0..15; {name}[{begin + group}, {row}] is "
                    f"{float(some[group, row]):.6g} beside a scale of {float(beside[group, row]):.6g}"
                )
            result[begin : begin + step] = zeros
        return result.t()

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        low, high = scales.abs().aminmax()
        return bool(low > 0) and float(high) * 15 <= torch.finfo(scales.dtype).max


def _zeros_of(scaled: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Zeros as floats; those of a zero scale, which multiplies whatever they are to nothing, are 0.

    Each of two roundings is off by 1/256 at most, even in bfloat16: far less than the half that would tell.
    """
    zeros = (scaled / scales).neg_().round_()
    return zeros if _is_within(zeros) else zeros.masked_fill_((scaled == 0) & (scales == 0), 0)


def _is_within(zeros: torch.Tensor) -> bool:
    low, high = zeros.aminmax()
    return bool(low >= 0 and high <= 15)  # NaN is neither


def _require_held(scaled: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    is_lost = _zeros_of(scaled, scales) != zeros
    if bool(is_lost.any()):
        row, group = is_lost.nonzero()[0].tolist()
        raise LayoutError(
            f"scale * zero, which is stored, would lose zero {int(zeros[row, group])} of row {row}, group {group}, "
            f"whose scale is {float(scales[row, group]):.6g}"
        )

"""AutoAWQ's gemv_fast: awq/modules/linear/gemv_fast.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from ..packing import AWQPacking
from .awq import PaddedLayout
from .base import Geometry, LayoutError, Role, TensorSpec, padded
from .weight import PackedWeight

# Scaled zeros at a time: few enough to stay in the cache, and enough to be worth a call of each op.
_CHUNK = 1 << 17


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
        columns = 8 * self.words(geometry)
        groups, n = geometry.groups, geometry.out_features
        scaled = torch.empty((columns, n), dtype=scales.dtype, device=scales.device)
        scaled[groups:].zero_()
        for begin, end in _chunks(groups, n):
            scaled[begin:end] = zeros.t()[begin:end].float().mul_(scales.t()[begin:end]).neg_()
        if not self.holds_every_zero(scales):
            _require_held(scaled[:groups].t(), scales, zeros)
        return {self.names["zeros"]: scaled, "scales": padded(scales.t(), 0, columns)}

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        groups = geometry.groups
        scaled, stored = tensors[self.names["zeros"]][:groups], tensors["scales"][:groups]
        result = torch.empty(stored.shape, dtype=torch.uint8, device=stored.device)
        for begin, end in _chunks(groups, geometry.out_features):
            some, beside = scaled[begin:end], stored[begin:end]
            minus = (some / beside).round_()
            # what encode_side writes, and AutoAWQ: the zero's own product, to the bit
            if not (_is_within(minus, -15, 0) and bool((minus * beside == some).all())):
                minus = -self._rounded_zeros(begin, some, beside)
            result[begin:end] = minus.neg_()
        return result.t()

    def _rounded_zeros(self, begin: int, scaled: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Zeros of products that were rounded in some other way, from this group on. Raises LayoutError for others."""
        zeros = _zeros_of(scaled, scales)
        # rounded twice, a true one is off by less; the product tells, as it does not divide by a zero scale
        off = (zeros * scales + scaled).abs() > scales.abs() / 8
        if not _is_within(zeros, 0, 15) or bool(off.any()):
            group, row = (~((zeros >= 0) & (zeros <= 15)) | off).nonzero()[0].tolist()
            name = self.names["zeros"]
            raise LayoutError(
                f"{name} expects -(scale * zero) with a zero of 0..15; {name}[{begin + group}, {row}] is "
                f"{float(scaled[group, row]):.6g} beside a scale of {float(scales[group, row]):.6g}"
            )
        return zeros

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        low, high = scales.aminmax()
        if not low > 0:
            low, high = scales.abs().aminmax()
        return bool(low > 0) and float(high) * 15 <= torch.finfo(scales.dtype).max


def _chunks(groups: int, out_features: int) -> Iterator[tuple[int, int]]:
    """Begin and end of runs of groups."""
    step = max(_CHUNK // max(out_features, 1), 1)
    return ((begin, min(begin + step, groups)) for begin in range(0, groups, step))


def _zeros_of(scaled: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Zeros as floats; those of a zero scale, which multiplies whatever they are to nothing, are 0.

    Each of two roundings is off by 1/256 at most, even in bfloat16: far less than the half that would tell.
    """
    zeros = (scaled / scales).neg_().round_()
    return zeros if _is_within(zeros, 0, 15) else zeros.masked_fill_((scaled == 0) & (scales == 0), 0)


def _is_within(values: torch.Tensor, least: int, most: int) -> bool:
    low, high = values.aminmax()
    return bool(low >= least and high <= most)  # NaN is neither


def _require_held(scaled: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    is_lost = _zeros_of(scaled, scales) != zeros
    if bool(is_lost.any()):
        row, group = is_lost.nonzero()[0].tolist()
        raise LayoutError(
            f"scale * zero, which is stored, would lose zero {int(zeros[row, group])} of row {row}, group {group}, "
            f"whose scale is {float(scales[row, group]):.6g}"
        )

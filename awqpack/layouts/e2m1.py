"""FP4: codes that stand for the floats of E2M1, of which a weight is a multiple. Such layouts are only read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from ..ops import checks
from .parts import Geometry, TensorSpec
from .reading import StoredLayout
from .weight import WeightFormat

# By code: a sign, two bits of an exponent, one of a fraction (OCP Microscaling Formats, 5.3.3).
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# Elements at a time: their float32 values stay in the cache.
_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class E2M1Weight(WeightFormat):
    """Two columns in a byte: uint8 ``(N, K/2)``, column 2k in the low nibble and column 2k + 1 in the high one."""

    is_linear = False
    dtype = torch.uint8
    runs_along_k = False

    def shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        return out_features, in_features // 2

    def features(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0], shape[1] * 2

    def unit(self) -> tuple[int, int]:
        return 1, 2

    def part(self, stored: torch.Tensor, along_k: bool, begin: int, end: int) -> torch.Tensor:
        return stored[:, begin // 2 : end // 2] if along_k else stored[begin:end]

    def pack_into(self, codes: torch.Tensor, stored: torch.Tensor, validate: bool = True) -> None:
        if validate:
            checks.require_codes(codes)
        torch.bitwise_left_shift(codes[:, 1::2], 4, out=stored)
        stored.bitwise_or_(codes[:, ::2] & 15)

    def unpack_into(self, stored: torch.Tensor, codes: torch.Tensor) -> None:
        torch.bitwise_and(stored, 15, out=codes[:, ::2])
        torch.bitwise_right_shift(stored, 4, out=codes[:, 1::2])

    def largest(self, zeros: torch.Tensor) -> torch.Tensor:
        return torch.tensor(max(VALUES))

    def dequantize_into(
        self, stored: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, weight: torch.Tensor
    ) -> None:
        """Writes the float weight ``(N, K)``: the value of each code times the scale in float32, rounded once."""
        k = weight.shape[1]
        step = max(_CHUNK_ELEMENTS // k, 1)
        for begin in range(0, len(weight), step):
            some = slice(begin, begin + step)
            values = _pairs().index_select(0, stored[some].reshape(-1).int()).view(torch.float32)
            values = values.view(-1, scales.shape[1], k // scales.shape[1])
            torch.mul(values, scales[some].float().unsqueeze(2), out=values)
            weight[some].copy_(values.view(-1, k))


@cache
def _pairs() -> torch.Tensor:
    """By byte: the two float32 values that it stands for, as one int64."""
    pairs = [(VALUES[byte & 15], VALUES[byte >> 4]) for byte in range(256)]
    return torch.tensor(pairs).view(torch.int64).view(-1)


class E2M1Layout(StoredLayout):
    """A layout of E2M1 codes in groups of one size."""

    weight = E2M1Weight()
    group_size: ClassVar[int]

    def reason_not_held(self, geometry: Geometry) -> str | None:
        _, k, group = geometry
        if group != self.group_size:
            return f"group size {group} is not {self.group_size}"
        return None if k % group == 0 else f"in_features {k} is not a multiple of the group size {group}"

    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        return {self.names["scales"]: TensorSpec(dtype, (geometry.out_features, geometry.groups))}

    def geometry(
        self, specs: Mapping[str, TensorSpec], group_size: int | None = None, is_symmetric: bool | None = None
    ) -> Geometry:
        return super().geometry(specs, self.group_size if group_size is None else group_size, is_symmetric)

    def dequantize(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The weight ``(N, K)`` of these tensors, by the names of this layout: value times scale, rounded once.

        Raises:
            LayoutError: they do not fit each other.
        """
        geometry = self.geometry({name: TensorSpec.of(tensor) for name, tensor in tensors.items()})
        weight = torch.empty(geometry[:2], dtype=dtype)
        scales, zeros = self.decode_side(geometry, tensors)
        self.weight.dequantize_into(tensors[self.names["weight"]], scales, zeros, weight)
        return weight

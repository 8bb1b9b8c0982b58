"""What every layout speaks of: a layer and its sizes, tensors as headers describe them, configurations, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .. import floats, functional

SYMMETRIC_ZERO = 8
HEAD = "lm_head"  # AWQ engines never quantize it, and AWQ configurations do not name it
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class LayoutError(ValueError):
    """Tensors, or a configuration, that do not fit the layout; the text says what was expected and what came."""


class AmbiguousGroupError(LayoutError):
    """The tensors fit, but only the values of the scales would tell the group size."""


class TensorSpec(NamedTuple):
    """What a checkpoint's header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """What a header would say of this tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


class Geometry(NamedTuple):
    """Sizes of a layer: N = out_features, K = in_features, and the columns that share a scale."""

    out_features: int
    in_features: int
    group_size: int

    @property
    def groups(self) -> int:
        return self.in_features // self.group_size


@dataclass(frozen=True, init=False)
class Layer:
    """A quantized linear layer; a weight is ``(code - zero) * scale``. Its parts are checked when it is made.

    Attributes:
        codes: uint8 ``(N, K)``, 0..15, of any strides.
        scales: float16, bfloat16 or float32 ``(N, G)``, finite.
        zeros: uint8 ``(N, G)``, 0..15; all 8 in a symmetric layer.
        group_size: columns that share a scale and a zero: ``K / G``.
        bias: ``(N,)``, or None.
        order: int32 ``(K,)``, the group of each column, where columns are not in the order of their groups (GPTQ's
            desc_act); else None.
        has_zeros: zeros were given; of a layer without, layouts that can do without zeros store none.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_size: int
    bias: torch.Tensor | None
    order: torch.Tensor | None
    has_zeros: bool = field(compare=False)

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        group_size: int,
        bias: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            codes, scales, group_size, bias, order: as the attributes.
            zeros: None for a symmetric layer.

        Raises:
            LayoutError: a part that is of another dtype or shape, a scale that is no number, a zero above 15. Codes
                are read, and those above 15 named, when they are packed.
        """
        _require_codes(codes)
        _require_scales(codes, scales, group_size)
        has_zeros = zeros is not None
        if zeros is None:
            zeros = torch.full_like(scales, SYMMETRIC_ZERO, dtype=torch.uint8)
        else:
            _require_zeros(scales, zeros)
        if bias is not None and (not bias.is_floating_point() or bias.shape != codes.shape[:1]):
            raise LayoutError(f"bias expects floats of shape {tuple(codes.shape[:1])}; got {TensorSpec.of(bias)}")
        if order is not None and (order.dtype != torch.int32 or order.shape != codes.shape[1:]):
            raise LayoutError(f"order expects int32 {tuple(codes.shape[1:])}; got {TensorSpec.of(order)}")
        values = {
            "codes": codes,
            "scales": scales,
            "zeros": zeros,
            "group_size": group_size,
            "bias": bias,
            "order": order,
            "has_zeros": has_zeros,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # as dataclasses do it in a frozen one

    @property
    def geometry(self) -> Geometry:
        n, k = self.codes.shape
        return Geometry(n, k, self.group_size)

    @property
    def is_symmetric(self) -> bool:
        return bool((self.zeros == SYMMETRIC_ZERO).all())

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight ``(N, K)``: ``(code - zero) * scale`` in float32, rounded once to ``dtype`` or the scales' own."""
        scales, zeros = self.scales, self.zeros
        if self.order is not None:
            scales, zeros = (t[:, self.order.long()] for t in (scales, zeros))
        if self.codes.shape[1] % 8 == 0 and not scales.is_meta and not bool((scales < 0).any()):
            return floats.dequantize(functional.pack(self.codes), scales.detach(), zeros, dtype=dtype)
        columns = self.codes.shape[1] // scales.shape[1]
        scale, zero = (t.float().repeat_interleave(columns, 1) for t in (scales, zeros))
        return ((self.codes.float() - zero) * scale).to(dtype or self.scales.dtype)


def _require_codes(codes: torch.Tensor) -> None:
    if codes.dtype == torch.int8:
        raise LayoutError("codes expects uint8 with 0..15; got int8, which holds signed codes: (codes + 8) first")
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise LayoutError(f"codes expects uint8 (N, K), the codes of one layer or expert; got {TensorSpec.of(codes)}")


def _require_scales(codes: torch.Tensor, scales: torch.Tensor, group_size: int) -> None:
    n, k = codes.shape
    if type(group_size) is not int or group_size < 1 or k % group_size != 0:
        raise LayoutError(f"group_size expects a divisor of the {k} columns of codes; got {group_size!r}")
    if scales.dtype not in SCALE_DTYPES or scales.shape != (n, k // group_size):
        raise LayoutError(
            f"scales expects float16, bfloat16 or float32 {(n, k // group_size)} for groups of {group_size}; "
            f"got {TensorSpec.of(scales)}"
        )
    if not scales.is_meta and not bool(scales.isfinite().all()):
        row, group = (~scales.isfinite()).nonzero()[0].tolist()
        raise LayoutError(f"scales expects numbers; scales[{row}, {group}] is {float(scales[row, group])}")


def _require_zeros(scales: torch.Tensor, zeros: torch.Tensor) -> None:
    if zeros.dtype != torch.uint8 or zeros.shape != scales.shape:
        raise LayoutError(f"zeros expects uint8 {tuple(scales.shape)}, as scales; got {TensorSpec.of(zeros)}")
    if not zeros.is_meta and zeros.numel() > 0 and int(zeros.max()) > 15:
        row, group = (zeros > 15).nonzero()[0].tolist()
        raise LayoutError(f"zeros expects 0..15; zeros[{row}, {group}] is {int(zeros[row, group])}")


@dataclass(frozen=True)
class QuantizationConfig:
    """What a checkpoint's configuration says of its quantization, in the words of AutoAWQ.

    Attributes:
        group_size: -1 for one group a row; None where the configuration does not say.
        is_symmetric: every zero is 8 (``zero_point`` false).
        not_converted: parts of the names of linear modules that are not quantized; None where nothing is said.
        raw: the configuration as it stands in the file.
        exact: whole names of linear modules that are not quantized, where a part would name quantized ones as well.
        has_head: whether the head, which AWQ configurations need not name, is quantized.
    """

    group_size: int | None
    is_symmetric: bool
    not_converted: tuple[str, ...] | None
    raw: Mapping[str, Any]
    exact: tuple[str, ...] = ()
    has_head: bool = False

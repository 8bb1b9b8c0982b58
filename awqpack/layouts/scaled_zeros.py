"""Zeros stored as floats, -(scale * zero): gemv_fast, llm-awq and MLX. A zero can be lost beside a scale of 0."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .parts import LayoutError

# Scaled zeros at a time: few enough to stay in the cache, and enough to be worth a call of each op.
_CHUNK = 1 << 17


def holds_every_zero(scales: torch.Tensor) -> bool:
    """Whether no zero can be lost beside these scales; false does not mean that one is."""
    low, high = scales.aminmax()
    if not low > 0:
        low, high = scales.abs().aminmax()
    return bool(low > 0) and float(high) * 15 <= torch.finfo(scales.dtype).max


def write_scaled(scales: torch.Tensor, zeros: torch.Tensor, out: torch.Tensor) -> None:
    """Writes -(scale * zero), all three ``(N, G)`` of any strides.

    Raises:
        LayoutError: a zero would be lost.
    """
    is_turned = out.stride(0) < out.stride(1)
    to, of, by = (t.t() if is_turned else t for t in (out, zeros, scales))
    for begin, end in _chunks(to.shape):
        to[begin:end] = of[begin:end].float().mul_(by[begin:end]).neg_()
    if not holds_every_zero(scales):
        _require_held(out, scales, zeros)


def read_zeros(scaled: torch.Tensor, scales: torch.Tensor, name: str) -> torch.Tensor:
    """Zeros uint8 of what write_scaled, or another writer, wrote.

    Args:
        scaled, scales: 2-D, as they are stored.
        name: of the tensor of scaled zeros, for the error.

    Raises:
        LayoutError: a value is no multiple of its scale by -15..0.
    """
    result = torch.empty(scales.shape, dtype=torch.uint8, device=scales.device)
    for begin, end in _chunks(scales.shape):
        some, beside = scaled[begin:end], scales[begin:end]
        minus = (some / beside).round_()
        # what write_scaled writes, and AutoAWQ: the zero's own product, to the bit
        if not (_is_within(minus, -15, 0) and bool((minus * beside == some).all())):
            minus = -_rounded_zeros(begin, some, beside, name)
        result[begin:end] = minus.neg_()
    return result


def _rounded_zeros(begin: int, scaled: torch.Tensor, scales: torch.Tensor, name: str) -> torch.Tensor:
    """Zeros of products that were rounded in some other way, from this line on. Raises LayoutError for others."""
    zeros = _zeros_of(scaled, scales)
    # rounded twice, a true one is off by less; the product tells, as it does not divide by a zero scale
    off = (zeros * scales + scaled).abs() > scales.abs() / 8
    if not _is_within(zeros, 0, 15) or bool(off.any()):
        line, at = (~((zeros >= 0) & (zeros <= 15)) | off).nonzero()[0].tolist()
        raise LayoutError(
            f"{name} expects -(scale * zero) with a zero of 0..15; {name}[{begin + line}, {at}] is "
            f"{float(scaled[line, at]):.6g} beside a scale of {float(scales[line, at]):.6g}"
        )
    return zeros


def _chunks(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Begin and end of runs of lines."""
    step = max(_CHUNK // max(shape[1], 1), 1)
    return ((begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step))


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

"""quantize, dequantize and min_max_scales where C does not run: their checks, fake kernels and portable ones.

The twin of csrc/kernels/check_floats.c and of the arithmetic in csrc/include/awqpack/floats.h, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..formats import format_of
from . import checks, portable, registry

OPS = ("quantize", "dequantize", "min_max_scales", "quantize_out", "dequantize_out", "min_max_scales_out")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SYMMETRIC_ZERO = 8
FORMULAS = ("asymmetric", "asymmetric/zero", "absmax/7", "absmax/7.5", "absmax/8")


def has_one_zero(formula: str) -> bool:
    """Whether a formula is symmetric: every zero is 8."""
    return formula.startswith("absmax/")


# --- checks ---


def _require_float(op: str, what: str, tensor: torch.Tensor) -> None:
    checks.require_dense(tensor, op)
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{op} expects {what} of float16, bfloat16 or float32; got dtype {tensor.dtype}")


def _require_dtype(op: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"{op} expects dtype torch.float16, torch.bfloat16 or torch.float32; got {dtype}")


def _require_weight(op: str, weight: torch.Tensor) -> None:
    _require_float(op, "a weight", weight)
    if not 2 <= weight.dim() <= 64:
        raise ValueError(
            f"{op} expects a weight of 2 to 64 dimensions (..., out_features, in_features); "
            f"got shape {tuple(weight.shape)}"
        )


def _divides(parts: int, size: int) -> bool:
    return size % parts == 0 if parts > 0 else size == 0


def _require_scales(
    op: str, shape: Sequence[int], given: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> None:
    for what, tensor in (("scales", scales), ("zeros", zeros)):
        if tensor is not None and tensor.device != given.device:
            raise ValueError(f"{what} expects the device of the input, {given.device}; got {tensor.device}")
    _require_float(op, "scales", scales)
    fits = (
        scales.dim() == len(shape)
        and tuple(scales.shape[:-2]) == tuple(shape[:-2])
        and _divides(scales.shape[-2], shape[-2])
        and _divides(scales.shape[-1], shape[-1])
    )
    if not fits:
        raise ValueError(
            f"{op} expects scales (..., R, C) whose last two sizes divide those of the weight, {tuple(shape)}, "
            f"and whose others equal them; got shape {tuple(scales.shape)}"
        )
    if zeros is None:
        return
    checks.require_dense(zeros, op)
    if zeros.dtype != torch.uint8:
        raise ValueError(f"{op} expects uint8 zeros in 0..15; got dtype {zeros.dtype}")
    if zeros.shape != scales.shape:
        raise ValueError(
            f"{op} expects zeros of the shape of the scales, {tuple(scales.shape)}; got shape {tuple(zeros.shape)}"
        )


def payload_shape(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, packing: int
) -> tuple[int, ...]:
    """Shape of the payload of a weight; ValueError unless it can be quantized with these."""
    form = format_of(packing)
    _require_weight("quantize", weight)
    checks.require_blocks(weight.shape, form, "quantize")
    _require_scales("quantize", weight.shape, weight, scales, zeros)
    return (*weight.shape[:-2], *form.payload_shape(*weight.shape[-2:]))


def weight_shape(
    payload: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, packing: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """Shape of the weight of a payload; ValueError unless it can be dequantized with these."""
    shape = checks.codes_shape(payload, packing, "dequantize")
    _require_scales("dequantize", shape, payload, scales, zeros)
    _require_dtype("dequantize", dtype)
    return shape


def scales_shape(
    weight: torch.Tensor, group_rows: int, group_cols: int, formula: str, dtype: torch.dtype
) -> tuple[int, ...]:
    """Shape of the scales and zeros of a weight; ValueError unless they can be taken."""
    if formula not in FORMULAS:
        raise ValueError(f"formula expects {', '.join(FORMULAS[:-1])} or {FORMULAS[-1]}; got {formula}")
    _require_weight("min_max_scales", weight)
    *batch, rows, cols = weight.shape
    if group_rows < 1 or group_cols < 1 or rows % group_rows != 0 or cols % group_cols != 0:
        raise ValueError(
            "min_max_scales expects groups (rows, columns) that divide the weight's last two dimensions; "
            f"got groups of ({group_rows}, {group_cols}) for shape {tuple(weight.shape)}"
        )
    _require_dtype("min_max_scales", dtype)
    return (*batch, rows // group_rows, cols // group_cols)


# --- fake kernels ---


def _quantize_fake(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    validate: bool = True,
) -> torch.Tensor:
    return weight.new_empty(payload_shape(weight, scales, zeros, packing), dtype=checks.payload_dtype(packing))


def _dequantize_fake(
    payload: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    dtype: torch.dtype,
    stride_order: Sequence[int] | None = None,
) -> torch.Tensor:
    shape = weight_shape(payload, scales, zeros, packing, dtype)
    return payload.new_empty_strided(shape, checks.ordered_strides(shape, stride_order), dtype=dtype)


def _min_max_fake(
    weight: torch.Tensor, group_rows: int, group_cols: int, formula: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = scales_shape(weight, group_rows, group_cols, formula, dtype)
    return weight.new_empty(shape, dtype=dtype), weight.new_empty(shape, dtype=torch.uint8)


def _quantize_out_fake(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    validate: bool = True,
    *,
    out: torch.Tensor,
) -> None:
    shape = payload_shape(weight, scales, zeros, packing)
    checks.require_out(out, weight, checks.payload_dtype(packing), shape)


def _dequantize_out_fake(
    payload: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    *,
    out: torch.Tensor,
) -> None:
    shape = weight_shape(payload, scales, zeros, packing, out.dtype)
    checks.require_out(out, payload, out.dtype, shape)


def _min_max_out_fake(
    weight: torch.Tensor, group_rows: int, group_cols: int, formula: str, *, scales: torch.Tensor, zeros: torch.Tensor
) -> None:
    shape = scales_shape(weight, group_rows, group_cols, formula, scales.dtype)
    checks.require_out(scales, weight, scales.dtype, shape)
    checks.require_out(zeros, weight, torch.uint8, shape)


# --- portable kernels ---


def _index(tensor: torch.Tensor) -> str:
    """Where the first true element is: "[3, 4]"."""
    return f"[{', '.join(str(int(i)) for i in tensor.nonzero()[0])}]"


def _require_values(scales: torch.Tensor, zeros: torch.Tensor | None) -> None:
    bad = ~(scales.isfinite() & (scales >= 0))
    if bool(bad.any()):
        value = float(scales[bad][0])
        raise ValueError(f"scales are expected to be finite and not negative; scales{_index(bad)} is {value:.9g}")
    if zeros is not None and bool((zeros > 15).any()):
        bad = zeros > 15
        raise ValueError(f"zeros are expected in 0..15; zeros{_index(bad)} is {int(zeros[bad][0])}")


def _require_finite(op: str, weight: torch.Tensor) -> None:
    bad = ~weight.isfinite()
    if bool(bad.any()):
        raise ValueError(f"{op} expects a finite weight; weight{_index(bad)} is {float(weight[bad][0])}")


def rectangles(tensor: torch.Tensor, groups: torch.Size) -> torch.Tensor:
    """``(..., R, C)`` as ``(..., R', rows, C', columns)``."""
    *batch, rows, cols = tensor.shape
    return tensor.reshape(*batch, groups[-2], rows // groups[-2], groups[-1], cols // groups[-1])


def spread(scales: torch.Tensor) -> torch.Tensor:
    """Scales or zeros as float32, beside rectangles."""
    return scales.float().unsqueeze(-1).unsqueeze(-3)


def restored(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The weight that codes stand for: ``(codes - zeros) * scales`` in float32, rounded once."""
    zero = SYMMETRIC_ZERO if zeros is None else spread(zeros)
    weight = (rectangles(codes, scales.shape).float() - zero) * spread(scales)
    return weight.to(dtype).reshape(codes.shape)


def quantize(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    validate: bool = True,
) -> torch.Tensor:
    shape = payload_shape(weight, scales, zeros, packing)
    if 0 in shape:
        return torch.empty(shape, dtype=checks.payload_dtype(packing), device=weight.device)
    if validate:
        _require_values(scales, zeros)
        _require_finite("quantize", weight)
    scale = spread(scales)
    zero = SYMMETRIC_ZERO if zeros is None else spread(zeros)
    quotient = rectangles(weight, scales.shape).float() / scale
    # Nothing where the scale is 0, and where NaN was let through.
    quotient = torch.where((scale == 0) | quotient.isnan(), 0.0, quotient)
    codes = (quotient + zero).clamp(0, 15).round().to(torch.uint8).reshape(weight.shape)
    return portable.pack(codes, packing, reorder, False)


def dequantize(
    payload: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    dtype: torch.dtype,
    stride_order: Sequence[int] | None = None,
) -> torch.Tensor:
    shape = weight_shape(payload, scales, zeros, packing, dtype)
    strides = checks.ordered_strides(shape, stride_order)
    weight = torch.empty_strided(shape, strides, dtype=dtype, device=payload.device)
    if 0 in shape:
        return weight
    _require_values(scales, zeros)
    return weight.copy_(restored(portable.unpack(payload, packing, reorder), scales, zeros, dtype))


def min_max_scales(
    weight: torch.Tensor, group_rows: int, group_cols: int, formula: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = scales_shape(weight, group_rows, group_cols, formula, dtype)
    if 0 in shape:
        return weight.new_empty(shape, dtype=dtype), weight.new_empty(shape, dtype=torch.uint8)
    _require_finite("min_max_scales", weight)
    groups = rectangles(weight, torch.Size(shape)).float()
    low, high = groups.amin((-3, -1)), groups.amax((-3, -1))
    if formula == "asymmetric/zero":
        low, high = low.clamp(max=0), high.clamp(min=0)
    is_symmetric = has_one_zero(formula)
    steps = float(formula.removeprefix("absmax/")) if is_symmetric else 15.0
    span = torch.maximum(-low, high) if is_symmetric else high - low
    # Not the span itself where it is 0: its sign would tell which of the zeros came first.
    scales = torch.where(span > 0, span / torch.full_like(span, steps), 0.0).to(dtype)
    bad = ~scales.isfinite()
    if bool(bad.any()):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"min_max_scales expects weights whose range {name} holds; scales{_index(bad)} would be infinite"
        )
    if is_symmetric:
        return scales, torch.full_like(scales, SYMMETRIC_ZERO, dtype=torch.uint8)
    ends = torch.where(low < 0, 15.0, 0.0)
    zeros = torch.where(scales == 0, ends, (-low / scales.float()).clamp(0, 15).round())
    return scales, zeros.to(torch.uint8)


def quantize_out(
    weight: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    validate: bool = True,
    *,
    out: torch.Tensor,
) -> None:
    _quantize_out_fake(weight, scales, zeros, packing, reorder, validate, out=out)
    out.copy_(quantize(weight, scales, zeros, packing, reorder, validate))


def dequantize_out(
    payload: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    packing: int,
    reorder: bool,
    *,
    out: torch.Tensor,
) -> None:
    _dequantize_out_fake(payload, scales, zeros, packing, reorder, out=out)
    out.copy_(dequantize(payload, scales, zeros, packing, reorder, out.dtype))


def min_max_scales_out(
    weight: torch.Tensor, group_rows: int, group_cols: int, formula: str, *, scales: torch.Tensor, zeros: torch.Tensor
) -> None:
    _min_max_out_fake(weight, group_rows, group_cols, formula, scales=scales, zeros=zeros)
    found = min_max_scales(weight, group_rows, group_cols, formula, scales.dtype)
    scales.copy_(found[0])
    zeros.copy_(found[1])


def register() -> None:
    """Registers the fake kernels, and the portable ones for every backend without kernels of its own."""
    fakes: dict[str, Callable[..., object]] = {
        "quantize": _quantize_fake,
        "dequantize": _dequantize_fake,
        "min_max_scales": _min_max_fake,
        "quantize_out": _quantize_out_fake,
        "dequantize_out": _dequantize_out_fake,
        "min_max_scales_out": _min_max_out_fake,
    }
    kernels: dict[str, Callable[..., object]] = {
        "quantize": quantize,
        "dequantize": dequantize,
        "min_max_scales": min_max_scales,
        "quantize_out": quantize_out,
        "dequantize_out": dequantize_out,
        "min_max_scales_out": min_max_scales_out,
    }
    for name in OPS:
        registry.fake(name, fakes[name])
        registry.impl(name, kernels[name])

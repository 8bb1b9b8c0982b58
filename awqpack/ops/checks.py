"""The checks of csrc/kernels/check.c for tensors that C does not see: fake ones and those on other devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..formats import FORMATS, Format, format_of

_OUT_FEATURES = "out_features (the last dimension but one)"


def payload_dtype(packing: int) -> torch.dtype:
    return format_of(packing).dtype


def require_dense(tensor: torch.Tensor, what: str) -> None:
    if tensor.layout is not torch.strided:
        raise ValueError(f"{what} expects a dense tensor; got layout {tensor.layout} (convert with .to_dense())")
    if tensor.is_quantized:
        raise ValueError(f"{what} expects plain integers; got a quantized tensor (take its .int_repr())")


def _require_ndim(tensor: torch.Tensor, what: str) -> None:
    if tensor.dim() < 2:
        raise ValueError(
            f"{what} of at least 2 dimensions (..., out_features, in_features); got shape {tuple(tensor.shape)}"
        )


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _payload_dtypes() -> str:
    """ "V1 payloads are int32, V2 payloads are int16" """
    dtypes = {form.name: _text(form.dtype) for form in FORMATS}
    return ", ".join(f"{name} payloads are {dtype}" for name, dtype in dtypes.items())


def require_blocks(shape: Sequence[int], form: Format, op: str = "pack") -> None:
    """ValueError unless codes of this shape are whole blocks."""
    for dim, place, unit in ((-1, "in_features (the last dimension)", form.cols), (-2, _OUT_FEATURES, form.rows)):
        if shape[dim] % unit != 0:
            raise ValueError(
                f"{op} as {form.name} expects {place} to be a multiple of {unit}; "
                f"got {shape[dim]} in shape {tuple(shape)}"
            )


def payload_shape(codes: torch.Tensor, packing: int) -> tuple[int, ...]:
    """Shape of the payload of codes; ValueError unless they can be packed."""
    format_of(packing)
    require_dense(codes, "pack")
    if codes.dtype != torch.uint8:
        raise ValueError(
            f"pack expects uint8 codes in 0..15; got dtype {codes.dtype} (integer codes convert with "
            "codes.to(torch.uint8) or codes.astype(numpy.uint8), signed ones of -8..7 once 8 is added; float weights "
            "must be quantized first)"
        )
    _require_ndim(codes, "pack expects codes")
    return shape_in(codes.shape, packing)


def shape_in(shape: Sequence[int], packing: int) -> tuple[int, ...]:
    """Shape of the payload of codes of this shape; ValueError unless they are whole blocks."""
    form = format_of(packing)
    require_blocks(shape, form)
    return (*shape[:-2], *form.payload_shape(*shape[-2:]))


def codes_shape(payload: torch.Tensor, packing: int, op: str = "unpack") -> tuple[int, ...]:
    """Shape of the codes in a payload; ValueError unless it can be unpacked."""
    form = format_of(packing)
    require_dense(payload, op)
    if payload.dtype != form.dtype:
        raise ValueError(
            f"{op} of {form.name} expects an {_text(form.dtype)} payload; "
            f"got dtype {payload.dtype} ({_payload_dtypes()})"
        )
    _require_ndim(payload, f"{op} expects a payload")
    if payload.shape[-1] % form.block_items != 0:
        raise ValueError(
            f"{op} of {form.name} expects a payload whose last dimension is a multiple of {form.block_items}; "
            f"got {payload.shape[-1]} in shape {tuple(payload.shape)}"
        )
    return (*payload.shape[:-2], *form.codes_shape(*payload.shape[-2:]))


def require_codes(codes: torch.Tensor) -> None:
    """ValueError that names the first code above 15, where there is one."""
    invalid = codes > 15
    if bool(invalid.any()):
        index = tuple(int(i) for i in invalid.nonzero()[0])
        where = ", ".join(map(str, index))
        raise ValueError(f"pack expects uint8 codes in 0..15; codes[{where}] is {int(codes[index])}")


def require_out(out: torch.Tensor, given: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    require_dense(out, "out")
    if out.device != given.device:
        raise ValueError(f"out expects the device of the input, {given.device}; got {out.device}")
    if out.dtype != dtype:
        raise ValueError(f"out expects dtype {_text(dtype)}; got {out.dtype}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out expects shape {tuple(shape)}; got {tuple(out.shape)}")


def ordered_strides(shape: Sequence[int], order: Sequence[int] | None) -> tuple[int, ...]:
    """Strides of a dense tensor whose dimensions lie in memory in `order`, outermost first; None is contiguous."""
    ndim = len(shape)
    order = list(range(ndim)) if order is None else list(order)
    if sorted(order) != list(range(ndim)):
        raise ValueError(
            f"stride_order expects a permutation of the {ndim} dimensions, outermost first; got {tuple(order)}"
        )
    strides = [1] * ndim
    stride = 1
    for dim in reversed(order):
        strides[dim] = stride
        size = shape[dim]
        # Dynamo of torch 2.10 cannot trace sym_max of an int
        stride = stride * (max(size, 1) if isinstance(size, int) else torch.sym_max(size, 1))
    return tuple(strides)

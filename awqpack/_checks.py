"""The checks of csrc/kernels/check.c for tensors that C does not see: fake ones and those on other devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_PAYLOAD_DTYPES = {1: torch.int32, 2: torch.int16}


def _name(packing: int) -> str:
    return f"V{packing}"


def payload_dtype(packing: int) -> torch.dtype:
    if packing not in _PAYLOAD_DTYPES:
        raise ValueError(f"packing expects 1 (AWQPacking.V1) or 2 (AWQPacking.V2); got {packing}")
    return _PAYLOAD_DTYPES[packing]


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


def payload_shape(codes: torch.Tensor, packing: int) -> tuple[int, ...]:
    """Shape of the payload of codes; ValueError unless they can be packed."""
    payload_dtype(packing)
    require_dense(codes, "pack")
    if codes.dtype != torch.uint8:
        raise ValueError(
            f"pack expects uint8 codes in 0..15; got dtype {codes.dtype} (integer codes convert with "
            "codes.to(torch.uint8) or codes.astype(numpy.uint8); float weights must be quantized first)"
        )
    _require_ndim(codes, "pack expects codes")
    *batch, rows, cols = codes.shape
    unit = 64 if packing == 2 else 8
    if cols % unit != 0:
        raise ValueError(
            f"pack as {_name(packing)} expects in_features (the last dimension) to be a multiple of {unit}; "
            f"got {cols} in shape {tuple(codes.shape)}"
        )
    if packing == 1:
        return (*batch, rows, cols // 8)
    if rows % 4 != 0:
        raise ValueError(
            f"pack as V2 expects out_features (the last dimension but one) to be a multiple of 4; "
            f"got {rows} in shape {tuple(codes.shape)}"
        )
    return (*batch, rows // 4, cols)


def codes_shape(payload: torch.Tensor, packing: int) -> tuple[int, ...]:
    """Shape of the codes in a payload; ValueError unless it can be unpacked."""
    expected = payload_dtype(packing)
    require_dense(payload, "unpack")
    if payload.dtype != expected:
        raise ValueError(
            f"unpack of {_name(packing)} expects an {str(expected).removeprefix('torch.')} payload; "
            f"got dtype {payload.dtype} (V1 payloads are int32, V2 payloads are int16)"
        )
    _require_ndim(payload, "unpack expects a payload")
    *batch, rows, cols = payload.shape
    if packing == 1:
        return (*batch, rows, cols * 8)
    if cols % 64 != 0:
        raise ValueError(
            f"unpack of V2 expects a payload whose last dimension is a multiple of 64; "
            f"got {cols} in shape {tuple(payload.shape)}"
        )
    return (*batch, rows * 4, cols)


def require_out(out: torch.Tensor, given: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    require_dense(out, "out")
    if out.device != given.device:
        raise ValueError(f"out expects the device of the input, {given.device}; got {out.device}")
    if out.dtype != dtype:
        raise ValueError(f"out expects dtype {str(dtype).removeprefix('torch.')}; got {out.dtype}")
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

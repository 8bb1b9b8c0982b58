"""compressed-tensors' pack-quantized format: packing, rounding, and decompressing in one pass."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

import awqpack

from .exchange import Exchange, Replacement
from .rounding import NotServed, divided, pack, rounded, serve

_FORMAT = "compressed_tensors.compressors.pack_quantized"
_FORWARD = "compressed_tensors.quantization.lifecycle.forward"
_PER_WORD = 8


def _packing(original: Any) -> Any:
    def pack_to_int32(value: torch.Tensor, num_bits: int, packed_dim: int = 1) -> torch.Tensor:
        try:
            serve(num_bits == 4 and value.dtype is torch.int8 and value.ndim >= 2 and value.numel() > 0)
            codes = (value + 8).view(torch.uint8)
            if packed_dim == 0:
                codes = codes.mT
            if rest := -codes.shape[-1] % _PER_WORD:
                codes = torch.nn.functional.pad(codes, (0, rest))
            payload = pack(codes)
        except NotServed:
            return original(value, num_bits, packed_dim)  # type: ignore[no-any-return]
        if packed_dim == 0:  # theirs is a view of the rows packed, too, but for stacks of matrices
            return payload.mT if value.ndim == 2 else payload.mT.clone(memory_format=torch.contiguous_format)
        return payload

    return pack_to_int32


def _unpacking(original: Any) -> Any:
    def unpack_from_int32(value: torch.Tensor, num_bits: int, shape: Any, packed_dim: int = 1) -> torch.Tensor:
        if not (num_bits == 4 and value.dtype is torch.int32 and value.ndim >= 2 and value.device.type != "meta"):
            return original(value, num_bits, shape, packed_dim)  # type: ignore[no-any-return]
        dim = -1 if packed_dim == 1 else -2
        codes = awqpack.unpack(value if packed_dim == 1 else value.mT)
        wanted = int(shape[dim])
        if wanted < codes.shape[-1]:
            codes = codes[..., :wanted]
        signed = codes.view(torch.int8).sub_(8)
        return (signed if packed_dim == 1 else signed.mT).contiguous()

    return unpack_from_int32


def _quantizing(original: Any) -> Any:
    def quantize(
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        args: Any,
        dtype: torch.dtype | None = None,
        g_idx: torch.Tensor | None = None,
        global_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        try:
            serve(dtype is torch.int8 and args.num_bits == 4 and args.type == "int")
            serve(g_idx is None and global_scale is None and args.strategy in ("group", "channel"))
            serve(x.ndim == 2 and x.numel() > 0 and x.is_floating_point() and x.device.type != "meta")
            groups = x.shape[1] // args.group_size if args.strategy == "group" else 1
            serve(groups > 0 and x.shape[1] % groups == 0 and scale.shape == (x.shape[0], groups))
            serve(args.strategy == "channel" or x.shape[1] == groups * args.group_size)
            serve(zero_point is None or zero_point.shape == scale.shape)
            zeros = None if zero_point is None else zero_point.to(x.dtype)
            with torch.no_grad():
                return rounded(x, divided(x, scale, zeros), -8, 7)
        except NotServed:
            return original(  # type: ignore[no-any-return]
                x=x,
                scale=scale,
                zero_point=zero_point,
                args=args,
                dtype=dtype,
                g_idx=g_idx,
                global_scale=global_scale,
            )

    return quantize


def _dequantized(state: dict[str, torch.Tensor], args: Any, unpack: Any) -> dict[str, torch.Tensor]:
    """A layer's tensors with its weight in floats, straight from the payload."""
    packed, scale = state["weight_packed"], state.get("weight_scale")
    zero, shape = state.get("weight_zero_point"), state.get("weight_shape")
    serve(args.num_bits == 4 and args.strategy in ("group", "channel") and state.get("weight_g_idx") is None)
    serve(scale is not None and shape is not None and packed.device.type != "meta")
    assert scale is not None
    assert shape is not None
    rows, cols = (int(size) for size in shape)
    serve(packed.dtype is torch.int32 and packed.shape == (rows, cols // _PER_WORD) and cols % _PER_WORD == 0)
    serve(scale.ndim == 2 and scale.shape[0] == rows and cols % scale.shape[1] == 0)
    serve(scale.dtype in (torch.float16, torch.bfloat16, torch.float32))
    serve((zero is None) == bool(args.symmetric))
    result = {name: tensor for name, tensor in state.items() if name != "weight_packed"}
    codes = None
    if zero is not None:
        result["weight_zero_point"] = unpack(zero, 4, (rows, scale.shape[-1]), packed_dim=0)
        codes = (result["weight_zero_point"] + 8).view(torch.uint8)
    with torch.no_grad():
        result["weight"] = awqpack.dequantize(packed, scale, codes)
    return result


def _decompressing(original: classmethod[Any, Any, Any], unpack: Any) -> classmethod[Any, Any, Any]:
    def decompress(cls: Any, state_dict: dict[str, torch.Tensor], scheme: Any) -> dict[str, torch.Tensor]:
        try:
            return _dequantized(state_dict, scheme.weights, unpack)
        except NotServed:
            return original.__get__(None, cls)(state_dict, scheme)  # type: ignore[no-any-return]

    return classmethod(decompress)


def _replacements() -> Iterator[Replacement]:
    helpers = importlib.import_module(f"{_FORMAT}.helpers")
    forward = importlib.import_module(_FORWARD)
    compressor = importlib.import_module(f"{_FORMAT}.base").PackedQuantizationCompressor
    unpack = _unpacking(helpers.unpack_from_int32)
    yield Replacement(helpers, "pack_to_int32", _packing(helpers.pack_to_int32))
    yield Replacement(helpers, "unpack_from_int32", unpack)
    yield Replacement(forward, "quantize", _quantizing(forward.quantize))
    yield Replacement(compressor, "decompress", _decompressing(vars(compressor)["decompress"], unpack))


EXCHANGE = Exchange("compressed-tensors", ("0.17.1",), "compressed_tensors", _replacements)

"""How others go from a float weight to packed codes and back, which the benchmarks put beside ours."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

import awqpack

from .peers import torch_functions

Calls = dict[str, Callable[[], torch.Tensor]]  # by op: quantize makes a V1 payload, dequantize the weight


def _rounded(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Codes, as one writes it."""
    groups = weight.view(len(weight), scales.shape[1], -1)
    quotient = groups.float() / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)
    return quotient.round().clamp(0, 15).to(torch.uint8).flatten(1)


def _scaled(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The weight of codes, as one writes it."""
    groups = codes.view(len(codes), scales.shape[1], -1).float()
    weight = (groups - zeros.unsqueeze(-1)) * scales.float().unsqueeze(-1)
    return weight.to(scales.dtype).flatten(1)


def torch_calls(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, is_compiled: bool) -> Calls:
    """Vectorised torch: round, shift and sum; shift, mask and multiply."""
    packer = torch_functions(awqpack.formats.FORMATS[0])
    assert isinstance(packer, dict)

    def quantize(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        return packer["pack"](_rounded(weight, scales, zeros))  # type: ignore[no-any-return]

    def dequantize(payload: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        return _scaled(packer["unpack"](payload), scales, zeros)

    payload = awqpack.quantize(weight, scales, zeros)
    wrap: Any = functools.partial(torch.compile, dynamic=False) if is_compiled else lambda function: function
    return {
        "quantize": functools.partial(wrap(quantize), weight, scales, zeros),
        "dequantize": functools.partial(wrap(dequantize), payload, scales, zeros),
    }


def compressed_tensors_calls(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> Calls | str:
    """compressed-tensors' quantize and pack_to_int32; unpack_from_int32 and dequantize."""
    try:
        forward = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
        helpers = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
        schemes = importlib.import_module("compressed_tensors.quantization")
    except ImportError:
        return "not installed (pip install compressed-tensors==0.17.1)"
    group_size = weight.shape[1] // scales.shape[1]
    how = schemes.QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=group_size)
    signed = zeros.to(torch.int8) - 8
    payload = awqpack.quantize(weight, scales, zeros)

    def quantize() -> Any:
        return helpers.pack_to_int32(forward.quantize(weight, scales, signed, how, dtype=torch.int8), 4)

    def dequantize() -> Any:
        codes = helpers.unpack_from_int32(payload, 4, weight.shape)
        return forward.dequantize(codes, scales, signed, how)

    return {"quantize": quantize, "dequantize": dequantize}


def triton_calls(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> Calls | str:
    """A dequantizing kernel as projects write it in Triton: a program for each row and run of words."""
    if not weight.is_cuda:
        return "needs a GPU"
    try:
        kernels = importlib.import_module(".triton_kernels", __package__)
    except ImportError:
        return "Triton is not installed"
    payload = awqpack.quantize(weight, scales, zeros)
    return {"dequantize": functools.partial(kernels.dequantize, payload, scales, zeros)}


def float_peers(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> tuple[dict[str, Calls], dict[str, str]]:
    """The calls of every peer on this weight, ours first, and the reasons of those that have none."""
    payload = awqpack.quantize(weight, scales, zeros)
    back = torch.empty_like(weight)
    found: dict[str, Calls] = {
        "awqpack": {
            "quantize": lambda: awqpack.quantize(weight, scales, zeros, out=payload),
            "dequantize": lambda: awqpack.dequantize(payload, scales, zeros, out=back),
        },
        "awqpack, fresh": {
            "quantize": lambda: awqpack.quantize(weight, scales, zeros),
            "dequantize": lambda: awqpack.dequantize(payload, scales, zeros),
        },
        "torch ops": torch_calls(weight, scales, zeros, is_compiled=False),
        "torch.compile": torch_calls(weight, scales, zeros, is_compiled=True),
    }
    missing: dict[str, str] = {}
    others = {"compressed-tensors": compressed_tensors_calls, "Triton": triton_calls}
    for name, calls_of in others.items():
        calls = calls_of(weight, scales, zeros)
        if isinstance(calls, str):
            missing[name] = calls
        else:
            found[name] = calls
    return found, missing

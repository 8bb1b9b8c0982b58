"""AutoAWQ's from_linear, which packs a column at a time, of its gemm, gemv and gemv_fast linears."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from awqpack import AWQPacking

from .exchange import Exchange, Replacement
from .rounding import NotServed, pack, serve, shifted, strict_codes, zeros_as_codes

_LINEAR = "awq.modules.linear"

# Fills the buffers of a fresh linear with what a float one, its scales and its zeros become.
Fill = Callable[[Any, Any, torch.Tensor, torch.Tensor], None]


def _fill_gemm(made: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    weight = linear.weight.data
    made.scales = scales.clone().half()
    codes = strict_codes(weight, shifted(weight, (zeros * scales).t(), made.scales.t()))
    made.qweight = pack(codes.t(), reorder=True)
    device = importlib.import_module(f"{_LINEAR}.gemm").get_best_device()
    serve("mps" not in device)
    made.qzeros = pack(zeros_as_codes(zeros), reorder=True).to(device)


def _padded(made: Any, scales: torch.Tensor) -> torch.Tensor:
    """Scales (N, G) in float16, as wide as the zeros' whole words."""
    module = importlib.import_module(f"{_LINEAR}.gemv_fast")
    width = 8 * module.calculate_zeros_width(made.in_features, made.group_size)
    padded = torch.zeros((scales.shape[0], width), dtype=torch.float16, device=scales.device)
    padded[:, : scales.shape[1]] = scales
    return padded


def _fill_gemv(made: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    weight = linear.weight.data
    made.scales = _padded(made, scales)
    used = made.scales[:, : scales.shape[1]]
    made.qweight = pack(strict_codes(weight, shifted(weight, zeros * scales, used)))
    padded = torch.zeros(made.scales.shape, dtype=torch.uint8, device=zeros.device)
    padded[:, : zeros.shape[1]] = zeros_as_codes(zeros)
    made.qzeros = pack(padded)


def _fill_gemv_fast(made: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    weight = linear.weight.data
    padded = _padded(made, scales)
    used = padded[:, : scales.shape[1]]
    made.qweight = pack(strict_codes(weight, shifted(weight, zeros * scales, used)), packing=AWQPacking.V2)
    serve(bool((zeros == zeros.to(torch.int32)).all()))
    qzeros = torch.zeros_like(padded)
    qzeros[:, : scales.shape[1]] = -(used * zeros.to(torch.int32).to(torch.float32)).to(torch.float16)
    made.scales, made.qzeros = padded.t().contiguous(), qzeros.t().contiguous()


def _from_linear(original: classmethod[Any, Any, Any], fill: Fill) -> classmethod[Any, Any, Any]:
    def from_linear(
        cls: Any,
        linear: Any,
        w_bit: int,
        group_size: int,
        init_only: bool = False,
        scales: torch.Tensor | None = None,
        zeros: torch.Tensor | None = None,
    ) -> Any:
        theirs = original.__get__(None, cls)
        try:
            serve(w_bit == 4 and not init_only and scales is not None and zeros is not None)
            assert scales is not None
            assert zeros is not None
            serve(linear.weight.device.type in ("cpu", "cuda") and linear.weight.device == scales.device)
            serve(group_size > 0 and linear.in_features % group_size == 0)
            made = theirs(linear, w_bit, group_size, init_only=True)
            with torch.no_grad():
                fill(made, linear, scales, zeros)
                if linear.bias is not None:
                    made.bias = linear.bias.clone().half()
            return made
        except NotServed:
            return theirs(linear, w_bit, group_size, init_only, scales, zeros)

    return classmethod(from_linear)


def _replacements() -> Iterator[Replacement]:
    linears: dict[str, tuple[str, Fill]] = {
        "gemm": ("WQLinear_GEMM", _fill_gemm),
        "gemv": ("WQLinear_GEMV", _fill_gemv),
        "gemv_fast": ("WQLinear_GEMVFast", _fill_gemv_fast),
    }
    for module, (name, fill) in linears.items():
        linear = getattr(importlib.import_module(f"{_LINEAR}.{module}"), name)
        yield Replacement(linear, "from_linear", _from_linear(vars(linear)["from_linear"], fill))


EXCHANGE = Exchange("autoawq", ("0.2.9",), "awq.", _replacements)

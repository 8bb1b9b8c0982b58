"""auto-round's packers: its AWQ linear, and its GPTQ linears with zeros as they are and with zeros minus one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .exchange import Exchange, Replacement
from .rounding import NotServed, pack, quantized, serve, zeros_as_codes

_AWQ = "auto_round.export.export_to_awq.utils"
_GPTQ = "auto_round_extension.torch.qlinear_torch"  # zeros as they are
_GPTQ_MINUS_ONE = "auto_round_extension.torch.qlinear_torch_zp"

Zeros = torch.Tensor | int | float


def _from_linear(original: classmethod[Any, Any, Any], device_of: Callable[[Any], Any]) -> classmethod[Any, Any, Any]:
    def awq_linear(cls: Any, linear: Any, group_size: int, scales: torch.Tensor, zeros: Zeros, device: Any) -> Any:
        weight, scales_here = linear.weight.to(device), scales.to(device)
        serve(weight.shape[1] % scales.shape[0] == 0 and weight.shape[1] // scales.shape[0] == group_size)
        serve(weight.shape[0] % 8 == 0 and isinstance(zeros, torch.Tensor | int))
        of_weight = zeros.to(device).t() if isinstance(zeros, torch.Tensor) else int(zeros)
        every = zeros.to(device) if isinstance(zeros, torch.Tensor) else torch.full_like(scales_here, zeros)
        qweight = quantized(weight, scales_here.t(), of_weight, transposed=True)
        qzeros = pack(zeros_as_codes(every), reorder=True)
        made = original.__get__(None, cls)(linear, 4, group_size, init_only=True)
        made.scales = scales.clone().half()
        if linear.bias is not None:
            made.bias = linear.bias.clone().half()
        made.qweight, made.qzeros = qweight.cpu(), qzeros.cpu()
        return made

    def from_linear(
        cls: Any,
        linear: Any,
        w_bit: int,
        group_size: int,
        init_only: bool = False,
        scales: torch.Tensor | None = None,
        zeros: Zeros | None = None,
        device: Any = None,
    ) -> Any:
        try:
            serve(w_bit == 4 and not init_only and scales is not None and zeros is not None)
            assert scales is not None
            assert zeros is not None
            with torch.no_grad():
                size = group_size if group_size != -1 else linear.in_features
                return awq_linear(cls, linear, size, scales, zeros, device_of(device))
        except NotServed:
            return original.__get__(None, cls)(linear, w_bit, group_size, init_only, scales, zeros, device)

    return classmethod(from_linear)


def _pack(original: Any, device_of: Callable[[Any], Any], minus: int) -> Any:
    """pack of a GPTQ linear whose words hold zeros minus this."""

    def gptq_payloads(self: Any, linear: Any, scales: torch.Tensor, zeros: Zeros, device: Any) -> list[torch.Tensor]:
        weight, scales = linear.weight.detach().to(device), scales.to(device)
        serve(type(linear) is torch.nn.Linear and weight.shape[1] == scales.shape[1] * self.group_size)
        serve(weight.shape[0] % 32 == 0 and weight.shape[1] % 32 == 0)
        if isinstance(zeros, torch.Tensor):
            zeros = zeros.to(device)
            stored = zeros - minus if minus == 0 else (zeros - minus).clamp(0, 15)
        else:
            serve(isinstance(zeros, int))
            zeros = int(zeros)
            stored = torch.full_like(scales, zeros - minus if minus == 0 else min(max(zeros - minus, 0), 15))
        return [quantized(weight, scales, zeros).t().contiguous(), pack(zeros_as_codes(stored).t())]

    def pack_248_bits(
        self: Any, linear: Any, scales: torch.Tensor, zeros: Zeros, g_idx: Any = None, device: Any = None
    ) -> None:
        try:
            serve(self.bits == 4)
            with torch.no_grad():
                qweight, qzeros = gptq_payloads(self, linear, scales, zeros, device_of(device))
        except NotServed:
            original(self, linear, scales, zeros, g_idx, device)
            return
        if linear.bias is not None:
            self.bias = linear.bias.clone().half()
        self.scales = scales.t().contiguous().clone().half()
        self.qweight, self.qzeros = qweight.cpu(), qzeros.cpu()

    return pack_248_bits


def _replacements() -> Iterator[Replacement]:
    device_of = importlib.import_module("auto_round.utils").get_packing_device
    awq = importlib.import_module(_AWQ).WQLinear_GEMM
    yield Replacement(awq, "from_linear", _from_linear(vars(awq)["from_linear"], device_of))
    for name, minus in ((_GPTQ, 0), (_GPTQ_MINUS_ONE, 1)):
        linear = importlib.import_module(name).QuantLinear
        yield Replacement(linear, "pack_248_bits", _pack(vars(linear)["pack_248_bits"], device_of, minus))


EXCHANGE = Exchange("auto-round", ("0.16.1",), "auto_round", _replacements)

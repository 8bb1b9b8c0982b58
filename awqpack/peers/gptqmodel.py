"""GPTQModel's packers of its AWQ gemm linears, and of its GPTQ linears."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from .exchange import Exchange, Replacement
from .rounding import NotServed, Quotient, pack, rounded, serve, shifted, strict_codes, zeros_as_codes

_LINEARS = "gptqmodel.nn_modules.qlinear"
_AWQ = {"gemm_awq": "AwqGEMMLinear", "torch_awq": "AwqTorchLinear"}
_HALF = (torch.float16, torch.bfloat16)


def _register(linear: Any, **buffers: torch.Tensor) -> None:
    for name, tensor in buffers.items():
        linear.register_buffer(name, tensor)


def _pack_awq(original: Any) -> Any:
    def payloads(self: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight = linear.weight.data
        serve(self.bits == 4 and type(linear) is torch.nn.Linear and weight.shape[1] % scales.shape[1] == 0)
        serve(self.group_size == weight.shape[1] // scales.shape[1] and weight.device == scales.device)
        scales, offsets = scales.contiguous(), zeros * scales
        kept = scales.to(scales.dtype if scales.dtype in _HALF else torch.float16)
        codes = strict_codes(weight, shifted(weight, offsets, kept))
        qzeros = pack(zeros_as_codes(zeros).t(), reorder=True)
        return pack(codes.t(), reorder=True), qzeros, kept.t().contiguous()

    def pack_(self: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor, g_idx: Any = None) -> None:
        try:
            with torch.no_grad():
                qweight, qzeros, kept = payloads(self, linear, scales, zeros)
        except NotServed:
            original(self, linear, scales, zeros, g_idx)
            return
        _register(self, qweight=qweight, qzeros=qzeros, scales=kept)
        if linear.bias is None:
            self.bias = None
        else:
            dtype = linear.bias.dtype if linear.bias.dtype in _HALF else kept.dtype
            _register(self, bias=linear.bias.detach().clone().to(dtype))

    return pack_


def _of_groups(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor) -> Quotient:
    """(weight + zero * scale) / scale, column k in the group g_idx[k]."""
    offsets, groups = zeros * scales, scales.shape[1]
    if weight.shape[1] % groups == 0:
        usual = torch.arange(groups, device=g_idx.device).repeat_interleave(weight.shape[1] // groups)
        if torch.equal(g_idx.long(), usual):
            return shifted(weight, offsets, scales)
    index = g_idx.long()
    return lambda rows: (weight[rows] + offsets[rows][:, index]) / scales[rows][:, index]


def _gptq_payloads(
    self: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor, g_idx: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """A GPTQ linear's buffers."""
    weight = linear.weight.detach()
    serve(self.bits == 4 and type(linear) is torch.nn.Linear and self.pack_dtype is torch.int32)
    serve(weight.shape[0] % 32 == 0 and weight.shape[1] % 32 == 0 and weight.device.type == "cpu")
    index = self.g_idx if g_idx is None else g_idx
    serve(index.numel() == weight.shape[1] and int(index.min()) >= 0 and int(index.max()) < scales.shape[1])
    codes = rounded(weight, _of_groups(weight, scales, zeros, index), 0, 15).view(torch.uint8)
    buffers = {
        "qweight": pack(codes).t().contiguous(),
        "qzeros": pack(zeros_as_codes(zeros).t()),
        "scales": scales.t().contiguous().to(torch.float16),
        "g_idx": index,
    }
    if linear.bias is not None:
        buffers["bias"] = linear.bias.detach().to(torch.float16)
    return buffers


def _fill(self: Any, buffers: dict[str, torch.Tensor]) -> None:
    _register(self, **buffers)
    if "bias" not in buffers and not hasattr(self, "bias"):
        self.bias = None


def _pack_original(original: Any) -> Any:
    def pack_original(self: Any, linear: Any, scales: torch.Tensor, zeros: torch.Tensor, g_idx: Any = None) -> None:
        try:
            with torch.no_grad():
                buffers = _gptq_payloads(self, linear, scales, zeros, g_idx)
        except NotServed:
            original(self, linear, scales, zeros, g_idx)
            return
        _fill(self, buffers)

    return pack_original


def _pack_block(original: Any) -> Any:
    def pack_block(
        self: Any,
        linear: Any,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        g_idx: torch.Tensor,
        block_in: int = 8192,
        workers: int = 1,
    ) -> None:
        try:
            # In other dtypes its compiled code rounds otherwise than its Python code, and which of them runs is known
            # only once it is compiled.
            serve(scales.dtype is torch.float32 and zeros.dtype in (torch.float32, torch.int32))
            with torch.inference_mode():
                buffers = _gptq_payloads(self, linear, scales, zeros, g_idx)
        except NotServed:
            original(self, linear, scales, zeros, g_idx, block_in, workers)
            return
        _fill(self, buffers)

    return pack_block


def _replacements() -> Iterator[Replacement]:
    for module, name in _AWQ.items():
        linear = getattr(importlib.import_module(f"{_LINEARS}.{module}"), name)
        yield Replacement(linear, "pack", _pack_awq(vars(linear)["pack"]))
    gptq = importlib.import_module(_LINEARS).PackableQuantLinear
    yield Replacement(gptq, "pack_original", _pack_original(vars(gptq)["pack_original"]))
    yield Replacement(gptq, "pack_block", _pack_block(vars(gptq)["pack_block"]))


EXCHANGE = Exchange("gptqmodel", ("7.7.0",), "gptqmodel", _replacements)

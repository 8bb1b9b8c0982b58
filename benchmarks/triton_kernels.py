"""A Triton kernel that dequantizes V1 payloads, as several projects have one: a peer on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WORDS = 512  # of a program


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(payload, scales, zeros, out, words, groups, group: tl.constexpr, run: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    word = tl.program_id(1) * run + tl.arange(0, run)
    is_inside = word < words
    packed = tl.load(payload + row * words + word, mask=is_inside)
    column = word[:, None] * 8 + tl.arange(0, 8)[None, :]
    codes = (packed[:, None] >> (4 * tl.arange(0, 8)[None, :])) & 15
    at = row * groups + (word * 8) // group
    scale = tl.load(scales + at, mask=is_inside).to(tl.float32)
    zero = tl.load(zeros + at, mask=is_inside).to(tl.float32)
    weight = (codes.to(tl.float32) - zero[:, None]) * scale[:, None]
    tl.store(out + row * words * 8 + column, weight.to(out.dtype.element_ty), mask=is_inside[:, None])


def dequantize(payload: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The weight of a V1 payload, whose groups lie along its columns."""
    rows, words = payload.shape
    out = torch.empty((rows, words * 8), dtype=scales.dtype, device=payload.device)
    grid = (rows, triton.cdiv(words, WORDS))
    _kernel[grid](payload, scales, zeros, out, words, scales.shape[1], words * 8 // scales.shape[1], WORDS)
    return out

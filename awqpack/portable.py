"""The ops in torch's own vectorised operations, for devices without kernels of ours (XPU first).

They are bit-equal to the kernels and several times slower; tests run them on the CPU beside the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from . import _checks

_REORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _require_codes(codes: torch.Tensor) -> None:
    invalid = codes > 15
    if bool(invalid.any()):
        index = tuple(int(i) for i in invalid.nonzero()[0])
        where = ", ".join(map(str, index))
        raise ValueError(f"pack expects uint8 codes in 0..15; codes[{where}] is {int(codes[index])}")


def pack(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True) -> torch.Tensor:
    shape = _checks.payload_shape(codes, packing)
    if validate:
        _require_codes(codes)
    if packing == 1:
        words = codes.reshape(*shape, 8)
        if reorder:
            words = words[..., list(_REORDER)]
        payload = torch.zeros(shape, dtype=torch.int32, device=codes.device)
        for i in range(8):
            payload |= (words[..., i].to(torch.int32) & 15) << (4 * i)
        return payload
    *batch, quads, cols = shape
    # (quad, row of four, block, half, nibble, column of eight) -> (quad, block, row of four, half, column of eight)
    nibbles = codes.reshape(*batch, quads, 4, cols // 64, 2, 4, 8)
    halves = torch.zeros((*batch, quads, 4, cols // 64, 2, 8), dtype=torch.int16, device=codes.device)
    for a in range(4):
        halves |= (nibbles[..., a, :].to(torch.int16) & 15) << (4 * a)
    return halves.transpose(-4, -3).reshape(shape)


def unpack(
    payload: torch.Tensor, packing: int, reorder: bool, stride_order: Sequence[int] | None = None
) -> torch.Tensor:
    shape = _checks.codes_shape(payload, packing)
    strides = _checks.ordered_strides(shape, stride_order)
    codes = torch.empty_strided(shape, strides, dtype=torch.uint8, device=payload.device)
    *batch, rows, cols = shape
    if packing == 1:
        places = _REORDER if reorder else range(8)
        words = [((payload >> (4 * i)) & 15).to(torch.uint8) for i in range(8)]
        columns = torch.stack([word for _, word in sorted(zip(places, words, strict=True), key=lambda p: p[0])], -1)
        return codes.copy_(columns.reshape(shape))
    halves = payload.reshape(*batch, rows // 4, cols // 64, 4, 2, 8)
    nibbles = torch.stack([((halves >> (4 * a)) & 15).to(torch.uint8) for a in range(4)], -2)
    return codes.copy_(nibbles.transpose(-5, -4).reshape(shape))


def pack_out(codes: torch.Tensor, packing: int, reorder: bool, validate: bool = True, *, out: torch.Tensor) -> None:
    _checks.require_out(out, codes, _checks.payload_dtype(packing), _checks.payload_shape(codes, packing))
    out.copy_(pack(codes, packing, reorder, validate))


def unpack_out(payload: torch.Tensor, packing: int, reorder: bool, *, out: torch.Tensor) -> None:
    _checks.require_out(out, payload, torch.uint8, _checks.codes_shape(payload, packing))
    out.copy_(unpack(payload, packing, reorder))


def register() -> None:
    """Sends every backend without a kernel of its own here; sparse and quantized tensors too, to be refused by name."""
    kernels: dict[str, Callable[..., object]] = {
        "pack": pack,
        "unpack": unpack,
        "pack_out": pack_out,
        "unpack_out": unpack_out,
    }
    for name, kernel in kernels.items():
        torch.library.impl(f"awqpack::{name}", "CompositeExplicitAutograd", kernel)

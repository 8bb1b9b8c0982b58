"""Float weights to codes by the arithmetic of others, bit for bit: a block of rows at a time, which stays in the cache.

They round sums and quotients to the weight's own dtype where ours are float32, or add the zero before they divide.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

import awqpack
from awqpack import AWQPacking

BLOCK = (1 << 15) - 1  # codes; torch shares an op on more of them among its threads, and waits for each of these

Quotient = Callable[[slice], torch.Tensor]  # of some rows: a fresh tensor that the caller may write into


class NotServed(Exception):
    """This case goes to the package's own code."""


def serve(condition: bool) -> None:
    """Leaves a case to the package's own code unless the condition holds.

    Raises:
        NotServed: it does not.
    """
    if not condition:
        raise NotServed


def divided(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int | None) -> Quotient:
    """weight / scale + zero, of a weight (N, K) and scales (N, G)."""
    groups = weight.view(weight.shape[0], scales.shape[1], -1)

    def quotient(rows: slice) -> torch.Tensor:
        value = groups[rows] / scales[rows].unsqueeze(-1)
        if zeros is None:
            return value
        return value + (zeros[rows].unsqueeze(-1) if isinstance(zeros, torch.Tensor) else zeros)

    return quotient


def shifted(weight: torch.Tensor, offsets: torch.Tensor, scales: torch.Tensor) -> Quotient:
    """(weight + offset) / scale, of a weight (N, K), and (N, G) of the others."""
    groups = weight.view(weight.shape[0], scales.shape[1], -1)
    return lambda rows: (groups[rows] + offsets[rows].unsqueeze(-1)) / scales[rows].unsqueeze(-1)


def rounded(weight: torch.Tensor, quotient: Quotient, low: int, high: int) -> torch.Tensor:
    """The quotients of a weight (N, K), rounded half to even and brought into low..high, as int8.

    Raises:
        NotServed: a quotient is not a number.
    """
    rows, cols = weight.shape
    codes = torch.empty((rows, cols), dtype=torch.int8, device=weight.device)
    step = max(BLOCK // cols, 1) if weight.device.type == "cpu" else rows
    inference = torch.is_inference_mode_enabled()

    def round_some(begins: range) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are a thread's own
            for begin in begins:
                part = slice(begin, begin + step)
                value = quotient(part).flatten(1).round_().clamp_(low, high)
                serve(not bool(value.sum().isnan()))
                codes[part] = value

    threads = min(torch.get_num_threads(), -(-rows // step))
    shares = [range(i * step, rows, threads * step) for i in range(threads)]
    if threads == 1:
        round_some(shares[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(round_some, shares))
    return codes


def strict_codes(weight: torch.Tensor, quotient: Quotient) -> torch.Tensor:
    """Codes of a package that does not bring its quotients into 0..15: packing refuses what is outside."""
    return rounded(weight, quotient, -1, 16).view(torch.uint8)


def zeros_as_codes(zeros: torch.Tensor) -> torch.Tensor:
    """Zeros of any dtype as uint8.

    Raises:
        NotServed: one is no integer 0..15.
    """
    codes = zeros.to(torch.uint8)
    serve(bool(((codes == zeros) & (codes < 16)).all()))
    return codes


def pack(codes: torch.Tensor, reorder: bool = False, packing: AWQPacking = AWQPacking.V1) -> torch.Tensor:
    """The payload of codes.

    Raises:
        NotServed: a code is above 15, or the shape holds no whole blocks.
    """
    try:
        return awqpack.pack(codes, packing, reorder)
    except ValueError as error:
        raise NotServed from error


def quantized(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int, transposed: bool = False
) -> torch.Tensor:
    """V1's payload of clamp(round(weight / scale + zero), 0, 15); transposed: of that of gemm, (K, N / 8).

    Raises:
        NotServed: a case that awqpack's packing does not hold, or a quotient that is not a number.
    """
    try:
        return _quantized_at_once(weight, scales, zeros, transposed)
    except NotServed:
        codes = rounded(weight, divided(weight, scales, zeros), 0, 15).view(torch.uint8)
        return pack(codes.t() if transposed else codes, transposed)


def _quantized_at_once(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | int, transposed: bool
) -> torch.Tensor:
    """awqpack's own quantize, where its arithmetic is theirs: float32 quotients, and zeros that are codes."""
    serve(torch.promote_types(weight.dtype, scales.dtype) == torch.float32)
    serve(bool((scales != 0).all()))  # x / 0 is theirs to say
    if isinstance(zeros, torch.Tensor):
        serve(torch.promote_types(torch.float32, zeros.dtype) == torch.float32)
        zeros = zeros_as_codes(zeros)
    else:
        serve(0 <= zeros < 16)
        zeros = torch.full(scales.shape, zeros, dtype=torch.uint8, device=scales.device)
    if transposed:
        weight, scales, zeros = weight.t(), scales.t(), zeros.t()
    try:
        return awqpack.quantize(weight, scales, zeros, AWQPacking.V1, transposed)
    except ValueError as error:  # a weight that is not finite
        raise NotServed from error

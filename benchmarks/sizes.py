"""Times pack, unpack, quantize and dequantize on the CPU by size, beside a copy that moves the same bytes."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

import torch

import awqpack

from .adoption import GROUP
from .cpu import Copies, copying_pool, random_codes
from .harness import MIB, Call, Row, compare, print_table
from .peers import load_quanto, torch_functions
from .progress import steps

SIZES = (4, 16, 64, 256)
PEERS_UP_TO = 16  # MiB; beyond, others take seconds


def bench(mib: int, turns: int) -> Iterator[Row]:
    """One size, all threads, into buffers that are there."""
    threads, side = torch.get_num_threads(), int((mib * MIB) ** 0.5) // 128 * 128
    codes = random_codes(side)
    unpacked, payload = torch.zeros_like(codes), awqpack.pack(codes)
    weight = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).half() * 0.02
    back = torch.empty_like(weight)
    scales, zeros = awqpack.min_max_scales(weight, GROUP)
    words = awqpack.quantize(weight, scales, zeros)
    packs: dict[str, Call] = {
        "pack": functools.partial(awqpack.pack, codes, out=payload),
        "unpack": functools.partial(awqpack.unpack, payload, out=unpacked),
        "quantize": functools.partial(awqpack.quantize, weight, scales, zeros, out=words),
        "dequantize": functools.partial(awqpack.dequantize, words, scales, zeros, out=back),
    }
    what = {"mib": mib, "threads": threads, "packing": "V1"}
    with copying_pool(threads) as pool:
        for op, call in packs.items():
            moved = codes.nbytes * 3 // 2 if "pack" in op else codes.nbytes * 5 // 2
            calls = {"awqpack": call}
            baselines = Copies(moved).calls(pool, threads)
            yield from compare("sizes", op, calls, baselines, turns, least_seconds=0.3, moved=moved, what=what)
            if op == "pack" and mib <= PEERS_UP_TO:
                yield from others(codes, moved, what)


def others(codes: torch.Tensor, moved: int, what: dict[str, object]) -> Iterator[Row]:
    """pack as torch's ops and optimum-quanto do it."""
    packer = torch_functions(awqpack.formats.FORMATS[0])
    assert isinstance(packer, dict)
    calls: dict[str, Call] = {"torch ops": functools.partial(packer["pack"], codes)}
    if (quanto := load_quanto()) is not None:
        calls["optimum-quanto"] = functools.partial(quanto.pack, codes, reorder=False)
    yield from compare("sizes", "pack", calls, {}, 2, moved=moved, what=what)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--sizes-mib", type=int, nargs="*", default=SIZES, help="MiB of codes, square numbers best")
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each call (7)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    planned = [(f"{mib} MiB", lambda mib=mib: list(bench(mib, options.turns))) for mib in options.sizes_mib]
    rows = steps("sizes", planned)
    title = "Speed beside the faster of memcpy and torch's copy_ of the same bytes, by MiB of codes (1 = as fast)"
    print_table(title, [row for row in rows if row.baseline], ("op",), ("mib",))
    print_table("GB a second, read and written", rows, ("op", "who"), ("mib",), "gb_per_s")
    return rows

"""Times pack and unpack on the CPU beside memory copies that move the same bytes."""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from awqpack import _C
from awqpack.formats import FORMATS, Format

from . import cpus
from .harness import MIB, Call, Row, compare, print_table

LEAST_SECONDS = 0.5  # of the turns of a row: a call of many threads takes milliseconds, and scatters
ORDERS = ("row", "column")
OPS = ("pack", "unpack")


class Copies:
    """Ways to copy as many bytes as packing moves.

    Codes and payload are each read or written once: a copy of half their sum moves the same.
    """

    def __init__(self, moved: int) -> None:
        self.bytes = moved // 2
        self.source = torch.ones(self.bytes, dtype=torch.uint8)
        self.target = torch.zeros(self.bytes, dtype=torch.uint8)

    def calls(self, pool: ThreadPoolExecutor, threads: int) -> dict[str, Call]:
        """libc's memcpy, each thread an equal part, and torch's copy_."""
        return {"memcpy": functools.partial(self.memcpy_on, pool, threads), "torch copy_": self.torch_copy}

    def torch_copy(self) -> None:
        """torch's own copy, on torch's threads."""
        self.target.copy_(self.source)

    def memcpy(self, begin: int, end: int) -> None:
        """libc's memcpy of a part; ctypes lets go of the GIL."""
        ctypes.memmove(self.target.data_ptr() + begin, self.source.data_ptr() + begin, end - begin)

    def memcpy_on(self, pool: ThreadPoolExecutor, threads: int) -> None:
        """libc's memcpy on threads of a pool."""
        if threads == 1:
            self.memcpy(0, self.bytes)
            return
        cuts = [self.bytes * i // threads // 64 * 64 for i in range(threads)] + [self.bytes]
        list(pool.map(self.memcpy, cuts[:-1], cuts[1:]))


def copying_pool(threads: int) -> ThreadPoolExecutor:
    """Threads for memcpy, on any CPU: torch's threads are bound, and the main thread with them."""
    return ThreadPoolExecutor(threads, initializer=os.sched_setaffinity, initargs=(0, cpus.ALL))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's pool of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_codes(side: int) -> torch.Tensor:
    """Codes 0..15 that no compression or branch predictor could guess."""
    return torch.randint(0, 16, (side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def empty_payload(form: Format, side: int) -> torch.Tensor:
    """A payload buffer whose pages are already touched."""
    return torch.zeros(form.payload_shape(side, side), dtype=form.dtype)


def in_order(codes: torch.Tensor, order: str) -> torch.Tensor:
    """A square matrix of codes as its memory lies: row-major, or the column-major view of the same buffer."""
    return codes if order == "row" else codes.t()


def kernel_call(form: Format, op: str, variant: str, codes: torch.Tensor, payload: torch.Tensor) -> Call:
    """One variant between two buffers the caller keeps, as NumPy arrays that share them."""
    packing = form.packing.value, form.reorder
    codes_array, payload_array = codes.numpy(), payload.numpy()
    if op == "pack":
        return functools.partial(_C.pack_array, codes_array, *packing, True, payload_array, variant)
    return functools.partial(_C.unpack_array, payload_array, *packing, codes_array, variant)


def case(form: Format, order: str, threads: int, memory: str, codes: torch.Tensor) -> dict[str, object]:
    """The columns that say what a row is about."""
    return {
        "packing": form.title,
        "order": order,
        "threads": threads,
        "memory": memory,
        "codes": codes.numel(),
    }


def bench_kernels(side: int, threads: Sequence[int], turns: int, variants: Sequence[str]) -> Iterator[Row]:
    """Every packing, order, op, variant and number of threads, into memory already touched, beside copies."""
    codes, unpacked = random_codes(side), torch.zeros(side, side, dtype=torch.uint8)
    moved = codes.nbytes + codes.nbytes // 2
    copies = Copies(moved)
    for form in FORMATS:
        payload = empty_payload(form, side)
        for order, variant, count in itertools.product(ORDERS, variants, threads):
            source, target = in_order(codes, order), in_order(unpacked, order)
            with torch_threads(count), copying_pool(count) as pool:
                for op, buffer in zip(OPS, (source, target), strict=True):
                    calls = {variant: kernel_call(form, op, variant, buffer, payload)}
                    what = case(form, order, count, "touched", codes)
                    baselines = copies.calls(pool, count)
                    yield from compare(
                        "kernels", op, calls, baselines, turns, least_seconds=LEAST_SECONDS, moved=moved, what=what
                    )
            if not torch.equal(source, target):
                raise SystemExit(f"{variant} does not unpack what it packed: {form.title}, {order}-major")


def bench_allocating(side: int, threads: Sequence[int], turns: int) -> Iterator[Row]:
    """The ops that allocate their result, beside clone(), which allocates too."""
    codes = random_codes(side)
    moved = codes.nbytes + codes.nbytes // 2
    original = torch.ones(moved // 2, dtype=torch.uint8)
    pack, unpack = torch.ops.awqpack.pack.default, torch.ops.awqpack.unpack.default
    active = _C.build_info()["cpu_active"]
    for form, order, count in itertools.product(FORMATS, ORDERS, threads):
        packing = form.packing.value, form.reorder
        source = in_order(codes, order)
        payload = pack(source, *packing)
        calls: dict[str, Call] = {
            "pack": functools.partial(pack, source, *packing),
            "unpack": functools.partial(unpack, payload, *packing, None if order == "row" else [1, 0]),
        }
        with torch_threads(count):
            for op in OPS:
                yield from compare(
                    "allocating",
                    op,
                    {active: calls[op]},
                    {"torch clone": original.clone},
                    turns,
                    least_seconds=LEAST_SECONDS,
                    moved=moved,
                    what=case(form, order, count, "fresh", codes),
                )


def watched(rows: Iterator[Row]) -> list[Row]:
    """The rows, with a word on a terminal about the one just measured."""
    done = []
    for row in rows:
        done.append(row)
        if sys.stderr.isatty():
            text = f"{row.table}: {row.cell('packing')}, {row.cell('order')}-major, {row.who}, {row.op}"
            print(f"\r{text:<76}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(f"\r{'':<76}\r", end="", file=sys.stderr, flush=True)
    return done


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--size-mib", type=int, default=256, help="MiB of codes, a square number (256)")
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each call (7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="what all threads means")
    variants = _C.variants()
    parser.add_argument("--variants", nargs="*", choices=variants, default=variants, help="some kernels only")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    side = int((options.size_mib * MIB) ** 0.5) // 64 * 64
    threads = sorted({1, options.threads})
    down = ("packing", "order", "op")
    print(f"{side}x{side} codes ({side * side / MIB:.0f} MiB); medians of {options.turns} turns or more")
    kernels = watched(bench_kernels(side, threads, options.turns, options.variants))
    title = "Speed beside the faster of memcpy and torch's copy_ of the same bytes, touched memory (1 = as fast)"
    print_table(title, kernels, down, ("who", "threads"))
    allocating = watched(bench_allocating(side, threads, options.turns))
    title = "Speed of the ops that allocate their result beside clone() of the same bytes (1 = as fast)"
    print_table(title, allocating, down, ("who", "threads"))
    return [*kernels, *allocating]

"""Times pack and unpack on the CPU beside memory copies that move the same bytes, and beside the packers of others.

Prints ratios and writes results/cpu-<machine>-<date>.csv; README.md beside this file says how to read them.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cpus
import torch
from common import environment, interleaved_medians, write_csv
from peers import LAYOUTS, Layout, load_quanto, quanto_calls, torch_pack, torch_unpack

from awqpack import _C

Call = Callable[[], object]
Row = dict[str, object]

MIB = 1 << 20
PEER_SIZE = 4096
LEAST_SECONDS = 0.5  # of the turns of a row: a call of many threads takes milliseconds, and scatters


ORDERS = ("row", "column")
OPS = ("pack", "unpack")


class Copies:
    """Two ways to copy as many bytes as packing moves.

    Codes and payload are each read or written once: a copy of half their sum moves the same.
    """

    def __init__(self, moved: int) -> None:
        self.bytes = moved // 2
        self.source = torch.ones(self.bytes, dtype=torch.uint8)
        self.target = torch.zeros(self.bytes, dtype=torch.uint8)

    def torch_copy(self) -> None:
        """torch's own copy, on torch's threads."""
        self.target.copy_(self.source)

    def memcpy(self, begin: int, end: int) -> None:
        """libc's memcpy of a part; ctypes lets go of the GIL."""
        ctypes.memmove(self.target.data_ptr() + begin, self.source.data_ptr() + begin, end - begin)

    def memcpy_on(self, pool: ThreadPoolExecutor, threads: int) -> None:
        """libc's memcpy, each thread an equal part."""
        if threads == 1:
            self.memcpy(0, self.bytes)
            return
        cuts = [self.bytes * i // threads // 64 * 64 for i in range(threads)] + [self.bytes]
        list(pool.map(self.memcpy, cuts[:-1], cuts[1:]))


def copying_pool(threads: int) -> ThreadPoolExecutor:
    """Threads for memcpy, on any CPU: `make bench-cpu` binds torch's threads, and the main thread with them."""
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


def random_codes(rows: int, cols: int) -> torch.Tensor:
    """Codes 0..15 that no compression or branch predictor could guess."""
    return torch.randint(0, 16, (rows, cols), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def empty_payload(layout: Layout, rows: int, cols: int) -> torch.Tensor:
    """A payload buffer whose pages are already touched."""
    shape = (rows, cols // 8) if layout.packing == 1 else (rows // 4, cols)
    return torch.zeros(shape, dtype=layout.payload_dtype)


def in_order(codes: torch.Tensor, order: str) -> torch.Tensor:
    """A square matrix of codes as its memory lies: row-major, or the column-major view of the same buffer."""
    return codes if order == "row" else codes.t()


def measure(name: str, call: Call, moved: int, copies: dict[str, Call], repetitions: int, **columns: object) -> Row:
    """One row of results: a call beside copies, with the ratio to the fastest of them."""
    medians = interleaved_medians({**copies, name: call}, repetitions, LEAST_SECONDS)
    seconds = medians.pop(name)
    baseline = min(medians, key=lambda copy: medians[copy])
    return {
        **columns,
        "ms": f"{seconds * 1e3:.3f}",
        "gb_per_s": f"{moved / seconds / 1e9:.2f}",
        "baseline": baseline,
        "baseline_ms": f"{medians[baseline] * 1e3:.3f}",
        "ratio": f"{medians[baseline] / seconds:.3f}",
    }


def kernel_call(layout: Layout, op: str, variant: str, codes: torch.Tensor, payload: torch.Tensor) -> Call:
    """One variant between two buffers the caller keeps, as NumPy arrays that share them."""
    codes_array, payload_array = codes.numpy(), payload.numpy()
    if op == "pack":
        return lambda: _C.pack_array(codes_array, layout.packing, layout.reorder, True, payload_array, variant)
    return lambda: _C.unpack_array(payload_array, layout.packing, layout.reorder, codes_array, variant)


def bench_kernels(side: int, threads: Sequence[int], repetitions: int) -> list[Row]:
    """Every layout, order, op, variant and number of threads, into memory already touched, beside memcpy."""
    rows = []
    codes, unpacked = random_codes(side, side), torch.zeros(side, side, dtype=torch.uint8)
    moved = codes.nbytes + codes.nbytes // 2
    copies = Copies(moved)
    for layout in LAYOUTS:
        payload = empty_payload(layout, side, side)
        for order, variant, count in itertools.product(ORDERS, _C.variants(), threads):
            source, target = in_order(codes, order), in_order(unpacked, order)
            with torch_threads(count), copying_pool(count) as pool:
                baselines: dict[str, Call] = {
                    "memcpy": lambda pool=pool, count=count: copies.memcpy_on(pool, count),  # type: ignore[misc]
                    "torch copy_": copies.torch_copy,
                }
                for op in OPS:
                    rows.append(
                        measure(
                            "kernel",
                            kernel_call(layout, op, variant, source if op == "pack" else target, payload),
                            moved,
                            baselines,
                            repetitions,
                            table="kernels",
                            op=op,
                            layout=layout.name,
                            order=order,
                            variant=variant,
                            threads=count,
                            memory="touched",
                            codes=side * side,
                        )
                    )
                    progress(rows[-1])
            if not torch.equal(source, target):
                raise SystemExit(f"{variant} does not unpack what it packed: {layout.name}, {order}-major")
    return rows


def bench_allocating(side: int, threads: Sequence[int], repetitions: int) -> list[Row]:
    """The ops that allocate their result, beside clone(), which allocates too."""
    rows = []
    codes = random_codes(side, side)
    moved = codes.nbytes + codes.nbytes // 2
    original = torch.ones(moved // 2, dtype=torch.uint8)
    ops = torch.ops.awqpack
    for layout, order, count in itertools.product(LAYOUTS, ORDERS, threads):
        source = in_order(codes, order)
        payload = ops.pack(source, layout.packing, layout.reorder)
        strides = None if order == "row" else [1, 0]
        calls: dict[str, Call] = {
            "pack": lambda s=source, v=layout: ops.pack(s, v.packing, v.reorder),  # type: ignore[misc]
            "unpack": lambda p=payload, v=layout, o=strides: ops.unpack(  # type: ignore[misc]
                p, v.packing, v.reorder, o
            ),
        }
        with torch_threads(count):
            for op in OPS:
                rows.append(
                    measure(
                        "kernel",
                        calls[op],
                        moved,
                        {"torch clone": original.clone},
                        repetitions,
                        table="allocating",
                        op=op,
                        layout=layout.name,
                        order=order,
                        variant=_C.build_info()["cpu_active"],
                        threads=count,
                        memory="fresh",
                        codes=side * side,
                    )
                )
                progress(rows[-1])
    return rows


def bench_peers(side: int, threads: int, repetitions: int) -> list[Row]:
    """What others offer, on one matrix of side x side, beside ours and a copy of the same bytes."""
    rows: list[Row] = []
    quanto = load_quanto()
    if quanto is None:
        print("optimum-quanto is not installed: left out (pip install --no-deps optimum-quanto==0.2.7)")
    codes = random_codes(side, side)
    moved = codes.nbytes + codes.nbytes // 2
    copies = Copies(moved)
    ops = torch.ops.awqpack
    for layout in LAYOUTS:
        payload, unpacked = empty_payload(layout, side, side), torch.zeros_like(codes)
        ours: dict[str, dict[str, Call]] = {
            "pack": {
                "awqpack": kernel_call(layout, "pack", _C.build_info()["cpu_active"], codes, payload),
                "awqpack, fresh": lambda v=layout: ops.pack(codes, v.packing, v.reorder),  # type: ignore[misc]
                "torch ops": lambda v=layout: torch_pack(codes, v),  # type: ignore[misc]
            },
            "unpack": {
                "awqpack": kernel_call(layout, "unpack", _C.build_info()["cpu_active"], unpacked, payload),
                "awqpack, fresh": lambda v=layout, p=payload: ops.unpack(  # type: ignore[misc]
                    p, v.packing, v.reorder
                ),
                "torch ops": lambda v=layout, p=payload: torch_unpack(p, v),  # type: ignore[misc]
            },
        }
        theirs = quanto_calls(quanto, layout, codes, payload)
        ours["pack"]["awqpack"]()
        for op, expected in (("pack", payload), ("unpack", codes)):
            calls = {**ours[op], **({"optimum-quanto": theirs[op]} if theirs else {})}
            for name, call in calls.items():
                result = call()
                if isinstance(result, torch.Tensor) and not torch.equal(result, expected):
                    raise SystemExit(f"{name} does not {op} {layout.name} as awqpack does")
            medians = interleaved_medians({"copy": copies.torch_copy, **calls}, repetitions, LEAST_SECONDS)
            for name, seconds in medians.items():
                rows.append(
                    {
                        "table": "peers",
                        "op": op,
                        "layout": layout.name,
                        "order": "row",
                        "variant": name,
                        "threads": threads,
                        "memory": "touched" if name in ("copy", "awqpack") else "fresh",
                        "codes": side * side,
                        "ms": f"{seconds * 1e3:.3f}",
                        "gb_per_s": f"{moved / seconds / 1e9:.2f}",
                        "baseline": "torch copy_",
                        "baseline_ms": f"{medians['copy'] * 1e3:.3f}",
                        "ratio": f"{medians['copy'] / seconds:.4f}",
                    }
                )
            progress(rows[-1])
    return rows


def progress(row: Row) -> None:
    """The row just measured, on a terminal only, each over the last."""
    if sys.stderr.isatty():
        text = f"{row['table']}: {row['layout']}, {row['order']}-major, {row['variant']}, {row['op']}"
        print(f"\r{text:<76}", end="", file=sys.stderr, flush=True)


def print_table(title: str, rows: Sequence[Row], across: Sequence[str], value: str) -> None:
    """One line for each layout, order and op; one column for each value of `across`."""
    if sys.stderr.isatty():
        print(f"\r{'':<76}\r", end="", file=sys.stderr, flush=True)
    columns = list(dict.fromkeys(tuple(str(row[name]) for name in across) for row in rows))
    heads = [", ".join(column) for column in columns]
    lines: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
    for row in rows:
        key = (str(row["layout"]), str(row["order"]), str(row["op"]))
        lines.setdefault(key, {})[tuple(str(row[name]) for name in across)] = str(row[value])
    print(f"\n{title}\n")
    print(f"{'layout':<11} {'order':<7} {'op':<7}" + "".join(f"  {head:>9}" for head in heads))
    for line, cells in lines.items():
        values = (cells.get(column, "-") for column in columns)
        print(
            f"{line[0]:<11} {line[1]:<7} {line[2]:<7}"
            + "".join(f"  {text:>{max(9, len(head))}}" for text, head in zip(values, heads, strict=True))
        )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=int, default=256, help="MiB of codes, a square number (256)")
    parser.add_argument("--repetitions", type=int, default=7, help="timed turns of each call (7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="what all threads means")
    parser.add_argument("--machine", help="name of the machine in the results (default: its CPU)")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    arguments = parser.parse_args()
    side = int((arguments.size_mib * MIB) ** 0.5) // 64 * 64
    threads = sorted({1, arguments.threads})
    env = environment(arguments.machine)
    print(
        f"{env['cpu']}, {env['cpus']} CPUs, torch {env['torch']}, "
        f"awqpack {env['awqpack']} ({env['commit']})\n"
        f"{side}x{side} codes ({side * side / MIB:.0f} MiB); medians of {arguments.repetitions} turns or more"
    )
    kernels = bench_kernels(side, threads, arguments.repetitions)
    print_table(
        "Speed beside the faster of memcpy and torch's copy_ of the same bytes, touched memory (1 = as fast)",
        kernels,
        ("variant", "threads"),
        "ratio",
    )
    allocating = bench_allocating(side, threads, arguments.repetitions)
    print_table(
        "Speed of the ops that allocate their result beside clone() of the same bytes (1 = as fast)",
        allocating,
        ("variant", "threads"),
        "ratio",
    )
    with torch_threads(threads[-1]):
        peers = bench_peers(min(side, PEER_SIZE), threads[-1], arguments.repetitions)
    print_table(
        f"Milliseconds on {min(side, PEER_SIZE)}x{min(side, PEER_SIZE)}, {threads[-1]} threads",
        peers,
        ("variant",),
        "ms",
    )
    if not arguments.no_csv:
        print(f"\nwrote {write_csv('cpu', env, [*kernels, *allocating, *peers])}")


if __name__ == "__main__":
    main()

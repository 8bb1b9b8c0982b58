"""Times quantize, dequantize, min_max_scales and relayout beside copies that move the same bytes.

On the CPU or, with --device cuda, on a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch

import awqpack
from awqpack import AWQPacking

from .cpu import copying_pool, torch_threads
from .harness import MIB, Call, Clock, Row, batch, compare, event, medians, print_table, synchronized, wait_for, wall
from .models import MODELS

GROUP = 128
TABLES = ("floats", "host", "relayout", "models")
V1, MARLIN = AWQPacking.V1, AWQPacking.MARLIN
GEMM = (V1, True)


Copied = tuple[torch.Tensor, torch.Tensor]


def copied(moved: int, device: str) -> Copied:
    """Memory for a copy that reads and writes as many bytes: as random as what is beside it."""
    source = torch.randint(256, (moved // 2,), dtype=torch.uint8, device=device)
    return source, torch.empty_like(source).copy_(source)


class Machine:
    """The device, how it is timed, and what its memory does."""

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self.threads = threads
        self.clock: Clock = event if device == "cuda" else wall
        self.clocks: dict[str, Clock] = {"events": event, "wall": synchronized} if device == "cuda" else {"wall": wall}
        self.least_seconds = 0.0 if device == "cuda" else 0.5

    def copy(self, memory: Copied, pool: ThreadPoolExecutor) -> dict[str, Call]:
        """torch's, and on the CPU libc's, each thread a part."""
        source, target = memory
        calls: dict[str, Call] = {"torch copy_": functools.partial(target.copy_, source)}
        if self.device == "cpu":
            calls["memcpy"] = functools.partial(self._in_parts, pool, ctypes.memmove, target, source)
        return calls

    def read(self, weight: torch.Tensor, pool: ThreadPoolExecutor) -> dict[str, Call]:
        """What reads a weight and writes nothing: libc's memcmp with itself; on a GPU a copy of half of it."""
        if self.device == "cuda":
            return self.copy(copied(weight.nbytes, self.device), pool)
        memcmp = ctypes.CDLL(None).memcmp
        memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        return {"memcmp": functools.partial(self._in_parts, pool, memcmp, weight, weight)}

    def _in_parts(
        self, pool: ThreadPoolExecutor, function: Callable[..., object], one: torch.Tensor, other: torch.Tensor
    ) -> None:
        cuts = [one.nbytes * i // self.threads // 64 * 64 for i in range(self.threads)] + [one.nbytes]

        def part(begin: int, end: int) -> None:
            function(one.data_ptr() + begin, other.data_ptr() + begin, end - begin)

        if self.threads == 1:
            part(0, one.nbytes)
        else:
            list(pool.map(part, cuts[:-1], cuts[1:]))

    def compare(self, table: str, op: str, call: Call, baselines: dict[str, Call], moved: int, turns: int,
                **what: object) -> list[Row]:  # fmt: skip
        """One row for each clock."""
        what = {**what, "threads": self.threads if self.device == "cpu" else ""}
        rows: list[Row] = []
        for name, clock in self.clocks.items():
            case = {**what, "clock": name}
            rows += compare(table, op, {"awqpack": call}, baselines, turns, clock, self.least_seconds, moved, case)
        return rows


def weight_of(shape: tuple[int, int], dtype: torch.dtype, device: str) -> torch.Tensor:
    """A random weight as large as those of models are."""
    generator = torch.Generator(device).manual_seed(0)
    return (torch.randn(shape, generator=generator, device=device) * 0.02).to(dtype)


class Operands:
    """What the ops and the copy beside them read and write. Both dtypes and all counts of threads use the same memory:
    the system would make a second set of the pages that the first one gave back, which lie apart, and a ratio would
    tell which came first."""

    def __init__(self, side: int, device: str) -> None:
        halves = functools.partial(torch.empty, dtype=torch.float16, device=device)
        groups = (side, side // GROUP)
        self._halves = {"weight": halves(side, side), "rows": halves(side, side), "out": halves(side, side),
                        "scales": halves(groups), "turned": halves(groups[::-1])}  # fmt: skip
        self.zeros, self.turned_zeros = (
            torch.zeros(s, dtype=torch.uint8, device=device) for s in (groups, groups[::-1])
        )
        codes = torch.zeros((side, side), dtype=torch.uint8, device=device)
        self.row_payload, self.gemm_payload = awqpack.pack(codes), awqpack.pack(codes, *GEMM)
        self.marlin_payload = awqpack.pack(codes, MARLIN)
        self.moved = side * side * 5 // 2 + self.zeros.numel() * 3
        self.mib = round(side * side * 2 / MIB)
        self.copied = copied(self.moved, device)

    def fill(self, dtype: torch.dtype) -> None:
        """Random weights of a dtype, their scales, zeros and payloads; columns and rows are (K, N)."""
        self.weight, self.rows, self.out, self.scales, self.turned = (h.view(dtype) for h in self._halves.values())
        rows, cols = self.weight.shape
        self.weight.copy_(weight_of((rows, cols), dtype, str(self.weight.device)))
        self.columns = self.weight.t()
        self.rows.copy_(self.columns)
        awqpack.min_max_scales(self.weight, GROUP, out=(self.scales, self.zeros))
        self.turned.copy_(self.scales.t())
        self.turned_zeros.copy_(self.zeros.t())
        awqpack.quantize(self.weight, self.scales, self.zeros, out=self.row_payload)
        awqpack.quantize(self.columns, self.turned, self.turned_zeros, *GEMM, out=self.gemm_payload)
        awqpack.quantize(self.weight, self.scales, self.zeros, MARLIN, out=self.marlin_payload)

    def calls(self) -> dict[tuple[str, str], Call]:
        """By op and what it does."""
        dequantize, quantize = torch.ops.awqpack.dequantize_out.default, torch.ops.awqpack.quantize_out.default
        by_rows, by_marlin = (self.scales, self.zeros, 1, False), (self.scales, self.zeros, 3, False)
        by_gemm = (self.turned, self.turned_zeros, 1, True)
        back = {
            "V1 rows": (self.row_payload, by_rows, self.out),
            "gemm to (K, N)": (self.gemm_payload, by_gemm, self.out),
            "gemm to (N, K)": (self.gemm_payload, by_gemm, self.out.t()),
            "Marlin": (self.marlin_payload, by_marlin, self.out),
        }
        there = {
            "V1 rows": (self.weight, by_rows, self.row_payload),
            "(N, K) to gemm": (self.columns, by_gemm, self.gemm_payload),
            "(K, N) to gemm": (self.rows, by_gemm, self.gemm_payload),
            "Marlin": (self.weight, by_marlin, self.marlin_payload),
        }
        calls: dict[tuple[str, str], Call] = {}
        for what, (payload, by, out) in back.items():
            calls["dequantize", what] = functools.partial(dequantize, payload, *by, out=out)
        for suffix, unchecked in (("", [False]), (", checked", [])):
            for what, (weight, by, payload) in there.items():
                calls["quantize", what + suffix] = functools.partial(quantize, weight, *by, *unchecked, out=payload)
        return calls


def bench_floats(machine: Machine, operands: Operands, turns: int, pool: ThreadPoolExecutor) -> Iterator[Row]:
    """Each op into buffers that are there, beside a copy that moves as many bytes."""
    copies = machine.copy(operands.copied, pool)
    waited: dict[str, Call] = {
        f"{name}, waited for": functools.partial(wait_for, copy) for name, copy in copies.items()
    }
    for dtype in (torch.float16, torch.bfloat16):
        case = {"dtype": str(dtype).removeprefix("torch."), "mib": operands.mib}
        operands.fill(dtype)
        for (op, what), call in operands.calls().items():
            yield from machine.compare("floats", op, call, copies, operands.moved, turns, what=what, **case)
            if "checked" in what and machine.device == "cuda":  # the call itself waits for what it finds
                what = what.replace("checked", "checked, beside a copy that is waited for")
                yield from machine.compare("floats", op, call, waited, operands.moved, turns, what=what, **case)
        weight = operands.weight
        least = functools.partial(awqpack.min_max_scales, weight, GROUP, out=(operands.scales, operands.zeros))
        reads = machine.read(weight, pool)
        yield from machine.compare(
            "floats", "min_max_scales", least, reads, weight.nbytes, turns, what="groups of 128", **case
        )


def bench_host(device: str, turns: int) -> Iterator[Row]:
    """What the host takes for a call on a small weight, beside t + 1."""
    weight = weight_of((64, 128), torch.float16, device)
    scales, zeros = awqpack.min_max_scales(weight, GROUP)
    payload = awqpack.quantize(weight, scales, zeros)
    ops, back = torch.ops.awqpack, torch.empty_like(weight)
    calls: dict[tuple[str, str], Call] = {
        ("dequantize", "awqpack.dequantize"): lambda: awqpack.dequantize(payload, scales, zeros),
        ("dequantize", "without zeros"): lambda: awqpack.dequantize(payload, scales),
        ("dequantize", "out="): lambda: awqpack.dequantize(payload, scales, zeros, out=back),
        ("dequantize", "the op"): lambda: ops.dequantize.default(payload, scales, zeros, 1, False, torch.float16),
        ("quantize", "awqpack.quantize"): lambda: awqpack.quantize(weight, scales, zeros, validate=False),
        ("quantize", "checked"): lambda: awqpack.quantize(weight, scales, zeros),
        ("min_max_scales", "awqpack.min_max_scales"): lambda: awqpack.min_max_scales(weight, GROUP),
    }
    beside = {"t + 1": lambda: weight + 1}
    for (op, what), call in calls.items():
        case = {"what": what, "device": device}
        yield from compare("host", op, {"awqpack": call}, beside, turns, batch(500), what=case)


def bench_relayout(machine: Machine, side: int, turns: int, pool: ThreadPoolExecutor) -> Iterator[Row]:
    """Between gemm's payload and Marlin's, beside a copy and beside a gather through an index of every code."""
    codes = torch.randint(0, 16, (side, side), dtype=torch.uint8, device=machine.device)
    gemm, marlin = awqpack.pack(codes.t(), *GEMM), awqpack.pack(codes, MARLIN)
    moved = gemm.nbytes + marlin.nbytes
    copies = machine.copy(copied(moved, machine.device), pool)
    for op, source, target, given, out in (
        ("gemm to Marlin", GEMM, MARLIN, gemm, torch.empty_like(marlin)),
        ("Marlin to gemm", MARLIN, GEMM, marlin, torch.empty_like(gemm)),
    ):
        call = functools.partial(awqpack.relayout, given, source, target, transpose=True, out=out)
        yield from machine.compare("relayout", op, call, copies, moved, turns, what="payloads")


def bench_models(machine: Machine, turns: int) -> Iterator[Row]:
    """Seconds for every linear weight of whole models in bfloat16, buffers reused."""
    for model, (layers, shapes) in MODELS.items():
        if model.startswith("Qwen"):
            continue
        made = {}
        for shape in set(shapes):
            weight = weight_of(shape, torch.bfloat16, machine.device)
            scales, zeros = awqpack.min_max_scales(weight, GROUP)
            made[shape] = (weight, scales, zeros, awqpack.quantize(weight, scales, zeros))

        def run(op: str, made: dict = made, shapes: list = shapes) -> None:  # type: ignore[type-arg]
            for shape in shapes:
                weight, scales, zeros, payload = made[shape]
                if op == "quantize":
                    awqpack.quantize(weight, scales, zeros, out=payload)
                else:
                    awqpack.dequantize(payload, scales, zeros, out=weight)

        for op in ("quantize", "dequantize"):
            seconds = medians({"one layer": functools.partial(run, op)}, turns, machine.clock)["one layer"] * layers
            codes = layers * sum(n * k for n, k in shapes)
            yield Row("models", op, "awqpack", seconds, {"what": model}, codes * 5 // 2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--sizes-mib", type=int, nargs="+", help="MiB of 16-bit weights: 256, and on a GPU 1024, whose payload is 256"
    )
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each call (7)")
    parser.add_argument("--threads", type=int, nargs="+", help="of the CPU: 1 and as many as there are")
    parser.add_argument("--only", choices=TABLES, nargs="*", default=TABLES, help="some tables only")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    on_cpu = options.device == "cpu"
    sizes = options.sizes_mib or ([256] if on_cpu else [256, 1024])
    sides = [int((mib * MIB / 2) ** 0.5) // 128 * 128 for mib in sizes]
    rows: list[Row] = []
    print(f"{' and '.join(f'{side}x{side}' for side in sides)} weights on {options.device}; "
          f"medians of {options.turns} turns or more")  # fmt: skip
    counts = options.threads or sorted({1, torch.get_num_threads()})
    for side in sides:
        operands = Operands(side, options.device) if "floats" in options.only else None
        for threads in counts if on_cpu else [1]:
            machine = Machine(options.device, threads)
            with torch_threads(threads) if on_cpu else nullcontext(), copying_pool(threads) as pool:
                if operands is not None:
                    rows += bench_floats(machine, operands, options.turns, pool)
                if "relayout" in options.only and on_cpu:  # the gpu suite has its own
                    rows += bench_relayout(machine, side, options.turns, pool)
        del operands
    down, across = ("table", "op", "what", "dtype"), ("threads", "mib", "clock")
    print_table("Speed beside a copy of the same bytes, or a read (1 = as fast)", rows, down, across)
    if "host" in options.only:
        host = list(bench_host(options.device, options.turns))
        print_table("Host: the time of t + 1 / ours", host, ("op", "what"), ("who",))
        print_table("Microseconds of the host for a call", host, ("op", "what"), ("who",), "us")
        rows += host
    last = Machine(options.device, counts[-1])
    if "models" in options.only:
        models = list(bench_models(last, options.turns))
        print_table("Milliseconds for all linear weights of a model in bfloat16", models, ("what",), ("op",), "ms")
        rows += models
    return rows

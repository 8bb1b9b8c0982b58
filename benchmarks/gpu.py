"""Times pack and unpack on a GPU beside device-to-device copies that move the same bytes, and beside others."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

import awqpack
from awqpack import AWQPacking
from awqpack.formats import FORMATS, Format

from . import beside
from .cpu import ORDERS
from .harness import MIB, Call, Row, batch, compare, event, medians, print_table, wait_for
from .models import MODELS
from .progress import Step, steps

WAITED = "copy, waited for"
TABLES = ("host", "kernels", "turned", "relayout", "models", "peers")
HOST_CALLS = 2000
SPEED = "Speed beside a copy of the same bytes"

Buffers = Sequence[torch.Tensor]


def random_codes(rows: int, cols: int) -> torch.Tensor:
    """Codes 0..15 on the GPU."""
    return torch.randint(0, 16, (rows, cols), dtype=torch.uint8, device="cuda")


def empty_payload(form: Format, rows: int, cols: int) -> torch.Tensor:
    """A payload buffer on the GPU."""
    return torch.empty(form.payload_shape(rows, cols), dtype=form.dtype, device="cuda")


def copy_of(moved: int) -> Call:
    """A copy on the device that moves as many bytes."""
    source, target = (torch.ones(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2))
    return functools.partial(target.copy_, source)


def bench_kernels(mib: int, turns: int) -> Iterator[Row]:
    """Every packing, direction and order, into buffers that are there, beside a copy that moves as many bytes."""
    ops = torch.ops.awqpack
    side = 64 * round(math.isqrt(mib * MIB) / 64)
    codes = random_codes(side, side)
    moved = codes.numel() * 3 // 2
    copy = copy_of(moved)
    for order in ORDERS:
        given = codes if order == "row" else codes.t().contiguous().t()
        unpacked = torch.empty_like(given)
        for form in FORMATS:
            payload = empty_payload(form, side, side)
            packing = form.packing.value, form.reorder
            calls: dict[str, Call] = {
                "pack": functools.partial(ops.pack_out.default, given, *packing, False, out=payload),
                "pack, validated": functools.partial(ops.pack_out.default, given, *packing, True, out=payload),
                "unpack": functools.partial(ops.unpack_out.default, payload, *packing, out=unpacked),
            }
            what = {"mib": mib, "packing": form.title, "order": order}
            measured = medians({"copy": copy, WAITED: functools.partial(wait_for, copy), **calls}, turns, event)
            if not torch.equal(unpacked, codes):
                raise SystemExit(f"{form.title}, {order}-major: unpacking does not give the codes back")
            for op in calls:
                yield Row("kernels", op, "awqpack", measured[op], what, moved, "copy", measured["copy"])
            checked = measured["pack, validated"]  # which waits for what it finds
            yield Row("kernels", "pack, validated, beside a copy that is waited for", "awqpack", checked, what, moved,
                      WAITED, measured[WAITED])  # fmt: skip


def bench_turned(mib: int, turns: int) -> Iterator[Row]:
    """V1's payload viewed transposed, as GPTQ's qweight is, beside codes in either order."""
    ops = torch.ops.awqpack
    side = 64 * round(math.isqrt(mib * MIB) / 64)
    codes = random_codes(side, side)
    moved = codes.numel() * 3 // 2
    copy = copy_of(moved)
    payload = ops.pack.default(codes, 1, False).t().contiguous().t()
    for order in ORDERS:
        given = codes if order == "row" else codes.t().contiguous().t()
        unpacked = torch.empty_like(given)
        calls: dict[str, Call] = {
            "pack": functools.partial(ops.pack_out.default, given, 1, False, False, out=payload),
            "unpack": functools.partial(ops.unpack_out.default, payload, 1, False, out=unpacked),
        }
        measured = medians({"copy": copy, **calls}, turns, event)
        if not torch.equal(unpacked, codes):
            raise SystemExit(f"V1 turned, {order}-major: unpacking does not give the codes back")
        for op in calls:
            what = {"mib": mib, "packing": "V1, turned", "order": order}
            yield Row("turned", op, "awqpack", measured[op], what, moved, "copy", measured["copy"])


def bench_relayout(turns: int) -> Iterator[Row]:
    """From what checkpoints hold to what engines run on and back: the experts of a Mixtral-8x7B, beside a copy."""
    codes = random_codes(8 * 14336, 4096).view(8, 14336, 4096)
    moved = codes.numel()
    copy = copy_of(moved)
    v1, reordered, marlin = (AWQPacking.V1.value, False), (AWQPacking.V1.value, True), (AWQPacking.MARLIN.value, False)
    gemm = torch.ops.awqpack.pack.default(codes.mT, *reordered)
    gptq = torch.ops.awqpack.pack.default(codes, *v1).mT.contiguous()
    packed = torch.ops.awqpack.pack.default(codes, *marlin)
    del codes
    cases: list[tuple[str, torch.Tensor, tuple[object, ...]]] = [
        ("gemm to Marlin", packed, (gemm, *reordered, *marlin, True)),
        ("Marlin to gemm", gemm, (packed, *marlin, *reordered, True)),
        ("gptq to Marlin", packed, (gptq.mT, *v1, *marlin, False)),
    ]
    for op, expected, arguments in cases:
        out = torch.empty_like(expected)
        calls: dict[str, Call] = {
            "awqpack": functools.partial(torch.ops.awqpack.relayout_out.default, *arguments, out=out)
        }
        calls["awqpack"]()
        if not torch.equal(out, expected):
            raise SystemExit(f"{op}: the result is not what packing gives")
        yield from compare("relayout", op, calls, {"copy": copy}, turns, event, moved=moved, what={"mib": moved / MIB})


def bench_host() -> Iterator[Row]:
    """What the host spends on one call of a small tensor, beside t + 1."""
    ops = torch.ops.awqpack
    for kib in (4, 64, 256, 1024):
        side = math.isqrt(kib * 1024)
        codes = random_codes(side, side)
        payload = ops.pack.default(codes, 1, False)
        calls: dict[str, Call] = {
            "pack": functools.partial(ops.pack.default, codes, 1, False, False),
            "unpack": functools.partial(ops.unpack.default, payload, 1, False),
            "pack, validated": functools.partial(ops.pack.default, codes, 1, False),
        }
        measured = medians({"t + 1": functools.partial(torch.add, codes, 1), **calls}, 7, batch(HOST_CALLS))
        for op, seconds in measured.items():
            who = "awqpack" if op in calls else "torch"
            yield Row("host", op, who, seconds, {"mib": kib / 1024, "packing": "V1", "order": "row"}, None, "t + 1",
                      measured["t + 1"])  # fmt: skip


def pack_layers(codes: Buffers, payloads: Buffers, layers: int, form: Format, validate: bool) -> None:
    """Every linear weight of a model, into buffers that its layers share."""
    for _ in range(layers):
        for given, out in zip(codes, payloads, strict=True):
            torch.ops.awqpack.pack_out.default(given, form.packing.value, form.reorder, validate, out=out)


def bench_models() -> Iterator[Row]:
    """Seconds to pack every linear weight of whole models: random codes of the published shapes, buffers reused."""
    for model, (layers, shapes) in MODELS.items():
        codes = [random_codes(*shape) for shape in shapes]
        total = layers * sum(n * k for n, k in shapes)
        for form in FORMATS:
            payloads = [empty_payload(form, *shape) for shape in shapes]
            calls: dict[str, Call] = {
                "pack": functools.partial(pack_layers, codes, payloads, layers, form, False),
                "pack, validated": functools.partial(pack_layers, codes, payloads, layers, form, True),
            }
            for op, seconds in medians(calls, 3, event).items():
                what = {"mib": total / MIB, "packing": form.title, "order": "row", "model": model}
                yield Row("models", op, "awqpack", seconds, what, total * 3 // 2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--sizes-mib", type=int, nargs="*", default=[1, 16, 64, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--turns", type=int, default=20, help="turns of each call (default 20)")
    parser.add_argument("--only", choices=TABLES, nargs="*", default=TABLES, help="some tables only")


def plan(options: argparse.Namespace) -> Iterator[Step]:
    """What is measured, named: the tables asked for, a step for each size and each peer."""
    alone: dict[str, Callable[[], Iterable[Row]]] = {
        "host": bench_host,
        "relayout": lambda: bench_relayout(options.turns),
        "models": bench_models,
    }
    by_size = {"kernels": bench_kernels, "turned": bench_turned}
    for name in options.only:
        if name in alone:
            yield name, lambda name=name: list(alone[name]())  # type: ignore[misc]
        elif name in by_size:
            for mib in options.sizes_mib:
                yield f"{name}, {mib} MiB", lambda n=name, m=mib: list(by_size[n](m, options.turns))  # type: ignore[misc]
    if "peers" in options.only:
        yield from beside.plan("cuda")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    if not torch.cuda.is_available():
        raise SystemExit("the gpu suite expects a CUDA GPU; torch sees none")
    if not awqpack.build_info()["cuda_archs"] or awqpack._C.probe_cuda(0) is not None:
        raise SystemExit("the gpu suite expects a build with CUDA kernels for this GPU")
    rows = steps("on a GPU", list(plan(options)))
    titles: dict[str, list[tuple[str, tuple[str, ...], tuple[str, ...], str]]] = {
        "host": [
            ("Microseconds of the host a call", ("op",), ("mib",), "us"),
            ("t + 1 beside it (1 = as fast)", ("op",), ("mib",), "ratio"),
        ],
        "kernels": [(f"{SPEED}, by MiB of codes (1 = as fast)", ("packing", "order", "op"), ("mib",), "ratio")],
        "turned": [("The same for a payload viewed transposed", ("packing", "order", "op"), ("mib",), "ratio")],
        "relayout": [(f"From one packing to another, {SPEED.lower()}", ("op",), ("who",), "ratio")],
        "models": [("Milliseconds for all linear weights of a model", ("model", "packing"), ("op",), "ms")],
    }
    for name, tables in titles.items():
        if found := [row for row in rows if row.table == name]:
            for title, down, across, value in tables:
                print_table(title, found, down, across, value)
    beside.print_tables(rows)
    return rows

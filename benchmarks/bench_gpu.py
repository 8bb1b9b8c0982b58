"""Times pack and unpack on a GPU beside device-to-device copies that move the same bytes, and the packers of others.

Prints ratios and writes results/gpu-<machine>-<date>.csv; README.md beside this file says how to read them.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from common import environment, write_csv
from peers import LAYOUTS, Layout, load_quanto, quanto_calls, torch_pack, torch_unpack

import awqpack

Call = Callable[[], object]
Row = dict[str, object]

MIB = 1 << 20
PEER_SHAPE = (14336, 4096)

# Linear weights (out_features, in_features) of one decoder layer, and how many layers, from the published configs.
MODELS: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "Llama-3.1-8B": (
        32,
        [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)] + [(14336, 4096)] * 2 + [(4096, 14336)],
    ),
    "Qwen2.5-32B": (
        64,
        [(5120, 5120), (1024, 5120), (1024, 5120), (5120, 5120)] + [(27648, 5120)] * 2 + [(5120, 27648)],
    ),
    "Llama-3.1-70B": (
        80,
        [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192)] + [(28672, 8192)] * 2 + [(8192, 28672)],
    ),
}


def device_medians(calls: Mapping[str, Call], repetitions: int) -> dict[str, float]:
    """Median milliseconds of each call on the device, by events; they take turns, the first does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for turn in range(repetitions + 1):
        for name, call in calls.items():
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn > 0:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def random_codes(rows: int, cols: int) -> torch.Tensor:
    return torch.randint(0, 16, (rows, cols), dtype=torch.uint8, device="cuda")


def empty_payload(layout: Layout, rows: int, cols: int) -> torch.Tensor:
    shape = (rows // 4, cols) if layout.packing == 2 else (rows, cols // 8)
    return torch.empty(shape, dtype=layout.payload_dtype, device="cuda")


def as_column_major(codes: torch.Tensor) -> torch.Tensor:
    """The same codes, stored as W.t() is."""
    return codes.t().contiguous().t()


def bench_kernels(sizes: Sequence[int], repetitions: int) -> list[Row]:
    """Every layout, direction and order, into buffers that are there, beside a copy that moves as many bytes."""
    rows: list[Row] = []
    ops = torch.ops.awqpack
    print(f"{'MiB codes':>9} {'layout':<11}{'order':<8}{'op':<17}{'ms':>9}{'copy ms':>9}{'GB/s':>7}{'ratio':>7}")
    for mib in sizes:
        side = 64 * round(math.isqrt(mib * MIB) / 64)
        codes = random_codes(side, side)
        half = codes.numel() * 3 // 4
        source, target = (
            torch.ones(half, dtype=torch.uint8, device="cuda"),
            torch.empty(half, dtype=torch.uint8, device="cuda"),
        )
        for order in ("row", "column"):
            given = codes if order == "row" else as_column_major(codes)
            unpacked = torch.empty_like(given)
            for layout in LAYOUTS:
                payload = empty_payload(layout, side, side)
                p, r = layout.packing, layout.reorder
                calls: dict[str, Call] = {
                    "copy": functools.partial(target.copy_, source),
                    "pack": functools.partial(ops.pack_out, given, p, r, False, out=payload),
                    "pack, validated": functools.partial(ops.pack_out, given, p, r, True, out=payload),
                    "unpack": functools.partial(ops.unpack_out, payload, p, r, out=unpacked),
                }
                medians = device_medians(calls, repetitions)
                if not torch.equal(unpacked, codes):
                    raise SystemExit(f"{layout.name}, {order}-major: unpacking does not give the codes back")
                for op in ("pack", "pack, validated", "unpack"):
                    ratio = medians["copy"] / medians[op]
                    rate = 2 * half / medians[op] / 1e6
                    rows.append(
                        {
                            "table": "kernels",
                            "mib": mib,
                            "layout": layout.name,
                            "order": order,
                            "op": op,
                            "who": "awqpack",
                            "ms": f"{medians[op]:.4f}",
                            "baseline_ms": f"{medians['copy']:.4f}",
                            "ratio": f"{ratio:.4f}",
                        }
                    )
                    print(
                        f"{mib:>9} {layout.name:<11}{order:<8}{op:<17}{medians[op]:>9.4f}{medians['copy']:>9.4f}"
                        f"{rate:>7.0f}{ratio:>7.3f}"
                    )
            del given, unpacked
    return rows


def bench_peers(repetitions: int) -> list[Row]:
    """What others offer, on one matrix of a Llama-3.1-8B, and what a copy of the same bytes takes."""
    rows: list[Row] = []
    quanto = load_quanto()
    if quanto is None:
        print("optimum-quanto is not installed: left out (pip install --no-deps optimum-quanto==0.2.7)")
    codes = random_codes(*PEER_SHAPE)
    half = codes.numel() * 3 // 4
    source, target = (
        torch.ones(half, dtype=torch.uint8, device="cuda"),
        torch.empty(half, dtype=torch.uint8, device="cuda"),
    )
    print(f"\n{PEER_SHAPE[0]}x{PEER_SHAPE[1]} codes, milliseconds")
    for layout in LAYOUTS:
        payload = torch.ops.awqpack.pack(codes, layout.packing, layout.reorder)
        p, r = layout.packing, layout.reorder
        theirs = quanto_calls(quanto, layout, codes, payload)
        compiled_pack = torch.compile(functools.partial(torch_pack, layout=layout), dynamic=False)
        compiled_unpack = torch.compile(functools.partial(torch_unpack, layout=layout), dynamic=False)
        table: dict[str, dict[str, Call]] = {
            "pack": {
                "awqpack": functools.partial(torch.ops.awqpack.pack, codes, p, r, False),
                "awqpack, validated": functools.partial(torch.ops.awqpack.pack, codes, p, r),
                "torch ops": functools.partial(torch_pack, codes, layout),
                "torch ops, compiled": functools.partial(compiled_pack, codes),
            },
            "unpack": {
                "awqpack": functools.partial(torch.ops.awqpack.unpack, payload, p, r),
                "torch ops": functools.partial(torch_unpack, payload, layout),
                "torch ops, compiled": functools.partial(compiled_unpack, payload),
            },
        }
        for op, expected in (("pack", payload), ("unpack", codes)):
            calls: dict[str, Call] = {"copy": functools.partial(target.copy_, source), **table[op]}
            if theirs:
                calls["optimum-quanto"] = theirs[op]
            for name, call in calls.items():
                result = call()
                if name != "copy" and not (isinstance(result, torch.Tensor) and torch.equal(result, expected)):
                    raise SystemExit(f"{name} does not {op} {layout.name} as awqpack does")
            medians = device_medians(calls, repetitions)
            print(f"{layout.name:<11}{op:<7}" + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))
            rows += [
                {
                    "table": "peers",
                    "mib": codes.numel() / MIB,
                    "layout": layout.name,
                    "order": "row",
                    "op": op,
                    "who": name,
                    "ms": f"{value:.4f}",
                    "baseline_ms": f"{medians['copy']:.4f}",
                    "ratio": f"{medians['copy'] / value:.4f}",
                }
                for name, value in medians.items()
            ]
    return rows


def bench_host(number: int) -> list[Row]:
    """Microseconds the host spends on one call of a small tensor, beside t + 1."""
    rows: list[Row] = []
    ops = torch.ops.awqpack
    print("\nhost microseconds a call")
    for kib in (4, 64, 256, 1024):
        side = math.isqrt(kib * 1024)
        codes = random_codes(side, side)
        payload = ops.pack(codes, 1, False)
        calls: dict[str, Call] = {
            "t + 1": functools.partial(torch.add, codes, 1),
            "pack": functools.partial(ops.pack, codes, 1, False, False),
            "unpack": functools.partial(ops.unpack, payload, 1, False),
            "pack, validated": functools.partial(ops.pack, codes, 1, False),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(8):
            for name, call in calls.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(number):
                    call()
                if turn > 0:
                    times[name].append((time.perf_counter() - start) / number * 1e6)
        medians = {name: statistics.median(values) for name, values in times.items()}
        plain = medians["t + 1"]
        print(
            f"{kib:>5} KiB  "
            + ", ".join(f"{name} {value:.2f} ({value / plain:.2f}x)" for name, value in medians.items())
        )
        rows += [
            {
                "table": "host",
                "mib": kib / 1024,
                "layout": "V1",
                "order": "row",
                "op": name,
                "who": "torch" if name == "t + 1" else "awqpack",
                "ms": f"{value / 1e3:.6f}",
                "baseline_ms": f"{plain / 1e3:.6f}",
                "ratio": f"{plain / value:.4f}",
            }
            for name, value in medians.items()
        ]
    return rows


def bench_models() -> list[Row]:
    """Seconds to pack every linear weight of whole models: random codes of the published shapes, buffers reused."""
    rows: list[Row] = []
    print("\nwhole models, seconds (GPU time)")
    for model, (layers, shapes) in MODELS.items():
        codes = {shape: random_codes(*shape) for shape in set(shapes)}
        total = layers * sum(n * k for n, k in shapes)
        for layout in LAYOUTS:
            payloads = {shape: empty_payload(layout, *shape) for shape in set(shapes)}
            for validate in (False, True):

                def pack_all(
                    layout: Layout = layout,
                    payloads: Mapping[tuple[int, int], torch.Tensor] = payloads,
                    validate: bool = validate,
                    codes: Mapping[tuple[int, int], torch.Tensor] = codes,
                    work: tuple[int, Sequence[tuple[int, int]]] = (layers, shapes),
                ) -> None:
                    for _ in range(work[0]):
                        for shape in work[1]:
                            torch.ops.awqpack.pack_out(
                                codes[shape], layout.packing, layout.reorder, validate, out=payloads[shape]
                            )

                seconds = device_medians({"all": pack_all}, 3)["all"] / 1e3
                op = "pack, validated" if validate else "pack"
                print(f"{model:<15}{layout.name:<11}{op:<16}{total / 1e9:6.1f}G codes {seconds:8.4f} s")
                rows.append(
                    {
                        "table": "models",
                        "mib": total / MIB,
                        "layout": layout.name,
                        "order": "row",
                        "op": op,
                        "who": model,
                        "ms": f"{seconds * 1e3:.3f}",
                    }
                )
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes-mib", type=int, nargs="*", default=[1, 16, 64, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--repetitions", type=int, default=20, help="turns of each call (default 20)")
    parser.add_argument("--only", choices=["kernels", "peers", "host", "models"], nargs="*", help="some tables only")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu expects a CUDA GPU; torch sees none")
    if not awqpack.build_info()["cuda_archs"] or awqpack._C.probe_cuda(0) is not None:
        raise SystemExit("bench_gpu expects a build with CUDA kernels for this GPU")
    wanted = set(options.only or ["kernels", "peers", "host", "models"])
    where = environment() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda or ""}
    print(", ".join(f"{key} {where[key]}" for key in ("gpu", "cuda", "torch", "awqpack", "commit")))
    rows: list[Row] = []
    if "host" in wanted:
        rows += bench_host(2000)
    if "kernels" in wanted:
        rows += bench_kernels(options.sizes_mib, options.repetitions)
    if "models" in wanted:
        rows += bench_models()
    if "peers" in wanted:
        rows += bench_peers(options.repetitions)
    if not options.no_csv:
        print(f"wrote {write_csv('gpu', where, rows)}")


if __name__ == "__main__":
    main()

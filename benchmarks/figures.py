"""Fills in what stands between `<!-- figures:NAME -->` and `<!-- /figures -->` from the newest results.

With --check nothing is written: it ends with an error where a page is out of date.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .results import Newest, Record, measured_on, newest

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- figures:([\w-]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
PACKINGS = ("V1", "V1 reorder", "V2", "Marlin")
CASES = {
    ("pack", "row"): "pack",
    ("pack", "column"): "pack `W.t()`",
    ("unpack", "row"): "unpack",
    ("unpack", "column"): "unpack into `W.t()`",
}


class Missing(Exception):
    """No results hold what a figure is made of."""


def wanted(suite: str, words: str, condition: Callable[[Record], bool]) -> Newest:
    """The newest rows, of which there must be some."""
    rows = newest(suite, condition)
    if not rows:
        raise Missing(f"no results of {suite} hold {words}")
    return rows


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def times(ratio: float) -> str:
    """A ratio as one says it: two digits that count."""
    if ratio < 9.95:
        return f"{ratio:.1f}"
    digits = len(str(int(ratio))) - 2
    return f"{round(ratio, -digits):,.0f}"


def short(milliseconds: float) -> str:
    """A time with its unit, two or three digits."""
    for unit, factor in (("s", 1e-3), ("ms", 1.0), ("us", 1e3)):
        if milliseconds * factor >= 0.995 or unit == "us":
            value = milliseconds * factor
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"
    raise AssertionError


def ratio_of(rows: Iterable[Record], **case: str) -> str:
    """The ratio of the row of this case; a dash where there is none."""
    found = [row["ratio"] for row in rows if all(row.get(name) == value for name, value in case.items())]
    return f"{float(found[0]):.2f}" if found else "-"


def _pair(row: Record) -> str:
    theirs, ours = (f"{float(f'{float(row[key]):.3g}'):g}" for key in ("baseline_ms", "ms"))
    return f"{theirs} / {ours} (**{times(float(row['ratio']))}x**)"


def _beside(suite: str, device: str) -> str:
    """What others and awqpack take, the ratio, and who cannot run there."""

    def is_here(row: Record) -> bool:
        return row["table"] in ("beside", "left out") and (row.get("device") or "cpu") == device

    found = wanted(suite, f"peers on {device}", is_here)
    rows = [row for row in found if row["table"] == "beside"]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    lines = []
    for peer in dict.fromkeys(row["baseline"] for row in rows):
        by_op = {row["op"]: row for row in rows if row["baseline"] == peer}
        version = next(row["version"] for row in rows if row["baseline"] == peer)
        cells = {op: _pair(row) for op, row in by_op.items()}
        lines.append([f"{peer} {version.partition('+')[0]}", *(cells.get(op, "-") for op in ops)])
    head = (
        f"Milliseconds for one {rows[0]['size']} weight in {rows[0]['dtype']}, groups of 128: theirs / awqpack's, and "
        f"the ratio\n({measured_on(found)}). A row does what that package does, in its layout: compare within a row."
    )
    text = f"{head}\n\n{table(['', *ops], lines)}"
    reasons = [f"{row['baseline']} ({row['reason']})" for row in found if row["table"] == "left out"]
    return text + (f"\n\nLeft out: {'; '.join(reasons)}." if reasons else "")


def cpu() -> str:
    """The best variant, all threads and one."""
    rows = wanted("cpu", "kernels", lambda row: row["table"] == "kernels")
    best = max((row["who"] for row in rows), key=["scalar", "neon", "avx2", "avx512"].index)
    counts = sorted({int(row["threads"]) for row in rows}, reverse=True)
    lines = []
    for packing in PACKINGS:
        cells = [
            " / ".join(
                ratio_of(rows, packing=packing, op=op, order=order, who=best, threads=str(count)) for count in counts
            )
            for op, order in CASES
        ]
        if cells[0].strip("- /"):
            lines.append([packing, *cells])
    threads = " / ".join("one thread" if count == 1 else f"{count} threads" for count in counts)
    mib = int(rows[0]["codes"]) >> 20
    return (
        f"{best}, {threads}, {mib} MiB of codes ({measured_on(rows)}):\n\n{table(['packing', *CASES.values()], lines)}"
    )


def gpu() -> str:
    """256 MiB and the largest size."""
    rows = wanted("gpu", "kernels", lambda row: row["table"] == "kernels")
    sizes = sorted({float(row["mib"]) for row in rows})
    chosen = [size for size in (256.0, sizes[-1]) if size in sizes]

    def cell(packing: str, op: str, order: str) -> str:
        found = [
            next((r["ratio"] for r in rows if float(r["mib"]) == size and (r["packing"], r["op"], r["order"]) ==
                  (packing, op, order)), "-") for size in chosen
        ]  # fmt: skip
        return " / ".join(value if value == "-" else f"{float(value):.2f}" for value in found)

    lines = [[packing, *(cell(packing, op, order) for op, order in CASES)] for packing in PACKINGS]
    lines = [line for line in lines if line[1].strip("- /")]
    words = " / ".join(f"{size:g} MiB" if size < 1024 else f"{size / 1024:g} GiB" for size in chosen)
    text = f"{words} of codes ({measured_on(rows)}):\n\n{table(['packing', *CASES.values()], lines)}"
    models = newest("gpu", lambda row: row["table"] == "models" and row.get("model") == "Llama-3.1-70B")
    seconds = {(row["packing"], row["op"]): float(row["ms"]) for row in models}
    if ("V1", "pack") in seconds:
        text += (
            f"\n\nAll linear weights of a Llama-3.1-70B pack in {short(seconds['V1', 'pack'])}, and in "
            f"{short(seconds['V1', 'pack, validated'])} with every code checked."
        )
    return text


def floats(gpu: str) -> str:
    """quantize, dequantize and scales beside a copy of the same bytes."""

    def is_there(row: Mapping[str, str]) -> bool:
        return gpu in row.get("gpu", "")

    def is_float(row: Mapping[str, str]) -> bool:
        return row["table"] == "floats" and is_there(row) and row.get("clock") != "wall"

    largest = max(float(row.get("mib") or 0) for row in wanted("floats", "a GPU's floats", is_float))
    rows = wanted("floats", "a GPU's floats", lambda row: is_float(row) and float(row.get("mib") or 0) == largest)
    cases = list(dict.fromkeys((row["op"], row["what"]) for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    lines = [[op, what, *(ratio_of(rows, op=op, what=what, dtype=dtype) for dtype in dtypes)] for op, what in cases]
    size = f"{largest / 1024:.2g} GiB of weights, " if largest else ""
    text = f"{size}{measured_on(rows)}:\n\n{table(['op', 'from or to', *dtypes], lines)}"
    models = newest(
        "floats", lambda row: row["table"] == "models" and is_there(row) and row.get("what") == "Llama-3.1-70B"
    )
    seconds = {row["op"]: float(row["ms"]) for row in models}
    if seconds:
        words = " and ".join(f"{op} in {short(ms)}" for op, ms in seconds.items())
        text += f"\n\nAll linear weights of a Llama-3.1-70B in bfloat16 {words} ({measured_on(models)})."
    return text


def floats_on_cpu(cpu: str) -> str:
    """The same with all threads and with one, of the largest weights."""

    def is_float(row: Mapping[str, str]) -> bool:
        return row["table"] == "floats" and cpu in row["cpu"] and not row["gpu"]

    largest = max(int(row["mib"]) for row in wanted("floats", "a CPU's floats", is_float))
    rows = wanted("floats", "a CPU's floats", lambda row: is_float(row) and int(row["mib"]) == largest)
    counts = sorted({int(row["threads"]) for row in rows}, reverse=True)
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    lines = [
        [
            *(op, what),
            *(
                " / ".join(ratio_of(rows, op=op, what=what, dtype=dtype, threads=str(count)) for count in counts)
                for dtype in dtypes
            ),
        ]
        for op, what in dict.fromkeys((row["op"], row["what"]) for row in rows)
    ]
    threads = " / ".join("one thread" if count == 1 else f"{count} threads" for count in counts)
    size = f"{largest / 1024:.2g} GiB of weights, {threads}"
    return f"{size} ({measured_on(rows)}):\n\n{table(['op', 'from or to', *dtypes], lines)}"


def host() -> str:
    """Microseconds of a call, by whose tensor it is made on."""
    rows = newest("host", lambda row: row["table"] == "host" and row["device"] == "cuda")
    rows = rows or wanted("host", "calls", lambda row: row["table"] == "host")
    people = [who for who in ("plain", "awqpack", "optimum-quanto") if any(row["who"] == who for row in rows)]
    lines = []
    for op in dict.fromkeys(row["op"] for row in rows):
        us = {row["who"]: float(row["ms"]) * 1e3 for row in rows if row["op"] == op}
        if {"awqpack", "optimum-quanto"} <= us.keys():
            lines.append([f"`{op}`", *(f"{us[who]:.1f}" if who in us else "-" for who in people)])
    where = "on a GPU" if rows[0]["device"] == "cuda" else "on the CPU"
    heads = ["call", *("a plain tensor" if who == "plain" else who for who in people)]
    return f"Microseconds a call, small tensors {where} ({measured_on(rows)}):\n\n{table(heads, lines)}"


def _is_cached(row: Record) -> bool:
    """Whether it is a conversion of files in the cache."""
    return row["table"] == "checkpoint" and not row.get("disk_ms")


def convert() -> str:
    """Conversions beside cp -r."""
    rows = wanted("convert", "conversions", lambda row: _is_cached(row) and row["processes"] == "1")
    lines = [
        [
            row["op"],
            short(float(row["baseline_ms"])),
            short(float(row["ms"])),
            f"{float(row['ratio']):.2f}",
            row["median_ratio"],
            f"{row['peak_mib']} MiB",
        ]
        for row in rows
    ]
    size = int(rows[0]["bytes"]) / 2**30
    heads = ["", "`cp -r`", "awqpack", "ratio", "median", "peak memory"]
    start = max(int(row["peak_mib_before"]) for row in rows)
    return (
        f"{size:.1f} GiB, {rows[0]['threads']} threads, files {rows[0]['files']}, the best of each, the median of the "
        f"turns' ratios ({measured_on(rows)}). Of the memory, {start} MiB are there once torch is imported:\n\n"
        f"{table(heads, lines)}"
    )


def processes() -> str:
    """Conversions by several processes, seconds and ratios to cp -r."""
    rows = wanted("convert", "several processes", lambda row: _is_cached(row) and int(row["cpus"]) > 2)
    counts = list(dict.fromkeys(row["processes"] for row in rows))
    lines = []
    for op, of_op in _by_processes(rows):
        cells = [f"{short(float(of_op[n]['ms']))} ({float(of_op[n]['ratio']):.2f})" for n in counts if n in of_op]
        copies = [float(row["baseline_ms"]) for row in of_op.values()]
        lines.append([op, f"{short(min(copies))} to {short(max(copies))}", *cells])
    size = int(rows[0]["bytes"]) / 2**30
    heads = ["", "`cp -r`", *map(_processes, counts)]
    return (
        f"{size:.1f} GiB, files {rows[0]['files']}, by processes of one thread, but for one alone, which has 8 where "
        f"there are as many CPUs; how many times as fast as a `cp -r` just before ({measured_on(rows)}):\n\n"
        f"{table(heads, lines)}"
    )


def _by_processes(rows: Sequence[Record]) -> Iterable[tuple[str, dict[str, Record]]]:
    """Each conversion, and its rows by how many processes did it."""
    for op in dict.fromkeys(row["op"] for row in rows):
        yield op, {row["processes"]: row for row in rows if row["op"] == op}


def _processes(count: str) -> str:
    return f"{count} process{'es' if count != '1' else ''}"


def disk() -> str:
    """Conversions from a disk and to it, beside what it does by itself."""
    rows = wanted("convert", "a disk", lambda row: bool(row.get("disk_ms")) or row["table"] == "disk")
    converted = [row for row in rows if row["table"] == "checkpoint"]
    counts = list(dict.fromkeys(row["processes"] for row in converted))
    lines = []
    for op, of_op in _by_processes(converted):
        alone, copied = (float(next(iter(of_op.values()))[name]) for name in ("disk_ms", "baseline_ms"))
        taken = [copied, *(float(of_op[n]["ms"]) for n in counts if n in of_op)]
        lines.append([op, short(alone), *(f"{short(ms)} ({alone / ms:.2f})" for ms in taken)])
    rates = {row["op"]: row for row in rows if row["table"] == "disk"}
    words = " and ".join(
        f"{what} {float(rates[op]['gb_per_s']):.2g} GB a second ({rates[op]['at_once']} files at once)"
        for op, what in (("read", "reads"), ("write", "writes"))
    )
    size = int(rows[0]["bytes"]) / 2**30
    heads = ["", "the disk alone", "`cp -r`", *map(_processes, counts)]
    return (
        f"{size:.1f} GiB, sources out of the file cache, targets synced, {converted[0]['files'].partition(', ')[2]} "
        f"({measured_on(rows)}). The disk {words}. In brackets: what it takes by itself for the same bytes, first "
        f"read, then written, divided by the time:\n\n{table(heads, lines)}"
    )


def adoption() -> str:
    """Packages as they are, and with awqpack enabled."""
    rows = wanted("adoption", "packages", lambda row: row["table"] == "adoption")
    lines = [
        [
            f"{row['baseline']} {row['version']}",
            row["op"],
            row["case"],
            short(float(row["baseline_ms"])),
            short(float(row["ms"])),
            f"{times(float(row['ratio']))} times as fast",
            row["same_bytes"],
        ]
        for row in rows
    ]
    heads = ["package", "what", "of", "as it is", "with awqpack", "", "same bytes"]
    return f"{measured_on(rows)}:\n\n{table(heads, lines)}"


def saves() -> str:
    """How much faster whole saves are."""
    rows = wanted("adoption", "saves", lambda row: row["table"] == "adoption" and row["op"].startswith("save"))
    lines = [f"{row['baseline']} {times(float(row['ratio']))} times as fast" for row in rows]
    return f"Saving a whole model: {', '.join(lines)} ({measured_on(rows)})."


def quanto() -> str:
    """optimum-quanto on a GPU, as it is and with awqpack enabled."""
    rows = wanted("quanto", "steps", lambda row: row["who"] in ("awqpack", "optimum-quanto"))
    us = {(row["op"], row["who"]): float(row["ms"]) for row in rows}
    them = {row["op"]: float(row["baseline_ms"]) for row in rows if row.get("baseline_ms")}
    lines = []
    for op in dict.fromkeys(row["op"] for row in rows):
        before = them.get(op, us.get((op, "optimum-quanto"), 0.0))
        lines.append([op, short(before), short(us[op, "awqpack"])])
    shape = rows[0]["shape"]
    return f"One {shape} linear ({measured_on(rows)}):\n\n{table(['', 'as it is', 'with awqpack'], lines)}"


FIGURES: dict[str, Callable[[], str]] = {
    "peers": lambda: _beside("beside", "cpu"),
    "gpu-peers": lambda: _beside("gpu", "cuda"),
    "cpu": cpu,
    "gpu": gpu,
    "floats": functools.partial(floats, "H100"),
    "floats-h200": functools.partial(floats, "H200"),
    "floats-xeon": functools.partial(floats_on_cpu, "Xeon"),
    "floats-epyc": functools.partial(floats_on_cpu, "EPYC"),
    "host": host,
    "convert": convert,
    "processes": processes,
    "disk": disk,
    "adoption": adoption,
    "saves": saves,
    "quanto": quanto,
}


def pages() -> list[Path]:
    """Those that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled_in(text: str) -> str:
    """A page with its figures as the results have them; those that no results hold stay as they are."""

    def replaced(match: re.Match[str]) -> str:
        name = match[2]
        if name not in FIGURES:
            raise SystemExit(f"figures:{name} is none of {', '.join(FIGURES)}")
        try:
            return f"{match[1]}{FIGURES[name]()}\n{match[3]}"
        except Missing:
            return match[0]

    return _BLOCK.sub(replaced, text)


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    options = parser.parse_args(words)
    stale = []
    for page in pages():
        text = page.read_text()
        now = filled_in(text)
        if now != text:
            stale.append(str(page.relative_to(ROOT)))
            if not options.check:
                page.write_text(now)
    if stale and options.check:
        raise SystemExit(f"out of date: {', '.join(stale)}; run python -m benchmarks figures")
    print(f"{'out of date' if options.check else 'written'}: {', '.join(stale) or 'none'}")

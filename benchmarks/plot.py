"""Draws docs/assets/plots/NAME-light.svg and NAME-dark.svg from the newest results."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .models import linear_weights
from .results import FOLDER, Newest, measured_on, newest

PLOTS = Path(__file__).parent.parent / "docs" / "assets" / "plots"
MODEL = "Llama-3.1-70B"
OPS_OF_MODEL = ("pack", "quantize", "dequantize")


class Theme(NamedTuple):
    """Colours on a page's own background."""

    text: str
    faint: str
    ours: str
    second: str
    others: str
    roof: str


THEMES = {
    "light": Theme("#1f2328", "#d0d7de", "#0969da", "#1a7f37", "#9a6700", "#8c959f"),
    "dark": Theme("#e6edf3", "#3d444d", "#58a6ff", "#3fb950", "#d29922", "#848d97"),
}

Draw = Callable[[Any, Theme], list[Newest]]  # on matplotlib.pyplot; what it drew


def _axes(plt: Any, theme: Theme, columns: int, size: tuple[float, float], title: str) -> tuple[Any, list[Any]]:
    """A figure of panels without frames, and its title above, left."""
    figure, grid = plt.subplots(1, columns, figsize=size, squeeze=False)
    figure.text(0.012, 0.985, title, color=theme.text, fontsize=13, fontweight="bold", va="top")
    axes = list(grid[0])
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(colors=theme.text, length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    return figure, axes


def _note(figure: Any, theme: Theme, rows: Sequence[Newest], words: str = "") -> None:
    """Where and when it was measured, at the foot."""
    places = "; ".join(dict.fromkeys(measured_on(part) for part in rows))
    figure.text(0.012, 0.012, f"{words}{places}", color=theme.roof, fontsize=8, va="bottom")


def seconds_in_words(seconds: float) -> str:
    """A duration as one says it."""
    for unit, factor in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 1.5 * factor or unit == "s":
            value = seconds / factor
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    raise AssertionError


def three_digits(value: float) -> str:
    """A number, three of whose digits count."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


# --- throughput ---


def _sizes_of_cpu() -> Newest:
    return newest("sizes", lambda row: row["table"] == "sizes")


def _sizes_of_gpu() -> Newest:
    return newest("gpu", lambda row: row["table"] == "kernels" and row["packing"] == "V1" and row["order"] == "row")


def _lines(axis: Any, theme: Theme, rows: Newest, ops: dict[str, str]) -> None:
    """GB a second by size, under what a copy reaches."""
    roofs: dict[float, float] = {}
    for row in rows:
        if row.get("baseline_ms") and row["op"] in ops:
            speed = float(row["gb_per_s"]) * float(row["ms"]) / float(row["baseline_ms"])
            roofs[float(row["mib"])] = max(speed, roofs.get(float(row["mib"]), 0.0))
    sizes = sorted(roofs)
    axis.fill_between(sizes, [roofs[s] for s in sizes], 1e6, color=theme.roof, alpha=0.18, linewidth=0)
    axis.plot(sizes, [roofs[s] for s in sizes], color=theme.roof, linewidth=2)
    labels = [("a copy", sizes[-1], roofs[sizes[-1]], theme.roof)]
    people = list(dict.fromkeys(row["who"] for row in rows))
    for who in people:
        for op, color in ops.items():
            points = sorted((float(r["mib"]), float(r["gb_per_s"])) for r in rows if (r["op"], r["who"]) == (op, who))
            if points:
                ours = who == "awqpack"
                color = getattr(theme, color) if ours else theme.others
                axis.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, linewidth=2)
                labels.append((op if ours else f"{who}: {op}", *points[-1], color))
    top = max(max(roofs.values()), max(float(row["gb_per_s"]) for row in rows)) * 1.2
    axis.set(xscale="log", ylim=(0, top), xlim=(sizes[0] / 1.3, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.75))
    axis.set_xticks(sizes, [f"{s:g}" for s in sizes])
    axis.minorticks_off()
    axis.grid(axis="y", color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("MiB of codes", color=theme.text)
    last: dict[float, float] = {}  # by where a line ends, how high its highest label is
    for text, end, value, color in sorted(labels, key=lambda label: label[2]):
        last[end] = max(value, 0.02 * top, last.get(end, -top) + 0.065 * top)  # a line's height above the label below
        place = (end * 1.2, last[end])
        axis.annotate(f"{text}, {three_digits(value)}", place, color=color, fontsize=9, va="center")


def throughput(plt: Any, theme: Theme) -> list[Newest]:
    """By size, under the roof that a copy is."""
    panels = [(name, rows) for name, rows in (("CPU", _sizes_of_cpu()), ("GPU", _sizes_of_gpu())) if rows]
    title = "awqpack packs and unpacks large weights at the speed of a memory copy"
    figure, axes = _axes(plt, theme, len(panels), (max(5.2 * len(panels), 7.0), 4.2), title)
    for axis, (name, rows) in zip(axes, panels, strict=True):
        axis.set_title(f"{name}, GB/s read and written", color=theme.text, fontsize=10, loc="left")
        _lines(axis, theme, rows, {"pack": "ours", "unpack": "second"})
    _note(figure, theme, [rows for _, rows in panels])
    figure.tight_layout(rect=(0, 0.035, 1, 0.93))
    return [rows for _, rows in panels]


# --- a large model ---


def _peers_on_cpu() -> Newest:
    return newest("beside", lambda row: row["table"] == "beside" and row.get("device") != "cuda")


def large_model(plt: Any, theme: Theme) -> list[Newest]:
    """Seconds to pack, quantize and dequantize a 70B, beside others."""
    rows = _peers_on_cpu()
    side, other = map(int, rows[0]["size"].split("x"))
    factor = linear_weights(MODEL) / (side * other) / 1e3
    # Ours beside each of them differs, by its layout and by where the system has free pages.
    ours = {op: statistics.median(float(r["ms"]) for r in rows if r["op"] == op) for op in OPS_OF_MODEL}
    theirs = [float(r["baseline_ms"]) for r in rows if r["op"] == "quantize"]
    said = [seconds_in_words(value * factor) for value in (ours["quantize"], min(theirs), max(theirs))]
    title = "A 70B quantizes in {} with awqpack, in {} to {} with others".format(*said)
    figure, axes = _axes(plt, theme, 3, (10.4, 4.3), title)
    for axis, op in zip(axes, OPS_OF_MODEL, strict=True):
        bars = {r["baseline"]: float(r["baseline_ms"]) * factor for r in rows if r["op"] == op}
        bars["awqpack"] = ours[op] * factor
        names = sorted(bars, key=bars.__getitem__, reverse=True)
        colors = [theme.ours if name == "awqpack" else theme.others for name in names]
        axis.barh(names, [bars[n] for n in names], color=colors, height=0.62)
        low = min(bars.values()) / 4
        axis.set(xscale="log", xlim=(low, max(bars.values()) * 25))
        for place, name in enumerate(names):
            axis.annotate(
                f" {seconds_in_words(bars[name])}", (bars[name], place), color=theme.text, fontsize=9, va="center"
            )
        axis.set_yticks(range(len(names)), names, fontsize=9)
        ticks = {1: "1 s", 60: "1 min", 3600: "1 h", 86400: "1 day"}
        shown = [t for t in ticks if low <= t <= max(bars.values()) * 25]
        axis.set_xticks(shown, [ticks[t] for t in shown], fontsize=8)
        axis.minorticks_off()
        axis.grid(axis="x", color=theme.faint, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_title(op, color=theme.text, fontsize=11, loc="left")
    words = f"Time, log axis, for all linear weights of a {MODEL}: {rows[0]['size']} measured, times their number. "
    _note(figure, theme, [rows], words)
    figure.tight_layout(rect=(0, 0.035, 1, 0.93))
    return [rows]


# --- calls ---


def calls(plt: Any, theme: Theme) -> list[Newest]:
    """Host time of detach, moves and ops, beside the reference class."""
    rows = newest("host", lambda row: row["table"] == "host" and row["device"] == "cuda")
    rows = rows or newest("host", lambda row: row["table"] == "host")
    ops = {"detach": "detach()", "to(same device, copy)": "to(device, copy=True)", "+ 1": "weight + 1"}
    people = {"optimum-quanto": theme.others, "awqpack": theme.ours, "plain": theme.roof}
    times = {(row["op"], row["who"]): float(row["ms"]) for row in rows}
    ratios = [times[op, "optimum-quanto"] / times[op, "awqpack"] for op in ops]
    title = f"A call on optimum-quanto's packed tensor takes {min(ratios):.1f} to {max(ratios):.1f} times as long"
    figure, axes = _axes(plt, theme, len(ops), (9.6, 2.5), title)
    for axis, (op, label) in zip(axes, ops.items(), strict=True):
        us = {row["who"]: float(row["ms"]) * 1e3 for row in rows if row["op"] == op}
        names = [who for who in people if who in us]
        axis.barh(range(len(names)), [us[n] for n in names], color=[people[n] for n in names], height=0.62)
        for place, name in enumerate(names):
            axis.annotate(f" {us[name]:.1f} us", (us[name], place), color=theme.text, fontsize=9, va="center")
        axis.set_yticks(range(len(names)), ["plain tensor" if n == "plain" else n for n in names], fontsize=9)
        axis.set_xlim(0, max(us[n] for n in names) * 1.35)
        axis.set_xticks([])
        axis.set_title(label, color=theme.text, fontsize=10, loc="left")
    where = "beside a GPU" if rows[0]["device"] == "cuda" else "on the CPU"
    _note(figure, theme, [rows], f"Microseconds a call, small tensors {where}, shorter is better. ")
    figure.tight_layout(rect=(0, 0.06, 1, 0.88))
    return [rows]


# --- conversions ---


def conversion(plt: Any, theme: Theme) -> list[Newest]:
    """A checkpoint converted, beside cp."""
    rows = newest("convert", lambda row: row["table"] == "checkpoint" and not row.get("disk_ms"))
    if not rows:
        return []
    # Of each direction one row: where several processes were tried, the fewest.
    first = {row["op"]: row for row in reversed(rows)}
    kept = [row for row in rows if first[row["op"]] is row]
    names = [row["op"] for row in kept]
    size = int(kept[0]["bytes"]) / 2**30
    longer = [1 / float(row["ratio"]) for row in kept]
    title = f"Converting {size:.1f} GiB takes {min(longer):.1f} to {max(longer):.1f} times as long as copying it"
    figure, (axis,) = _axes(plt, theme, 1, (7.6, 0.62 * len(names) + 1.5), title)
    for place, row in enumerate(reversed(kept)):
        ours, copied = float(row["ms"]) / 1e3, float(row["baseline_ms"]) / 1e3
        axis.barh(place + 0.2, copied, color=theme.roof, height=0.34)
        axis.barh(place - 0.2, ours, color=theme.ours, height=0.34)
        axis.annotate(f" cp -r: {copied:.2f} s", (copied, place + 0.2), color=theme.text, fontsize=8.5, va="center")
        axis.annotate(f" awqpack: {ours:.2f} s", (ours, place - 0.2), color=theme.text, fontsize=8.5, va="center")
    axis.set_yticks(range(len(names)), names[::-1], fontsize=9)
    axis.set_xlim(0, max(float(row[key]) for row in kept for key in ("ms", "baseline_ms")) / 1e3 * 1.3)
    axis.set_xlabel("seconds", color=theme.text)
    axis.grid(axis="x", color=theme.faint, linewidth=0.6)
    axis.set_axisbelow(True)
    _note(figure, theme, [rows])
    figure.tight_layout(rect=(0, 0.05, 1, 0.9))
    return [rows]


DRAWN: dict[str, Draw] = {
    "throughput": throughput,
    "large-model": large_model,
    "calls": calls,
    "conversion": conversion,
}


def source_of(parts: Sequence[Newest]) -> str:
    """The files that were drawn, and a digest of each: a plot that names others is out of date."""
    names = sorted({part.name for part in parts})
    return ", ".join(f"{name} {hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()[:12]}" for name in names)


def source_in(path: Path) -> str:
    """What a plot says that it was drawn from."""
    found = re.search(r"<!-- drawn from (.*?) -->", path.read_text())
    return found[1] if found else ""


def drawn_from(name: str) -> str:
    """What a plot drawn now would say."""
    used: dict[str, Callable[[], list[Newest]]] = {
        "throughput": lambda: [rows for rows in (_sizes_of_cpu(), _sizes_of_gpu()) if rows],
        "large-model": lambda: [_peers_on_cpu()],
        "calls": lambda: [
            newest("host", lambda row: row["table"] == "host" and row["device"] == "cuda")
            or newest("host", lambda row: row["table"] == "host")
        ],
        "conversion": lambda: [newest("convert", lambda row: row["table"] == "checkpoint" and not row.get("disk_ms"))],
    }
    return source_of([part for part in used[name]() if part])


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks plot", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(DRAWN)} only")
    options = parser.parse_args(words)
    if unknown := set(options.names) - DRAWN.keys():
        parser.error(f"expected some of {', '.join(DRAWN)}; got {', '.join(sorted(unknown))}")
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    plt = importlib.import_module("matplotlib.pyplot")
    plt.rcParams.update({"svg.hashsalt": "awqpack", "font.family": "DejaVu Sans"})
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name in options.names or DRAWN:
        if not drawn_from(name):
            print(f"{name}: no results hold what it shows")
            continue
        for theme_name, theme in THEMES.items():
            parts = DRAWN[name](plt, theme)
            path = PLOTS / f"{name}-{theme_name}.svg"
            plt.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
            plt.close("all")
            text = re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE)
            path.write_text(text.replace("<svg ", f"<!-- drawn from {source_of(parts)} -->\n<svg ", 1))
        print(f"drew {name}, from {source_in(path)}")

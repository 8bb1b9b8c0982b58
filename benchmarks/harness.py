"""What every suite shares: where and when it runs, clocks, calls that take turns, rows of results and their tables."""

from __future__ import annotations

import csv
import datetime
import functools
import itertools
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import awqpack

from . import cpus

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20

Call = Callable[[], object]
Clock = Callable[[Call], float]  # seconds of one call


# --- where and when ---


def cpu_model() -> str:
    """The CPU as the kernel names it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def machine_name() -> str:
    """A name for result files: the CPU and how many threads may run on it, or the GPU."""
    if torch.cuda.is_available():
        return "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower())[:2])
    words = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", " ", cpu_model().lower())
    return "-".join([*re.findall(r"[a-z0-9]+", words), f"{len(cpus.ALL)}cpu"])


def git_commit() -> str:
    """Short commit of the tree that runs, with `-dirty` when files have changed since; AWQPACK_COMMIT outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("AWQPACK_COMMIT", "unknown")


def environment(machine: str | None = None) -> dict[str, str]:
    """The columns that say where, when and with what a row was measured."""
    has_gpu = torch.cuda.is_available()
    return {
        "machine": machine or machine_name(),
        "cpu": cpu_model(),
        "cpus": str(len(cpus.ALL)),
        "gpu": torch.cuda.get_device_name() if has_gpu else "",
        "cuda": (torch.version.cuda or "") if has_gpu else "",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": git_commit(),
        "awqpack": awqpack.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


# --- clocks ---


def wall(call: Call) -> float:
    """Seconds until the call returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def synchronized(call: Call) -> float:
    """Seconds from an idle device to an idle device; wall where there is no GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


_AHEAD = 300_000  # cycles, about 0.2 ms


@functools.cache
def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return start, end


def event(call: Call) -> float:
    """Seconds of the device, between two events. It is kept busy before: then the host is ahead, and what that takes
    does not count, unless the call itself waits."""
    start, end = _events()
    stream = torch.cuda.current_stream()  # looked up once: record() alone looks again, after the call, for 8 us
    torch.cuda._sleep(_AHEAD)  # type: ignore[no-untyped-call]
    start.record(stream)
    call()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def wait_for(call: Call) -> None:
    """A call on a GPU, and its end."""
    call()
    torch.cuda.current_stream().synchronize()


def batch(number: int) -> Clock:
    """Seconds of the host for one of `number` calls; the device, where there is one, is idle before."""

    def clock(call: Call) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) / number

    return clock


def medians(
    calls: Mapping[str, Call], turns: int, clock: Clock = wall, least_seconds: float = 0.0, is_warm: bool = False
) -> dict[str, float]:
    """Median seconds of each call, over `turns` or, where these are over sooner, over `least_seconds`.

    They take turns, so that whatever slows the machine slows all of them; the first turn does not count, unless
    everything is warm.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = 0.0
    for turn in itertools.count(int(is_warm)):
        if turn > turns and time.perf_counter() - begin > least_seconds:
            break
        begin = time.perf_counter() if turn == 1 else begin
        for name, call in calls.items():
            seconds = clock(call)
            if turn > 0:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


# --- results ---


@dataclass
class Row:
    """One measurement: what ran, how long it took, and what it is compared with."""

    table: str
    op: str
    who: str
    seconds: float
    what: dict[str, object] = field(default_factory=dict)  # the case: packing, order, threads, size, ...
    moved: int | None = None  # bytes read and written
    baseline: str = ""
    baseline_seconds: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the baseline."""
        return None if self.baseline_seconds is None else self.baseline_seconds / self.seconds

    def columns(self) -> dict[str, object]:
        """As the CSV has it."""
        return {
            "table": self.table,
            "op": self.op,
            **self.what,
            "who": self.who,
            "ms": "" if math.isnan(self.seconds) else f"{self.seconds * 1e3:.6g}",  # NaN where nothing ran
            "gb_per_s": "" if self.moved is None else f"{self.moved / self.seconds / 1e9:.4g}",
            "baseline": self.baseline,
            "baseline_ms": "" if self.baseline_seconds is None else f"{self.baseline_seconds * 1e3:.6g}",
            "ratio": "" if self.ratio is None else f"{self.ratio:.4g}",
        }

    def cell(self, name: str) -> str:
        """One column as a table shows it."""
        if name == "ratio":
            return "-" if self.ratio is None else f"{self.ratio:.2f}"
        if name == "ms":
            return f"{self.seconds * 1e3:.3f}"
        if name == "us":
            return f"{self.seconds * 1e6:.2f}"
        return str(self.columns().get(name, ""))


def compare(
    table: str,
    op: str,
    calls: Mapping[str, Call],
    baselines: Mapping[str, Call],
    turns: int,
    clock: Clock = wall,
    least_seconds: float = 0.0,
    moved: int | None = None,
    what: Mapping[str, object] | None = None,
    is_warm: bool = False,
) -> list[Row]:
    """A row for each call, beside the fastest of the baselines, all of them in turns."""
    measured = medians({**baselines, **calls}, turns, clock, least_seconds, is_warm)
    baseline = min(baselines, key=measured.__getitem__) if baselines else ""
    return [
        Row(table, op, who, measured[who], dict(what or {}), moved, baseline, measured.get(baseline)) for who in calls
    ]


def print_table(
    title: str, rows: Iterable[Row], down: Sequence[str], across: Sequence[str], value: str = "ratio"
) -> None:
    """A line for each case of `down`, a column for each of `across`."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    heads: dict[str, None] = {}
    for row in rows:
        head = ", ".join(cell for name in across if (cell := row.cell(name)))
        heads[head] = None
        lines.setdefault(tuple(row.cell(name) for name in down), {})[head] = row.cell(value)
    body = [[*line, *(cells.get(head, "-") for head in heads)] for line, cells in lines.items()]
    widths = [max(map(len, column)) for column in zip([*down, *heads], *body, strict=True)]
    print(f"\n{title}\n")
    for cells in [[*down, *heads], *body]:
        texts = [
            cell.ljust(width) if i < len(down) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        print("  ".join(texts).rstrip())


def write_csv(kind: str, where: Mapping[str, str], rows: Sequence[Row]) -> Path:
    """Writes rows, each with the columns of the environment, to results/<kind>-<machine>-<date>.csv."""
    records = [{**where, **row.columns()} for row in rows]
    columns = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{where['machine']}-{where['date']}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return path

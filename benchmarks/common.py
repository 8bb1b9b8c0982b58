"""What every benchmark shares: what the machine is, how to time, how to write results."""

from __future__ import annotations

import csv
import datetime
import itertools
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cpus
import numpy as np
import torch

import awqpack

RESULTS = Path(__file__).parent / "results"


def cpu_model() -> str:
    """The CPU as the kernel names it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def machine_name() -> str:
    """A name for result files: the CPU and how many threads may run on it."""
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
    return {
        "machine": machine or machine_name(),
        "cpu": cpu_model(),
        "cpus": str(len(cpus.ALL)),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": git_commit(),
        "awqpack": awqpack.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def interleaved_medians(
    calls: Mapping[str, Callable[[], object]], repetitions: int, least_seconds: float = 0.0
) -> dict[str, float]:
    """Median seconds of each call, over `repetitions` turns or, where these are over sooner, over `least_seconds`.

    They take turns, so that whatever slows the machine slows all of them; the first turn does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begin = 0.0
    for turn in itertools.count():
        if turn > repetitions and time.perf_counter() - begin > least_seconds:
            break
        begin = time.perf_counter() if turn == 1 else begin
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
            if turn > 0:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def write_csv(kind: str, environment: Mapping[str, str], rows: Sequence[Mapping[str, object]]) -> Path:
    """Writes rows, each with the columns of the environment, to results/<kind>-<machine>-<date>.csv."""
    columns = list(dict.fromkeys([*environment, *(column for row in rows for column in row)]))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{kind}-{environment['machine']}-{environment['date']}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**environment, **row} for row in rows)
    return path

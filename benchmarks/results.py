"""Reads committed results: of each suite and table the newest."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
# What columns were called before; the suites quanto and host had tables without a name.
_RENAMED = {"layout": "packing", "variant": "who", "call": "op", "step": "op"}

Record = dict[str, str]


class Newest(list[Record]):
    """Rows of one file, which is named."""

    name = ""


@functools.cache
def _read(path: Path) -> tuple[Record, ...]:
    records = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            record = {_RENAMED.get(name, name): value for name, value in row.items()}
            if "packing" in record:
                record["packing"] = record["packing"].replace("MARLIN", "Marlin")
            if "microseconds" in record:
                record["ms"] = str(float(record["microseconds"]) / 1e3)
            if record.get("copy_seconds"):
                copied, ours = float(record["copy_seconds"]) * 1e3, float(record["seconds"]) * 1e3
                record |= {"table": "checkpoint", "op": record["what"], "baseline": "cp -r"}
                record |= {"ms": str(ours), "baseline_ms": str(copied), "ratio": str(copied / ours)}
            records.append({"table": path.name.split("-")[0]} | record)
    return tuple(records)


def _files(suite: str) -> Iterator[Path]:
    """The suite's files, the newest first; of one day by name."""
    found = {path: re.fullmatch(rf"{suite}-.*-(\d{{4}}-\d\d-\d\d)\.csv", path.name) for path in FOLDER.iterdir()}
    yield from sorted((p for p, match in found.items() if match), key=lambda p: (found[p][1], p.name), reverse=True)  # type: ignore[index]


def newest(suite: str, wanted: Callable[[Record], bool]) -> Newest:
    """The rows wanted of the newest file that has some; none where no file has."""
    rows = Newest()
    for path in _files(suite):
        rows = Newest(record for record in _read(path) if wanted(record))
        if rows:
            rows.name = path.name
            break
    return rows


def measured_on(rows: Newest) -> str:
    """The machine of these rows and their day, in words."""
    row = rows[0]
    has_gpu = bool(row.get("gpu")) and not rows.name.startswith("convert-")  # which a GPU has no part in
    place = row["gpu"] if has_gpu else f"{row['cpu']}, {row['cpus']} CPUs"
    return f"{place}, torch {row['torch'].partition('+')[0]}, {row['date']}"

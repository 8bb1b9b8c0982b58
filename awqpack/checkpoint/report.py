"""What the commands inspect, convert and verify print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from .._text import count, print_table, size
from .convert import Conversion, convert
from .inspect import Inspection, inspect
from .progress import Progress
from .verify import verify


def run_inspect(arguments: argparse.Namespace) -> int:
    """Prints what a checkpoint holds; returns 1 when something is inconsistent."""
    found = inspect(arguments.path, layout=arguments.layout, group_size=arguments.group_size)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _print_inspection(found)
    return 1 if found.problems else 0


def _print_inspection(found: Inspection) -> None:
    print(f"{found.path}: {found.layout}, {_configuration(found)}")
    rows = [
        (
            layer.name or "(the layer)",
            str(layer.out_features),
            str(layer.in_features),
            str(layer.group_size),
            size(layer.nbytes),
            " ".join(f"{name} {dtype}" for name, dtype in layer.dtypes.items()),
        )
        for layer in found.layers
    ]
    print_table(("layer", "N", "K", "group", "size", "tensors"), rows)
    print(
        f"{count(len(found.layers), 'quantized layer')}, {size(found.quantized_bytes)}; "
        f"{count(found.other_tensors, 'other tensor')}, {size(found.other_bytes)}; {count(len(found.files), 'file')}"
    )
    for first, *others in _by_kind(found.problems):
        more = f" (and {count(len(others), 'other')} of this kind; --json lists all)" if others else ""
        print(f"inconsistent: {first}{more}")


def _by_kind(problems: Sequence[str]) -> list[list[str]]:
    """Problems that differ in the names of layers and in numbers alone belong together."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        name, _, reason = problem.partition(": ")
        kinds.setdefault(re.sub(r"\d+", "", reason or name), []).append(problem)
    return list(kinds.values())


def _configuration(found: Inspection) -> str:
    if not found.is_configured:
        return "by its tensors (no quantization_config)"
    group = "one group a row" if found.group_size == -1 else f"groups of {found.group_size}"
    zeros = "symmetric" if found.is_symmetric else "with zeros"
    parts = [group, zeros]
    if found.not_converted:
        parts.append(f"not quantized: {', '.join(found.not_converted)}")
    return ", ".join(parts)


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts; shows a bar on a terminal, a line for each file elsewhere."""
    progress = _bar() if sys.stderr.isatty() else _Lines()
    try:
        done = convert(
            arguments.source,
            arguments.target,
            arguments.to,
            layout=arguments.layout,
            group_size=arguments.group_size,
            device=arguments.device,
            max_shard_size=arguments.max_shard_size,
            dry_run=arguments.dry_run,
            force=arguments.force,
            progress=progress,
        )
    finally:
        progress.close()
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if done.is_dry_run:
        print(f"would convert {count(done.layers, 'layer')} from {done.source_layout} to {done.target_layout}:")
        for name in done.files:
            print(f"  {name}")
        print(
            f"{size(done.nbytes)} in {count(len(done.files), 'file')}, and {count(len(done.other_files), 'other file')}"
        )
        return 0
    print(
        f"{done.target}: {count(done.layers, 'layer')} from {done.source_layout} to {done.target_layout}, "
        f"{size(done.nbytes)} in {done.seconds:.1f} s ({size(int(done.nbytes / max(done.seconds, 1e-9)))}/s)"
    )
    return 0


class _Lines(Progress):
    """A line for every file."""

    def __init__(self) -> None:
        self._files = 0
        self._finished = 0
        self._bytes = 0
        self._total = 1
        self._start = time.perf_counter()

    def start(self, conversion: Conversion) -> None:
        self._files, self._total = len(conversion.files), max(conversion.nbytes, 1)
        self._start = time.perf_counter()
        print(
            f"converting {count(conversion.layers, 'layer')} from {conversion.source_layout} to "
            f"{conversion.target_layout}, {size(conversion.nbytes)} in {count(self._files, 'file')}",
            file=sys.stderr,
        )

    def advance(self, nbytes: int) -> None:
        self._bytes += nbytes

    def finish_file(self, name: str) -> None:
        self._finished += 1
        rate = self._bytes / max(time.perf_counter() - self._start, 1e-9)
        print(
            f"[{self._finished}/{self._files}] {name}  {100 * self._bytes // self._total}%  {size(int(rate))}/s",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Nothing to close."""


class _Bar(Progress):
    """tqdm's bar, with bytes a second and the time left."""

    def __init__(self, tqdm: Any) -> None:
        self._tqdm = tqdm
        self._bar: Any = None

    def start(self, conversion: Conversion) -> None:
        self._bar = self._tqdm(
            total=conversion.nbytes,
            desc=f"{conversion.source_layout} to {conversion.target_layout}",
            unit="B",
            unit_scale=True,
            leave=False,
        )

    def advance(self, nbytes: int) -> None:
        self._bar.update(nbytes)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar() -> _Bar | _Lines:
    """A bar where tqdm is installed, lines elsewhere."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return _Lines()
    return _Bar(tqdm)


def run_verify(arguments: argparse.Namespace) -> int:
    """Prints what differs; returns 1 when something does."""
    found = verify(arguments.first, arguments.second)
    what = ", ".join(
        (count(found.layers, "layer"), count(found.tensors, "other tensor"), count(found.files, "other file"))
    )
    if found.is_equal:
        print(f"equal: {what}")
        return 0
    for difference in found.differences:
        print(difference)
    print(f"different: {count(len(found.differences), 'difference')} in {what}")
    return 1

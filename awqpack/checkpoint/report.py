"""What the commands inspect, convert and verify print."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from .._text import count, print_table, size
from .convert import Conversion, convert
from .inspect import Inspection, LayerInfo, inspect
from .packed_file import PackedFile, inspect_packed
from .progress import Progress
from .quantize import quantize
from .team import Team
from .verify import verify

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name, such as a block's


def run_inspect(path: str, layout: str, group_size: int | None, as_json: bool) -> int:
    """Prints what a checkpoint holds; returns 1 when something is inconsistent."""
    packed = inspect_packed(path)
    if packed is not None:
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(packed), indent=2))
        else:
            _print_packed(packed)
        return 0
    found = inspect(path, layout=layout, group_size=group_size)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _print_inspection(found)
    return 1 if found.problems else 0


def _print_inspection(found: Inspection) -> None:
    click.echo(f"{found.path}: {click.style(found.layout, bold=True)}, {_configuration(found)}")
    rows = []
    for name, layers in _alike(found.layers):
        first = layers[0]
        rows.append(
            (
                name,
                str(len(layers)),
                str(first.out_features),
                str(first.in_features),
                str(first.group_size),
                size(sum(layer.nbytes for layer in layers)),
                " ".join(f"{part} {dtype}" for part, dtype in first.dtypes.items()),
            )
        )
    print_table(("layer", "count", "N", "K", "group", "size", "tensors"), rows)
    click.echo(
        f"{count(len(found.layers), 'quantized layer')}, {size(found.quantized_bytes)}; "
        f"{count(found.other_tensors, 'other tensor')}, {size(found.other_bytes)}; {count(len(found.files), 'file')}"
    )
    for first_problem, *others in _by_kind(found.problems):
        more = f" (and {count(len(others), 'other')} of this kind; --json lists all)" if others else ""
        click.echo(f"{click.style('inconsistent:', fg='red')} {first_problem}{more}")


def _print_packed(found: PackedFile) -> None:
    click.echo(f"{found.path}: {click.style('packed tensors', bold=True)}, which awqpack.load_file reads")
    rows = [
        (
            tensor.name,
            "x".join(map(str, tensor.shape)),
            size(tensor.nbytes),
            tensor.packing + " reorder" * tensor.reorder,
        )
        for tensor in found.tensors
    ]
    print_table(("tensor", "codes", "size", "packing"), rows)
    total = size(sum(tensor.nbytes for tensor in found.tensors))
    click.echo(
        f"{count(len(rows), 'packed tensor')}, {total}; "
        f"{count(found.other_tensors, 'other tensor')}, {size(found.other_bytes)}"
    )


def _alike(layers: Sequence[LayerInfo]) -> Iterator[tuple[str, list[LayerInfo]]]:
    """Layers that differ in the numbers in their names alone, under a name with stars for those."""
    kinds: dict[object, list[LayerInfo]] = {}
    for layer in layers:
        kind = (
            _NUMBER.sub("*", layer.name),
            layer.out_features,
            layer.in_features,
            layer.group_size,
            tuple(layer.dtypes.items()),
        )
        kinds.setdefault(kind, []).append(layer)
    for alike in kinds.values():
        columns = zip(*(layer.name.split(".") for layer in alike), strict=True)
        yield ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns) or "(the layer)", alike


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


def run_convert(source: str, target: str, team: Team, **options: Any) -> int:
    """Converts, with the options of `convert`; shows a bar on a terminal, a line for each file elsewhere.

    Of several processes the first one prints.
    """
    done = _shown(team, lambda progress: convert(source, target, progress=progress, team=team, **options))
    if done is None:
        return 0
    if done.is_dry_run:
        click.echo(f"would convert {count(done.layers, 'layer')} from {done.source_layout} to {done.target_layout}:")
        for name in done.files:
            click.echo(f"  {name}")
        click.echo(
            f"{size(done.nbytes)} in {count(len(done.files), 'file')}, and {count(len(done.other_files), 'other file')}"
        )
        return 0
    click.echo(
        f"{done.target}: {count(done.layers, 'layer')} from {done.source_layout} to {done.target_layout}, {_rate(done)}"
    )
    return 0


def run_quantize(source: str, target: str, team: Team, **options: Any) -> int:
    """Quantizes, with the options of `quantize`, shown as conversions are; says which linears keep their floats."""
    done = _shown(team, lambda progress: quantize(source, target, progress=progress, team=team, **options))
    if done is None:
        return 0
    if done.is_dry_run:
        click.echo(f"would round {count(done.layers, 'linear')} to {done.target_layout}, without a search for scales:")
        for names in _starred(done.quantized):
            click.echo(names)
        if done.kept:
            click.echo(f"and keep {count(len(done.kept), 'other linear')} in floats:")
        for reason in dict.fromkeys(done.kept.values()):
            for names in _starred([module for module, why in done.kept.items() if why == reason]):
                click.echo(f"{names}: {reason}")
        click.echo(f"{size(done.nbytes)} in {count(len(done.files), 'file')}")
        return 0
    click.echo(
        f"{done.target}: {count(done.layers, 'linear')} rounded to {done.target_layout}, without a search for scales; "
        f"{count(len(done.kept), 'other')} kept in floats; {_rate(done)}"
    )
    return 0


def _rate(done: Conversion) -> str:
    took = f"{done.seconds:.1f} s" if done.seconds >= 0.95 else f"{done.seconds * 1e3:.0f} ms"
    return f"{size(done.nbytes)} in {took} ({size(int(done.nbytes / max(done.seconds, 1e-9)))}/s)"


Done = TypeVar("Done", bound=Conversion)


def _shown(team: Team, run: Callable[[Progress], Done]) -> Done | None:
    """Runs a conversion; what to say of it, with its warnings said, or None in a process that says nothing."""
    if team.rank > 0:
        run(Progress())
        return None
    with contextlib.closing(_progress()) as progress:
        done = run(progress)
    if done.kept_files:
        click.echo(f"{count(len(done.kept_files), 'file')} of an interrupted run kept", err=True)
    for warning in done.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    return done


def _starred(modules: Sequence[str]) -> list[str]:
    """Lines of names with stars for their numbers, and how many modules each stands for."""
    counted = Counter(_NUMBER.sub("*", name) for name in modules)
    return [f"  {name}" + (f"  (x{number})" if number > 1 else "") for name, number in counted.items()]


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

    def start_comparison(self, nbytes: int) -> None:
        print(f"comparing {size(nbytes)}", file=sys.stderr)

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
        self._show(conversion.nbytes, f"{conversion.source_layout} to {conversion.target_layout}")

    def start_comparison(self, nbytes: int) -> None:
        self._show(nbytes, "comparing")

    def _show(self, nbytes: int, what: str) -> None:
        self._bar = self._tqdm(total=nbytes, desc=what, unit="B", unit_scale=True, leave=False)

    def advance(self, nbytes: int) -> None:
        self._bar.update(nbytes)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _progress() -> _Bar | _Lines:
    """A bar on a terminal where tqdm is installed, lines elsewhere."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return _Lines()
    return _Bar(tqdm) if sys.stderr.isatty() else _Lines()


def run_verify(first: str, second: str, as_json: bool) -> int:
    """Prints what differs; returns 1 when something does."""
    with contextlib.closing(_progress()) as progress:
        found = verify(first, second, progress=progress)
    if as_json:
        click.echo(json.dumps({"is_equal": found.is_equal, **dataclasses.asdict(found)}, indent=2))
        return 0 if found.is_equal else 1
    what = ", ".join(
        (count(found.layers, "layer"), count(found.tensors, "other tensor"), count(found.files, "other file"))
    )
    if found.is_equal:
        click.echo(f"{click.style('equal:', fg='green')} {what}")
        return 0
    for difference in found.differences:
        click.echo(difference)
    click.echo(f"{click.style('different:', fg='red')} {count(len(found.differences), 'difference')} in {what}")
    return 1

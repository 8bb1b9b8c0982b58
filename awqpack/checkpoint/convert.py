"""Conversion of a checkpoint from its layout to another, a tensor at a time."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..layouts import LAYOUTS, Layout, relayout, relayout_runs
from .configs import rewritten_configs, rewritten_index
from .errors import CheckpointError
from .files import other_entries
from .plan import Plan, make_plan, parse_size
from .source import Checkpoint, SourceLayer
from .staging import Staging
from .workers import Buffers, run_all
from .writer import Writer


@dataclass(frozen=True)
class Conversion:
    """What `convert` did, or would do.

    Attributes:
        source, target: paths.
        source_layout, target_layout: names of layouts.
        layers: quantized layers that were converted.
        files: the safetensors files, in order.
        nbytes: their bytes together.
        other_files: files beside them that were copied as they are.
        is_configured: the source has a quantization_config, and so the target.
        seconds: how long writing took; 0 for a dry run.
        is_dry_run: nothing was written.
    """

    source: Path
    target: Path
    source_layout: str
    target_layout: str
    layers: int
    files: tuple[str, ...]
    nbytes: int
    other_files: tuple[str, ...]
    is_configured: bool
    seconds: float
    is_dry_run: bool


class Progress:
    """What `convert` tells a caller who wants to show it; this one shows nothing. Calls come from other threads, one
    at a time."""

    def start(self, conversion: Conversion) -> None:
        """Everything is checked and writing begins."""

    def advance(self, nbytes: int) -> None:
        """That many more bytes are written."""

    def finish_file(self, name: str) -> None:
        """A file is whole."""


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    layout: str = "auto",
    group_size: int | None = None,
    device: str | torch.device = "cpu",
    max_shard_size: str | int | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a checkpoint in another layout, without changing a code, a zero or a scale.

    Every other tensor, file and metadata entry is kept; the quantization_config and the index are rewritten. The target
    appears when it is whole: an interrupted run leaves none, and an earlier target as it was.

    Args:
        source: a directory with safetensors files and config.json, or one safetensors file.
        target: a directory, or a safetensors file, as the source is.
        to: the layout to write: a name in ``awqpack.layouts.LAYOUTS``.
        layout: the source's, or "auto": what its configuration says, or else its tensors.
        group_size: for a source without a configuration whose shapes do not tell; -1 is one group a row.
        device: where weights are repacked.
        max_shard_size: bytes, or "5GB"; without it the target has the source's files, one for one.
        dry_run: check everything, write nothing.
        force: replace a target that exists.
        progress: told what happens.

    Raises:
        CheckpointError: in one line, what about the source or the target is not as it should be; nothing is written.
    """
    source, given, target = Path(source), Path(target), Path(os.path.abspath(target))
    if to not in LAYOUTS:
        raise CheckpointError(f"to expects one of {', '.join(LAYOUTS)}; got {to!r}")
    limit = None if max_shard_size is None else parse_size(max_shard_size)
    device = _usable_device(device)
    _require_apart(source, target)
    progress = progress or Progress()
    with Checkpoint(source, layout=layout, group_size=group_size) as checkpoint:
        if checkpoint.is_file != (target.suffix == ".safetensors"):
            kind = "a .safetensors file" if checkpoint.is_file else "a directory"
            raise CheckpointError(f"{target}: expects {kind}, as the source is one")
        if checkpoint.is_file and limit is not None:
            raise CheckpointError(f"max_shard_size expects a directory; {source} is one file")
        staging = Staging(target, force=force)
        staging.check()
        plan = make_plan(checkpoint, LAYOUTS[to], limit)
        if checkpoint.is_file:
            plan.files[0].name = target.name
        others = [] if checkpoint.is_file else _other_files(plan)
        _require_sources_elsewhere(checkpoint, others, target)
        conversion = Conversion(
            source=source,
            target=given,
            source_layout=checkpoint.layout.name,
            target_layout=to,
            layers=len(checkpoint.layers),
            files=tuple(file.name for file in plan.files),
            nbytes=plan.nbytes,
            other_files=tuple(str(path) for path in others),
            is_configured=checkpoint.config is not None,
            seconds=0.0,
            is_dry_run=dry_run,
        )
        staging.require_space(plan.nbytes + _size_of(source, others))
        if dry_run:
            return conversion
        start = time.perf_counter()
        try:
            with staging:
                progress.start(conversion)
                _write(plan, staging.content, others, device, progress)
                staging.commit()
        except OSError as error:
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
            raise CheckpointError(f"{target}: cannot be written ({what})") from None
    return Conversion(**{**conversion.__dict__, "seconds": time.perf_counter() - start})


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        if usable.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(1, device=usable)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]})") from None
    return usable


def _require_apart(source: Path, target: Path) -> None:
    try:
        one, other = source.resolve(), target.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(str(error)) from None
    if one == other:
        raise CheckpointError(f"{target}: the target is the source; write beside it")
    if one in other.parents or other in one.parents:
        raise CheckpointError(f"{target}: the target and the source {source} lie inside each other")


def _require_sources_elsewhere(checkpoint: Checkpoint, others: list[Path], target: Path) -> None:
    """Links may lead from a source into the target, which would replace what they lead to."""
    for path in [Path(name) for name in checkpoint.shards] + others:
        if target.resolve() in (checkpoint.root / path).resolve().parents:
            raise CheckpointError(f"{target}: {checkpoint.root / path} is a link into it")


def _size_of(source: Path, others: list[Path]) -> int:
    total = 0
    for path in others:
        try:
            total += (source / path).stat().st_size
        except OSError as error:
            raise CheckpointError(f"{source / path}: cannot be read ({error.strerror})") from None
    return total


def _other_files(plan: Plan) -> list[Path]:
    """What of the source directory is copied as it is, relative to it."""
    source = plan.source
    replaced = {*source.shards, *rewritten_configs(plan)}
    if source.index_path is not None:
        replaced.add(source.index_path.name)
    return other_entries(source.path, replaced)


def _copy_other(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        target.mkdir()
    else:
        shutil.copy2(source, target)


def _write(plan: Plan, content: Path, others: list[Path], device: torch.device, progress: Progress) -> None:
    source = plan.source
    is_file = source.is_file
    folder = content.parent if is_file else content
    for path in others:
        _copy_other(source.path / path, content / path)
    buffers = Buffers()
    with Writer(folder, plan.files, progress.advance, progress.finish_file) as writer:
        tasks: dict[str, list[Callable[[], None]]] = {file.name: [] for file in plan.files}
        for layer, names in plan.layers:
            file = plan.where[names[plan.target.names["weight"]]]
            tasks[file.name].append(partial(_write_layer, plan, layer, names, device, writer, buffers))
        for name, tensor in plan.copies.items():
            file = plan.where[name]
            tasks[file.name].append(partial(writer.copy, file, name, source.shards[source.where[tensor]], tensor))
        run_all(tasks)
    if is_file:
        (folder / plan.files[0].name).rename(content)
    else:
        for name, text in rewritten_configs(plan).items():
            if text is not None:
                (content / name).write_text(text, encoding="utf-8")
        index = rewritten_index(plan)
        if index is not None:
            (content / index[0]).write_text(index[1], encoding="utf-8")


def _write_layer(
    plan: Plan, layer: SourceLayer, outputs: dict[str, str], device: torch.device, writer: Writer, buffers: Buffers
) -> None:
    source, target = plan.source, plan.target
    tensor = layer.tensors[layer.layout.names["weight"]]
    shard = source.shards[source.where[tensor]]
    name = outputs[target.names["weight"]]
    if layer.layout.weight == target.weight:
        writer.copy(plan.where[name], name, shard, tensor)
    else:
        done = 0
        for run in _relayout(layer.layout, target, shard.tensor(tensor), buffers, device):
            writer.write(plan.where[name], name, run, done)
            done += run.nbytes
        shard.release(tensor)
    scales, zeros = source.scales_and_zeros(layer)
    for suffix, value in target.encode_side(layer.geometry, scales, zeros).items():
        if suffix in outputs:
            name = outputs[suffix]
            writer.write(plan.where[name], name, value)


def _relayout(
    source: Layout, target: Layout, payload: torch.Tensor, buffers: Buffers, device: torch.device
) -> Iterable[torch.Tensor]:
    if device.type == "cpu":
        return relayout_runs(payload, source.weight, target.weight, buffers.take)
    return [relayout(payload.to(device), source.weight, target.weight).cpu()]

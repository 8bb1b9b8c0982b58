"""Conversion of a checkpoint from its layout to another: validated, planned, carried out."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from ..layouts import LAYOUTS
from .errors import CheckpointError
from .files import writing
from .from_floats import FloatCheckpoint
from .hub import located, plain_path
from .journal import identity_of
from .orchestration import Orchestration, Run
from .plan import Plan, make_plan, parse_size
from .progress import Progress
from .source import Checkpoint
from .staging import Staging
from .team import Team
from .tensor_files import TensorFiles
from .to_floats import FLOATS, SHARD_BYTES, to_floats
from .to_layout import to_layout
from .work import Work

TARGETS = (*LAYOUTS, *FLOATS)


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
        warnings: what readers of the target may stumble over, a sentence each.
        seconds: how long writing took; 0 for a dry run.
        is_dry_run: nothing was written.
        kept_files: those of ``files`` that an interrupted run had written.
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
    warnings: tuple[str, ...]
    seconds: float
    is_dry_run: bool
    kept_files: tuple[str, ...] = field(default=(), kw_only=True)


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    layout: str = "auto",
    group_size: int | None = None,
    device: str | torch.device = "cpu",
    max_shard_size: str | int | None = None,
    scale_dtype: str | torch.dtype | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Conversion:
    """Writes a checkpoint in another layout, without changing a code, a zero or a scale.

    Every other tensor, file and metadata entry is kept; the quantization_config and the index are rewritten. The target
    appears when it is whole: an interrupted run leaves none, and an earlier target as it was.

    Args:
        source: a directory with safetensors files and config.json, or one safetensors file.
        target: a directory, or a safetensors file, as the source is.
        to: the layout to write: a name in ``awqpack.layouts.LAYOUTS``; or float16, bfloat16 or float32, for the
            ordinary model that the quantized one stands for.
        layout: the source's, or "auto": what its configuration says, or else its tensors.
        group_size: for a source without a configuration whose shapes do not tell; -1 is one group a row.
        device: where weights are repacked; floats are made on the CPU.
        max_shard_size: bytes, or "5GB"; without it the target has the source's files, one for one, and floats have
            files of 5 GB.
        scale_dtype: float16, bfloat16 or float32 for scales in the target; each must be exact in it. Without it they
            keep theirs. What the configuration says of the model's own dtype stays.
        dry_run: check everything, write nothing.
        force: replace a target that exists.
        resume: keep files of an interrupted run with the same arguments that are whole; there may be none. If this run
            fails, it leaves such files too.
        progress: told what happens; with a team, that of the first process of what all do.
        team: the processes that convert it, each of which calls this, as ``team_of_environment`` gives them. Several
            leave files for ``resume`` when they fail.

    Raises:
        CheckpointError: in one line, what about the source or the target is not as it should be; nothing is written.
    """
    team = team or Team()
    options = {"to": to, "layout": layout, "group_size": group_size, "scale_dtype": scale_dtype}
    with team.together():
        given = plain_path(target)
        limit = None if max_shard_size is None else limit_of(max_shard_size)
        scales = None if scale_dtype is None else scale_dtype_of(scale_dtype)
        if to not in TARGETS:
            raise CheckpointError(f"to expects one of {', '.join(TARGETS)}; got {to!r}")
        device = _usable_device(device)
        require_apart(located(source), given)
        with Checkpoint(source, layout=layout, group_size=group_size) as checkpoint:
            staging, run = staged(checkpoint, given, limit, options, force=force, resume=resume, team=team)
            if limit is None and to in FLOATS and not checkpoint.files.is_file:
                limit = SHARD_BYTES
            plan = make_plan(checkpoint.files, _work(checkpoint, to, scales, device, team), limit)
            is_configured = checkpoint.config is not None
            done = described(plan, given, (checkpoint.layout.name, to), len(checkpoint.layers), is_configured, dry_run)
            return write_plan(plan, staging, done, progress, run)


def staged(
    source: Checkpoint | FloatCheckpoint,
    given: Path,
    limit: int | None,
    options: Mapping[str, object],
    *,
    force: bool,
    resume: bool,
    team: Team,
) -> tuple[Staging, Run]:
    """Where to write what becomes of a checkpoint, and who does it.

    Args:
        source: what is read.
        given: the target's path.
        limit: bytes of a file, None for the source's files.
        options: what else the result depends on, by name.
        force, resume, team: as in :func:`convert`.

    Raises:
        CheckpointError: the target cannot be written, or ranks were given different arguments or see different files.
    """
    run = Run(team, identity_of(source, {**options, "max_shard_size": limit}), resume)
    staging = Staging(Path(os.path.abspath(given)), force=force, resume=resume, is_kept=resume or team.count > 1)
    _require_fitting_target(source.files, staging.target, limit)
    staging.check()
    team.require_same({**run.identity, "target": str(staging.target), "force": str(force), "resume": str(resume)})
    return staging, run


Done = TypeVar("Done", bound=Conversion)


def write_plan(plan: Plan, staging: Staging, done: Done, progress: Progress | None, run: Run) -> Done:
    """Writes what a plan says, unless it is a dry run; returns what was done, with the time that it took."""
    shown = progress or Progress()
    if plan.source.is_file:
        plan.files[0].name = staging.target.name
    _require_sources_elsewhere(plan, staging.target)
    others = _size_of(plan.source.path, plan.others)
    if not run.resume:
        staging.require_space(plan.nbytes + others)
    if done.is_dry_run:
        return done
    start = time.perf_counter()
    with writing(staging.target):
        kept = Orchestration(plan, staging, run, shown).run(others, lambda: shown.start(done))
    return dataclasses.replace(done, seconds=time.perf_counter() - start, kept_files=kept)


def _work(source: Checkpoint, to: str, scale_dtype: torch.dtype | None, device: torch.device, team: Team) -> Work:
    if to not in FLOATS:
        return to_layout(source, LAYOUTS[to], scale_dtype, device, team)
    if scale_dtype is not None:
        raise CheckpointError(f"scale_dtype expects a layout; {to} has no scales")
    return to_floats(source, FLOATS[to], team)


def scale_dtype_of(given: str | torch.dtype) -> torch.dtype:
    """The dtype of that name. Raises CheckpointError for one that no scale has."""
    found = FLOATS.get(str(given).removeprefix("torch."))
    if found is None:
        raise CheckpointError(f"scale_dtype expects one of {', '.join(FLOATS)}; got {given!r}")
    return found


def limit_of(max_shard_size: str | int) -> int:
    """Bytes. Raises CheckpointError."""
    try:
        return parse_size(max_shard_size)
    except ValueError as error:
        raise CheckpointError(f"max_shard_size {error}") from None


def _require_fitting_target(files: TensorFiles, target: Path, limit: int | None) -> None:
    is_file = files.is_file
    if is_file != (target.suffix == ".safetensors"):
        kind = "a .safetensors file" if is_file else "a directory"
        raise CheckpointError(f"{target}: expects {kind}, as the source is one")
    if is_file and limit is not None:
        raise CheckpointError(f"{files.path}: is one file, which is not cut into several")


def described(
    plan: Plan, target: Path, layouts: tuple[str, str], layers: int, is_configured: bool, is_dry_run: bool
) -> Conversion:
    """What is about to be done, from one layout to another."""
    return Conversion(
        source=plan.source.path,
        target=target,
        source_layout=layouts[0],
        target_layout=layouts[1],
        layers=layers,
        files=tuple(file.name for file in plan.files),
        nbytes=plan.nbytes,
        other_files=tuple(str(path) for path in plan.others),
        is_configured=is_configured,
        warnings=tuple(plan.warnings),
        seconds=0.0,
        is_dry_run=is_dry_run,
    )


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        if usable.type == "meta":
            raise RuntimeError("it holds no values")
        torch.empty(1, device=usable)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]})") from None
    return usable


def require_apart(source: Path, target: Path) -> None:
    """Raises CheckpointError for a target that is the source, or that lies in it, or it in that."""
    try:
        one, other = source.resolve(), target.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(str(error)) from None
    if one == other:
        raise CheckpointError(f"{target}: the target is the source; write beside it")
    if one in other.parents or other in one.parents:
        raise CheckpointError(f"{target}: the target and the source {source} lie inside each other")


def _require_sources_elsewhere(plan: Plan, target: Path) -> None:
    """Links may lead from a source into the target, which would replace what they lead to."""
    files = plan.source
    for path in [Path(name) for name in files.shards] + plan.others:
        if target.resolve() in (files.root / path).resolve().parents:
            raise CheckpointError(f"{target}: {files.root / path} is a link into it")


def _size_of(source: Path, others: list[Path]) -> int:
    total = 0
    for path in others:
        try:
            total += (source / path).stat().st_size
        except OSError as error:
            raise CheckpointError(f"{source / path}: cannot be read ({error.strerror})") from None
    return total

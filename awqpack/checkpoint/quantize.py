"""Quantization of a checkpoint in floats, rounded to the nearest: planned and carried out as a conversion is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..layouts import LAYOUTS
from ..ops.floats import FORMULAS
from .convert import Conversion, described, limit_of, require_apart, scale_dtype_of, staged, write_plan
from .errors import CheckpointError
from .from_floats import FloatCheckpoint, from_floats
from .hub import located, plain_path
from .plan import make_plan
from .progress import Progress
from .team import Team


@dataclass(frozen=True)
class Quantization(Conversion):
    """What `quantize` did, or would do.

    Attributes:
        quantized: the linear layers.
        kept: linears that keep their floats, each with the reason.
    """

    quantized: tuple[str, ...]
    kept: dict[str, str]


def quantize(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    group_size: int = 128,
    symmetric: bool = False,
    formula: str | None = None,
    ignore: Sequence[str] = (),
    include: Sequence[str] = (),
    scale_dtype: str | torch.dtype | None = None,
    max_shard_size: str | int | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Quantization:
    """Rounds every linear weight of a checkpoint in floats to the nearest 4-bit codes, and writes it in a layout.

    The scales are those of awqpack.min_max_scales: they come from each group's least and largest weight alone. None is
    searched, as AWQ and GPTQ search them with data, and so a model is less exact than theirs. ``gptq`` stores each zero
    minus one and so has no zero of 0: groups that would have it, with next to no negative weights, get the zero 1 and
    the scale ``max / 14``.

    Args:
        source: a directory with safetensors files and config.json, or one safetensors file.
        target: a directory, or a safetensors file, as the source is.
        to: the layout to write: a name in ``awqpack.layouts.LAYOUTS``.
        group_size: columns that share a scale; -1 is all of a row.
        symmetric: every zero is 8.
        formula: of scales and zeros, one of awqpack.min_max_scales; without it that which the layout's own tools use:
            asymmetric, or absmax/7 if symmetric; of compressed-tensors asymmetric/zero and absmax/7.5.
        ignore: modules that keep their floats, by name, by a run of whole parts of it, or by a pattern behind ``re:``.
        include: likewise modules to quantize that would be kept: the head, routers and gates, what is outside of the
            numbered blocks, what sees or hears.
        scale_dtype: float16, bfloat16 or float32; that of the weights without it, and float16 for float32.
        max_shard_size: bytes, or "5GB"; without it the target has the source's files, one for one.
        dry_run: check everything that needs no weights, write nothing.
        force: replace a target that exists.
        resume, progress, team: as in ``convert``.

    Raises:
        CheckpointError: in one line, what about the source or the target is not as it should be; nothing is written.
    """
    team = team or Team()
    options = {
        "to": to,
        "group_size": group_size,
        "symmetric": symmetric,
        "formula": formula,
        "ignore": list(ignore),
        "include": list(include),
        "scale_dtype": scale_dtype,
    }
    with team.together():
        if to not in LAYOUTS:
            raise CheckpointError(f"to expects one of {', '.join(LAYOUTS)}; got {to!r}")
        if type(group_size) is not int or (group_size < 1 and group_size != -1):
            raise CheckpointError(f"group_size expects a positive number, or -1 for a whole row; got {group_size!r}")
        if formula is not None and (symmetric or formula not in FORMULAS):
            raise CheckpointError(f"formula expects one of {', '.join(FORMULAS)}, without symmetric; got {formula!r}")
        chosen = formula or LAYOUTS[to].formulas[symmetric]
        given = plain_path(target)
        limit = None if max_shard_size is None else limit_of(max_shard_size)
        scales = None if scale_dtype is None else scale_dtype_of(scale_dtype)
        require_apart(located(source), given)
        with FloatCheckpoint(source) as checkpoint:
            staging, run = staged(checkpoint, given, limit, options, force=force, resume=resume, team=team)
            work, kept = from_floats(
                checkpoint,
                LAYOUTS[to],
                group_size,
                formula=chosen,
                scale_dtype=scales,
                ignore=ignore,
                include=include,
            )
            plan = make_plan(checkpoint.files, work, limit)
            quantized = tuple(name for job in work.jobs for name in job.layers())
            is_configured = not checkpoint.files.is_file
            planned = described(plan, given, ("floats", to), len(quantized), is_configured, dry_run)
            done = Quantization(**vars(planned), quantized=quantized, kept=kept)
            return write_plan(plan, staging, done, progress, run)

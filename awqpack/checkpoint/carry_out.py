"""Carrying out a plan: every tensor and file of it written into a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..layouts import LayoutError
from .errors import CheckpointError
from .files import copy_entry
from .plan import Plan
from .workers import Buffers, run_all
from .writer import Writer


def carry_out(
    plan: Plan,
    content: Path,
    on_bytes: Callable[[int], None],
    on_file: Callable[[str], None],
) -> None:
    """Writes what a plan says.

    Args:
        plan: what to write.
        content: a directory that is there, or the file to make, as the plan's source is.
        on_bytes, on_file: as in :class:`Writer`.
    """
    is_file = plan.source.is_file
    folder = content.parent if is_file else content
    for path in plan.others:
        copy_entry(plan.source.path, path, content / path)
    _write_tensors(plan, folder, on_bytes, on_file)
    if is_file:
        (folder / plan.files[0].name).rename(content)
        return
    texts = {name: text for name, text in plan.work.texts.items() if text is not None}
    index = plan.index()
    for name, text in {**texts, **({} if index is None else dict([index]))}.items():
        (content / name).write_text(text, encoding="utf-8")


def _write_tensors(
    plan: Plan,
    folder: Path,
    on_bytes: Callable[[int], None],
    on_file: Callable[[str], None],
) -> None:
    buffers = Buffers()
    with Writer(folder, plan.files, on_bytes, on_file) as writer:
        tasks: dict[str, list[Callable[[], None]]] = {file.name: [] for file in plan.files}
        sink = _Files(plan, writer)
        for job in plan.work.jobs:
            tasks[plan.where[next(iter(job.outputs))].name].append(partial(job.write, sink, buffers))
        for name in plan.work.copies:
            tasks[plan.where[name].name].append(partial(sink.copy, name, name))
        try:
            run_all(tasks)
        except (LayoutError, CheckpointError) as error:
            plan.source.require_unchanged()  # or else that is the reason
            raise CheckpointError(str(error)) from None
    plan.source.require_unchanged()


class _Files:
    """The files of a plan, as jobs write into them."""

    def __init__(self, plan: Plan, writer: Writer) -> None:
        self._plan = plan
        self._writer = writer

    def write(self, name: str, tensor: torch.Tensor, begin: int = 0) -> None:
        self._writer.write(self._plan.where[name], name, tensor, begin)

    def copy(self, name: str, tensor: str) -> None:
        self._writer.copy(self._plan.where[name], name, self._plan.source.shard(tensor), tensor)

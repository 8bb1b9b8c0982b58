"""Carrying out a plan: tensor files of it, and the files beside them, written into a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import torch

from ..layouts import LayoutError
from .errors import CheckpointError
from .files import copy_entry
from .plan import OutputFile, Plan
from .workers import Buffers, run_all
from .writer import Writer


def write_tensors(
    plan: Plan,
    folder: Path,
    files: Sequence[OutputFile],
    on_bytes: Callable[[int], None],
    on_file: Callable[[str], None],
) -> None:
    """Writes some of the tensor files of a plan.

    Args:
        plan: what to write.
        folder: where; it is there, and those files are not.
        files: which of them.
        on_bytes, on_file: as in :class:`Writer`.
    """
    buffers = Buffers()
    with Writer(folder, files, on_bytes, on_file) as writer:
        tasks: dict[str, list[Callable[[], None]]] = {file.name: [] for file in files}
        sink = _Files(plan, writer, tasks.keys())
        for job in plan.work.jobs:
            wanted = next(filter(sink.wants, job.outputs), None)
            if wanted is not None:
                tasks[plan.where[wanted].name].append(partial(job.write, sink, buffers))
        for name in filter(sink.wants, plan.work.copies):
            tasks[plan.where[name].name].append(partial(sink.copy, name, name))
        try:
            run_all(tasks)
        except (LayoutError, CheckpointError) as error:
            plan.source.require_unchanged()  # or else that is the reason
            if isinstance(error, CheckpointError):  # what another rank told stays as told
                raise
            raise CheckpointError(str(error)) from None
    plan.source.require_unchanged()


def write_others(plan: Plan, content: Path) -> None:
    """Writes the files beside the tensors: those that are copied, the configuration and the index."""
    for path in plan.others:
        copy_entry(plan.source.path, path, content / path)
    texts = {name: text for name, text in plan.work.texts.items() if text is not None}
    index = plan.index()
    for name, text in {**texts, **({} if index is None else dict([index]))}.items():
        (content / name).write_text(text, encoding="utf-8")


class _Files:
    """Some files of a plan, as jobs write into them; what belongs into others is left out."""

    def __init__(self, plan: Plan, writer: Writer, names: Collection[str]) -> None:
        self._plan = plan
        self._writer = writer
        self._names = names

    def wants(self, name: str) -> bool:
        return self._plan.where[name].name in self._names

    def write(self, name: str, tensor: torch.Tensor, begin: int = 0) -> None:
        if self.wants(name):
            self._writer.write(self._plan.where[name], name, tensor, begin)

    def copy(self, name: str, tensor: str, begin: int = 0) -> None:
        if self.wants(name):
            self._writer.copy(self._plan.where[name], name, self._plan.source.shard(tensor), tensor, begin)

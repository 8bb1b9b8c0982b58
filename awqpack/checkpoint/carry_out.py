"""Carrying out a plan: every tensor and file of it written into a folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ..layouts import LayoutError
from .errors import CheckpointError
from .files import copy_entry
from .layers import SourceLayer
from .plan import Plan
from .reading import relayout_read
from .workers import Buffers, run_all
from .writer import Writer


def carry_out(
    plan: Plan,
    content: Path,
    device: torch.device,
    on_bytes: Callable[[int], None],
    on_file: Callable[[str], None],
) -> None:
    """Writes what a plan says.

    Args:
        plan: what to write.
        content: a directory that is there, or the file to make, as the plan's source is.
        device: where weights are repacked.
        on_bytes, on_file: as in :class:`Writer`.
    """
    is_file = plan.source.files.is_file
    folder = content.parent if is_file else content
    for path in plan.others:
        copy_entry(plan.source.path, path, content / path)
    _write_tensors(plan, folder, device, on_bytes, on_file)
    if is_file:
        (folder / plan.files[0].name).rename(content)
        return
    texts = {name: text for name, text in plan.configs().items() if text is not None}
    index = plan.index()
    for name, text in {**texts, **({} if index is None else dict([index]))}.items():
        (content / name).write_text(text, encoding="utf-8")


def _write_tensors(
    plan: Plan,
    folder: Path,
    device: torch.device,
    on_bytes: Callable[[int], None],
    on_file: Callable[[str], None],
) -> None:
    buffers = Buffers()
    with Writer(folder, plan.files, on_bytes, on_file) as writer:
        tasks: dict[str, list[Callable[[], None]]] = {file.name: [] for file in plan.files}
        for layer, names in plan.layers:
            file = plan.where[names[plan.target.names["weight"]]]
            tasks[file.name].append(partial(_write_layer, plan, layer, names, device, writer, buffers))
        for name, tensor in plan.copies.items():
            file = plan.where[name]
            tasks[file.name].append(partial(writer.copy, file, name, plan.source.files.shard(tensor), tensor))
        try:
            run_all(tasks)
        except (LayoutError, CheckpointError) as error:
            plan.source.files.require_unchanged()  # or else that is the reason
            raise CheckpointError(str(error)) from None
    plan.source.files.require_unchanged()


def _write_layer(
    plan: Plan, layer: SourceLayer, outputs: dict[str, str], device: torch.device, writer: Writer, buffers: Buffers
) -> None:
    source, target = plan.source, plan.target
    name = outputs[target.names["weight"]]
    if layer.layout.weight == target.weight:
        writer.copy(plan.where[name], name, source.files.shard(layer.weight), layer.weight)
    else:
        done = 0
        for run in relayout_read(source, layer, target.weight, buffers, device):
            writer.write(plan.where[name], name, run, done)
            done += run.nbytes
    scales, zeros = source.scales_and_zeros(layer)
    scales = scales if plan.scale_dtype is None else scales.to(plan.scale_dtype)
    order = layer.layout.decode_order(layer.geometry, source.side_tensors(layer))
    side = target.encode_side(layer.geometry, scales, zeros) | target.encode_order(layer.geometry, order, scales.device)
    for suffix, value in side.items():
        if suffix in outputs:
            name = outputs[suffix]
            writer.write(plan.where[name], name, value)

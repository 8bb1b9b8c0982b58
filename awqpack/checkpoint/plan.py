"""What a conversion writes: every output file and tensor, and where each comes from, before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .config_files import CONFIG_FILE
from .errors import CheckpointError
from .files import is_pointer, other_entries
from .index import rewritten_index
from .shard import DTYPE_NAMES, Entry, arranged, header_bytes
from .tensor_files import TensorFiles, holds_layers
from .work import Work

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass
class OutputFile:
    """A safetensors file to write; entries count from the end of the header."""

    name: str
    entries: dict[str, Entry]
    header: bytes

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(entry.nbytes for entry in self.entries.values())


@dataclass
class Plan:
    """A conversion, ready to be carried out.

    Attributes:
        source: the files to read.
        work: what to do.
        files: to write, in the order of the source's.
        where: output tensor -> its file.
        others: what of the source directory is copied as it is, relative to it.
        warnings: what its readers may stumble over, a sentence each.
    """

    source: TensorFiles
    work: Work
    files: list[OutputFile] = field(default_factory=list)
    where: dict[str, OutputFile] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    def index(self) -> tuple[str, str] | None:
        """Name and text of the index; None for a checkpoint of one file that had none."""
        files = self.source
        listed = [file for file in self.files if file.name not in files.side]
        names = [file.name for file in listed]
        if files.is_file or (len(names) == 1 and (files.index is None or names[0] not in files.shards)):
            return None
        if files.index is None and [name for name in files.shards if name not in files.side] == names:
            return None
        entries = {tensor: (file.name, entry.nbytes) for file in listed for tensor, entry in file.entries.items()}
        where = {tensor: name for tensor, (name, _) in entries.items()}
        return rewritten_index(files.index, where, sum(nbytes for _, nbytes in entries.values()))


def parse_size(text: str | int) -> int:
    """Bytes of "5GB", "500MB", "2GiB" or a number. Raises ValueError."""
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError(f'expects a size such as "5GB" or "500MB"; got {text!r}')
        size = min(int(min(float(match[1]), 1e15) * _UNITS[match[2].upper()]), 1 << 62)
    if size < 1:
        raise ValueError(f"expects at least one byte; got {text!r}")
    return size


def make_plan(source: TensorFiles, work: Work, max_shard_size: int | None = None) -> Plan:
    """Lays out a conversion in files.

    Args:
        source: the files to read.
        work: what to do.
        max_shard_size: bytes; None keeps the source's files, one for one.

    Raises:
        CheckpointError: names of tensors or files meet, or layers would stay behind.
    """
    plan = Plan(source, work)
    specs: dict[str, tuple[str, tuple[int, ...], int]] = {}
    homes: dict[str, str] = {}  # output tensor -> the source file it comes from
    for tensor in work.copies:
        entry = source.entry(tensor)
        specs[tensor] = (entry.dtype, entry.shape, entry.nbytes)
        homes[tensor] = source.where[tensor]
    for job in work.jobs:
        for name, (spec, home) in job.outputs.items():
            if name in specs:
                raise CheckpointError(f"{source.path}: {name} is there already, beside {job.name}'s own tensors")
            specs[name] = (DTYPE_NAMES[spec.dtype], spec.shape, spec.nbytes)
            homes[name] = source.where[home]
    _arrange(plan, specs, homes, max_shard_size)
    if not source.is_file:
        plan.others = _other_files(plan)
    plan.warnings = work.warnings + [
        f"{source.path / path} is a Git LFS pointer, which is copied as it is: git lfs pull gets the file"
        for path in plan.others
        if not (source.path / path).is_dir() and is_pointer(source.path / path)
    ]
    return plan


def _other_files(plan: Plan) -> list[Path]:
    """Raises CheckpointError for layers in a folder below, which would stay in the old layout."""
    files = plan.source
    others = other_entries(files.path, [*files.names, *plan.work.texts])
    for path in others if plan.work.leaves_layout else []:
        # a folder with a configuration of its own is another checkpoint
        has_own_config = (files.path / path.parent / CONFIG_FILE).is_file() and path.parent != Path()
        if path.suffix == ".safetensors" and not has_own_config and holds_layers(files.path / path):
            raise CheckpointError(f"{files.path}: {path} holds quantized layers too, and would stay as it is")
    return others


def _arrange(
    plan: Plan,
    specs: dict[str, tuple[str, tuple[int, ...], int]],
    homes: dict[str, str],
    max_shard_size: int | None,
) -> None:
    shards = plan.source.shards
    by_file: dict[str, list[str]] = {name: [] for name in shards}
    if max_shard_size is None:
        for tensor, home in homes.items():
            by_file[home].append(tensor)
        metadata = {name: shard.metadata for name, shard in shards.items()}
    else:
        by_file = _resharded(plan, specs, max_shard_size)
        metadata = dict.fromkeys(by_file, plan.source.metadata)
        for name in plan.source.side:
            by_file[name] = [tensor for tensor, home in homes.items() if home == name]
            metadata[name] = shards[name].metadata
        kept = {path.name for path in plan.source.path.iterdir()} - shards.keys()
        clash = sorted(kept & by_file.keys())
        if clash:
            raise CheckpointError(
                f"{plan.source.path}: has a file {clash[0]} that is no part of it, and would be replaced"
            )
    for name, tensors in by_file.items():
        entries = arranged({tensor: specs[tensor] for tensor in tensors})
        file = OutputFile(name, entries, header_bytes(entries, metadata[name]))
        plan.files.append(file)
        plan.where |= dict.fromkeys(entries, file)


def _resharded(plan: Plan, specs: dict[str, tuple[str, tuple[int, ...], int]], limit: int) -> dict[str, list[str]]:
    """Files of at most `limit` bytes of tensors, in the source's order; a layer stays together, and is never cut."""
    of_tensor = {tensor: [[tensor]] for tensor in plan.work.copies}
    for job in plan.work.jobs:
        of_tensor.setdefault(job.weight, []).append(list(job.outputs))
    shards: list[list[str]] = [[]]
    room = limit
    for tensor, home in plan.source.where.items():
        for unit in of_tensor.get(tensor, []) if home not in plan.source.side else []:
            size = sum(specs[name][2] for name in unit)
            if size > room and shards[-1]:
                shards.append([])
                room = limit
            shards[-1] += unit
            room -= size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)}

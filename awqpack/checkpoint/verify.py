"""Whether two checkpoints hold the same model, whatever their layouts."""

from __future__ import annotations

import filecmp
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .comparison import Comparison, Difference, presence
from .config_files import CONFIG_FILE
from .errors import CheckpointError
from .files import link_text, other_entries
from .modules import named
from .progress import Progress
from .source import Checkpoint
from .workers import map_all


@dataclass(frozen=True)
class Verification:
    """What `verify` found: how much was compared, and the first difference of each thing that differs."""

    layers: int
    tensors: int
    files: int
    differences: tuple[Difference, ...]

    @property
    def is_equal(self) -> bool:
        return not self.differences


def verify(first: str | Path, second: str | Path, *, progress: Progress | None = None) -> Verification:
    """Decodes two checkpoints and compares codes, zeros, scales, biases, every other tensor, and every other file.

    Layouts, sharding, how the quantization_config spells things and the dtype of scales of equal values may differ.

    Args:
        first, second: what to compare.
        progress: told what happens.

    Raises:
        CheckpointError: one of them cannot be read, is inconsistent, or changes meanwhile.
    """
    progress = progress or Progress()
    with Checkpoint(first) as a, Checkpoint(second) as b:
        tensors = sorted({*a.plain_tensors, *b.plain_tensors})
        differences = _tensor_differences(a, b, tensors, progress)
        differences += [*_configs(a, b), *_metadata(a, b)]
        files: set[str] = set()
        if not a.files.is_file and not b.files.is_file:
            files = _other_files(a) | _other_files(b)
            differences += _files(a, b, files)
        for checkpoint in (a, b):
            checkpoint.files.require_unchanged()
        return Verification(len({*a.layers, *b.layers}), len(tensors), len(files), tuple(differences))


def _tensor_differences(a: Checkpoint, b: Checkpoint, tensors: list[str], progress: Progress) -> list[Difference]:
    """Those of layers and other tensors, compared on several threads."""
    comparison = Comparison(a, b)
    layers = dict.fromkeys([*a.layers, *b.layers])
    lock = threading.Lock()
    progress.start_comparison(sum(a.files.entry(tensor).nbytes for tensor in a.files.where))

    def compared(task: tuple[bool, str]) -> list[Difference]:
        is_layer, name = task
        found = list(comparison.layer(name) if is_layer else comparison.tensor(name))
        with lock:
            progress.advance(_bytes_of(a, is_layer, name))
        return found

    tasks = [(True, name) for name in layers] + [(False, name) for name in tensors]
    return [difference for found in map_all(compared, tasks) for difference in found]


def _bytes_of(checkpoint: Checkpoint, is_layer: bool, name: str) -> int:
    """Bytes of a layer's tensors without its bias, which is a tensor by itself, or of a tensor."""
    if is_layer:
        layer = checkpoint.layers.get(name)
        tensors = {} if layer is None else layer.tensors
        sizes = [checkpoint.files.entry(tensor).nbytes for suffix, tensor in tensors.items() if suffix != "bias"]
        return sum(sizes if layer is None else map(layer.share_of, sizes))
    return checkpoint.files.entry(name).nbytes if name in checkpoint.files.where else 0


def _metadata(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    """The strings in the files' headers."""
    for key in sorted(a.files.metadata.keys() | b.files.metadata.keys()):
        one, other = a.files.metadata.get(key), b.files.metadata.get(key)
        if one != other:
            yield Difference("the files' metadata", key, None, repr(one)[:60], repr(other)[:60])


def _configs(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    """What both configurations say in words that every layout has."""
    if a.config is None or b.config is None:
        if a.config is not b.config:
            yield presence("the quantization_config", a.config is not None)
        return
    one, other = named(a), named(b)
    if one is not None and other is not None and not _is_same_choice(a, one, b, other):
        shown = [", ".join(sorted(modules)) or "nothing" for modules in (one - other, other - one)]
        yield Difference("the quantization_config", "leaves out", None, *shown)
    rest_a, rest_b = a.configs.rest(), b.configs.rest()
    for key in sorted(rest_a.keys() | rest_b.keys()):
        if rest_a.get(key) != rest_b.get(key) or (key in rest_a) != (key in rest_b):
            yield Difference(CONFIG_FILE, key, None, repr(rest_a.get(key))[:60], repr(rest_b.get(key))[:60])


def _is_same_choice(a: Checkpoint, one: set[str], b: Checkpoint, other: set[str]) -> bool:
    """Whether configurations leave out the same linears. What one of AWQ leaves unsaid, its readers find."""
    if a.layout.ignores_by_name == b.layout.ignores_by_name:
        return one == other
    return one <= other if b.layout.ignores_by_name else other <= one


def _other_files(checkpoint: Checkpoint) -> set[str]:
    entries = other_entries(checkpoint.path, [*checkpoint.files.names, *checkpoint.configs.files])
    plain = [path for path in entries if not (checkpoint.path / path).is_dir() or (checkpoint.path / path).is_symlink()]
    return set(map(str, plain))


def _kind(root: Path, name: str) -> str:
    if not (root / name).is_dir():
        return "a file"
    return f"a link to {link_text(root, Path(name))}" if (root / name).is_symlink() else "a directory"


def _files(a: Checkpoint, b: Checkpoint, names: set[str]) -> Iterator[Difference]:
    for name in sorted(names):
        one, other = a.path / name, b.path / name
        if os.path.lexists(one) != os.path.lexists(other):
            yield presence(name, os.path.lexists(one))
            continue
        if one.is_dir() or other.is_dir():
            kinds = [_kind(root, name) for root in (a.path, b.path)]
            if kinds[0] != kinds[1]:
                yield Difference(name, "kind", None, kinds[0], kinds[1])
            continue
        try:
            is_same = filecmp.cmp(one, other, shallow=False)
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from None
        if not is_same:
            yield Difference(name, "contents", None, f"{one.stat().st_size} bytes", f"{other.stat().st_size} bytes")

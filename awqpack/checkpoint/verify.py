"""Whether two checkpoints hold the same model, whatever their layouts."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .config_files import CONFIG_FILE
from .errors import CheckpointError
from .files import link_text, other_entries
from .modules import named
from .source import Checkpoint


@dataclass(frozen=True)
class Difference:
    """Where two checkpoints differ first in one thing.

    Attributes:
        what: a layer, tensor or file.
        part: codes, zeros, scales, bias, values, dtype, shape, presence, ...
        index: of the first value that differs; None where that makes no sense.
        first, second: what each checkpoint has there.
    """

    what: str
    part: str
    index: tuple[int, ...] | None
    first: str
    second: str

    def __str__(self) -> str:
        if self.part == "presence":
            return f"{self.what}: only the {'first' if self.first == 'there' else 'second'} has it"
        where = "" if self.index is None else f"[{', '.join(map(str, self.index))}]"
        return f"{self.what}: {self.part}{where} {self.first} and {self.second}"


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


def verify(first: str | Path, second: str | Path) -> Verification:
    """Decodes two checkpoints and compares codes, zeros, scales, biases, every other tensor, and every other file.

    Layouts, sharding and the quantization_config may differ, but for what they say about groups and zeros.

    Raises:
        CheckpointError: one of them cannot be read, or is inconsistent.
    """
    with Checkpoint(first) as a, Checkpoint(second) as b:
        differences = [*_layers(a, b), *_plain_tensors(a, b), *_configs(a, b), *_metadata(a, b)]
        names = set(a.plain_tensors) | set(b.plain_tensors)
        files: set[str] = set()
        if not a.files.is_file and not b.files.is_file:
            files = _other_files(a) | _other_files(b)
            differences += _files(a, b, files)
        return Verification(len(set(a.layers) | set(b.layers)), len(names), len(files), tuple(differences))


def _presence(what: str, is_in_first: bool) -> Difference:
    return Difference(what, "presence", None, *(("there", "missing") if is_in_first else ("missing", "there")))


def _layers(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    for name in dict.fromkeys([*a.layers, *b.layers]):
        if name not in a.layers or name not in b.layers:
            yield _presence(name, name in a.layers)
            continue
        if a.layers[name].geometry != b.layers[name].geometry:
            one, other = a.layers[name].geometry, b.layers[name].geometry
            yield Difference(name, "geometry", None, str(tuple(one)), str(tuple(other)))
            continue
        scales_a, zeros_a = a.scales_and_zeros(a.layers[name])
        scales_b, zeros_b = b.scales_and_zeros(b.layers[name])
        yield from _codes(a, b, name)
        yield from _values(name, "zeros", zeros_a, zeros_b)
        yield from _values(name, "scales", scales_a, scales_b)
        for checkpoint in (a, b):
            for tensor in checkpoint.layers[name].tensors.values():
                checkpoint.files.release(tensor)


def _codes(a: Checkpoint, b: Checkpoint, name: str) -> Iterator[Difference]:
    layouts = a.layers[name].layout, b.layers[name].layout
    payloads = [checkpoint.files.tensor(checkpoint.layers[name].weight) for checkpoint in (a, b)]
    if layouts[0].weight == layouts[1].weight and torch.equal(*payloads):
        return
    codes = [layout.weight.unpack(payload) for layout, payload in zip(layouts, payloads, strict=True)]
    yield from _values(name, "codes", *codes)


def _values(what: str, part: str, a: torch.Tensor, b: torch.Tensor) -> Iterator[Difference]:
    """At most one difference; values are compared bit for bit, so that NaN equals itself and -0 is not 0."""
    for kind, one, other in (("dtype", a.dtype, b.dtype), ("shape", tuple(a.shape), tuple(b.shape))):
        if one != other:
            yield Difference(what, f"{part} {kind}", None, str(one), str(other))
            return
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    x, y = a.view(bits), b.view(bits)
    if not torch.equal(x, y):
        index = _first_difference(x, y)
        yield Difference(what, part, index, _shown(a[index]), _shown(b[index]))


def _first_difference(x: torch.Tensor, y: torch.Tensor) -> tuple[int, ...]:
    """In row-major order; without a list of all of them."""
    index: list[int] = []
    while x.dim() > 0:
        differs = (x != y).flatten(1).any(1) if x.dim() > 1 else x != y
        index.append(int(differs.to(torch.uint8).argmax()))
        x, y = x[index[-1]], y[index[-1]]
    return tuple(index)


def _shown(value: torch.Tensor) -> str:
    return repr(value.item())


def _plain_tensors(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    in_a, in_b = set(a.plain_tensors), set(b.plain_tensors)
    for name in sorted(in_a | in_b):
        if name not in in_a or name not in in_b:
            yield _presence(name, name in in_a)
            continue
        one, other = a.files.entry(name), b.files.entry(name)
        for part, x, y in (("dtype", one.dtype, other.dtype), ("shape", one.shape, other.shape)):
            if x != y:
                yield Difference(name, part, None, str(x), str(y))
                break
        else:
            bytes_a, bytes_b = a.files.shard(name).bytes_of(name), b.files.shard(name).bytes_of(name)
            if not torch.equal(bytes_a, bytes_b):
                yield from _tensor_values(name, a, b)
            a.files.release(name)
            b.files.release(name)


def _tensor_values(name: str, a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    try:
        yield from _values(name, "values", a.files.tensor(name), b.files.tensor(name))
    except KeyError:  # a dtype that torch tensors are not made of here: by its bytes
        bytes_a, bytes_b = a.files.shard(name).bytes_of(name), b.files.shard(name).bytes_of(name)
        yield from _values(name, "bytes", bytes_a, bytes_b)


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
            yield _presence("the quantization_config", a.config is not None)
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
    own = {*checkpoint.files.shards, *checkpoint.configs.files}
    if checkpoint.files.index is not None:
        own.add(checkpoint.files.index.path.name)
    entries = other_entries(checkpoint.path, own)
    return {str(path) for path in entries if not _is_plain_directory(checkpoint.path / path)}


def _is_plain_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _kind(root: Path, name: str) -> str:
    if not (root / name).is_dir():
        return "a file"
    return f"a link to {link_text(root, Path(name))}" if (root / name).is_symlink() else "a directory"


def _files(a: Checkpoint, b: Checkpoint, names: set[str]) -> Iterator[Difference]:
    for name in sorted(names):
        one, other = a.path / name, b.path / name
        if os.path.lexists(one) != os.path.lexists(other):
            yield _presence(name, os.path.lexists(one))
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

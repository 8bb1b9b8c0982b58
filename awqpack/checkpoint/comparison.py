"""Layers and tensors of two checkpoints compared, without the values of more than a chunk in memory where that goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..layouts.weight import bytes_for
from .reading import relayout_read
from .shard import TORCH_DTYPES, Shard
from .source import Checkpoint
from .workers import Buffers

_CHUNK_BYTES = 1 << 20


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


def presence(what: str, is_in_first: bool) -> Difference:
    """Something that one of the two lacks."""
    return Difference(what, "presence", None, *(("there", "missing") if is_in_first else ("missing", "there")))


class Comparison:
    """Two checkpoints, and what differs between them. Any number of threads may ask at once."""

    def __init__(self, a: Checkpoint, b: Checkpoint) -> None:
        self._a = a
        self._b = b
        self._buffers = Buffers()

    def layer(self, name: str) -> Iterator[Difference]:
        """The first difference of each part of a quantized layer but its bias."""
        a, b = self._a, self._b
        if name not in a.layers or name not in b.layers:
            yield presence(name, name in a.layers)
            return
        one, other = a.layers[name].geometry, b.layers[name].geometry
        if one != other:
            yield Difference(name, "geometry", None, str(tuple(one)), str(tuple(other)))
            return
        if not (a.layers[name].layout.weight.is_linear and b.layers[name].layout.weight.is_linear):
            yield from self._stored(name)
            return
        scales_a, zeros_a = a.scales_and_zeros(a.layers[name])
        scales_b, zeros_b = b.scales_and_zeros(b.layers[name])
        if not self._has_same_codes(name):
            codes = [checkpoint.codes(checkpoint.layers[name]) for checkpoint in (a, b)]
            yield from _values(name, "codes", *codes)
        yield from _values(name, "zeros", zeros_a, zeros_b)
        if scales_a.dtype != scales_b.dtype:  # as a conversion may be asked to write them
            scales_a, scales_b = scales_a.float(), scales_b.float()
        yield from _values(name, "scales", scales_a, scales_b)

    def _stored(self, name: str) -> Iterator[Difference]:
        """Of a layer of 4-bit floats, which equals one that is stored the same way alone: its tensors as they are."""
        one, other = self._a.layers[name], self._b.layers[name]
        if one.layout is not other.layout:
            yield Difference(name, "layout", None, one.layout.name, other.layout.name)
            return
        for suffix in dict.fromkeys([*one.tensors, *other.tensors]):
            if suffix == "bias":
                continue
            if suffix not in one.tensors or suffix not in other.tensors:
                yield presence(f"{name}.{suffix}", suffix in one.tensors)
                continue
            tensors = [c.files.tensor(layer.tensors[suffix]) for c, layer in ((self._a, one), (self._b, other))]
            yield from _values(name, suffix, *tensors)

    def _has_same_codes(self, name: str) -> bool:
        one, other = self._a.layers[name], self._b.layers[name]
        take, row = bytes_for(self._buffers.take, "other"), 0
        for run in relayout_read(self._a, one, other.layout.weight, self._buffers):
            if not torch.equal(run, self._b.weight_rows(other, row, row + len(run), take)):
                return False
            row += len(run)
        return True

    def _has_same_bytes(self, first: Shard, name: str, second: Shard, other: str) -> bool:
        nbytes = first.entries[name].nbytes
        take, take_other = (bytes_for(self._buffers.take, purpose) for purpose in ("one", "other"))
        for begin in range(0, nbytes, _CHUNK_BYTES):
            end = min(begin + _CHUNK_BYTES, nbytes)
            one = first.bytes_of(name, begin, end, take)
            if not torch.equal(one, second.bytes_of(other, begin, end, take_other)):
                return False
        return True

    def tensor(self, name: str) -> Iterator[Difference]:
        """The first difference of a tensor that is no part of a layer, or is its bias."""
        a, b = self._a, self._b
        has = [name in checkpoint.files.where and name in checkpoint.plain_tensors for checkpoint in (a, b)]
        if not all(has):
            yield presence(name, has[0])
            return
        one, other = a.files.entry(name), b.files.entry(name)
        for part, x, y in (("dtype", one.dtype, other.dtype), ("shape", one.shape, other.shape)):
            if x != y:
                yield Difference(name, part, None, str(x), str(y))
                return
        shards = a.files.shard(name), b.files.shard(name)
        if self._has_same_bytes(shards[0], name, shards[1], name):
            return
        if one.dtype in TORCH_DTYPES:
            yield from _values(name, "values", *(shard.tensor(name) for shard in shards))
        else:
            yield from _values(name, "bytes", *(shard.bytes_of(name, 0, one.nbytes) for shard in shards))


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
        yield Difference(what, part, index, repr(a[index].item()), repr(b[index].item()))


def _first_difference(x: torch.Tensor, y: torch.Tensor) -> tuple[int, ...]:
    """In row-major order; without a list of all of them."""
    index: list[int] = []
    while x.dim() > 0:
        differs = (x != y).flatten(1).any(1) if x.dim() > 1 else x != y
        index.append(int(differs.to(torch.uint8).argmax()))
        x, y = x[index[-1]], y[index[-1]]
    return tuple(index)

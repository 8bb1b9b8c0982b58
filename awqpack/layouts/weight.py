"""How a layout stores the codes of a weight, and the way from one to another that never holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .. import functional
from ..formats import Format, format_of
from ..packing import AWQPacking

# Codes between the two layouts, at a time: they stay in the last-level cache, which a whole weight would not, nor would
# as many codes as the kernels stream past it (4 Mi).
_CHUNK_CODES = 3 << 20


@dataclass(frozen=True)
class WeightFormat:
    """A payload of the codes W ``(N, K)``, or of their transpose."""

    packing: AWQPacking
    reorder: bool = False
    is_transposed: bool = False

    @property
    def format(self) -> Format:
        return format_of(self.packing.value, self.reorder)

    @property
    def dtype(self) -> torch.dtype:
        return self.format.dtype

    def shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of the payload of ``(out_features, in_features)`` codes."""
        return self.format.payload_shape(*self._turned((out_features, in_features)))

    def features(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """``(out_features, in_features)`` of a payload of this shape."""
        return self._turned(self.format.codes_shape(shape[0], shape[1]))

    def unit(self) -> tuple[int, int]:
        """What out_features and in_features must be multiples of."""
        return self._turned((self.format.rows, self.format.cols))

    def _turned(self, pair: tuple[int, int]) -> tuple[int, int]:
        """Out- and in_features as the payload's rows and columns of codes, and back."""
        return pair[::-1] if self.is_transposed else pair

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """The payload of codes ``(N, K)``."""
        return functional.pack(codes.t() if self.is_transposed else codes, self.packing, self.reorder)

    def unpack(self, payload: torch.Tensor) -> torch.Tensor:
        """The codes ``(N, K)``; of a transposed payload as a transposed view."""
        codes = functional.unpack(payload, self.packing, self.reorder)
        return codes.t() if self.is_transposed else codes

    def _rows(self, payload: torch.Tensor, along_k: bool, begin: int, end: int) -> torch.Tensor:
        """The part of a payload that holds in_features (along_k) or out_features begin..end."""
        return self.format.part(payload, int(along_k != self.is_transposed), begin, end)


Take = Callable[[torch.dtype, tuple[int, int]], torch.Tensor]


def relayout(
    payload: torch.Tensor,
    source: WeightFormat,
    target: WeightFormat,
    out: torch.Tensor | None = None,
    take: Take | None = None,
) -> torch.Tensor:
    """The payload in another format.

    Args:
        payload: of ``source``'s dtype and shape.
        source, target: the two formats.
        out: where to write, of ``target``'s dtype and shape; it saves the page faults of fresh memory.
        take: memory of a dtype and shape for the codes on the way, likewise.

    Returns:
        ``out``, or a new tensor on the payload's device; the payload itself when the formats are the same.
    """
    n, k = source.features(tuple(payload.shape))
    if source == target:
        return payload if out is None else out.copy_(payload)
    if out is None:
        out = torch.empty(target.shape(n, k), dtype=target.dtype, device=payload.device)
    along_k, step = _chunks(source, target, n, k)
    length, width = (k, n) if along_k else (n, k)
    if payload.is_cuda:
        step = length
    shape = (min(step, length), width)
    scratch = torch.empty(shape, dtype=torch.uint8, device=payload.device) if take is None else take(torch.uint8, shape)
    for begin in range(0, length, step):
        end = min(begin + step, length)
        chunk, codes = source._rows(payload, along_k, begin, end), scratch[: end - begin]
        _relayout_chunk(chunk, source, target, codes, along_k, target._rows(out, along_k, begin, end))
    return out


def relayout_runs(
    payload: torch.Tensor,
    source: WeightFormat,
    target: WeightFormat,
    take: Take,
) -> Iterator[torch.Tensor]:
    """The payload in another format as runs of whole rows, one after the other; the next one may overwrite the last.

    Args:
        payload: of ``source``'s dtype and shape, on the CPU.
        source, target: two different formats.
        take: memory of a dtype and shape, which may be what it gave for this dtype before. Runs of a chunk's size
            stay in the cache, from which they are written faster; a target whose rows the chunks cross is one run, of
            the whole payload.
    """
    n, k = source.features(tuple(payload.shape))
    along_k, step = _chunks(source, target, n, k)
    if along_k != target.is_transposed:
        yield relayout(payload, source, target, take(target.dtype, target.shape(n, k)), take)
        return
    length, width = (k, n) if along_k else (n, k)
    scratch = take(torch.uint8, (min(step, length), width))
    for begin in range(0, length, step):
        end = min(begin + step, length)
        run = take(target.dtype, target.shape(n, end - begin) if along_k else target.shape(end - begin, k))
        chunk, codes = source._rows(payload, along_k, begin, end), scratch[: end - begin]
        _relayout_chunk(chunk, source, target, codes, along_k, run)
        yield run


def _chunks(source: WeightFormat, target: WeightFormat, out_features: int, in_features: int) -> tuple[bool, int]:
    """Whether chunks of codes are runs of in_features, and how many: what a transposed payload holds of one is then
    one run of memory."""
    along_k = source.is_transposed or target.is_transposed
    unit = max(format.unit()[along_k] for format in (source, target))
    return along_k, max(_CHUNK_CODES // max(out_features if along_k else in_features, 1) // unit * unit, unit)


def _relayout_chunk(
    payload: torch.Tensor,
    source: WeightFormat,
    target: WeightFormat,
    scratch: torch.Tensor,
    along_k: bool,
    out: torch.Tensor,
) -> None:
    """Part of a payload. The scratch's codes are contiguous on the side whose rows the chunk follows."""
    codes = scratch.t() if along_k else scratch
    functional.unpack(payload, source.packing, source.reorder, out=codes.t() if source.is_transposed else codes)
    functional.pack(
        codes.t() if target.is_transposed else codes,
        target.packing,
        target.reorder,
        validate=False,  # codes that were unpacked are below 16
        out=out,
    )

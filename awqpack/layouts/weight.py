"""How a layout stores the codes of a weight, and the way from one to another that never holds all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import floats, functional
from ..formats import Format, format_of
from ..ops import checks
from ..packing import AWQPacking

# Codes between the two layouts, at a time: they stay in the last-level cache, which a whole weight would not, nor would
# as many codes as the kernels stream past it (4 Mi).
_CHUNK_CODES = 3 << 20
# Chunks are a multiple of what the kernels take at a time: they walk the rest a code at a time, at ten times the cost.
_KERNEL_CODES = 64
# Runs of rows whose words cross what is stored are a multiple of what the kernels take, and no fewer than so many: less
# than 256 bytes of each stored row at a time cost up to twice the time.
_CROSSED_STEP, _CROSSED_LEAST = 128, 512


class WeightFormat(ABC):
    """One way to store codes W ``(N, K)``. N and K are out_features and in_features."""

    is_linear: ClassVar[bool] = True  # a weight is (code - zero) * scale; otherwise codes stand for values of their own

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the tensor that is stored."""

    @property
    @abstractmethod
    def runs_along_k(self) -> bool:
        """Whether the first dimension of what is stored counts in_features."""

    @abstractmethod
    def shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of what is stored of ``(out_features, in_features)`` codes."""

    @abstractmethod
    def features(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """``(out_features, in_features)`` of a stored tensor of this shape."""

    @abstractmethod
    def unit(self) -> tuple[int, int]:
        """What out_features and in_features must be multiples of."""

    @abstractmethod
    def part(self, stored: torch.Tensor, along_k: bool, begin: int, end: int) -> torch.Tensor:
        """The part of a stored tensor that holds in_features (along_k) or out_features begin..end."""

    @abstractmethod
    def pack_into(self, codes: torch.Tensor, stored: torch.Tensor, validate: bool = True) -> None:
        """Stores codes ``(N, K)``. Raises ValueError for one above 15, unless it is told that there is none."""

    @abstractmethod
    def unpack_into(self, stored: torch.Tensor, codes: torch.Tensor) -> None:
        """Writes the codes ``(N, K)`` of a stored tensor."""

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """What is stored of codes ``(N, K)``."""
        n, k = codes.shape
        stored = torch.empty(self.shape(n, k), dtype=self.dtype, device=codes.device)
        self.pack_into(codes, stored)
        return stored

    def quantize(self, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None) -> torch.Tensor:
        """What is stored of a float weight ``(N, K)`` with scales and zeros ``(N, G)``."""
        stored = torch.empty(self.shape(*weight.shape), dtype=self.dtype, device=weight.device)
        self.quantize_into(weight, scales, zeros, stored)
        return stored

    def quantize_into(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        stored: torch.Tensor,
        validate: bool = True,
    ) -> None:
        """Stores a float weight ``(N, K)`` with scales and zeros ``(N, G)``."""
        # Turned, as every layout holds whole words of rows and some hold no whole words of columns.
        turned = (weight.t(), scales.t(), None if zeros is None else zeros.t())
        self.pack_into(functional.unpack(floats.quantize(*turned, validate=validate)).t(), stored, validate=False)

    def dequantize_into(
        self, stored: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, weight: torch.Tensor
    ) -> None:
        """Writes the float weight ``(N, K)`` of a stored tensor: ``(code - zero) * scale``, rounded once.

        Args:
            stored: of whole words of rows.
            scales, zeros: ``(N, G)``.
            weight: where to, of the dtype that is asked for.
        """
        codes = self.unpack(stored)
        payload = functional.pack(codes.t(), validate=False)
        floats.dequantize(payload, scales.t(), zeros.t(), out=weight.t())

    def largest(self, zeros: torch.Tensor) -> torch.Tensor:
        """How far from nought, in float32 and times the scale, a weight beside these zeros may be."""
        return torch.maximum(zeros, 15 - zeros).float()

    def unpack(self, stored: torch.Tensor) -> torch.Tensor:
        """The codes ``(N, K)``, of the strides that suit the stored tensor best."""
        n, k = self.features(tuple(stored.shape))
        shape = (k, n) if self.runs_along_k else (n, k)
        codes = torch.empty(shape, dtype=torch.uint8, device=stored.device)
        codes = codes.t() if self.runs_along_k else codes
        self.unpack_into(stored, codes)
        return codes


@dataclass(frozen=True)
class PackedWeight(WeightFormat):
    """A payload of the codes, or of their transpose.

    Attributes:
        packing, reorder: of the payload.
        is_transposed: the payload is of W.t().
        is_turned: what is stored is the payload, transposed.
        is_signed: a nibble holds code - 8 in two's complement, which is the code with its highest bit flipped.
        stored_as: the dtype of what is stored, where it is not the payload's but another one of its size.
    """

    packing: AWQPacking
    reorder: bool = False
    is_transposed: bool = False
    is_turned: bool = False
    is_signed: bool = False
    stored_as: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.format.dtype if self.stored_as is None else self.stored_as

    @property
    def format(self) -> Format:
        return format_of(self.packing.value, self.reorder)

    @property
    def runs_along_k(self) -> bool:
        return (self.is_transposed != self.format.runs_down) != self.is_turned

    def shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        rows, cols = _turned((out_features, in_features), self.is_transposed)
        return _turned(self.format.payload_shape(rows, cols), self.is_turned)

    def features(self, shape: tuple[int, ...]) -> tuple[int, int]:
        lines, items = _turned((shape[0], shape[1]), self.is_turned)
        return _turned(self.format.codes_shape(lines, items), self.is_transposed)

    def unit(self) -> tuple[int, int]:
        return _turned((self.format.rows, self.format.cols), self.is_transposed)

    def part(self, stored: torch.Tensor, along_k: bool, begin: int, end: int) -> torch.Tensor:
        payload = stored.t() if self.is_turned else stored
        some = self.format.part(payload, int(along_k != self.is_transposed), begin, end)
        return some.t() if self.is_turned else some

    def _payload(self, stored: torch.Tensor) -> torch.Tensor:
        payload = stored if self.stored_as is None else stored.view(self.format.dtype)
        return payload.t() if self.is_turned else payload

    def pack_into(self, codes: torch.Tensor, stored: torch.Tensor, validate: bool = True) -> None:
        payload = self._payload(stored)
        of = codes.t() if self.is_transposed else codes
        functional.pack(of, self.packing, self.reorder, validate=validate, out=payload)
        if self.is_signed:
            payload.bitwise_xor_(_SIGNS[payload.dtype])

    def quantize_into(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        stored: torch.Tensor,
        validate: bool = True,
    ) -> None:
        if self.is_transposed:
            weight, scales, zeros = weight.t(), scales.t(), None if zeros is None else zeros.t()
        payload = self._payload(stored)
        floats.quantize(weight, scales, zeros, self.packing, self.reorder, validate=validate, out=payload)
        if self.is_signed:
            payload.bitwise_xor_(_SIGNS[payload.dtype])

    def dequantize_into(
        self, stored: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, weight: torch.Tensor
    ) -> None:
        payload = self._payload(stored)
        if self.is_signed:
            payload = payload ^ _SIGNS[payload.dtype]
        if self.is_transposed:
            scales, zeros, weight = scales.t(), zeros.t(), weight.t()
        floats.dequantize(payload, scales, zeros, self.packing, self.reorder, out=weight)

    def relayout_into(self, stored: torch.Tensor, target: PackedWeight, out: torch.Tensor) -> None:
        """Writes what another payload holds of the same codes, without ever holding all of them."""
        payload, transpose = target._payload(out), self.is_transposed != target.is_transposed
        given, wanted = (self.packing, self.reorder), (target.packing, target.reorder)
        functional.relayout(self._payload(stored), given, wanted, transpose=transpose, out=payload)
        if self.is_signed != target.is_signed:
            payload.bitwise_xor_(_SIGNS[payload.dtype])

    def unpack_into(self, stored: torch.Tensor, codes: torch.Tensor) -> None:
        of = codes.t() if self.is_transposed else codes
        functional.unpack(self._payload(stored), self.packing, self.reorder, out=of)
        if self.is_signed:
            codes.bitwise_xor_(8)


_SIGNS = {torch.int32: 0x88888888 - (1 << 32), torch.int16: 0x8888 - (1 << 16)}


def _turned(pair: tuple[int, int], is_turned: bool) -> tuple[int, int]:
    return pair[::-1] if is_turned else pair


@dataclass(frozen=True)
class PairedRows(WeightFormat):
    """Two rows in a byte: uint8 ``(N/2, K)``, row 2n in the low nibble and row 2n + 1 in the high one, each code - 8 in
    two's complement."""

    dtype = torch.uint8
    runs_along_k = False

    def shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        return out_features // 2, in_features

    def features(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[0] * 2, shape[1]

    def unit(self) -> tuple[int, int]:
        return 2, 1

    def part(self, stored: torch.Tensor, along_k: bool, begin: int, end: int) -> torch.Tensor:
        return stored[:, begin:end] if along_k else stored[begin // 2 : end // 2]

    def pack_into(self, codes: torch.Tensor, stored: torch.Tensor, validate: bool = True) -> None:
        if validate:
            checks.require_codes(codes)
        torch.bitwise_left_shift(codes[1::2], 4, out=stored)
        stored.bitwise_or_(codes[::2]).bitwise_xor_(0x88)

    def unpack_into(self, stored: torch.Tensor, codes: torch.Tensor) -> None:
        torch.bitwise_and(stored, 15, out=codes[::2])
        torch.bitwise_right_shift(stored, 4, out=codes[1::2])
        codes.bitwise_xor_(8)

    # In rows where these are whole words of V1, as a byte lies along one: turned, every byte would be a step away.
    def quantize_into(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        stored: torch.Tensor,
        validate: bool = True,
    ) -> None:
        if weight.shape[1] % 8 != 0:
            super().quantize_into(weight, scales, zeros, stored, validate)
            return
        payload = floats.quantize(weight, scales, zeros, validate=validate)
        for codes, rows, pairs in _in_runs(weight):
            self.pack_into(functional.unpack(payload[rows], out=codes), stored[pairs], validate=False)

    def dequantize_into(
        self, stored: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, weight: torch.Tensor
    ) -> None:
        if weight.shape[1] % 8 != 0:
            super().dequantize_into(stored, scales, zeros, weight)
            return
        payload = torch.empty(len(weight), weight.shape[1] // 8, dtype=torch.int32, device=weight.device)
        for codes, rows, pairs in _in_runs(weight):
            self.unpack_into(stored[pairs], codes)
            functional.pack(codes, validate=False, out=payload[rows])
        floats.dequantize(payload, scales, zeros, out=weight)


def _in_runs(weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, slice, slice]]:
    """Memory for the codes of a run of a weight's rows, those rows, and the pairs of them."""
    rows, cols = weight.shape
    step = max(_CHUNK_CODES // max(cols, 1) // 2 * 2, 2) if weight.device.type == "cpu" else max(rows, 1)
    memory = torch.empty(min(step, rows), cols, dtype=torch.uint8, device=weight.device)
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        yield memory[: end - begin], slice(begin, end), slice(begin // 2, end // 2)


# Gives memory for a purpose: "rows" and "stored" of a chunk, its "codes", and the "whole" of a weight on either side.
Take = Callable[[str, torch.dtype, tuple[int, int]], torch.Tensor]
TakeBytes = Callable[[int], torch.Tensor]  # gives uint8 memory of that many bytes, to be overwritten
Rows = Callable[[int, int, TakeBytes], torch.Tensor]  # reads rows begin..end of a tensor into such memory


def bytes_for(take: Take, purpose: str) -> TakeBytes:
    """Memory for a purpose, by bytes."""
    return lambda count: take(purpose, torch.uint8, (1, count)).view(-1)


def relayout(
    stored: torch.Tensor, source: WeightFormat, target: WeightFormat, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The codes of one format in another.

    Args:
        stored: of ``source``'s dtype and shape.
        source, target: the two formats.
        out: where to write, of ``target``'s dtype and shape; it saves the page faults of fresh memory.

    Returns:
        ``out``, or a new tensor on the same device; ``stored`` itself when the formats are the same.
    """
    if source == target:
        return stored if out is None else out.copy_(stored)
    if out is None:
        shape = target.shape(*source.features(tuple(stored.shape)))
        out = torch.empty(shape, dtype=target.dtype, device=stored.device)
    if isinstance(source, PackedWeight) and isinstance(target, PackedWeight):
        source.relayout_into(stored, target, out)
    else:
        target.pack_into(source.unpack(stored), out, validate=False)  # codes that were unpacked are below 16
    return out


def relayout_runs(
    rows: Rows,
    features: tuple[int, int],
    source: WeightFormat,
    target: WeightFormat,
    take: Take,
) -> Iterator[torch.Tensor]:
    """The codes of one format in another as runs of whole rows, one after the other; the next may overwrite the last.

    Args:
        rows: gives rows begin..end of what is stored, on the CPU.
        features: ``(out_features, in_features)`` of the codes.
        source, target: two different formats.
        take: memory for a purpose, which may be what it gave for that before. Runs of a chunk's size
            stay in the cache, from which they are written faster; a target whose rows the chunks cross is one run, of
            the whole payload.
    """
    n, k = features
    is_crossed = _cross(source, target)
    along_k, step = _crossed_chunks(target, n, k) if is_crossed else _chunks(source, target, n, k)
    read = _reader(rows, features, source, along_k, take)
    is_run = along_k == target.runs_along_k
    whole = None if is_run else take("whole", target.dtype, target.shape(n, k))
    length, width = (k, n) if along_k else (n, k)
    scratch = None if is_crossed else take("codes", torch.uint8, (min(step, length), width))
    for begin in range(0, length, step):
        end = min(begin + step, length)
        if whole is not None:
            run = target.part(whole, along_k, begin, end)
        else:
            shape = target.shape(n, end - begin) if along_k else target.shape(end - begin, k)
            run = take("stored", target.dtype, shape)
        if scratch is None:
            relayout(read(begin, end), source, target, run)
        else:
            # The codes are contiguous on the side whose rows the chunk follows.
            codes = scratch[: end - begin].t() if along_k else scratch[: end - begin]
            source.unpack_into(read(begin, end), codes)
            target.pack_into(codes, run, validate=False)
        if is_run:
            yield run
    if whole is not None:
        yield whole


def _reader(
    rows: Rows, features: tuple[int, int], source: WeightFormat, along_k: bool, take: Take
) -> Callable[[int, int], torch.Tensor]:
    """Gives the chunk that holds in_features (along_k) or out_features begin..end: rows of what is stored, or a part of
    all of them where it crosses these."""
    n, k = features
    if along_k != source.runs_along_k:
        stored = rows(0, source.shape(n, k)[0], bytes_for(take, "whole"))
        return lambda begin, end: source.part(stored, along_k, begin, end)

    def row(feature: int) -> int:
        return source.shape(n, feature)[0] if along_k else source.shape(feature, k)[0]

    take_rows = bytes_for(take, "rows")
    return lambda begin, end: rows(row(begin), row(end), take_rows)


def _cross(one: WeightFormat, other: WeightFormat) -> bool:
    """Whether both are lines of V1's words that cross: kernels may turn them without codes between."""
    if not isinstance(one, PackedWeight) or not isinstance(other, PackedWeight):
        return False
    are_lines = one.packing is other.packing is AWQPacking.V1 and not one.is_turned and not other.is_turned
    return are_lines and one.is_transposed != other.is_transposed


def _crossed_chunks(target: WeightFormat, out_features: int, in_features: int) -> tuple[bool, int]:
    """As `_chunks`, of no codes, where words cross: runs of the target's rows; all that is stored is read first."""
    width = out_features if target.runs_along_k else in_features
    step = max(_CHUNK_CODES // max(width, 1) // _CROSSED_STEP * _CROSSED_STEP, _CROSSED_LEAST)
    return target.runs_along_k, step


def _chunks(source: WeightFormat, target: WeightFormat, out_features: int, in_features: int) -> tuple[bool, int]:
    """Whether chunks of codes are runs of in_features, and how many: what is stored of one, where its rows run along K,
    is then one run of memory. Where the two formats differ in that, one of them is met in columns: chunks follow the
    longer side, as columns of a few bytes cost three times as much."""
    is_mixed = source.runs_along_k != target.runs_along_k
    along_k = in_features >= out_features if is_mixed else source.runs_along_k
    unit = max(_KERNEL_CODES, *(format.unit()[along_k] for format in (source, target)))
    return along_k, max(_CHUNK_CODES // max(out_features if along_k else in_features, 1) // unit * unit, unit)

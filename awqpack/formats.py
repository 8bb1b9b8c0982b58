"""What each packing is: one row of data, from which shapes, checks, the portable kernels and the names in files follow.

The twin of ``awq_packing_traits`` in csrc/include/awqpack/packing.h. A packing cuts the codes ``(N, K)`` into blocks of
``rows x cols`` and stores each as one run of items. A row of the payload is a line of blocks: along the rows of codes
or, where blocks run down, along their columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch

from .packing import AWQPacking


class Digit(NamedTuple):
    """One digit of a nibble's number within its block: how many values it has, and how far each moves the code."""

    size: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Format:
    """One packing, as AWQPacking and reorder name it."""

    packing: AWQPacking
    reorder: bool
    suffix: str  # of a payload's name in files
    since: int  # the version of the files' format that has it first
    dtype: torch.dtype  # of the payload
    rows: int  # of a block of codes
    cols: int
    runs_down: bool  # blocks follow each other down the rows of codes
    digits: tuple[Digit, ...]  # of nibble 2 * byte + (1 where it is the high one), the most significant first

    @property
    def name(self) -> str:
        """As texts have it; they name no order of columns."""
        return self.packing.name

    @property
    def title(self) -> str:
        """As tables have it."""
        words = self.name if len(self.name) == 2 else self.name.capitalize()
        return f"{words} reorder" if self.reorder else words

    @property
    def key(self) -> str:
        """As commands have it."""
        return self.suffix.removeprefix("awq_")

    @property
    def item_codes(self) -> int:
        """Codes in an element of the payload."""
        return 2 * self.dtype.itemsize

    @property
    def block_items(self) -> int:
        """Elements of the payload that a block takes."""
        return self.rows * self.cols // self.item_codes

    @property
    def item_digits(self) -> list[int]:
        """Sizes of the digits that count the nibbles of an item."""
        sizes = [digit.size for digit in self.digits]
        return next(sizes[i:] for i in self._in_order if prod(sizes[i:]) == self.item_codes)

    def place(self, nibble: int) -> tuple[int, int]:
        """Row and column, within its block, of the code in this nibble."""
        row = col = 0
        for digit in reversed(self.digits):
            nibble, value = divmod(nibble, digit.size)
            row, col = row + value * digit.rows, col + value * digit.cols
        return row, col

    def payload_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Shape of the payload of ``(rows, cols)`` codes, which must be whole blocks."""
        down, across = rows // self.rows, cols // self.cols
        return (across, down * self.block_items) if self.runs_down else (down, across * self.block_items)

    def codes_shape(self, lines: int, items: int) -> tuple[int, int]:
        """Shape of the codes of a payload ``(lines, items)``, which must be whole blocks."""
        blocks = items // self.block_items
        return (blocks * self.rows, lines * self.cols) if self.runs_down else (lines * self.rows, blocks * self.cols)

    def part(self, payload: torch.Tensor, dim: int, begin: int, end: int) -> torch.Tensor:
        """The part of a payload that holds rows (dim 0) or columns (dim 1) begin..end of the codes: whole blocks."""
        step = self.cols if dim else self.rows
        is_along_line = (dim == 0) == self.runs_down
        items = self.block_items if is_along_line else 1
        return payload.narrow(-1 if is_along_line else -2, begin // step * items, (end - begin) // step * items)

    def nibbles(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes ``(..., N, K)`` as ``(..., lines, blocks, *digits)``."""
        *batch, rows, cols = codes.shape
        blocks = codes.reshape(*batch, rows // self.rows, self.rows, cols // self.cols, self.cols).transpose(-3, -2)
        blocks = blocks.transpose(-4, -3) if self.runs_down else blocks
        lead = blocks.shape[:-2]
        split = blocks.reshape(*lead, *(self.digits[i].size for i in self._outer_first))
        return split.permute(*range(len(lead)), *(len(lead) + self._outer_first.index(i) for i in self._in_order))

    def codes(self, nibbles: torch.Tensor) -> torch.Tensor:
        """The inverse of nibbles."""
        lead = nibbles.shape[: -len(self.digits)]
        split = nibbles.permute(*range(len(lead)), *(len(lead) + i for i in self._outer_first))
        blocks = split.reshape(*lead, self.rows, self.cols)
        blocks = (blocks.transpose(-4, -3) if self.runs_down else blocks).transpose(-3, -2)
        *batch, down, rows, across, cols = blocks.shape
        return blocks.reshape(*batch, down * rows, across * cols)

    @property
    def _in_order(self) -> range:
        return range(len(self.digits))

    @property
    def _outer_first(self) -> list[int]:
        """The digits as the codes of a block lie, row by row."""
        return sorted(self._in_order, key=lambda i: -(self.digits[i].rows * self.cols + self.digits[i].cols))


_V1 = (Digit(8, 0, 1),)
_V1_REORDER = (Digit(2, 0, 1), Digit(4, 0, 2))
_V2 = (Digit(4, 1, 0), Digit(2, 0, 32), Digit(8, 0, 1), Digit(4, 0, 8))
_MARLIN = (Digit(8, 1, 0), Digit(4, 0, 2), Digit(4, 16, 0), Digit(2, 0, 1), Digit(2, 8, 0), Digit(2, 0, 8))

FORMATS = (
    Format(AWQPacking.V1, False, "awq_v1", 1, torch.int32, 1, 8, False, _V1),
    Format(AWQPacking.V1, True, "awq_v1_reorder", 1, torch.int32, 1, 8, False, _V1_REORDER),
    Format(AWQPacking.V2, False, "awq_v2", 1, torch.int16, 4, 64, False, _V2),
    Format(AWQPacking.MARLIN, False, "awq_marlin", 2, torch.int32, 64, 16, True, _MARLIN),
)

_BY_NUMBER = {(form.packing.value, form.reorder): form for form in FORMATS}


def alternatives(words: Iterable[object]) -> str:
    """ "a, b or c" """
    *others, last = map(str, words)
    return f"{', '.join(others)} or {last}" if others else last


def format_of(number: int, reorder: bool = False) -> Format:
    """The row of a packing as the ops number it; ValueError when there is none. Only V1 heeds reorder."""
    form = _BY_NUMBER.get((number, reorder)) or _BY_NUMBER.get((number, False))
    if form is None:
        known = [f"{member.value} (AWQPacking.{member.name})" for member in AWQPacking]
        raise ValueError(f"packing expects {alternatives(known)}; got {number}")
    return form

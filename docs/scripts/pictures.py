"""Pictures of packings and of layouts: which code lies in which nibble, as awqpack's own rows and packers have it."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

import torch

from awqpack.formats import Format
from awqpack.layouts import Layout
from awqpack.layouts.weight import WeightFormat

NIBBLE_COLOURS = ("#9ecae9", "#ffbf79", "#a5d99b", "#f2a7a7", "#cbb5e2", "#e3c58d", "#f3b6d5", "#a9dcd8")
IN_CELL = "#1f2328"  # on the colours above, whatever is around them


class Theme(NamedTuple):
    text: str
    line: str


THEMES = {"light": Theme("#1f2328", "#57606a"), "dark": Theme("#e6edf3", "#8b949e")}


class Cell(NamedTuple):
    width: float
    height: float
    size: float  # of its text


class Canvas:
    """An SVG that grows with what is drawn on it."""

    def __init__(self, theme: Theme, description: str) -> None:
        self._theme, self._description = theme, description
        self._parts: list[str] = []
        self._sizes: set[float] = set()  # of text in cells
        self.width, self.height = 0.0, 0.0

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def text(self, x: float, y: float, text: str, size: float = 13, anchor: str = "start", bold: bool = False) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{weight} fill="{self._theme.text}">'
            f"{escape(text)}</text>"
        )
        self._reach(x + len(text) * size * 0.55 if anchor == "start" else x, y + size / 2)

    def cell(self, x: float, y: float, cell: Cell, colour: int, label: str) -> None:
        """A code: a coloured cell with a label."""
        width, height, size = cell
        self._parts.append(
            f'<rect class="c n{colour}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'
            f'<text class="c s{size:g}" x="{x + width / 2:g}" y="{y + height / 2 + size * 0.36:g}">{label}</text>'
        )
        self._sizes.add(size)
        self._reach(x + width, y + height)

    def frame(self, x: float, y: float, width: float, height: float) -> None:
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="none" rx="2" '
            f'stroke="{self._theme.line}" stroke-width="1.4"/>'
        )
        self._reach(x + width, y + height)

    def svg(self) -> str:
        width, height = self.width + 4, self.height + 6
        colours = "".join(f".n{i} {{ fill: {colour} }}" for i, colour in enumerate(NIBBLE_COLOURS))
        sizes = "".join(f".s{size:g} {{ font-size: {size:g}px }}" for size in sorted(self._sizes))
        cells = f"rect.c {{ stroke: #fff; stroke-width: 0.6 }}text.c {{ fill: {IN_CELL}; text-anchor: middle }}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif" role="img">\n'
            f"<title>{escape(self._description)}</title>\n<style>{cells}{colours}{sizes}</style>\n"
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


class Drawing(NamedTuple):
    """How a block is drawn: what stands side by side, and how large."""

    codes_across: int
    items_across: int
    nibbles_across: int
    shown: int  # items, of which the codes show all
    code: Cell
    nibble: Cell
    is_beside: bool  # the items stand beside the codes, not below


_DRAWINGS = {
    "V1": Drawing(8, 1, 8, 1, Cell(56, 30, 13), Cell(56, 30, 13), False),
    "V2": Drawing(32, 16, 1, 64, Cell(20, 17, 9), Cell(34, 15, 9), False),
    "MARLIN": Drawing(16, 1, 8, 32, Cell(18, 13, 8), Cell(28, 18, 9), True),
}
LEFT, TOP, GAP = 34, 42, 6  # for labels of rows, for two lines of text; between items


def packing(form: Format, theme: Theme) -> str:
    """A block of codes, and the items that hold it. A code has the colour of its nibble in both."""
    cell = Cell(26, 18, 9)
    default = Drawing(min(form.cols, 16), 1, form.item_codes, 16, cell, cell, is_beside=False)
    how = _DRAWINGS.get(form.name, default)
    nibbles = [form.place(nibble) for nibble in range(form.rows * form.cols)]
    items = [nibbles[i : i + form.item_codes] for i in range(0, len(nibbles), form.item_codes)]
    canvas = Canvas(theme, f"{form.title}: which code of a block lies in which nibble")
    _draw_codes(canvas, form, how, items)
    left, top = (canvas.width + 24, 0.0) if how.is_beside else (0.0, canvas.height + 26)
    _draw_items(canvas, form, how, items, left, top)
    return canvas.svg()


Items = list[list[tuple[int, int]]]  # for each item, row and column of the code in each nibble, the lowest first


def _draw_codes(canvas: Canvas, form: Format, how: Drawing, items: Items) -> None:
    is_one = len(items) == 1
    canvas.text(0, 14, f"{form.cols} codes of a row of W" if is_one else f"{form.rows} x {form.cols} codes", bold=True)
    canvas.text(0, 31, "number in a cell: the column" if is_one else "number in a cell: the element that holds it", 12)
    cell, fold_height = how.code, (form.rows + 1) * how.code.height + GAP
    for item, places in enumerate(items):
        for nibble, (row, col) in enumerate(places):
            fold, across = divmod(col, how.codes_across)
            x, y = LEFT + across * cell.width, TOP + fold * fold_height + row * cell.height
            canvas.cell(x, y, cell, nibble, str(col if is_one else item))
            if across == 0 and not is_one:
                canvas.text(LEFT - 5, y + cell.height / 2 + cell.size * 0.36, f"n {row}", cell.size, "end")
    for fold in range(1, form.cols // how.codes_across):
        canvas.text(LEFT, TOP + fold * fold_height - 5, f"columns {fold * how.codes_across} on", 10)


def _draw_items(canvas: Canvas, form: Format, how: Drawing, items: Items, left: float, top: float) -> None:
    is_one = len(items) == 1
    dtype = str(form.dtype).removeprefix("torch.")
    first = "" if how.shown >= len(items) else f", the first {how.shown} of them"
    title = f"one element of {dtype}" if is_one else f"{len(items)} elements of {dtype}{first}"
    way = "left to right" if how.nibbles_across > 1 else "top to bottom"
    canvas.text(left, top + 14, title, bold=True)
    what = "the column" if is_one else f"row,column; bits 0-3 first, {way}"
    canvas.text(left, top + 31, f"number in a cell: {what}", 12)
    cell, down = how.nibble, form.item_codes // how.nibbles_across
    width, height = how.nibbles_across * cell.width, down * cell.height
    for item, places in enumerate(items[: how.shown]):
        line, across = divmod(item, how.items_across)
        x, y = left + LEFT + across * (width + GAP), top + TOP + line * (height + GAP)
        for nibble, (row, col) in enumerate(places):
            low, high = nibble // how.nibbles_across, nibble % how.nibbles_across
            label = str(col) if is_one else f"{row},{col}"
            canvas.cell(x + high * cell.width, y + low * cell.height, cell, nibble, label)
            if is_one:
                bits = f"{4 * nibble}-{4 * nibble + 3}"
                canvas.text(x + (nibble + 0.5) * cell.width, y + height + 15, bits, 11, "middle")
        canvas.frame(x, y, width, height)
        if across == 0:
            canvas.text(
                x - 5, y + (height + 15 if is_one else height / 2 + 3), "bits" if is_one else str(item), 10, "end"
            )


def places(weight: WeightFormat, rows: int, cols: int) -> torch.Tensor:
    """For each nibble of what is stored of codes (rows, cols), the index of its code: (lines, items, nibbles).

    Found by packing: three times four bits of each code's own index."""
    index = torch.arange(rows * cols).view(rows, cols)
    zero = _nibbles(weight.pack(torch.zeros(rows, cols, dtype=torch.uint8)))
    found = torch.zeros_like(zero)
    for digit in range(3):
        codes = (index >> 4 * digit & 15).to(torch.uint8)
        found |= (_nibbles(weight.pack(codes)) ^ zero) << 4 * digit
    return found


def _nibbles(stored: torch.Tensor) -> torch.Tensor:
    size = stored.dtype.itemsize
    data = stored.contiguous().view(torch.uint8).view(*stored.shape, size).long()
    return torch.stack((data & 15, data >> 4), -1).view(*stored.shape, 2 * size)


def dimension(weight: WeightFormat, dim: int) -> str:
    """A dimension of the stored weight in terms of N and K, such as N/8."""
    base = weight.shape(256, 512)[dim]
    for name, size, grown in (("N", 256, weight.shape(512, 512)[dim]), ("K", 512, weight.shape(256, 1024)[dim])):
        if grown == 2 * base:
            return name if base == size else f"{name}/{size // base}" if base < size else f"{base // size}{name}"
    raise AssertionError("a dimension grows with N or with K")


def layout(which: Layout, theme: Theme) -> str:
    """The first elements of a stored weight, each with the codes in its nibbles."""
    weight = which.weight
    rows, cols = 32, 128
    stored = places(weight, rows, cols)
    name, dtype = which.names["weight"], str(weight.dtype).removeprefix("torch.")
    canvas = Canvas(theme, f"{which.name}: which codes the first elements of {name} hold")
    shape = ", ".join(dimension(weight, dim) for dim in (0, 1))
    canvas.text(0, 14, f"{name}: {dtype} ({shape})", bold=True)
    canvas.text(0, 31, "row,column of W in each nibble, the lowest bits first", 12)
    count = stored.shape[2]
    cell, across = Cell(36, 22, 10), {8: 2, 4: 4, 2: 8}[count]
    for line in range(3):
        y = 54 + line * (cell.height + 6)
        canvas.text(LEFT - 6, y + cell.height / 2 + 4, f"[{line}, ...", 10, "end")
        for item in range(across):
            x = LEFT + item * (count * cell.width + GAP)
            codes = stored[line, item].tolist()
            if line == 0:
                canvas.text(x + count * cell.width / 2, y - 4, f"..., {item}]", 10, "middle")
            for nibble, code in enumerate(codes):
                row, col = divmod(code, cols)
                canvas.cell(x + nibble * cell.width, y, cell, sorted(codes).index(code), f"{row},{col}")
            canvas.frame(x, y, count * cell.width, cell.height)
    return canvas.svg()

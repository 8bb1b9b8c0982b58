"""What the commands print: sizes and tables."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence


def size(nbytes: int) -> str:
    """Bytes as people read them: 1.23 MB."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def count(number: int, what: str) -> str:
    """ "1 layer", "2 layers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[len(name) - width + 3 :]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with its first column to the left, the others to the right, the last one as it comes."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if sys.stdout.isatty():
        # The end of a layer's name tells it from its neighbours, so a narrow terminal loses the start.
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * (len(widths) - 1)
        widths[0] = min(widths[0], max(room, 16))
    for row in (header, *rows):
        first = _shorten(row[0], widths[0]).ljust(widths[0])
        middle = [text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)]
        print("  ".join([first, *middle, row[-1]]))

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


_LEAST_NAME = 30  # columns that a narrow terminal leaves to a layer's name


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[len(name) - width + 3 :]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with its first column to the left, the others to the right, the last one as it comes.

    On a terminal too narrow for it the first column loses the start of its texts, then the last one the end; the
    numbers between stay.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        # The end of a layer's name tells it from its neighbours.
        least = min(widths[0], _LEAST_NAME)
        room = columns - sum(widths[1:]) - 2 * (len(widths) - 1)
        widths[0] = min(widths[0], max(room, least))
        widths[-1] = max(min(widths[-1], columns - sum(widths[:-1]) - 2 * (len(widths) - 1)), len(header[-1]))
    for row in (header, *rows):
        first = _shorten(row[0], widths[0]).ljust(widths[0])
        middle = [text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)]
        last = row[-1] if len(row[-1]) <= widths[-1] else row[-1][: widths[-1] - 3] + "..."
        print("  ".join([first, *middle, last]))

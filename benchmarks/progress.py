"""A bar of the steps of a suite, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from .harness import Row

Step = tuple[str, Callable[[], list[Row]]]


def steps(suite: str, planned: Sequence[Step]) -> list[Row]:
    """The rows of every step, in order, with a bar that names the one that runs."""
    rows: list[Row] = []
    try:
        from tqdm import tqdm
    except ImportError:
        for _, step in planned:
            rows += step()
        return rows
    with tqdm(total=len(planned), disable=not sys.stderr.isatty(), unit="step", leave=False) as bar:
        for name, step in planned:
            bar.set_description(f"{suite}, {name}")
            rows += step()
            bar.update()
    return rows

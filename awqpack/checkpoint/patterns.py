"""Patterns of configurations, matched in bounded time: a checkpoint comes from anywhere, and so do its patterns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence

from .errors import CheckpointError

PATTERN = "re:"  # begins an entry that is a pattern and no name
_SECONDS = 5.0
_LONGEST = 500  # letters of names that harmless patterns are tried on at once
# A process of its own, since a match cannot be stopped from another thread.
_CHILD = """
import json, re, sys
asked = json.load(sys.stdin)
result = []
for pattern in asked["patterns"]:
    try:
        match = re.compile(pattern).match
        result.append([name for name in asked["names"] if match(name)])
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        result.append(str(error) or type(error).__name__)
json.dump(result, sys.stdout)
"""


def matches(patterns: Sequence[str], names: Collection[str]) -> list[list[str]]:
    """For each pattern, the names whose beginning it matches.

    Raises:
        ValueError: a pattern is none.
        CheckpointError: matching them takes longer than some seconds.
    """
    names = list(names)
    if all(map(_is_harmless, patterns)) and all(len(name) <= _LONGEST for name in names):
        compiled = [re.compile(pattern) for pattern in patterns]
        return [[name for name in names if pattern.match(name)] for pattern in compiled]
    asked = json.dumps({"patterns": list(patterns), "names": names})
    command = [sys.executable, "-I", "-S", "-c", _CHILD]
    try:
        answer = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        shown = ", ".join(map(repr, patterns[:3]))
        raise CheckpointError(f"the patterns {shown} take longer than {_SECONDS:.0f} s to match") from None
    found: list[list[str] | str] = json.loads(answer.stdout)
    result = []
    for pattern, of_pattern in zip(patterns, found, strict=True):
        if isinstance(of_pattern, str):
            raise ValueError(f"{pattern!r} is no pattern ({of_pattern})")
        result.append(of_pattern)
    return result


def _is_harmless(pattern: str) -> bool:
    """Whether a match takes no more steps than the length of a name squared: letters, and two runs of anything."""
    letters = re.sub(r"\\[-./]", "", pattern.removeprefix(r"(.*\.)?"))
    return letters.count(".*") <= 2 and re.fullmatch(r"\^?[\w./-]*\$?", letters.replace(".*", "")) is not None

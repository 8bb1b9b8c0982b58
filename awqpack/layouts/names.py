"""Modules that are not quantized, as configurations name them: parts of names, and regular expressions behind "re:"."""

from __future__ import annotations

import re

PATTERN = "re:"
_PART = re.compile(r"re:\.\*(.*)\.\*")


def pattern_of(part: str) -> str:
    """A pattern that matches what this part of a name is in."""
    return f"{PATTERN}.*{re.escape(part)}.*"


def part_or_pattern(entry: str) -> str:
    """The part of a pattern that pattern_of made; any other entry as it is."""
    match = _PART.fullmatch(entry)
    if match is None:
        return entry
    part = re.sub(r"\\(.)", r"\1", match[1])
    return part if re.escape(part) == match[1] else entry

"""Modules that are not quantized, as configurations name them: parts of names, and regular expressions behind "re:"."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from .parts import HEAD, LayoutError, QuantizationConfig

PATTERN = "re:"
_PART = re.compile(r"re:\.\*(.*)\.\*")


def list_of_names(key: str, value: Any) -> list[str]:
    """What a configuration has under this key. Raises LayoutError where that is no list of names."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise LayoutError(f"{key} expects a list of names; got {value!r}")
    return value


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


def of_shell(name: str) -> str:
    """A shell pattern, as Quark and ModelOpt have them: "*visual*" as the part visual, any other as a pattern."""
    part = name.strip("*")
    if name == f"*{part}*" and not set("*?[") & set(part):
        return part
    return f"{PATTERN}{fnmatch.translate(name)}"


def shell_names(config: QuantizationConfig) -> list[str]:
    """Shell patterns of the modules that are not quantized, the head among them unless it is; patterns are left out."""
    parts = [name for name in config.not_converted or () if not name.startswith(PATTERN)]
    return [*([] if config.has_head else [HEAD]), *(f"*{part}*" for part in parts), *config.exact]

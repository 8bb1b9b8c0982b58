"""JSON files: read as objects, and written again in the style they came in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .files import open_regular, require_no_pointer, unreadable


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """An object and the text it was read from."""
    raw = _read(path)
    require_no_pointer(path, raw)
    try:
        text = raw.decode("utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expects a JSON object; got {type(content).__name__}")
    return content, text


def _read(path: Path) -> bytes:
    fd = open_regular(path)
    try:
        with os.fdopen(fd, "rb") as file:
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from None


def dump_like(content: dict[str, Any], text: str) -> str:
    """JSON with the indentation, the escapes and the final newline of the text it replaces."""
    indent = re.match(r"\{\s*\n([ \t]+)\"", text)
    dumped = json.dumps(content, indent=indent[1] if indent is not None else None, ensure_ascii=text.isascii())
    if any("\ud800" <= letter <= "\udfff" for letter in dumped):  # half a character, which UTF-8 does not have
        dumped = json.dumps(content, indent=indent[1] if indent is not None else None)
    return dumped + ("\n" if text.endswith("\n") else "")

"""Which linear layers of a model in floats are quantized, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..layouts import HEAD
from .errors import CheckpointError
from .modules import is_embedding
from .patterns import PATTERN, matches

# As AutoAWQ and the recipes of llm-compressor have it: linears of the text model's blocks, but no routers.
_BLOCK = re.compile(r"\d+")
_ROUTER = re.compile(r"gate|wg|\w+_gate|(\w+_)?router")
_OTHER_SENSE = re.compile(r"\w*(vision|visual|audio|speech|image)\w*")


def kept_linears(found: Sequence[str], ignore: Sequence[str], include: Sequence[str]) -> dict[str, str]:
    """Modules that keep their floats, each with the reason; all others are to be quantized.

    Args:
        found: linear modules, by name.
        ignore: names of modules, whole or from some part on, or patterns behind ``re:``, that are kept.
        include: likewise of what is quantized although it is no linear of a block, or a router.

    Raises:
        CheckpointError: a pattern is none, or an entry names nothing.
    """
    ignored, included = _named("ignore", ignore, found), _named("include", include, found)
    kept: dict[str, str] = {}
    for module in found:
        reason = "ignored" if module in ignored else None if module in included else _reason_kept(module)
        if reason is not None:
            kept[module] = reason
    return kept


def _reason_kept(module: str) -> str | None:
    *path, last = module.split(".")
    if last == HEAD:
        return "the head"
    if is_embedding(module):
        return "an embedding"
    if not any(map(_BLOCK.fullmatch, path)):
        return "outside of the blocks"
    if any(_ROUTER.fullmatch(part) for part in (*path, last)):
        return "a router or gate"
    if any(map(_OTHER_SENSE.fullmatch, path)):
        return "no part of the text model"
    return None


def _named(option: str, entries: Sequence[str], modules: Sequence[str]) -> set[str]:
    found: set[str] = set()
    patterns = [entry for entry in entries if entry.startswith(PATTERN)]
    try:
        of_patterns = matches([pattern.removeprefix(PATTERN) for pattern in patterns], modules)
    except ValueError as error:
        raise CheckpointError(f"{option} expects names of modules, or patterns behind {PATTERN}; {error}") from None
    by_entry = dict(zip(patterns, of_patterns, strict=True))
    for entry in entries:
        named = by_entry.get(entry, [name for name in modules if f".{name}.".find(f".{entry}.") >= 0])
        if not named:
            raise CheckpointError(f"{option} expects names of linear modules; {entry!r} names none")
        found.update(named)
    return found

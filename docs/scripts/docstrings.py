"""What mkdocstrings has to be told of awqpack's docstrings: links, shared sentences, and those of C."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

import awqpack

_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]+)`")
_LITERAL = re.compile(r"::(\n\n(?: {4}.*\n?|\n)+)")
_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*(?:\n\1 +.*)*)", re.MULTILINE)


# What the pages of the API show, by the last part of its name.
_PAGES = (page.read_text(encoding="utf-8") for page in (Path(__file__).parent.parent / "api").glob("*.md"))
_SHOWN = {path.rpartition(".")[2]: path for text in _PAGES for path in re.findall(r"^::: (\S+)", text, re.MULTILINE)}


def _link(match: re.Match[str]) -> str:
    """To what a role names, where a page shows it."""
    path = _SHOWN.get(match[1].rpartition(".")[2])
    return f"`{match[1]}`" if path is None else f"[`{match[1]}`][{path}]"


def _apart(match: re.Match[str]) -> str:
    """Arguments that share a sentence, with one each."""
    return "\n".join(f"{match[1]}{name}{match[3]}" for name in match[2].split(", "))


def _markdown(text: str) -> str:
    return _SHARED.sub(_apart, _LITERAL.sub(r":\1", _ROLE.sub(_link, text)))


class Docstrings(griffe.Extension):
    """Rewrites each docstring as it is found, and takes those of C's methods from the module that is built."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None and obj.path.startswith("awqpack.tensor.AWQPackedTensor."):
            text = getattr(getattr(awqpack.AWQPackedTensor, obj.name, None), "__doc__", None)
            if text:
                obj.docstring = griffe.Docstring(text, parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = _markdown(obj.docstring.value)

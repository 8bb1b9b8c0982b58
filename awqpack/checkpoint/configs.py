"""The JSON files of a converted checkpoint: the configuration and the index, rewritten in the style they came in."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from .plan import Plan
from .source import CONFIG_FILE, CONFIG_KEY, LEGACY_CONFIG_FILE, OLD_CONFIG_KEY, read_json

INDEX_FILE = "model.safetensors.index.json"


def dump_like(content: dict[str, Any], text: str) -> str:
    """JSON with the indentation, the escapes and the final newline of the text it replaces."""
    indent = re.match(r"\{\s*\n([ \t]+)\"", text)
    dumped = json.dumps(content, indent=indent[1] if indent is not None else None, ensure_ascii=text.isascii())
    if any("\ud800" <= letter <= "\udfff" for letter in dumped):  # half a character, which UTF-8 does not have
        dumped = json.dumps(content, indent=indent[1] if indent is not None else None)
    return dumped + ("\n" if text.endswith("\n") else "")


def rewritten_configs(plan: Plan) -> dict[str, str | None]:
    """Text of each configuration file that changes, by its name; None for one that is left out."""
    found = plan.source.found_config
    if found is None or plan.target is plan.source.layout:
        return {}
    written = plan.target.write_config(plan.config)
    if found.path.name == LEGACY_CONFIG_FILE and "quant_method" in written and "quant_method" not in found.content:
        # an AWQ engine's own file, which says nothing about another method
        path = found.path.with_name(CONFIG_FILE)
        content, text = read_json(path) if path.is_file() else ({}, "{\n  \n}\n")
        return {CONFIG_FILE: dump_like(content | {CONFIG_KEY: written}, text), LEGACY_CONFIG_FILE: None}
    content = copy.deepcopy(found.content)
    if not found.keys:
        return {found.path.name: dump_like(written, found.text)}
    place = content
    for key in found.keys[:-1]:
        place = place[key]
    if found.keys[-1] == OLD_CONFIG_KEY:
        del place[OLD_CONFIG_KEY]
    place[CONFIG_KEY] = written
    texts: dict[str, str | None] = {found.path.name: dump_like(content, found.text)}
    legacy = found.path.with_name(LEGACY_CONFIG_FILE)
    if legacy.is_file():
        # it would contradict what config.json now says
        old, text = read_json(legacy)
        version = written.get("version")
        texts[legacy.name] = None if version is None else dump_like({**old, "version": version.upper()}, text)
    return texts


def rewritten_index(plan: Plan) -> tuple[str, str] | None:
    """Name and text of the index; None for a checkpoint of one file that had none."""
    source = plan.source
    if source.is_file or (len(plan.files) == 1 and (source.index is None or plan.files[0].name not in source.shards)):
        return None
    if source.index is None and list(source.shards) == [file.name for file in plan.files]:
        return None
    index = copy.deepcopy(source.index) if source.index is not None else {"metadata": {}}
    if not isinstance(index.get("metadata"), dict):
        index["metadata"] = {}
    index["metadata"]["total_size"] = sum(entry.nbytes for file in plan.files for entry in file.entries.values())
    index["weight_map"] = {tensor: plan.where[tensor].name for tensor in sorted(plan.where)}
    if source.index_path is None:
        return INDEX_FILE, json.dumps(index, indent=2) + "\n"
    return source.index_path.name, dump_like(index, source.index_path.read_text(encoding="utf-8"))

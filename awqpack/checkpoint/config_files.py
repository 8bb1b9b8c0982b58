"""The files that say how a checkpoint is quantized: found and read, and rewritten for another layout."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..layouts import Layout, LayoutError, QuantizationConfig, layout_of_config
from .errors import CheckpointError
from .json_files import dump_like, read_json

CONFIG_KEY = "quantization_config"
OLD_CONFIG_KEY = "compression_config"  # llm-compressor's, before that name was common
CONFIG_FILE = "config.json"
LEGACY_CONFIG_FILE = "quant_config.json"  # AutoAWQ before 0.1.7


@dataclass(frozen=True)
class FoundConfig:
    """A quantization_config, the file it stands in, and the keys that lead to it there."""

    path: Path
    keys: tuple[str, ...]
    content: dict[str, Any]  # of the whole file
    text: str
    quantization: dict[str, Any]

    def read(self) -> tuple[Layout, QuantizationConfig]:
        """The layout that it names, and what it says. Raises CheckpointError for what no layout holds."""
        try:
            layout = layout_of_config(self.quantization)
            return layout, layout.read_config(self.quantization)
        except LayoutError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def without_quantization(self) -> dict[str, Any]:
        """The rest of the file."""
        if not self.keys:
            return {}
        if len(self.keys) == 1:  # also where an older name is replaced
            return {key: value for key, value in self.content.items() if key != self.keys[0]}
        nested = dict(self.content[self.keys[0]])
        del nested[self.keys[1]]
        return {**self.content, self.keys[0]: nested}


def find_config(folder: Path) -> FoundConfig | None:
    """The quantization_config of a checkpoint; None without one. Raises CheckpointError for a file that is not JSON."""
    path = folder / CONFIG_FILE
    if path.is_file():
        content, text = read_json(path)
        for keys in ((CONFIG_KEY,), ("text_config", CONFIG_KEY), (OLD_CONFIG_KEY,)):
            found: Any = content
            for key in keys:
                found = found.get(key) if isinstance(found, dict) else None
            if isinstance(found, dict):
                return FoundConfig(path, keys, content, text, found)
            if found is not None:
                raise CheckpointError(f"{path}: {'.'.join(keys)} expects an object; got {found!r}")
    legacy = folder / LEGACY_CONFIG_FILE
    if legacy.is_file():
        content, text = read_json(legacy)
        return FoundConfig(legacy, (), content, text, content)
    return None


def rewritten_configs(found: FoundConfig, layout: Layout, config: QuantizationConfig) -> dict[str, str | None]:
    """Text of each configuration file for this layout, by its name; None for one that is left out."""
    written = layout.write_config(config)
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

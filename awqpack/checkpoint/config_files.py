"""The files that say how a checkpoint is quantized: found and read, and rewritten for another layout."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..layouts import Layout, LayoutError, QuantizationConfig, StoredLayout, layout_of_config
from .errors import CheckpointError
from .json_files import dump_like, read_json

CONFIG_KEY = "quantization_config"
OLD_CONFIG_KEY = "compression_config"  # llm-compressor's, before that name was common
CONFIG_FILE = "config.json"
GPTQMODEL_FILE = "quantize_config.json"
# That are about quantization alone: AutoAWQ's, GPTQModel's, ModelOpt's and auto-round's.
_OWN_FILES = ("quant_config.json", GPTQMODEL_FILE, "hf_quant_config.json", "quantization_config.json")
_DTYPE_KEYS = ("torch_dtype", "dtype")  # of config.json, to transformers before its version 5 and since
_MLX_KEY = "quantization"  # of config.json, where MLX has what it also has as quantization_config


@dataclass(frozen=True)
class Place:
    """A quantization_config, the file it stands in, and the keys that lead to it there: none for a file of its own."""

    file: str
    keys: tuple[str, ...]
    quantization: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file}: {'.'.join(self.keys)}" if len(self.keys) > 1 else self.file

    def read(self) -> tuple[StoredLayout, QuantizationConfig]:
        """The layout that it names, and what it says. Raises LayoutError for what no layout holds."""
        layout = layout_of_config(self.quantization)
        return layout, layout.read_config(self.quantization)


class ConfigFiles:
    """What the files of a folder say of its quantization.

    Attributes:
        folder: where they are.
        files: content and text of each that is there, by name.
        places: every quantization_config in them; the first one is what counts.
    """

    def __init__(self, folder: Path | None) -> None:
        """Reads what is there; without a folder, nothing. Raises CheckpointError for a file that is not JSON."""
        self.folder = folder
        self.files: dict[str, tuple[dict[str, Any], str]] = {}
        self.places: list[Place] = []
        if folder is None:
            return
        for name in (CONFIG_FILE, *_OWN_FILES):
            if os.path.lexists(folder / name):
                self.files[name] = read_json(folder / name)
        if CONFIG_FILE in self.files:
            self.places += _places_in(folder / CONFIG_FILE, self.files[CONFIG_FILE][0])
        for name in _OWN_FILES:
            if name in self.files:
                content = self.files[name][0]
                method = {"quant_method": content.get("method", "gptq")} if name == GPTQMODEL_FILE else {}
                self.places.append(Place(name, (), method | content))

    @property
    def path(self) -> Path | None:
        """The file whose word counts."""
        return self.folder / self.places[0].file if self.folder is not None and self.places else None

    def read(self, wish: StoredLayout | None) -> tuple[StoredLayout, QuantizationConfig, list[str]] | None:
        """The layout, what is said, and where two places disagree; None without a configuration.

        Args:
            wish: the layout, whatever the configuration says; None asks it.

        Raises:
            CheckpointError: the first place says what no layout holds.
        """
        if not self.places:
            return None
        first = self.places[0]
        try:
            if wish is None:
                layout, config = first.read()
            else:
                layout, config = wish, _read_as(wish, first)
        except LayoutError as error:
            raise CheckpointError(f"{self.folder}/{first}: {error}") from None
        if config.group_size is None:
            config = dataclasses.replace(config, group_size=self._group_size(layout))
        return layout, config, [] if wish is not None else self._problems(layout, config)

    def _group_size(self, layout: StoredLayout) -> int | None:
        """What another place of the same layout says: ModelOpt has it in a file of its own alone."""
        for place in self.places[1:]:
            with contextlib.suppress(LayoutError):
                other, says = place.read()
                if other is layout and says.group_size is not None:
                    return says.group_size
        return None

    def _problems(self, layout: StoredLayout, config: QuantizationConfig) -> list[str]:
        problems = []
        for place in self.places[1:]:
            try:
                other, says = place.read()
            except LayoutError as error:
                problems.append(f"{place}: {error}")
                continue
            pairs = {
                "layout": (layout.name, other.name),
                "group_size": (config.group_size, says.group_size),
                "zero_point": (not config.is_symmetric, not says.is_symmetric),
            }
            problems += [
                f"{place}: says {what} {theirs}; {self.places[0]} says {ours}"
                for what, (ours, theirs) in pairs.items()
                if ours != theirs and None not in (ours, theirs)
            ]
        return problems

    def rewritten(self, layout: Layout, config: QuantizationConfig) -> dict[str, str | None]:
        """Text of each file for this layout, by its name; None for one that is left out."""
        contents = {name: copy.deepcopy(content) for name, (content, _) in self.files.items()}
        has_place = False
        texts: dict[str, str | None] = {}
        for place in self.places:
            written = layout.write_config(dataclasses.replace(config, raw=place.quantization))
            if place.keys == (_MLX_KEY,) and _MLX_KEY not in layout.config_keys:
                del contents[place.file][_MLX_KEY]
            elif place.keys:
                _replace(contents[place.file], place.keys, written)
                has_place = True
            elif place.file in layout.config_files:
                contents[place.file] = written
                has_place = True
            else:  # its readers would take the new tensors for the old ones
                del contents[place.file]
                texts[place.file] = None
        if self.places:
            content = contents.setdefault(CONFIG_FILE, {})
            missing = [key for key in layout.config_keys if key not in content and (not has_place or key != CONFIG_KEY)]
            content |= {key: layout.write_config(config) for key in missing}
            contents |= {name: own for name, own in layout.own_files(config).items() if name not in contents}
        for name, content in contents.items():
            text = self.files[name][1] if name in self.files else "{\n  \n}\n"
            if name not in self.files or content != self.files[name][0]:
                texts[name] = dump_like(content, text)
        return texts

    @property
    def model_type(self) -> str | None:
        """Of the model, as transformers names it; None where nothing says it."""
        found = self.files[CONFIG_FILE][0].get("model_type") if CONFIG_FILE in self.files else None
        return found if isinstance(found, str) else None

    @property
    def hidden_size(self) -> int | None:
        """Of the text model; None where nothing says it."""
        content = self.files[CONFIG_FILE][0] if CONFIG_FILE in self.files else {}
        parts = [content.get(part) for part in ("text_config", "llm_config", "language_config", "thinker_config")]
        says = [part.get("hidden_size") for part in (*parts, content) if isinstance(part, dict)]
        return next((size for size in says if type(size) is int), None)

    def with_quantization(self, layout: Layout, config: QuantizationConfig) -> dict[str, str | None]:
        """Text of each file for a model in floats that becomes one of this layout, by its name."""
        if self.folder is None:
            return {}
        content, text = self.files.get(CONFIG_FILE, ({}, '{\n  "\n}\n'))
        return {**quantized_texts(content, text, layout, config)}

    def without_quantization(self, dtype: str) -> dict[str, str | None]:
        """Text of each file for a model in floats of this dtype, by its name; None for one that is left out."""
        texts: dict[str, str | None] = {place.file: None for place in self.places if not place.keys}
        if CONFIG_FILE in self.files:
            content = self.rest()
            _set_dtype(content, dtype)
            if content != self.files[CONFIG_FILE][0]:
                texts[CONFIG_FILE] = dump_like(content, self.files[CONFIG_FILE][1])
        return texts

    def rest(self) -> dict[str, Any]:
        """What config.json says of other things."""
        content = copy.deepcopy(self.files[CONFIG_FILE][0]) if CONFIG_FILE in self.files else {}
        for place in self.places:
            if place.keys:
                _replace(content, place.keys, None)
        return content


def quantized_texts(content: dict[str, Any], text: str, layout: Layout, config: QuantizationConfig) -> dict[str, str]:
    """Text of each file that says how a model is quantized, by its name.

    Args:
        content, text: config.json of the model in floats, and how it was written.
        layout, config: what it becomes.
    """
    content = content | {key: layout.write_config(config) for key in layout.config_keys}
    own = {name: json.dumps(says, indent=2) + "\n" for name, says in layout.own_files(config).items()}
    return {CONFIG_FILE: dump_like(content, text), **own}


def _places_in(path: Path, content: dict[str, Any]) -> list[Place]:
    """The model's own first, then the text part's, then those of other parts as they come."""
    places = []
    for keys, found in _walk(content):
        if isinstance(found, dict):
            places.append(Place(path.name, keys, found))
        elif found is not None:
            raise CheckpointError(f"{path}: {'.'.join(keys)} expects an object; got {found!r}")
    places.sort(key=lambda place: (len(place.keys) > 1, place.keys[0] != "text_config", place.keys[-1] != CONFIG_KEY))
    return places


def _walk(content: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every quantization_config in an object, and the keys that lead there."""
    waiting: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), content)]
    while waiting:
        keys, value = waiting.pop(0)
        for key, inner in value.items():
            if key in (CONFIG_KEY, OLD_CONFIG_KEY) or (key == _MLX_KEY and not keys):
                yield (*keys, key), inner
            elif isinstance(inner, dict):
                waiting.append(((*keys, key), inner))


def _replace(content: dict[str, Any], keys: tuple[str, ...], written: dict[str, Any] | None) -> None:
    """Puts a quantization_config, under its newer name, where the keys lead; None takes it away."""
    for key in keys[:-1]:
        content = content[key]
    if written is None or keys[-1] == OLD_CONFIG_KEY:
        del content[keys[-1]]
    if written is not None:
        content[_MLX_KEY if keys[-1] == _MLX_KEY else CONFIG_KEY] = written


def _set_dtype(content: dict[str, Any], dtype: str) -> None:
    """Says what a model's weights are in: its own and those of parts that said the same, under the names in use."""
    keys = [key for key in _DTYPE_KEYS if key in content] or [_DTYPE_KEYS[0]]
    before = content.get(keys[0])
    content |= dict.fromkeys(keys, dtype)
    for part in content.values():
        if isinstance(part, dict):
            part |= {key: dtype for key in _DTYPE_KEYS if key in part and part[key] == before}


def _read_as(wish: StoredLayout, place: Place) -> QuantizationConfig:
    """What a configuration says, read by the layout that it names or, where it names none, by the one asked for."""
    try:
        return place.read()[1]
    except LayoutError:
        return wish.read_config(place.quantization)

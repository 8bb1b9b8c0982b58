"""The linear modules of a checkpoint that are not quantized, and how each configuration names them."""

from __future__ import annotations

import dataclasses
import re

from ..layouts import HEAD, Layout, QuantizationConfig
from .errors import CheckpointError
from .patterns import PATTERN, matches
from .source import Checkpoint

# The last part of an embedding's name. A name that only contains "embed" may be a linear's: embed_out, GPT-NeoX's head.
_EMBEDDING = re.compile(
    r"(\w*_)?embed(ding|dings|s|_tokens|_tokens_per_layer|_positions|_in)?|wte|wpe|shared|relative_attention_bias"
)


def is_embedding(module: str) -> bool:
    """Whether a module is an embedding, by its name."""
    return _EMBEDDING.fullmatch(module.rpartition(".")[2]) is not None


def plain_linears(source: Checkpoint) -> list[str]:
    """Modules with a weight of two dimensions that is not quantized, and that are no embeddings."""
    return [
        module
        for module in _with_weights(source)
        if len(source.files.entry(f"{module}.weight").shape) == 2 and not is_embedding(module)
    ]


def _with_weights(source: Checkpoint) -> list[str]:
    """Modules with a weight of two dimensions or more that is not quantized."""
    return [
        tensor.removesuffix(".weight")
        for tensor in source.plain_tensors
        if tensor.endswith(".weight") and len(source.files.entry(tensor).shape) > 1
    ]


def named(source: Checkpoint) -> set[str] | None:
    """Linears that the configuration leaves out by name, however it spells that; None where it says nothing."""
    entries = None if source.config is None else source.config.not_converted
    if entries is None:
        return None
    linears = plain_linears(source)
    parts = [entry for entry in entries if not entry.startswith(PATTERN)]
    found = {module for module in linears if any(part in module for part in parts)}
    for of_pattern in _matched(source, [entry for entry in entries if entry.startswith(PATTERN)], linears):
        found.update(of_pattern)
    return found - {HEAD}


def _matched(source: Checkpoint, entries: list[str], modules: list[str]) -> list[list[str]]:
    try:
        return matches([entry.removeprefix(PATTERN) for entry in entries], modules)
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(f"{source.config_path}: ignore expects patterns; {error}") from None


def with_names_for(source: Checkpoint, target: Layout, config: QuantizationConfig) -> QuantizationConfig:
    """The configuration with names that say the same in the target's.

    Patterns become the modules that they match, and so do parts of names that quantized layers contain, where the
    target would take those for unquantized. Where the readers of either take every linear for quantized that is not
    left out by name, all that are not quantized are named.
    """
    plain = _with_weights(source)
    entries = config.not_converted or ()
    patterns = [entry for entry in entries if entry.startswith(PATTERN)]
    by_pattern = dict(zip(patterns, _matched(source, patterns, plain), strict=True))
    parts: list[str] = []
    exact: list[str] = []
    for entry in entries:
        if entry in by_pattern:
            exact += by_pattern[entry]
        elif target.ignores_by_name and any(entry in layer for layer in source.layers):
            exact += [module for module in plain if entry in module]
        else:
            parts.append(entry)
    if target.ignores_by_name or source.layout.ignores_by_name or source.layout.names_no_modules:
        exact += [
            module for module in plain_linears(source) if module != HEAD and not any(part in module for part in parts)
        ]
    return dataclasses.replace(
        config,
        not_converted=None if config.not_converted is None else tuple(parts),
        exact=tuple(dict.fromkeys(exact)),
        has_head=HEAD in source.layers,
    )

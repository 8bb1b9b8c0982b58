"""The linear modules of a checkpoint that are not quantized, and how each configuration names them."""

from __future__ import annotations

import dataclasses
import re

from ..layouts import HEAD, Layout, QuantizationConfig
from .errors import CheckpointError
from .source import Checkpoint


def with_names_for(source: Checkpoint, target: Layout, config: QuantizationConfig) -> QuantizationConfig:
    """The configuration with names that say the same in the target's.

    Patterns become the modules that they match, and so do parts of names that quantized layers contain, where the
    target would take those for unquantized. Such a target also names linears that are not quantized without a word.
    """
    plain = [
        tensor.removesuffix(".weight")
        for tensor in source.plain_tensors
        if tensor.endswith(".weight") and len(source.files.entry(tensor).shape) > 1
    ]
    parts: list[str] = []
    exact: list[str] = []
    for entry in config.not_converted or ():
        try:
            if entry.startswith("re:"):
                exact += [module for module in plain if re.match(entry[3:], module)]
            elif target.ignores_by_name and any(entry in layer for layer in source.layers):
                exact += [module for module in plain if entry in module]
            else:
                parts.append(entry)
        except re.error as error:
            raise CheckpointError(f"{source.path}: ignore expects patterns; {entry!r} is none ({error})") from None
    if target.ignores_by_name:
        # its readers expect every other linear to be quantized
        exact += [
            module
            for module in plain
            if module != HEAD
            and len(source.files.entry(f"{module}.weight").shape) == 2
            and "embed" not in module.rpartition(".")[2]
            and not any(part in module for part in parts)
        ]
    return dataclasses.replace(
        config,
        not_converted=None if config.not_converted is None else tuple(parts),
        exact=tuple(dict.fromkeys(exact)),
        has_head=HEAD in source.layers,
    )

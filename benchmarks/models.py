"""Models whose every linear weight is timed, by their published shapes."""

from __future__ import annotations

# Linear weights (out_features, in_features) of one decoder layer, and how many layers, from the published configs.
MODELS: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "Llama-3.1-8B": (
        32,
        [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)] + [(14336, 4096)] * 2 + [(4096, 14336)],
    ),
    "Qwen2.5-32B": (
        64,
        [(5120, 5120), (1024, 5120), (1024, 5120), (5120, 5120)] + [(27648, 5120)] * 2 + [(5120, 27648)],
    ),
    "Llama-3.1-70B": (
        80,
        [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192)] + [(28672, 8192)] * 2 + [(8192, 28672)],
    ),
}


def linear_weights(model: str) -> int:
    """How many weights its linear layers hold."""
    layers, shapes = MODELS[model]
    return layers * sum(rows * cols for rows, cols in shapes)

"""Every layout, by name: a new one is a file beside this and a line here."""

from __future__ import annotations

from .base import Layout
from .compressed_tensors import CompressedTensors
from .fp4 import GptOss, ModelOptNvfp4, Mxfp4, Nvfp4
from .gemm import Gemm
from .gemv import Gemv
from .gemv_fast import GemvFast
from .gptq import Gptq, GptqV2
from .llm_awq import LlmAwq
from .mlx import Mlx
from .modelopt import ModelOpt
from .quark import Quark, QuarkInt4
from .reading import StoredLayout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        *(Gemm(), Gemv(), GemvFast(), LlmAwq(), CompressedTensors()),
        *(Gptq(), GptqV2(), Mlx(), ModelOpt(), Quark(), QuarkInt4()),
    )
}

# FP4, whose values are no multiples of a scale: they become floats, and no other layout.
FLOAT_LAYOUTS: dict[str, StoredLayout] = {
    layout.name: layout for layout in (Mxfp4(), Nvfp4(), ModelOptNvfp4(), GptOss())
}

SOURCES: dict[str, StoredLayout] = {**LAYOUTS, **FLOAT_LAYOUTS}  # what can be read

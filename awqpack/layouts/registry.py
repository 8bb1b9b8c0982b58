"""Every layout, by name: a new one is a file beside this and a line here."""

from __future__ import annotations

from .base import Layout
from .compressed_tensors import CompressedTensors
from .gemm import Gemm
from .gemv import Gemv
from .gemv_fast import GemvFast
from .gptq import Gptq, GptqV2
from .llm_awq import LlmAwq
from .mlx import Mlx
from .modelopt import ModelOpt
from .quark import Quark, QuarkInt4

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        *(Gemm(), Gemv(), GemvFast(), LlmAwq(), CompressedTensors()),
        *(Gptq(), GptqV2(), Mlx(), ModelOpt(), Quark(), QuarkInt4()),
    )
}

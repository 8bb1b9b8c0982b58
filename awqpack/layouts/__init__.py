"""The layouts of AWQ checkpoints.

Each has decode(tensors) -> Layer and encode(Layer) -> tensors; detect says which one a layer is in::

    from awqpack.layouts import LAYOUTS
    layer = LAYOUTS["gemm"].decode({"qweight": ..., "qzeros": ..., "scales": ...}, group_size=128)
    tensors = LAYOUTS["gemv_fast"].encode(layer)
    tensors = quantize_layer(weight, LAYOUTS["gemm"])  # of a float weight (N, K)
"""

from .base import Layout, quantize_layer
from .compressed_tensors import CompressedTensors
from .detect import detect, layout_of_config
from .e2m1 import E2M1Layout
from .float_runs import dequantize_runs, quantize_runs
from .fp4 import GptOss, ModelOptNvfp4, Mxfp4, Nvfp4
from .gemm import Gemm
from .gemv import Gemv
from .gemv_fast import GemvFast
from .gptq import Gptq, GptqV2
from .llm_awq import LlmAwq
from .mlx import Mlx
from .modelopt import ModelOpt
from .parts import (
    HEAD,
    SCALE_DTYPES,
    SYMMETRIC_ZERO,
    AmbiguousGroupError,
    Geometry,
    Layer,
    LayoutError,
    QuantizationConfig,
    TensorSpec,
)
from .quark import Quark, QuarkInt4
from .reading import StoredLayout
from .registry import FLOAT_LAYOUTS, LAYOUTS, SOURCES
from .weight import PackedWeight, WeightFormat, relayout, relayout_runs

__all__ = [
    "FLOAT_LAYOUTS",
    "HEAD",
    "LAYOUTS",
    "SCALE_DTYPES",
    "SOURCES",
    "SYMMETRIC_ZERO",
    "AmbiguousGroupError",
    "CompressedTensors",
    "E2M1Layout",
    "Gemm",
    "Gemv",
    "GemvFast",
    "Geometry",
    "GptOss",
    "Gptq",
    "GptqV2",
    "Layer",
    "Layout",
    "LayoutError",
    "LlmAwq",
    "Mlx",
    "ModelOpt",
    "ModelOptNvfp4",
    "Mxfp4",
    "Nvfp4",
    "PackedWeight",
    "QuantizationConfig",
    "Quark",
    "QuarkInt4",
    "StoredLayout",
    "TensorSpec",
    "WeightFormat",
    "dequantize_runs",
    "detect",
    "layout_of_config",
    "quantize_layer",
    "quantize_runs",
    "relayout",
    "relayout_runs",
]

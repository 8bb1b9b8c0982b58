"""The layouts of AWQ checkpoints: decode(tensors) -> Layer and encode(Layer) -> tensors, and which one a layer is in.

from awqpack.layouts import LAYOUTS
layer = LAYOUTS["gemm"].decode({"qweight": ..., "qzeros": ..., "scales": ...}, group_size=128)
tensors = LAYOUTS["gemv_fast"].encode(layer)
tensors = quantize_layer(weight, LAYOUTS["gemm"])  # of a float weight (N, K)
"""

from .base import Layout, quantize_layer
from .compressed_tensors import CompressedTensors
from .detect import detect, layout_of_config
from .float_runs import dequantize_runs, quantize_runs
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
from .registry import LAYOUTS
from .weight import PackedWeight, WeightFormat, relayout, relayout_runs

__all__ = [
    "HEAD",
    "LAYOUTS",
    "SCALE_DTYPES",
    "SYMMETRIC_ZERO",
    "AmbiguousGroupError",
    "CompressedTensors",
    "Gemm",
    "Gemv",
    "GemvFast",
    "Geometry",
    "Gptq",
    "GptqV2",
    "Layer",
    "Layout",
    "LayoutError",
    "LlmAwq",
    "Mlx",
    "ModelOpt",
    "PackedWeight",
    "QuantizationConfig",
    "Quark",
    "QuarkInt4",
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

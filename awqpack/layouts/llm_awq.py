"""llm-awq, whose kernels TinyChat runs: awq/quantize/qmodule.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .gemv_fast import GemvFast
from .reading import Role


class LlmAwq(GemvFast):
    """gemv_fast with its qzeros named scaled_zeros."""

    name = "llm-awq"
    names: ClassVar[Mapping[Role, str]] = {"weight": "qweight", "zeros": "scaled_zeros", "scales": "scales"}
    versions = ("llm-awq",)
    source = "llm-awq, awq/quantize/qmodule.py"

"""The ways in which kernels expect 4-bit codes to be packed."""

from __future__ import annotations

from enum import Enum


class AWQPacking(Enum):
    """How 4-bit codes are packed.

    ``V1``: eight columns in an int32, shape ``(..., out_features, in_features / 8)``; with ``reorder``, in the
    column order 0, 2, 4, 6, 1, 3, 5, 7 of AutoAWQ's ``gemm`` kernels.

    ``V2``: four rows interleaved in int16, shape ``(..., out_features / 4, in_features)``, as in llm-awq and
    AutoAWQ's ``gemv_fast``.

    ``MARLIN``: tiles of 64 rows by 16 columns in int32, shape ``(..., in_features / 16, 2 * out_features)``, as the
    Marlin kernels of vLLM, SGLang and others read them, which repack to it when they load a model.
    """

    V1 = 1
    V2 = 2
    MARLIN = 3

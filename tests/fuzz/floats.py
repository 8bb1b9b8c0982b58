"""quantize, dequantize and min_max_scales give the bits of their arithmetic in NumPy, whatever bits they are given."""

from __future__ import annotations

from typing import NamedTuple

import float_twin
import numpy as np
import torch
import twin
from hypothesis import strategies as st
from shared import PACKINGS

import awqpack

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
# Which values: usual ones, any finite bits, those near 0, and some that are not finite.
KINDS = ["usual", "bits", "tiny", "not finite"]


class Case(NamedTuple):
    packing: str
    dtype: str
    scale_dtype: str
    batch: tuple
    blocks: tuple
    parts: tuple  # into how many groups rows and columns are divided
    kind: str
    scale_kind: str
    mode: str
    has_zeros: bool
    is_turned: bool  # the weight's columns lie together
    seed: int


CASES = st.builds(
    Case,
    st.sampled_from(sorted(PACKINGS)),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from(sorted(DTYPES)),
    st.sampled_from([(), (), (2,), (0,), (1, 2)]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.sampled_from([1, 2, 4, 1000]), st.sampled_from([1, 2, 4, 8, 1000])),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.sampled_from(sorted(float_twin.STEPS)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 999),
)


def values(rng, kind, shape, dtype):
    """A tensor of that kind of values."""
    bits = BITS[dtype]
    if kind in ("usual", "not finite"):
        tensor = float_twin.narrow(rng.standard_normal(shape).astype(np.float32), dtype)
    else:
        info = torch.iinfo(bits)
        array = rng.integers(info.min, info.max, shape, endpoint=True).astype({16: np.int16, 32: np.int32}[info.bits])
        if kind == "tiny":
            array &= np.array(info.min | 0x3FF, array.dtype)
        tensor = torch.from_numpy(array).view(dtype)
        tensor = torch.where(tensor.isfinite(), tensor, torch.zeros((), dtype=dtype))
    if kind == "not finite" and tensor.numel():
        index = int(rng.integers(tensor.numel()))
        tensor.view(-1)[index] = float(rng.choice([np.nan, np.inf, -np.inf]))
    return tensor


def check(case):
    rng = np.random.default_rng(case.seed)
    packing, dtype, scale_dtype = PACKINGS[case.packing], DTYPES[case.dtype], DTYPES[case.scale_dtype]
    blocks = [min(count, 2) if size >= 64 else count for count, size in zip(case.blocks, packing.block, strict=True)]
    rows, cols = (count * size for count, size in zip(blocks, packing.block, strict=True))
    shape = (*case.batch, rows, cols)
    groups = tuple(
        part if size % part == 0 else size if part > size else 1
        for part, size in zip(case.parts, shape[-2:], strict=True)
    )
    weight = values(rng, case.kind, shape, dtype)
    scales = values(rng, case.scale_kind, (*case.batch, *groups), scale_dtype).abs()
    zeros = torch.from_numpy(rng.integers(0, 16, scales.shape, np.uint8)) if case.has_zeros else None
    given = weight.mT.contiguous().mT if case.is_turned else weight
    check_codes(given, weight, scales, zeros, packing)
    check_weights(rng, shape, scales, zeros, packing, dtype)
    check_scales(given, weight, [size // count for size, count in zip(shape[-2:], groups, strict=True)], case.mode)


def refused(call, *words):
    try:
        call()
    except ValueError as error:
        assert any(word in str(error) for word in words), error
        return
    raise AssertionError(f"expected an error about {words}")


def check_codes(given, weight, scales, zeros, packing):
    if not scales.isfinite().all():
        refused(lambda: awqpack.quantize(given, scales, zeros, *packing), "scales[", "weight[")
        return
    expected = torch.from_numpy(twin.pack(float_twin.quantize(weight, scales, zeros), *packing))
    if weight.isfinite().all():
        assert torch.equal(awqpack.quantize(given, scales, zeros, *packing), expected), "quantize"
    else:
        refused(lambda: awqpack.quantize(given, scales, zeros, *packing), "weight[")
    unchecked = torch.ops.awqpack.quantize.default(given, scales, zeros, packing.number, packing.reorder, False)
    assert torch.equal(unchecked, expected), "quantize without checks"


def check_weights(rng, shape, scales, zeros, packing, dtype):
    codes = rng.integers(0, 16, shape, dtype=np.uint8)
    payload = torch.from_numpy(twin.pack(codes, *packing))
    if not scales.isfinite().all():
        refused(lambda: awqpack.dequantize(payload, scales, zeros, *packing, dtype=dtype), "scales[")
        return
    expected = float_twin.dequantize(codes, scales, zeros, dtype)
    actual = awqpack.dequantize(payload, scales, zeros, *packing, dtype=dtype)
    assert torch.equal(actual.view(BITS[dtype]), expected.view(BITS[dtype])), "dequantize"


def check_scales(given, weight, group, mode):
    if weight.numel() == 0:
        return
    call = torch.ops.awqpack.min_max_scales.default
    if not weight.isfinite().all():
        refused(lambda: call(given, *group, mode, weight.dtype), "weight[")
        return
    expected = float_twin.min_max_scales(weight, *group, mode, weight.dtype)
    if not expected[0].isfinite().all():
        refused(lambda: call(given, *group, mode, weight.dtype), "scales[")
        return
    scales, zeros = call(given, *group, mode, weight.dtype)
    assert torch.equal(scales.view(BITS[weight.dtype]), expected[0].view(BITS[weight.dtype])), "scales"
    assert torch.equal(zeros, expected[1]), "zeros"

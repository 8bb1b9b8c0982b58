"""awqpack.layouts.weight: how each layout stores codes, nibble by nibble, and the way from each to each other."""

import itertools

import numpy as np
import pytest
import torch
from shared import assert_same, random_codes
from twin import pack as twin_pack

import awqpack
from awqpack import AWQPacking
from awqpack.layouts import relayout, relayout_runs
from awqpack.layouts.weight import PackedWeight, PairedRows

SHAPE = (64, 128)  # whole blocks of every packing, either way round


def v1(codes):
    return twin_pack(codes, AWQPacking.V1, False)


def paired_rows(codes):
    """Byte [i, k] holds rows 2i and 2i + 1, each minus 8 in two's complement."""
    signed = codes.astype(np.int64) - 8
    return ((signed[::2] & 15) | (signed[1::2] & 15) << 4).astype(np.uint8)


# name: (the format, what it stores by an obvious twin, whether the first dimension counts in_features)
FORMATS = {
    "gemv": (PackedWeight(AWQPacking.V1), v1, False),
    "gemm": (
        PackedWeight(AWQPacking.V1, reorder=True, is_transposed=True),
        lambda codes: twin_pack(codes.T, AWQPacking.V1, True),
        True,
    ),
    "gemv_fast": (PackedWeight(AWQPacking.V2), lambda codes: twin_pack(codes, AWQPacking.V2, False), False),
    "gptq": (PackedWeight(AWQPacking.V1, is_turned=True), lambda codes: v1(codes).T, True),
    "mlx": (PackedWeight(AWQPacking.V1, stored_as=torch.uint32), lambda codes: v1(codes).view(np.uint32), False),
    "quark int4": (
        PackedWeight(AWQPacking.V1, reorder=True, is_transposed=True, is_signed=True),
        lambda codes: twin_pack(codes.T ^ 8, AWQPacking.V1, True),
        True,
    ),
    "modelopt": (PairedRows(), paired_rows, False),
}
NAMES = list(FORMATS)


@pytest.fixture(params=NAMES)
def case(request):
    return FORMATS[request.param]


def test_what_is_stored(case):
    form, stored, runs_along_k = case
    codes = random_codes(SHAPE)
    expected = stored(codes)
    result = form.pack(torch.from_numpy(codes))
    assert_same(result.numpy(), expected)
    assert form.dtype == result.dtype
    assert form.shape(*SHAPE) == expected.shape
    assert form.features(expected.shape) == SHAPE
    assert form.runs_along_k == runs_along_k
    assert_same(form.unpack(result).numpy(), codes)


def test_a_code_above_15_is_named(case):
    codes = torch.from_numpy(random_codes(SHAPE))
    codes[5, 9] = 23
    with pytest.raises(ValueError, match=r"pack expects uint8 codes in 0\.\.15; codes\[(5, 9|9, 5)\] is 23"):
        case[0].pack(codes)


@pytest.mark.parametrize("along_k", [False, True])
def test_a_part_is_what_is_stored_of_these_codes(case, along_k):
    form = case[0]
    codes = torch.from_numpy(random_codes(SHAPE))
    unit = form.unit()[along_k]
    begin, end = unit, SHAPE[along_k] - unit
    part = form.part(form.pack(codes), along_k, begin, end)
    assert_same(part, form.pack(codes[:, begin:end] if along_k else codes[begin:end]))


@pytest.mark.parametrize("shape", [SHAPE, (576, 640)], ids=["a chunk or two", "several, and a rim"])
@pytest.mark.parametrize(("one", "other"), itertools.product(NAMES, NAMES))
def test_from_each_format_to_each_other(one, other, shape, monkeypatch):
    monkeypatch.setattr("awqpack.layouts.weight._CHUNK_CODES", 2048)  # several chunks
    source, target = FORMATS[one][0], FORMATS[other][0]
    codes = torch.from_numpy(random_codes(shape))
    stored, expected = source.pack(codes), target.pack(codes)
    assert_same(relayout(stored, source, target), expected)
    if one != other:
        runs = relayout_runs(
            lambda begin, end, take_bytes: stored[begin:end],
            shape,
            source,
            target,
            lambda purpose, dtype, shape: torch.empty(shape, dtype=dtype),
        )
        assert_same(torch.cat([run.clone() for run in runs]), expected)


@pytest.mark.parametrize("cols", [256, 252])  # with whole words of V1 in a row, and without
def test_modelopt_weights_are_rounded_as_every_other(cols, monkeypatch):
    monkeypatch.setattr("awqpack.layouts.weight._CHUNK_CODES", 2048)  # several runs of rows
    form, weight = PairedRows(), torch.randn(40, cols, generator=torch.Generator().manual_seed(0)).half()
    scales, zeros = awqpack.min_max_scales(weight, 36 if cols == 252 else 32, symmetric=True)
    turned = awqpack.quantize(weight.t(), scales.t(), zeros.t())
    stored = form.quantize(weight, scales, None)
    assert_same(stored, form.pack(awqpack.unpack(turned).t()))
    back = torch.empty_like(weight)
    form.dequantize_into(stored, scales, zeros, back)
    assert_same(back, awqpack.dequantize(turned, scales.t(), zeros.t()).t())

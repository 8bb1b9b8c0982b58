"""quantize, dequantize and min_max_scales are bit for bit the NumPy twin: dtypes, packings, strides, groups, values."""

import functools
import hashlib
import itertools
from pathlib import Path

import float_twin
import forked
import hypothesis
import numpy as np
import pytest
import torch
import twin
from hypothesis import strategies
from shared import CUDA, PACKINGS, VARIANTS, Memory, assert_same, random_codes

import awqpack
from awqpack.ops import floats as portable

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
MODES = list(float_twin.STEPS)
SHAPE = (64, 192)
# Codes of a rectangle: along rows as in most checkpoints, down columns as for a transposed payload, both, one for all.
GROUPS = [(1, 64), (1, 32), (1, 8), (1, 192), (32, 1), (64, 1), (8, 1), (1, 1), (4, 16), (2, 3), (64, 192), (16, 96)]


@pytest.fixture(params=DTYPES.values(), ids=DTYPES.keys())
def dtype(request):
    return request.param


def random_scaling(shape, group, dtype, seed=0):
    """Scales of many magnitudes, some of them 0, and zeros."""
    rng = np.random.default_rng(seed)
    size = (*shape[:-2], shape[-2] // group[0], shape[-1] // group[1])
    scales = rng.uniform(0.5, 2, size).astype(np.float32) * 2.0 ** rng.integers(-12, 3, size)
    scales[rng.random(size) < 0.05] = 0
    return float_twin.narrow(scales.astype(np.float32), dtype), torch.from_numpy(rng.integers(0, 16, size, np.uint8))


def random_weight(shape, scales, zeros, dtype, seed=1):
    """Weights around what the codes stand for: in between, exactly half way between two, and cut off at both ends."""
    rng = np.random.default_rng(seed)
    scale = float_twin.spread(float_twin.wide(scales), shape)
    steps = rng.integers(-3, 38, shape) / np.float32(2) - float_twin.spread(zeros.numpy(), shape)
    steps = np.where(rng.random(shape) < 0.5, steps, steps + rng.uniform(-0.5, 0.5, shape))
    with np.errstate(over="ignore"):
        return float_twin.narrow((steps * scale).astype(np.float32), dtype)


def in_memory(tensor, memory):
    """The tensor in that kind of memory: a view of a NumPy buffer, of integers where NumPy has no such dtype."""
    array = memory.copy(tensor.view(BITS.get(tensor.dtype, tensor.dtype)).numpy())
    return torch.from_numpy(array).view(tensor.dtype)


def is_same_bits(actual, expected):
    """As assert_same, but for the sign of zeros too."""
    assert_same(actual, expected)
    if actual.is_floating_point():
        assert torch.equal(actual.view(BITS[actual.dtype]), expected.view(BITS[expected.dtype]))
    return True


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("scale_dtype", DTYPES.values(), ids=DTYPES.keys())
def test_twin(packing, dtype, scale_dtype, group, device):
    scales, zeros = random_scaling(SHAPE, group, scale_dtype)
    weight = random_weight(SHAPE, scales, zeros, dtype)
    codes = float_twin.quantize(weight, scales, zeros)
    payload = torch.from_numpy(twin.pack(codes, *packing))
    expected = float_twin.dequantize(codes, scales, zeros, dtype)
    there = [tensor.to(device) for tensor in (weight, scales, zeros, payload)]
    actual = awqpack.quantize(*there[:3], *packing)
    assert_same(actual, there[3])
    back = awqpack.dequantize(there[3], *there[1:3], *packing, dtype=dtype)
    assert is_same_bits(back.cpu(), expected)
    assert awqpack.dequantize(there[3], *there[1:3], *packing).dtype == scale_dtype
    assert_same(portable.quantize(*there[:3], packing.number, packing.reorder), there[3])
    assert is_same_bits(
        portable.dequantize(there[3], *there[1:3], packing.number, packing.reorder, dtype).cpu(), expected
    )


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_min_max_twin(dtype, group, mode, device):
    weight = float_twin.narrow(np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32), dtype)
    weight[:2, :64] = 0
    weight[:, 64:72] = weight[:, 64:72].abs()
    for scale_dtype in DTYPES.values():
        expected = float_twin.min_max_scales(weight, *group, mode, scale_dtype)
        for scan in (torch.ops.awqpack.min_max_scales, portable.min_max_scales):
            scales, zeros = scan(weight.to(device), *group, mode, scale_dtype)
            assert is_same_bits(scales.cpu(), expected[0])
            assert_same(zeros.cpu(), expected[1])


def test_no_zeros_are_eights(packing, device):
    codes = torch.from_numpy(random_codes(SHAPE)).to(device)
    payload, scales = awqpack.pack(codes, *packing), torch.ones(64, 3, device=device) / 4
    eights = torch.full((64, 3), 8, dtype=torch.uint8, device=device)
    weight = awqpack.dequantize(payload, scales, None, *packing)
    assert_same(weight, awqpack.dequantize(payload, scales, eights, *packing))
    assert_same(weight, (codes.float() - 8) / 4)
    assert_same(awqpack.quantize(weight, scales, None, *packing), payload)


# --- strides ---

TORCH_MEMORY = [memory for memory in Memory if memory.is_for_torch and memory is not Memory.UNALIGNED]


@functools.cache
def layer_in_rows(shape, group, packing):
    """Weight, scales, zeros, payload, and the weight that comes back, all contiguous."""
    scales, zeros = random_scaling(shape, group, torch.float16)
    weight = random_weight(shape, scales, zeros, torch.float16)
    payload = torch.from_numpy(twin.pack(float_twin.quantize(weight, scales, zeros), *packing))
    return weight, scales, zeros, payload, awqpack.dequantize(payload, scales, zeros, *packing)


@pytest.mark.parametrize("memory", TORCH_MEMORY)
@pytest.mark.parametrize("shape", [(64, 128), (2, 3, 64, 64)])
@pytest.mark.parametrize("group", [(1, 64), (32, 1), (2, 16)], ids=str)
def test_any_strides(memory, shape, group, packing):
    weight, scales, zeros, payload, back = layer_in_rows(shape, group, packing)
    strided = [in_memory(tensor, memory) for tensor in (weight, scales, zeros, payload)]
    assert_same(awqpack.quantize(*strided[:3], *packing), payload)
    assert is_same_bits(awqpack.dequantize(strided[3], *strided[1:3], *packing), back)
    out = in_memory(torch.zeros_like(payload), memory)
    assert awqpack.quantize(*strided[:3], *packing, out=out) is out
    assert_same(out.contiguous(), payload)
    out = in_memory(torch.zeros_like(weight), memory)
    assert awqpack.dequantize(strided[3], *strided[1:3], *packing, out=out) is out
    assert is_same_bits(out.contiguous(), back)
    found = float_twin.min_max_scales(weight, *group, "asymmetric", torch.float32)
    outs = in_memory(torch.zeros_like(found[0]), memory), in_memory(torch.zeros_like(found[1]), memory)
    assert awqpack.min_max_scales(strided[0], group, out=outs)[0] is outs[0]
    assert is_same_bits(outs[0].contiguous(), found[0])
    assert_same(outs[1].contiguous(), found[1])


@pytest.mark.parametrize("shape", [(640, 1088), (3, 64, 4160), (64, 65600)])
@pytest.mark.parametrize("turned", [False, True])
def test_more_than_a_chunk(shape, turned):
    """Units that start inside groups, at their ends, and across lines; lines that are columns; outputs of the largest
    shape are streamed past the cache, from where no line of it starts. In every packing."""
    group = (64, 1) if turned else (1, shape[-1] // 5 if shape[-1] % 5 == 0 else 32)
    scales, zeros = random_scaling(shape, group, torch.bfloat16)
    weight = random_weight(shape, scales, zeros, torch.float16)
    codes = float_twin.quantize(weight, scales, zeros)
    back = float_twin.dequantize(codes, scales, zeros, torch.float16)
    if turned:
        weight = weight.transpose(-1, -2).contiguous().transpose(-1, -2)
    for packing in PACKINGS.values():
        payload = awqpack.pack(torch.from_numpy(codes), *packing)
        packed = torch.zeros(payload.numel() + 3, dtype=payload.dtype)[3:].view(payload.shape)
        out = torch.zeros(weight.numel() + 3, dtype=weight.dtype)[3:].as_strided(weight.shape, weight.stride(), 3)
        assert_same(awqpack.quantize(weight, scales, zeros, *packing, out=packed), payload)
        assert_same(awqpack.quantize(weight, scales, zeros, *packing), payload)
        assert is_same_bits(awqpack.dequantize(payload, scales, zeros, *packing, dtype=out.dtype), back)
        assert is_same_bits(awqpack.dequantize(payload, scales, zeros, *packing, out=out).contiguous(), back)
    expected = float_twin.min_max_scales(weight, *group, "asymmetric", torch.float16)
    scales, zeros = awqpack.min_max_scales(weight, group)
    assert is_same_bits(scales, expected[0])
    assert_same(zeros, expected[1])


def test_large_matrices_by_columns(packing):
    """Taken by longer runs where the CPU prefers that: as by rows, which the tests above compare with the twin. Columns
    end within 64 rows, where blocks allow it."""
    shape = packing.fit((4208, 8192))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(torch.float16)
    scales, zeros = awqpack.min_max_scales(weight, (16, 1))
    payload = awqpack.quantize(weight, scales, zeros, *packing)
    back = awqpack.dequantize(payload, scales, zeros, *packing)
    turned = torch.empty_like(payload.t(), memory_format=torch.contiguous_format).t()
    for given in (weight, weight.t().contiguous().t()):
        assert torch.equal(awqpack.quantize(given, scales, zeros, *packing), payload)
        assert torch.equal(awqpack.quantize(given, scales, zeros, *packing, out=turned), payload)
        for source in (payload, turned):
            assert torch.equal(awqpack.dequantize(source, scales, zeros, *packing, out=given), back)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_stride_order(order, packing, device):
    payload = awqpack.pack(torch.from_numpy(random_codes(SHAPE)).to(device), *packing)
    scales = torch.rand(64, 3, device=device)
    weight = torch.ops.awqpack.dequantize(payload, scales, None, packing.number, packing.reorder, torch.float16, order)
    assert weight.stride() == ((192, 1) if order == (0, 1) else (1, 64))
    assert_same(weight.contiguous(), awqpack.dequantize(payload, scales, None, *packing, dtype=torch.float16))


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (2, 0, 64), (0, 64, 64)])
def test_nothing(shape, packing, device):
    weight = torch.zeros(shape, dtype=torch.float16, device=device)
    scales, zeros = awqpack.min_max_scales(weight, 1)
    payload = awqpack.quantize(weight, scales, zeros, *packing)
    assert tuple(awqpack.dequantize(payload, scales, zeros, *packing).shape) == tuple(
        awqpack.unpack(payload, *packing).shape
    )


# --- values ---


def extremes(dtype):
    """Both zeros, the least and the greatest subnormal number, the least normal and the greatest number."""
    least = {torch.float16: 0x0400, torch.bfloat16: 0x0080, torch.float32: 0x00800000}[dtype]
    bits = torch.tensor([0, 1, least - 1, least], dtype=BITS[dtype]).view(dtype)
    values = torch.cat([bits, torch.tensor([torch.finfo(dtype).max], dtype=dtype)])
    return torch.cat([values, -values])


def bit_patterns(dtype, size, seed):
    """Every kind of number alike, and the extremes for sure; nothing infinite, no NaN."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, size, dtype=np.uint32)
    tensor = torch.from_numpy(bits.view(np.int32))
    if dtype != torch.float32:
        tensor = (tensor >> 16).to(torch.int16)
    floats = tensor.view(dtype)
    floats = torch.where(floats.isfinite(), floats, torch.zeros_like(floats))
    some = extremes(dtype)[: floats.numel() // 4]
    floats.view(-1)[torch.from_numpy(rng.permutation(floats.numel())[: len(some)])] = some
    return floats


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("scale_dtype", DTYPES.values(), ids=DTYPES.keys())
@hypothesis.given(
    seed=strategies.integers(0, 2**32 - 1),
    group=strategies.sampled_from([(1, 64), (1, 16), (8, 1), (1, 1)]),
    near=strategies.booleans(),
)
@hypothesis.settings(max_examples=25)
def test_any_bits(device, dtype, scale_dtype, seed, group, near):
    shape = (8, 64)
    scales = bit_patterns(scale_dtype, (8 // group[0], 64 // group[1]), seed)
    scales = torch.where(scales == 0, scales, scales.abs())  # -0 is a scale of 0
    zeros = torch.from_numpy(random_codes(tuple(scales.shape), seed))
    weight = bit_patterns(dtype, shape, seed + 1)
    if near:
        weight = random_weight(shape, scales, zeros, dtype, seed)
        weight = torch.where(weight.isfinite(), weight, torch.zeros_like(weight))
    codes = float_twin.quantize(weight, scales, zeros)
    payload = torch.from_numpy(twin.pack(codes, awqpack.AWQPacking.V1, False))
    weight, scales, zeros, there = (tensor.to(device) for tensor in (weight, scales, zeros, payload))
    assert_same(awqpack.quantize(weight, scales, zeros), there)
    assert_same(portable.quantize(weight, scales, zeros, 1, False), there)
    back = awqpack.dequantize(there, scales, zeros, dtype=dtype)
    assert is_same_bits(back.cpu(), float_twin.dequantize(codes, scales, zeros, dtype))


@pytest.mark.parametrize("column_major", [False, True])
def test_round_trip_of_every_code_zero_and_normal_scale(column_major, device):
    """quantize(dequantize(p)) == p: 16 codes x 16 zeros x every normal float16 scale."""
    scales = torch.arange(0x0400, 0x7C00, dtype=torch.int16, device=device).view(torch.float16)[:, None]
    # Whole vectors of one scale in rows; in columns each has a scale of its own.
    codes = torch.arange(16, dtype=torch.uint8, device=device).repeat(1 if column_major else 4)
    payload = awqpack.pack(codes.expand(len(scales), -1).contiguous())
    for zero in range(16):
        zeros = torch.full((len(scales), 1), zero, dtype=torch.uint8, device=device)
        for dtype in (torch.float16, torch.float32):
            weight = awqpack.dequantize(payload, scales, zeros, dtype=dtype)
            if column_major:
                weight = weight.t().contiguous().t()
            # 15 times the largest scales is infinite as a float16: these come last.
            fits = len(scales) if dtype == torch.float32 else int(weight.isfinite().all(1).sum())
            assert fits >= 30 * 1024 - 4096
            assert_same(awqpack.quantize(weight[:fits], scales[:fits], zeros[:fits]), payload[:fits])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_quotient_is_that_of_a_division(dtype, scale_dtype):
    """Halves of every sort, and their neighbours: where a bare reciprocal would round to the wrong side."""
    infinity = 0x7C00 if scale_dtype == torch.float16 else 0x7F80
    scales = torch.arange(1, infinity, 1 if dtype == scale_dtype == torch.float16 else 7, dtype=torch.int16)
    scales = scales.view(scale_dtype)[:, None]
    steps = (torch.arange(64) - 16) / 2
    weight = (scales.float() * steps).to(dtype)
    near = torch.stack([weight.view(torch.int16) + i for i in (-1, 0, 1)]).view(dtype)
    near = torch.where(near.isfinite(), near, torch.zeros_like(near))
    zeros = torch.from_numpy(random_codes((len(scales), 1)))
    for weight in near:
        codes = float_twin.quantize(weight, scales, zeros)
        assert_same(awqpack.unpack(awqpack.quantize(weight, scales, zeros)), torch.from_numpy(codes))


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [2.0**-30, 2.0**-24, 1e-3], ids=str)
@pytest.mark.parametrize("large", [63.75, 64, 4e4, -64, -4e4], ids=str)
def test_large_weights_among_usual_ones(large, scale, scale_dtype, dtype, packing):
    """From 64 on a line takes a longer way than what is usual, as it does for scales below 2^-24."""
    rng = np.random.default_rng(0)
    scales, zeros = torch.full((64, 1), scale, dtype=scale_dtype), torch.from_numpy(random_codes((64, 1)))
    weight = random_weight((64, 192), scales, zeros, dtype)
    weight[::3, int(rng.integers(192))] = large
    codes = torch.from_numpy(float_twin.quantize(weight, scales, zeros))
    for validate in (True, False):
        payload = awqpack.quantize(weight, scales, zeros, *packing, validate=validate)
        assert_same(awqpack.unpack(payload, *packing), codes)


@pytest.mark.parametrize("scale_dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("scale", [1.0, 0.0, 6e-8])
def test_not_validated(scale, scale_dtype, dtype, packing):
    """Infinity gives an end of the codes and NaN the zero; a scale of 0 gives the zero of anything."""
    weight = torch.zeros(64, 64, dtype=dtype)
    weight[0, :5] = torch.tensor([float("inf"), float("-inf"), float("nan"), 1000, -1000])
    weight[3, 17] = float("nan")
    scales = torch.full((64, 1), scale, dtype=scale_dtype)
    zeros = torch.full((64, 1), 5, dtype=torch.uint8)
    expected = float_twin.quantize(weight, scales, zeros)
    assert expected[0, :5].tolist() == ([5, 5, 5, 5, 5] if scale == 0 else [15, 0, 5, 15, 0])
    for quantize in (
        awqpack.quantize,
        lambda *args, validate: portable.quantize(*args[:3], packing.number, packing.reorder, validate),
    ):
        payload = quantize(weight, scales, zeros, *packing, validate=False)
        assert_same(awqpack.unpack(payload, *packing), torch.from_numpy(expected))


def test_the_floating_point_mode_of_the_program_does_not_matter():
    scales, zeros = torch.full((8, 1), 2.0**-140), torch.full((8, 1), 3, dtype=torch.uint8)
    weight = torch.arange(64, dtype=torch.float32).expand(8, 64) * 2.0**-141
    expected = torch.from_numpy(float_twin.quantize(weight, scales, zeros))
    back = float_twin.dequantize(expected.numpy(), scales, zeros, torch.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        payload = awqpack.quantize(weight, scales, zeros)
        actual = awqpack.dequantize(payload, scales, zeros)
    finally:
        torch.set_flush_denormal(False)
    assert_same(awqpack.unpack(payload), expected)
    assert is_same_bits(actual, back)


def test_data_free_quantizer(packing, dtype, device):
    """Half a step at most, but for what rounding of the scale and to the dtype adds."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    scales, zeros = awqpack.min_max_scales(weight, 64)
    back = awqpack.dequantize(awqpack.quantize(weight, scales, zeros, *packing), scales, zeros, *packing)
    steps = (back.float() - weight.float()).abs() / scales.float().repeat_interleave(64, 1)
    assert float(steps.max()) < 0.5 + 16 * torch.finfo(dtype).eps + 1e-6


@pytest.mark.parametrize(
    ("group", "shape"), [(-1, (64, 1)), (64, (64, 3)), ((-1, 1), (1, 192)), ((-1, -1), (1, 1)), ((32, 64), (2, 3))]
)
def test_group_sizes(group, shape):
    weight = torch.randn(SHAPE)
    scales, zeros = awqpack.min_max_scales(weight, group)
    assert tuple(scales.shape) == tuple(zeros.shape) == shape
    assert_same(
        awqpack.min_max_scales(weight, group, symmetric=True)[0],
        awqpack.min_max_scales(weight, group, formula="absmax/7")[0],
    )


# --- every instruction set ---

DIGEST = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import test_floats
print(test_floats.digest())
"""


@functools.cache
def digest():
    """A hash of many results."""
    sums = hashlib.sha256()
    shape = (64, 448)
    packings = itertools.cycle(PACKINGS.values())
    groups = [(1, 64), (1, 28), (64, 1), (1, 1), (2, 7)]
    for seed, (dtype, group) in enumerate(itertools.product(DTYPES.values(), groups)):
        packing = next(packings)
        scales, zeros = random_scaling(shape, group, dtype, seed)
        odd = bit_patterns(dtype, tuple(scales.shape), seed).abs()
        for scale in (scales, odd):
            weight = torch.cat(
                [random_weight(shape, scale, zeros, dtype, seed)[:32], bit_patterns(dtype, (32, 448), seed)]
            )
            weight = torch.where(weight.isfinite(), weight, torch.zeros_like(weight))
            for given in (weight, weight.t().contiguous().t()):
                payload = awqpack.quantize(given, scale, zeros, *packing)
                back = torch.empty_like(given)
                awqpack.dequantize(payload, scale, zeros, *packing, out=back)
                found = awqpack.min_max_scales((given.float() * 1e-3).to(dtype), group, dtype=torch.float32)
                for tensor in (payload, back.contiguous(), *found):
                    sums.update(tensor.view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != awqpack.build_info()["cpu_active"]])
def test_every_variant_gives_the_same(variant):
    """As the one that runs here, which the tests above compare with the twin."""
    script = DIGEST.format(tests=str(Path(__file__).parent))
    result = forked.run(script, AWQPACK_CPU=variant)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == digest()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts_give_the_same_result(threads, packing):
    weight = torch.randn(512, 1088, generator=torch.Generator().manual_seed(2)).to(torch.float16)
    scales, zeros = awqpack.min_max_scales(weight, 64)
    payload = awqpack.quantize(weight, scales, zeros, *packing)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(awqpack.min_max_scales(weight, 64)[0], scales)
        assert_same(awqpack.quantize(weight, scales, zeros, *packing), payload)
        back = awqpack.dequantize(payload, scales, zeros, *packing)
    finally:
        torch.set_num_threads(before)
    assert is_same_bits(
        back, portable.dequantize(payload, scales, zeros, packing.number, packing.reorder, torch.float16)
    )

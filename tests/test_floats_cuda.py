"""quantize, dequantize and min_max_scales on a GPU: which kernel runs, strides, faults, streams, graphs, devices."""

import itertools

import pytest
import torch
from shared import HAS_CUDA, PACKINGS, assert_same
from test_cuda import kernels_of
from test_floats import DTYPES, is_same_bits, random_scaling, random_weight

import awqpack

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not HAS_CUDA, reason="needs an NVIDIA GPU and a build with CUDA kernels"),
]

SHAPE = (256, 512)
GROUPS = {
    "along": (1, 128),
    "along 64": (1, 64),
    "along 32": (1, 32),
    "down": (128, 1),
    "down 32": (32, 1),
    "down 8": (8, 1),  # less than what a thread takes of longer ones
    "row": (1, 512),
    "all": (256, 512),
}
# How a weight may lie in memory, beside a dense payload.
MEMORY = {
    "rows": lambda tensor: tensor.contiguous(),
    "columns": lambda tensor: tensor.mT.contiguous().mT,
    "row pitch": lambda tensor: torch.nn.functional.pad(tensor, (8, 8))[..., 8:-8],
    "odd pitch": lambda tensor: torch.nn.functional.pad(tensor, (1, 2))[..., 1:-2],
    "every second": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
}


def case(packing, group, dtype, scale_dtype=torch.float16, shape=SHAPE):
    """Weight, scales and zeros on the CPU, and the payload its kernels make of them."""
    scales, zeros = random_scaling(shape, group, scale_dtype)
    weight = random_weight(shape, scales, zeros, dtype)
    weight = torch.where(weight.isfinite(), weight, torch.zeros_like(weight))
    return weight, scales, zeros, awqpack.quantize(weight, scales, zeros, *packing)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("memory", MEMORY.values(), ids=MEMORY.keys())
def test_the_same_bits_as_on_the_cpu(packing, group, memory):
    for shape, dtype, scale_dtype in itertools.product((SHAPE, (3, 256, 512)), DTYPES.values(), DTYPES.values()):
        weight, scales, zeros, payload = case(packing, group, dtype, scale_dtype, shape)
        there = [tensor.cuda() for tensor in (scales, zeros)]
        assert_same(awqpack.quantize(memory(weight.cuda()), *there, *packing).cpu(), payload)
        for kept in (zeros, None):
            expected = awqpack.dequantize(payload, scales, kept, *packing, dtype=dtype)
            out = memory(torch.zeros_like(expected).cuda())
            awqpack.dequantize(payload.cuda(), there[0], None if kept is None else there[1], *packing, out=out)
            assert is_same_bits(out.contiguous().cpu(), expected)
        for formula in ("asymmetric", "absmax/7.5"):
            expected = torch.ops.awqpack.min_max_scales(weight, *group, formula, torch.float32)
            found = torch.ops.awqpack.min_max_scales(memory(weight.cuda()), *group, formula, torch.float32)
            assert is_same_bits(found[0].cpu(), expected[0])
            assert_same(found[1].cpu(), expected[1])


@pytest.mark.parametrize("group", [(1, 128), (1, 32), (128, 1)], ids=str)
def test_a_payload_viewed_transposed(group):
    packing = PACKINGS["v1"]
    weight, scales, zeros, payload = case(packing, group, torch.float16)
    turned = payload.cuda().t().contiguous().t()
    expected = awqpack.dequantize(payload, scales, zeros, *packing)
    assert is_same_bits(awqpack.dequantize(turned, scales.cuda(), zeros.cuda(), *packing).cpu(), expected)
    turned.zero_()
    awqpack.quantize(weight.cuda(), scales.cuda(), zeros.cuda(), *packing, out=turned)
    assert_same(turned.contiguous().cpu(), payload)


@pytest.mark.parametrize("column_major", [False, True])
def test_one_fast_kernel_runs(packing, column_major, dtype):
    if column_major and packing.packing is awqpack.AWQPacking.MARLIN:
        pytest.skip("Marlin has kernels of its own for rows alone")
    group = (128, 1) if column_major else (1, 128)
    weight, scales, zeros, payload = (tensor.cuda() for tensor in case(packing, group, dtype))
    weight = weight.t().contiguous().t() if column_major else weight
    for call in (
        lambda: awqpack.quantize(weight, scales, zeros, *packing),
        lambda: awqpack.quantize(weight, scales, zeros, *packing, validate=False),
        lambda: awqpack.dequantize(payload, scales, zeros, *packing, out=weight),
        lambda: awqpack.min_max_scales(weight, group),
    ):
        names = kernels_of(call)
        assert len(names) == 1, names
        assert "awq_cuda" in names[0]
        assert "generic" not in names[0]


@pytest.fixture(params=DTYPES.values(), ids=DTYPES.keys())
def dtype(request):
    return request.param


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("group", [(1, 128), (128, 1)], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, (3, 256, 512)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_weight_that_is_not_finite_is_named(packing, shape, group, value, column_major):
    weight, scales, zeros, _ = case(packing, group, torch.float16, shape=shape)
    weight[(*([1] * (len(shape) - 2)), 200, 77)] = value
    weight[(*([2] * (len(shape) - 2)), 7, 13)] = float("nan")
    first = weight.isfinite().logical_not().nonzero()[0].tolist()
    given = weight.cuda().mT.contiguous().mT if column_major else weight.cuda()
    message = rf"expects a finite weight; weight\[{', '.join(map(str, first))}\] is "
    with pytest.raises(ValueError, match=message):
        awqpack.quantize(given, scales.cuda(), zeros.cuda(), *packing)
    with pytest.raises(ValueError, match=message):
        awqpack.min_max_scales(given, group)
    expected = awqpack.quantize(weight, scales, zeros, *packing, validate=False)
    assert_same(awqpack.quantize(given, scales.cuda(), zeros.cuda(), *packing, validate=False).cpu(), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda scales, zeros: scales[5:, 1].fill_(-0.5), r"scales\[5, 1\] is -0.5"),
        (lambda scales, zeros: scales[:, 3].fill_(float("inf")), r"scales\[0, 3\] is inf"),
        (lambda scales, zeros: scales[255, 3].fill_(float("nan")), r"scales\[255, 3\] is nan"),
        (lambda scales, zeros: zeros[9:, 2].fill_(200), r"zeros\[9, 2\] is 200"),
    ],
)
def test_the_first_bad_scale_or_zero_is_named(packing, spoil, message):
    weight, scales, zeros, _ = (tensor.cuda() for tensor in case(packing, (1, 128), torch.float16))
    weight[0, 0] = float("nan")
    spoil(scales, zeros)
    with pytest.raises(ValueError, match=message):
        awqpack.quantize(weight, scales, zeros, *packing)


@pytest.mark.parametrize("scale_dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("memory", ["rows", "columns"])
def test_a_bad_scale_or_zero_of_any_column_is_named(packing, dtype, scale_dtype, memory):
    weight, scales, zeros, _ = (tensor.cuda() for tensor in case(packing, (128, 1), dtype, scale_dtype))
    given = MEMORY[memory](weight)
    bad = itertools.cycle((-0.5, float("inf"), float("nan")))  # of each of eight columns every value, some word further
    for column, value in zip(range(0, 240, 9), bad, strict=False):
        spoiled = scales.clone()
        spoiled[1, column] = value
        with pytest.raises(ValueError, match=rf"scales\[1, {column}\] is {value}"):
            awqpack.quantize(given, spoiled, zeros, *packing)
        spoiled = zeros.clone()
        spoiled[1, column] = 16
        with pytest.raises(ValueError, match=rf"zeros\[1, {column}\] is 16"):
            awqpack.quantize(given, scales, spoiled, *packing)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("memory", ["rows", "columns"])
def test_usual_weights_take_the_fast_way(packing, dtype, group, memory):
    """A single odd scale or weight takes a warp the slow way, and other tests have many."""
    for shape, scale_dtype in itertools.product((SHAPE, (3, 256, 512)), DTYPES.values()):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        scales, zeros = awqpack.min_max_scales(weight, group)
        scales = scales.to(scale_dtype)
        payload = awqpack.quantize(weight, scales, zeros, *packing)
        there = [tensor.cuda() for tensor in (scales, zeros)]
        assert_same(awqpack.quantize(MEMORY[memory](weight.cuda()), *there, *packing).cpu(), payload)


@pytest.mark.parametrize("memory", ["rows", "columns"])
def test_factors_and_weights_that_take_the_slow_way(packing, dtype, memory):
    """One of each kind among columns of usual ones: subnormal, tiny, huge, and zero, of either sign."""
    weight, scales, zeros, _ = case(packing, (128, 1), dtype, dtype)
    limits = torch.finfo(dtype)
    odd = [limits.smallest_normal / 4, limits.smallest_normal, limits.max, 0.0, -0.0, 2.0**-24, 1.0]
    for column, value in enumerate(odd):
        scales[1, 8 * column + column] = value
        weight[8 * column + 130, 64 + 8 * column :: 128] = value
        weight[8 * column + 131, 65 + 8 * column :: 128] = -value
    there = [tensor.cuda() for tensor in (scales, zeros)]
    found = awqpack.quantize(MEMORY[memory](weight.cuda()), *there, *packing)
    assert_same(found.cpu(), awqpack.quantize(weight, scales, zeros, *packing))


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16], ids=["scales float16", "scales bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("memory", ["rows", "columns"])
def test_every_pair_of_significands(packing, dtype, scale_dtype, turned, memory):
    """16-bit weights are divided less exactly by 16-bit scales: no quotient may cross the middle of two codes."""

    def significands(dtype):
        return torch.arange(1, 2, torch.finfo(dtype).eps, device="cuda").to(dtype)

    scales = significands(scale_dtype)[:, None] / 64
    powers = torch.ldexp(torch.ones(10, device="cuda"), torch.arange(-10, 0, device="cuda"))
    weights = (powers[:, None] * significands(dtype).float()).flatten()
    weights = torch.cat([weights, -weights]).to(dtype)
    weight = weights.expand(len(scales), -1)
    quotients = weight.float() / scales.float()
    if turned:
        weight, scales, quotients = weight.mT, scales.mT, quotients.mT
    weight = MEMORY[memory](weight)
    for zero in range(16):
        codes = (quotients + zero).round().clamp(0, 15).to(torch.uint8)
        payload = awqpack.quantize(weight, scales, torch.full_like(scales, zero, dtype=torch.uint8), *packing)
        assert_same(payload, awqpack.pack(codes, *packing))


@pytest.mark.parametrize("kept", ["scales", "zeros"])
def test_factors_that_are_not_aligned(packing, dtype, kept):
    """Those of columns are read as vectors where they are."""
    weight, scales, zeros, payload = case(packing, (128, 1), dtype, dtype)
    given = {"scales": scales.cuda(), "zeros": zeros.cuda()}
    given[kept] = torch.nn.functional.pad(given[kept], (2, 4))[:, 2:-4]
    columns = weight.cuda().t().contiguous().t()
    for there in (weight.cuda(), columns):
        assert_same(awqpack.quantize(there, *given.values(), *packing).cpu(), payload)
    expected = awqpack.dequantize(payload, scales, zeros, *packing, dtype=dtype)
    awqpack.dequantize(payload.cuda(), *given.values(), *packing, out=columns)
    assert is_same_bits(columns.contiguous().cpu(), expected)


@pytest.mark.parametrize("left", ["scales", "zeros"])
def test_a_tensor_on_another_device_is_named(left):
    weight, scales, zeros, payload = case(PACKINGS["v1"], (1, 128), torch.float16)
    there = {name: value if name == left else value.cuda() for name, value in (("scales", scales), ("zeros", zeros))}
    with pytest.raises(ValueError, match=f"{left} expects the device of the input"):
        awqpack.quantize(weight.cuda(), **there)
    with pytest.raises(ValueError, match=f"{left} expects the device of the input"):
        awqpack.dequantize(payload.cuda(), **there)


def test_a_range_that_the_dtype_does_not_hold_is_named():
    weight = torch.zeros(SHAPE, device="cuda")
    weight[100, 300], weight[200, 3] = 3e38, 3e38
    with pytest.raises(ValueError, match=r"float16 holds; scales\[100, 2\] would be infinite"):
        awqpack.min_max_scales(weight, 128, dtype=torch.float16)


def test_graphs_check_nothing_and_run_again(packing):
    weight, scales, zeros, payload = (tensor.cuda() for tensor in case(packing, (1, 128), torch.float16))
    expected = awqpack.dequantize(payload, scales, zeros, *packing), *awqpack.min_max_scales(weight)
    outs = [torch.zeros_like(tensor) for tensor in (payload, *expected)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        awqpack.quantize(weight, scales, zeros, *packing, out=outs[0])
        awqpack.dequantize(payload, scales, zeros, *packing, out=outs[1])
        awqpack.min_max_scales(weight, out=(outs[2], outs[3]))
    graph.replay()
    for actual, wanted in zip(outs, (payload, *expected), strict=True):
        assert_same(actual, wanted)
    weight[0, 0] = float("nan")
    graph.replay()
    torch.cuda.synchronize()


def test_the_current_stream_is_used(packing):
    weight, scales, zeros, payload = (tensor.cuda() for tensor in case(packing, (1, 128), torch.float16))
    back = awqpack.dequantize(payload, scales, zeros, *packing)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        made = torch.zeros_like(weight)
        torch.cuda._sleep(50_000_000)
        made.copy_(weight)
        actual = awqpack.quantize(made, scales, zeros, *packing, validate=False)
        there = awqpack.dequantize(actual, scales, zeros, *packing)
    stream.synchronize()
    assert_same(actual, payload)
    assert_same(there, back)


@pytest.mark.parametrize("index", range(2))
def test_the_device_of_the_tensor_is_used(packing, index):
    if index >= torch.cuda.device_count():
        pytest.skip(f"needs {index + 1} GPUs; this machine has {torch.cuda.device_count()}")
    before = torch.cuda.current_device()
    weight, scales, zeros, payload = (tensor.to(f"cuda:{index}") for tensor in case(packing, (1, 128), torch.float16))
    assert_same(awqpack.quantize(weight, scales, zeros, *packing), payload)
    assert awqpack.dequantize(payload, scales, zeros, *packing).device == weight.device
    assert awqpack.min_max_scales(weight)[0].device == weight.device
    assert torch.cuda.current_device() == before

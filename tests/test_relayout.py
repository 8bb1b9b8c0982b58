"""relayout between any two packings: what unpacking, turning and packing by the twin gives, whatever the strides."""

import functools
import itertools
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import twin
from checkpoints import REFERENCE_FILES
from safetensors.torch import load_file
from shared import (
    CUDA,
    PACKINGS,
    REFERENCE,
    VARIANTS,
    Memory,
    assert_guards_untouched,
    assert_same,
    pack_array,
    random_codes,
    require_fake_tensors,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack

PAIRS = [pytest.param(a, b, id=f"{a}-{b}") for a, b in itertools.product(PACKINGS, PACKINGS)]
# Of the source's codes: whole blocks of every packing, turned too; the last two have several chunks and a rim.
SHAPES = [(64, 64), (128, 128), (128, 192), (2, 64, 128), (3, 2, 64, 64), (1, 64, 64), (0, 64, 64), (64, 0)]
LARGE = [(1088, 1216), (2, 64, 5184)]


def how(packing):
    return packing.packing, packing.reorder


def turned(codes, transpose):
    return np.ascontiguousarray(np.swapaxes(codes, -1, -2)) if transpose else codes


@functools.cache
def by_twin(shape, packing, transpose=False):
    """The payload of random codes of this shape, or of the same codes turned."""
    return twin.pack(turned(random_codes(shape), transpose), *packing)


def operands(packing):
    return packing.number, packing.reorder


@pytest.fixture(params=[False, True], ids=["same", "transpose"])
def transpose(request):
    return request.param


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_relayout_is_the_twin(source, target, transpose, device):
    source, target = PACKINGS[source], PACKINGS[target]
    for shape in SHAPES:
        payload = torch.from_numpy(by_twin(shape, source).copy()).to(device)
        expected = by_twin(shape, target, transpose)
        result = awqpack.relayout(payload, how(source), how(target), transpose=transpose)
        assert_same(result.cpu().numpy(), expected)
        assert result.is_contiguous()
        assert result.device == payload.device
        assert_same(payload.cpu().numpy(), by_twin(shape, source))
        portable = awqpack.ops.relayout.relayout(payload, *operands(source), *operands(target), transpose)
        assert_same(portable.cpu().numpy(), expected)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_chunks_and_threads_leave_no_seam(source, target, transpose):
    source, target = PACKINGS[source], PACKINGS[target]
    for shape in LARGE:
        codes = random_codes(shape)
        payload = torch.from_numpy(pack_array(codes, source, variant="scalar"))
        expected = pack_array(turned(codes, transpose), target, variant="scalar")
        assert_same(awqpack.relayout(payload, how(source), how(target), transpose=transpose).numpy(), expected)


def cross_past_the_cache():
    """Fails where V1 does not become V1 of the transposed codes, in memory that starts anywhere in a line."""
    codes = random_codes((4096, 4160))  # of as many as are streamed; a rim of columns is left
    for source, target in itertools.permutations([PACKINGS["v1"], PACKINGS["v1_reorder"]]):
        payload = torch.from_numpy(pack_array(codes, source, variant="scalar"))
        expected = pack_array(turned(codes, True), target, variant="scalar")
        buffer = torch.empty(expected.size + 32, dtype=torch.int32)
        first = -buffer.data_ptr() % 64 // 4
        for words in (0, 5):
            buffer.fill_(-1)
            out = buffer[first + words :][: expected.size].view(expected.shape)
            awqpack.relayout(payload, how(source), how(target), transpose=True, out=out)
            assert_same(out.numpy(), expected)
            assert buffer[: first + words].eq(-1).all()
            assert buffer[first + words + expected.size :].eq(-1).all()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "scalar"])
def test_words_that_cross(variant):
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    result = forked.run(script + "import test_relayout; test_relayout.cross_past_the_cache()", AWQPACK_CPU=variant)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "memory", [memory for memory in Memory if memory.is_for_torch], ids=lambda memory: memory.value
)
def test_payloads_of_any_memory(memory, transpose):
    for source, target in itertools.product(PACKINGS.values(), PACKINGS.values()):
        for shape in [(64, 192), (2, 128, 64), (2, 3, 64, 64), (192, 384)]:
            codes = random_codes(shape)
            payload, expected = pack_array(codes, source), pack_array(turned(codes, transpose), target)
            buffer, out = memory.empty(expected.shape, expected.dtype)
            result = torch.from_numpy(out)
            given = torch.from_numpy(memory.copy(payload))
            assert awqpack.relayout(given, how(source), how(target), transpose=transpose, out=result) is result
            assert_same(out, expected)
            assert_guards_untouched(buffer, out)


# Packings that are the same weight by others' own code: a packing, and whether it holds W.t().
@pytest.mark.parametrize(
    "file", [f for f in REFERENCE_FILES if "64x256" in f.name or "128x1152" in f.name], ids=lambda f: f.stem
)
def test_layouts_of_others_become_marlin(file):
    layer = load_file(file)
    marlin = layer["marlin.qweight"]
    for key, packing, transpose in [
        ("gemm.qweight", (awqpack.AWQPacking.V1, True), True),
        ("gemv.qweight", awqpack.AWQPacking.V1, False),
        ("gemv_fast.qweight", awqpack.AWQPacking.V2, False),
    ]:
        assert torch.equal(
            awqpack.relayout(layer[key], packing, awqpack.AWQPacking.MARLIN, transpose=transpose), marlin
        )
        assert torch.equal(
            awqpack.relayout(marlin, awqpack.AWQPacking.MARLIN, packing, transpose=transpose), layer[key]
        )
    turned_words = layer["gptq_v2.qweight"].t()  # GPTQ's words are V1's, transposed
    assert torch.equal(awqpack.relayout(turned_words, awqpack.AWQPacking.V1, awqpack.AWQPacking.MARLIN), marlin)


@pytest.mark.parametrize(
    ("source", "target"), [("v1", "marlin"), ("marlin", "v1_reorder"), ("v2", "v1"), ("v1_reorder", "v2")]
)
def test_opcheck(source, target, transpose):
    source, target = PACKINGS[source], PACKINGS[target]
    ops = torch.ops.awqpack
    payload = torch.from_numpy(pack_array(random_codes((2, 64, 128)), source))
    arguments = (payload, *operands(source), *operands(target), transpose)
    torch.library.opcheck(ops.relayout.default, arguments)
    torch.library.opcheck(
        ops.relayout_out.default, arguments, {"out": torch.empty_like(ops.relayout.default(*arguments))}
    )


@pytest.mark.parametrize("where", ["cpu", "meta", "cuda"])
def test_fake_results(where):
    require_fake_tensors(where)
    with FakeTensorMode():
        payload = torch.empty(3, 64, 16, dtype=torch.int32, device=where)
        result = awqpack.relayout(payload, awqpack.AWQPacking.V1, awqpack.AWQPacking.MARLIN)
        assert (result.shape, result.dtype, result.device.type) == ((3, 8, 128), torch.int32, where)
        result = awqpack.relayout(payload, awqpack.AWQPacking.V1, awqpack.AWQPacking.V2, transpose=True)
        assert (result.shape, result.dtype) == ((3, 32, 64), torch.int16)


def test_compiled(fresh_dynamo):
    payload = torch.from_numpy(pack_array(random_codes((64, 128)), PACKINGS["v1"]))

    def to_marlin(payload):
        return awqpack.relayout(payload, awqpack.AWQPacking.V1, awqpack.AWQPacking.MARLIN)

    assert torch.equal(torch.compile(to_marlin, fullgraph=True)(payload), to_marlin(payload))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_reference_vector_there_and_back(device):
    for name in [name for name in REFERENCE.files if name.endswith("/v1_reorder")]:
        payload = torch.from_numpy(REFERENCE[name]).to(device)
        there = awqpack.relayout(payload, (awqpack.AWQPacking.V1, True), awqpack.AWQPacking.V1)
        assert_same(there.cpu().numpy(), REFERENCE[name.replace("v1_reorder", "v1")])
        assert torch.equal(awqpack.relayout(there, awqpack.AWQPacking.V1, (awqpack.AWQPacking.V1, True)), payload)

"""torch.compile(fullgraph=True) of packed inputs, packed outputs, moves and writes; no recompile for new values."""

import copy

import forked
import pytest
import torch
from contract import READS
from models import SHAPE, PackedLinear
from shared import PACKINGS, assert_same, packed_tensor, torch_codes
from test_contract_compiled import assert_all_same, compiled, once
from torch._subclasses.fake_tensor import FakeTensorMode

from awqpack import AWQPackedTensor

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # inductor's own
]


@pytest.mark.parametrize("name", ["+1", "unpack", "detach", "to, copied", "packed and plain"])
def test_reads_of_column_major_codes(name):
    packing = PACKINGS["v1"]
    packed = AWQPackedTensor.pack(torch_codes((128, 64)).t(), *packing)
    result, expected = compiled(READS[name])(packed), READS[name](packed)
    assert_all_same(result, expected)
    for ours, theirs in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert ours.stride() == theirs.stride() == (1, 64)


def test_copy_between_packed_tensors(packing):
    target, source = packed_tensor(packing, seed=1), packed_tensor(packing, seed=2)
    result = compiled(lambda a, b: a.copy_(b))(target, source)
    assert_same(target, source)
    assert_same(result, source)


@once
def test_pack_inside(packing, dynamic):
    def pack(codes):
        return AWQPackedTensor.pack(codes, *packing)

    function = compiled(pack, dynamic=dynamic)
    for shape in (SHAPE, (32, 192)):
        codes = torch_codes(shape)
        assert_same(function(codes), pack(codes))
    assert_same(function(torch_codes((128, 64)).t()), pack(torch_codes((128, 64)).t()))
    with pytest.raises(ValueError, match=r"codes\[0, 0\] is 16"):
        function(torch.full(SHAPE, 16, dtype=torch.uint8))


def test_pack_and_use_inside():
    packing = PACKINGS["v2"]

    def round_trip(codes):
        packed = AWQPackedTensor.pack(codes, *packing)
        return packed.unpack() + 1, packed + 1

    codes = torch_codes()
    assert_all_same(compiled(round_trip)(codes), (codes + 1, codes + 1))


def test_gradients_flow_to_the_rest():
    packing = PACKINGS["v2"]
    module = PackedLinear(packing)
    eager, x = copy.deepcopy(module), torch.ones(3, 128)
    eager(x).sum().backward()
    compiled(module)(x).sum().backward()
    torch.testing.assert_close(module.scale.grad, eager.scale.grad)
    assert module.weight.grad is None


# --- recompiles ---


def count_compiles(function, inputs, **kwargs):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(function, fullgraph=True, backend=counter, **kwargs)
    for packed in inputs:
        expected = function(copy.deepcopy(packed))
        assert_same(run(packed), expected)
    return counter.frame_count


def test_another_layout_recompiles():
    inputs = [packed_tensor(packing) for packing in PACKINGS.values()]
    assert count_compiles(READS["+1"], inputs, dynamic=False) == len(PACKINGS)


def test_other_strides_recompile():
    packing = PACKINGS["v2"]
    codes = torch_codes((64, 64))
    inputs = [AWQPackedTensor.pack(c, *packing) for c in (codes, codes.t())]
    assert count_compiles(READS["+1"], inputs, dynamic=False) == 2


@pytest.mark.parametrize("name", ["+1", "unpack", "detach"])
def test_one_graph_for_many_sizes(name):
    packing = PACKINGS["v1"]
    shapes = [(64, 128), (32, 256), (128, 192), (8, 320)]
    inputs = [packed_tensor(packing, shape) for shape in shapes]
    assert count_compiles(READS[name], inputs, dynamic=True) == 1


@pytest.mark.filterwarnings("error")
def test_dynamic_shapes_compile_without_warnings():
    packing = PACKINGS["v2"]
    compiled(READS["+1"], dynamic=True)(packed_tensor(packing))


# --- fake tensors ---


def test_fake_mode_packs(packing):
    with FakeTensorMode():
        packed = AWQPackedTensor.pack(torch.empty(SHAPE, dtype=torch.uint8), *packing)
        assert packed.payload.shape == packing.payload_shape(SHAPE)
        column_major = torch.empty(128, 64, dtype=torch.uint8).t()
        assert AWQPackedTensor.pack(column_major, *packing).stride() == (1, 64)


COMPILED_IN_CI = """
import torch, awqpack
codes = torch.arange(4096, dtype=torch.uint8).reshape(8, 512) % 16
payload = awqpack.pack(codes)
run = torch.compile(lambda p: awqpack.unpack(p) + 1, fullgraph=True)
assert (run(payload) == codes + 1).all()
"""


def test_inductor_takes_the_ops_where_ci_is_set():
    """There it refuses ops that torch's own table decomposes."""
    done = forked.run(COMPILED_IN_CI, timeout=600, CI="true")  # under a sanitizer it takes minutes
    assert done.returncode == 0, done.stderr

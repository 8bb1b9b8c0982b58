"""torch.compile(fullgraph=True) of packed inputs, packed outputs, moves and writes; no recompile for new values."""

import copy

import pytest
import torch
from conftest import LAYOUTS, assert_same, packed_tensor, torch_codes
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from awqpack import AWQPackedTensor, AWQPacking

SHAPE = (64, 128)
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # inductor's own
]
dynamic = pytest.mark.parametrize("dynamic", [False, True])
# Compiling takes a tenth of a second: each layout once, static and dynamic shapes both, not every combination.
once = pytest.mark.parametrize(
    ("layout", "dynamic"),
    [(LAYOUTS["v1_reorder"], False), (LAYOUTS["v2"], True)],
    ids=["v1_reorder", "v2-dynamic"],
)


class PackedLinear(torch.nn.Module):
    """A layer as users write it: a packed parameter, unpacked in forward."""

    def __init__(self, layout, shape=SHAPE, seed=0):
        super().__init__()
        self.weight = torch.nn.Parameter(packed_tensor(layout, shape, seed=seed), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.full((shape[0], 1), 0.5))

    def forward(self, x):
        return x @ ((self.weight.unpack().float() - 8) * self.scale).t()


def masked_fill(p):
    return p.masked_fill_(torch.arange(p.shape[1], device=p.device) % 2 == 0, 3)


def copy_codes(p):
    return p.copy_(torch.full_like(p.unpack(), 9))


# Reads: the result is the same as without compiling.
READS = {
    "+1": lambda p: p + 1,
    "unpack": lambda p: p.unpack(),
    "unpack and use": lambda p: (p.unpack().float() - 8).sum(dim=1),
    "matmul": lambda p: torch.ones(3, p.shape[1]) @ p.unpack().float().t(),
    "cat": lambda p: torch.cat([p, p]),
    "index": lambda p: p[3:7, ::2],
    "where": lambda p: torch.where(p > 7, p, 0),
    "two": lambda p: (p + p, p.sum()),
    "detach": lambda p: p.detach(),
    "detach and unpack": lambda p: p.detach().unpack() + 1,
    "to": lambda p: p.to("cpu"),
    "to, copied": lambda p: p.to("cpu", copy=True),
    "to dtype": lambda p: p.to(torch.uint8) + 1,
    "attributes": lambda p: p.unpack() + p.shape[0] + p.dim() + int(p.packing is AWQPacking.V2) + int(p.reorder),
    "payload": lambda p: p.payload + 1,
    "packed and plain": lambda p: (p.detach(), p + 1),
}


# Writes: the packed tensor holds the same codes afterwards.
WRITES = {
    "zero_": lambda p: p.zero_(),
    "fill_": lambda p: p.fill_(7),
    "copy_": copy_codes,
    "masked_fill_": masked_fill,
    "bitwise_and_": lambda p: p.bitwise_and_(6),
    "two writes": lambda p: p.bitwise_and_(3).add_(4),
    "write and read": lambda p: (p.fill_(2), p + 1)[1],
}


def compiled(function, **kwargs):
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **kwargs})


def assert_all_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, tuple):
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert_same(actual, expected)


@pytest.mark.parametrize("name", READS)
@once
def test_reads(name, dynamic, layout):
    packed = packed_tensor(layout, SHAPE)
    assert_all_same(compiled(READS[name], dynamic=dynamic)(packed), READS[name](packed))


@pytest.mark.parametrize("name", WRITES)
@once
def test_writes(name, dynamic, layout):
    packed, expected = packed_tensor(layout, SHAPE), packed_tensor(layout, SHAPE)
    payload = packed.payload
    result, expected_result = compiled(WRITES[name], dynamic=dynamic)(packed), WRITES[name](expected)
    assert_same(packed, expected)
    assert packed.payload is payload
    assert_same(result, expected_result)


@pytest.mark.parametrize("name", ["+1", "unpack", "detach", "to, copied", "packed and plain"])
def test_reads_of_column_major_codes(name):
    layout = LAYOUTS["v1"]
    packed = AWQPackedTensor.pack(torch_codes((128, 64)).t(), layout.packing, layout.reorder)
    result, expected = compiled(READS[name])(packed), READS[name](packed)
    assert_all_same(result, expected)
    for ours, theirs in zip(*(r if isinstance(r, tuple) else (r,) for r in (result, expected)), strict=True):
        assert ours.stride() == theirs.stride() == (1, 64)


@pytest.mark.parametrize(("name", "dynamic"), [("+1", False), ("packed and plain", True)])
def test_inductor_reads(name, dynamic):
    packed = packed_tensor(LAYOUTS["v1_reorder"])
    assert_all_same(compiled(READS[name], backend="inductor", dynamic=dynamic)(packed), READS[name](packed))


def test_inductor_writes():
    name = "copy_"
    packed, expected = packed_tensor(LAYOUTS["v2"]), packed_tensor(LAYOUTS["v2"])
    compiled(WRITES[name], backend="inductor")(packed)
    WRITES[name](expected)
    assert_same(packed, expected)


def test_copy_between_packed_tensors(layout):
    target, source = packed_tensor(layout, seed=1), packed_tensor(layout, seed=2)
    result = compiled(lambda a, b: a.copy_(b))(target, source)
    assert_same(target, source)
    assert_same(result, source)


@once
def test_pack_inside(layout, dynamic):
    def pack(codes):
        return AWQPackedTensor.pack(codes, layout.packing, layout.reorder)

    function = compiled(pack, dynamic=dynamic)
    for shape in (SHAPE, (32, 192)):
        codes = torch_codes(shape)
        assert_same(function(codes), pack(codes))
    assert_same(function(torch_codes((128, 64)).t()), pack(torch_codes((128, 64)).t()))
    with pytest.raises(ValueError, match=r"codes\[0, 0\] is 16"):
        function(torch.full(SHAPE, 16, dtype=torch.uint8))


def test_pack_and_use_inside():
    layout = LAYOUTS["v2"]

    def round_trip(codes):
        packed = AWQPackedTensor.pack(codes, layout.packing, layout.reorder)
        return packed.unpack() + 1, packed + 1

    codes = torch_codes()
    assert_all_same(compiled(round_trip)(codes), (codes + 1, codes + 1))


@once
def test_a_module(layout, dynamic):
    module = PackedLinear(layout)
    x = torch.ones(3, 128)
    torch.testing.assert_close(compiled(module, dynamic=dynamic)(x), module(x))


def test_gradients_flow_to_the_rest():
    layout = LAYOUTS["v2"]
    module = PackedLinear(layout)
    eager, x = copy.deepcopy(module), torch.ones(3, 128)
    eager(x).sum().backward()
    compiled(module)(x).sum().backward()
    torch.testing.assert_close(module.scale.grad, eager.scale.grad)
    assert module.weight.grad is None


def test_a_module_with_inductor():
    module = PackedLinear(LAYOUTS["v1"])
    x = torch.ones(3, 128)
    torch.testing.assert_close(compiled(module, backend="inductor")(x), module(x))


def test_functional_call():
    layout = LAYOUTS["v2"]
    module, other = PackedLinear(layout), PackedLinear(layout, seed=4)
    x, parameters = torch.ones(3, 128), dict(other.named_parameters())

    def call(parameters, x):
        return torch.func.functional_call(module, parameters, (x,))

    torch.testing.assert_close(call(parameters, x), other(x))
    torch.testing.assert_close(compiled(call)(parameters, x), other(x))


def test_export():
    layout = LAYOUTS["v2"]
    module, x = PackedLinear(layout), torch.ones(3, 128)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), module(x))


# --- recompiles ---


def count_compiles(function, inputs, **kwargs):
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(function, fullgraph=True, backend=counter, **kwargs)
    for packed in inputs:
        expected = function(copy.deepcopy(packed))
        assert_same(run(packed), expected)
    return counter.frame_count


@pytest.mark.parametrize("name", ["+1", "unpack", "detach", "zero_"])
@once
def test_new_values_do_not_recompile(name, dynamic, layout):
    function = {**READS, **WRITES}[name]
    inputs = [packed_tensor(layout, seed=seed) for seed in range(4)]
    assert count_compiles(function, inputs, dynamic=dynamic) == 1


def test_another_layout_recompiles():
    inputs = [packed_tensor(layout) for layout in LAYOUTS.values()]
    assert count_compiles(READS["+1"], inputs, dynamic=False) == 3


def test_other_strides_recompile():
    layout = LAYOUTS["v2"]
    codes = torch_codes((64, 64))
    inputs = [AWQPackedTensor.pack(c, layout.packing, layout.reorder) for c in (codes, codes.t())]
    assert count_compiles(READS["+1"], inputs, dynamic=False) == 2


@pytest.mark.parametrize("name", ["+1", "unpack", "detach"])
def test_one_graph_for_many_sizes(name):
    layout = LAYOUTS["v1"]
    shapes = [(64, 128), (32, 256), (128, 192), (8, 320)]
    inputs = [packed_tensor(layout, shape) for shape in shapes]
    assert count_compiles(READS[name], inputs, dynamic=True) == 1


@pytest.mark.filterwarnings("error")
def test_dynamic_shapes_compile_without_warnings():
    layout = LAYOUTS["v2"]
    compiled(READS["+1"], dynamic=True)(packed_tensor(layout))


# --- fake tensors ---


def test_fake_mode_makes_a_fake_of_a_packed_tensor(layout):
    packed = packed_tensor(layout)
    mode = FakeTensorMode()
    fake = mode.from_tensor(packed)
    assert isinstance(fake, AWQPackedTensor)
    assert (fake.shape, fake.stride(), fake.packing, fake.reorder) == (
        SHAPE,
        (128, 1),
        packed.packing,
        packed.reorder,
    )
    with mode:
        assert (fake + 1).shape == SHAPE
        assert fake.unpack().shape == SHAPE
        assert isinstance(fake.detach(), AWQPackedTensor)
        fake.zero_()


def test_fake_mode_packs(layout):
    with FakeTensorMode():
        packed = AWQPackedTensor.pack(torch.empty(SHAPE, dtype=torch.uint8), layout.packing, layout.reorder)
        assert packed.payload.shape == layout.payload_shape(SHAPE)
        column_major = torch.empty(128, 64, dtype=torch.uint8).t()
        assert AWQPackedTensor.pack(column_major, layout.packing, layout.reorder).stride() == (1, 64)


def test_hash_for_caching_tells_metadata_apart():
    hashes = [packed_tensor(layout)._stable_hash_for_caching() for layout in LAYOUTS.values()]
    assert len(set(hashes)) == 3
    assert hashes == [packed_tensor(layout, seed=7)._stable_hash_for_caching() for layout in LAYOUTS.values()]

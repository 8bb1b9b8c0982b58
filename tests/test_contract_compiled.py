"""The contract of AWQPackedTensor, further: what traces see of it, torch.compile's, export's and fake ones."""

import copy

import pytest
import torch
from contract import ALIASES, COMPILED_WRITES, READS, table
from models import SHAPE, PackedLinear
from shared import PACKINGS, assert_same, packed_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from awqpack import AWQPackedTensor

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own


# Compiling takes a tenth of a second: each packing once, static and dynamic shapes both, not every combination.
once = pytest.mark.parametrize(
    ("packing", "dynamic"), [(PACKINGS["v1_reorder"], False), (PACKINGS["v2"], True)], ids=["v1_reorder", "v2-dynamic"]
)
INDUCTOR = ["+1", "pack", "packed and plain", "two writes"]
HOW = [("aot_eager", name) for name in [*READS, *COMPILED_WRITES]] + [("inductor", name) for name in INDUCTOR]


def compiled(function, **how):
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **how})


def assert_all_same(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]:
        assert_same(ours, theirs)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("backend", "name"), HOW)
@once
def test_compiled(backend, name, packing, dynamic, device):
    function = {**READS, **COMPILED_WRITES}[name]
    packed, expected = (packed_tensor(packing, SHAPE, device) for _ in range(2))
    payload = packed.payload
    result = compiled(function, backend=backend, dynamic=dynamic)(packed)
    assert_all_same(result, function(expected))
    assert_same(packed, expected)
    assert packed.payload is payload


def write_one_and_read_the_other(one, other):
    one.fill_(3)
    return other + 1


@pytest.mark.usefixtures("fresh_dynamo")
@table(ALIASES)
def test_a_compiled_write_is_seen_through_an_alias_or_refused(row, device, tmp_path):
    """torch refuses such arguments of any wrapper subclass; a stale value would be wrong."""
    packed = packed_tensor(PACKINGS["v1"], SHAPE, device)
    before, alias = packed.unpack(), row(packed, tmp_path)
    try:
        result = compiled(write_one_and_read_the_other)(packed, alias)
    except torch._dynamo.exc.BackendCompilerFailed:
        assert_same(alias.unpack(), before)
    else:
        assert bool((result == 4).all())


PAYLOAD_SHARERS = {
    "around the payload": lambda p: AWQPackedTensor.from_payload(p.payload, p.packing),
    "around a part of it": lambda p: AWQPackedTensor.from_payload(p.payload[:32], p.packing),
    "the payload": lambda p: p.payload,
    "a view of it": lambda p: p.payload.view(-1),
}


@pytest.mark.usefixtures("fresh_dynamo")
@table(PAYLOAD_SHARERS)
def test_a_compiled_write_is_refused_beside_what_shares_the_payload(row, device):
    packed = packed_tensor(PACKINGS["v1"], SHAPE, device)
    before, sharer = packed.unpack(), row(packed)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"set the storage|aliased|different dtypes"):
        compiled(write_one_and_read_the_other)(packed, sharer)
    assert_same(packed.unpack(), before)


@pytest.mark.usefixtures("fresh_dynamo")
@table(
    {**{name: lambda p, row=row: row(p, None) for name, row in ALIASES.items() if "detach" in name}, **PAYLOAD_SHARERS}
)
def test_a_compiled_read_takes_what_shares_the_payload(row, device):
    packed = packed_tensor(PACKINGS["v1"], SHAPE, device)
    sharer = row(packed)
    assert_all_same(compiled(lambda a, b: (a + 1, b + 1))(packed, sharer), (packed + 1, sharer + 1))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_module(packing, backend, device):
    module, other = PackedLinear(packing, device), PackedLinear(packing, device, seed=4)
    x = torch.ones(3, 128, device=device)
    torch.testing.assert_close(compiled(module, backend=backend)(x), module(x))
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}

    def call(tensors, x):
        return torch.func.functional_call(module, tensors, (x,))

    torch.testing.assert_close(call(tensors, x), other(x))
    torch.testing.assert_close(compiled(call, backend=backend)(tensors, x), other(x))


def test_export(packing, device):
    module, x = PackedLinear(packing, device), torch.ones(3, 128, device=device)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [False, True])
@table({name: {**READS, **COMPILED_WRITES}[name] for name in ("+1", "unpack", "detach", "zero_")})
def test_new_values_do_not_recompile(row, dynamic, device):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    run = compiled(row, backend=counter, dynamic=dynamic)
    for seed in range(3):
        packed = packed_tensor(PACKINGS["v2"], SHAPE, device, seed)
        expected = row(copy.deepcopy(packed))
        assert_same(run(packed), expected)
    assert counter.frame_count == 1


def test_fake_tensors(packed, packing, device):
    mode = FakeTensorMode()
    fake = mode.from_tensor(packed)
    assert isinstance(fake, AWQPackedTensor)
    assert (fake.shape, fake.stride(), fake.packing, fake.reorder) == (SHAPE, (128, 1), packed.packing, packed.reorder)
    with mode:
        assert (fake + 1).shape == fake.unpack().shape == SHAPE
        assert isinstance(fake.detach(), AWQPackedTensor)
        fake.zero_()
        made = AWQPackedTensor.pack(torch.empty(SHAPE, dtype=torch.uint8, device=device), *packing)
        assert made.payload.shape == packing.payload_shape(SHAPE)


def test_opcheck(packed, packing):
    how = (packing.number, packing.reorder)
    torch.library.opcheck(torch.ops.awqpack.pack.default, (packed.unpack(), *how))
    torch.library.opcheck(torch.ops.awqpack.unpack.default, (packed.payload, *how))


def test_stable_hash_for_caching(device):
    hashes = [
        packed_tensor(x, SHAPE, device, seed)._stable_hash_for_caching() for x in PACKINGS.values() for seed in (0, 1)
    ]
    assert len(set(hashes)) == len(PACKINGS)
    assert hashes[::2] == hashes[1::2]

"""The contract of AWQPackedTensor, further: collectives, wrappers of others, and modules."""

import copy

import pytest
import torch
import torch.distributed as dist
from contract import COLLECTIVES, MODULES, STAYS_PACKED_IN_DTENSOR, assert_packed_like, local, table
from models import SHAPE, Dequantize, PackedLinear, Scaled
from shared import HAS_CUDA, assert_same, is_plain

from awqpack import AWQPackedTensor

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own


# --- collectives write into the payload; the group is this process alone ---


@pytest.fixture(scope="module")
def group():
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    backend = "cpu:gloo,cuda:nccl" if HAS_CUDA else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor:FutureWarning")
@table(COLLECTIVES)
def test_collectives_write_into_the_payload(row, group, packed):
    expected, payload = packed.unpack(), packed.payload
    row(expected)
    row(packed)
    assert_same(packed.unpack(), expected)
    assert packed.payload is payload


def test_a_collective_sends_the_codes(group, packed):
    received = torch.zeros(SHAPE, dtype=torch.uint8, device=packed.device)
    group.all_gather([received], packed)
    assert_same(received, packed.unpack())


# --- wrappers of others: DTensor, and a subclass that holds a packed tensor ---


@pytest.fixture
def dtensor(group, packed, device):
    """What distribute_tensor makes of a replicated weight: a DTensor whose local tensor is packed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(packed, init_device_mesh(device, (1,)), [Replicate()])


@table(STAYS_PACKED_IN_DTENSOR)
def test_dtensor_keeps_it_packed(row, dtensor, packed):
    result = row(dtensor)
    assert type(result) is type(dtensor)
    assert_packed_like(local(result), packed)


@pytest.mark.usefixtures("fresh_dynamo")
def test_dtensor_gives_it_packed(dtensor, packed):
    # DTensor gives its local tensor as a view of the whole.
    for result in (dtensor.to_local(), dtensor.full_tensor()):
        assert_packed_like(result, packed)
        assert result.payload.data_ptr() == local(dtensor).payload.data_ptr()
    assert is_plain(local(dtensor + 0), packed.unpack())
    compiled = torch.compile(lambda d: d + 1, fullgraph=True, backend="aot_eager")
    assert is_plain(local(compiled(dtensor)), packed.unpack() + 1)


def test_dtensor_writes_and_shards(dtensor, packed):
    from torch.distributed.tensor import Shard

    assert_same(dtensor.redistribute(placements=[Shard(0)]).full_tensor() + 0, packed.unpack())
    payload = local(dtensor).payload
    for value, write in enumerate((dtensor.fill_, dtensor.to_local().fill_, dtensor.full_tensor().fill_)):
        write(value)
        assert local(dtensor).payload is payload
        assert_same(dtensor.full_tensor().unpack(), torch.full(SHAPE, value, dtype=torch.uint8, device=packed.device))


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_wrapper_around_a_packed_tensor(packed):
    scaled = Scaled(packed, torch.full((64, 1), 0.5, device=packed.device))
    expected = packed.unpack() * 0.5
    compiled_detach = torch.compile(Scaled.detach, fullgraph=True, backend="aot_eager")
    for result in (scaled.detach(), scaled.to(scaled.device, copy=True), compiled_detach(scaled)):
        assert_packed_like(result.codes, packed)
        assert_same(result + 1, expected + 1)
    names, metadata = scaled.__tensor_flatten__()
    inner = {name: getattr(scaled, name) for name in names}
    assert_same(Scaled.__tensor_unflatten__(inner, metadata, scaled.size(), scaled.stride()) * 2, expected * 2)
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(lambda t: t + 1, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(scaled), expected + 1)


# --- modules: a way of handling one -> a module with the same packed weights on the same device ---


def assert_packed_as(module, expected, device):
    for name in ("weight", "zeros"):
        assert_packed_like(getattr(module, name), getattr(expected, name), device)
    assert isinstance(module.weight, torch.nn.Parameter)
    assert not module.weight.requires_grad
    x = torch.ones(2, 128, device=device, dtype=module.scale.dtype)
    torch.testing.assert_close(module(x).float().cpu(), expected(x.float()).cpu(), rtol=0.02, atol=1)


@table(MODULES)
def test_modules(row, packing, device):
    module = PackedLinear(packing, device)
    expected = copy.deepcopy(module)
    assert_packed_as(row(module), expected, device)


def test_a_module_goes_to_the_cpu_and_back(packing, device):
    module = PackedLinear(packing, device)
    expected = copy.deepcopy(module)
    assert_same(module.cpu().weight.unpack(), expected.weight.unpack().cpu())
    assert isinstance(module.weight, AWQPackedTensor)
    module.zeros = expected.zeros.offload("cpu")  # a buffer has no data to assign: it becomes plain on its way down
    assert_packed_as(module.to(device), expected, device)


def test_parametrize(packing, device):
    module = PackedLinear(packing, device)
    expected = module.weight.unpack().float() * 2
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Dequantize(), unsafe=True)
    assert_same(module.weight, expected)
    assert isinstance(module.parametrizations.weight.original, AWQPackedTensor)
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    assert_packed_like(module.weight, PackedLinear(packing, device).weight)

"""Packed tensors as parameters and buffers of modules: moved, saved, loaded, shared, parametrized."""

import copy
import io
import multiprocessing

import pytest
import torch
from conftest import LAYOUTS, assert_same, packed_tensor, torch_codes

from awqpack import AWQPackedTensor

SHAPE = (64, 128)


class PackedLinear(torch.nn.Module):
    """A layer with a packed parameter and a packed buffer."""

    def __init__(self, layout, seed=0):
        super().__init__()
        self.weight = torch.nn.Parameter(packed_tensor(layout, SHAPE, seed=seed), requires_grad=False)
        self.register_buffer("zeros", packed_tensor(layout, SHAPE, seed=seed + 100))
        self.scale = torch.nn.Parameter(torch.full((64, 1), 0.5))

    def forward(self, x):
        return x @ ((self.weight.unpack().to(x.dtype) - self.zeros.unpack()) * self.scale).t()


@pytest.fixture
def module(layout):
    return PackedLinear(layout)


def assert_packed_as(module, expected):
    for name in ("weight", "zeros"):
        assert_same(getattr(module, name).detach(), getattr(expected, name).detach())
    assert isinstance(module.weight, torch.nn.Parameter)
    assert isinstance(module.weight, AWQPackedTensor)
    assert isinstance(module.zeros, AWQPackedTensor)
    assert not module.weight.requires_grad


def test_it_is_a_parameter(module):
    assert [name for name, _ in module.named_parameters()] == ["weight", "scale"]
    assert [name for name, _ in module.named_buffers()] == ["zeros"]
    assert list(module.state_dict()) == ["weight", "scale", "zeros"]
    assert module.weight.shape == SHAPE


def test_a_parameter_that_requires_grad_is_refused(layout):
    with pytest.raises(RuntimeError, match="floating point"):
        torch.nn.Parameter(packed_tensor(layout))


MOVES = {
    "to": lambda m: m.to("cpu"),
    "cpu": lambda m: m.cpu(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "double": lambda m: m.double(),
    "to both": lambda m: m.to("cpu", torch.float16),
    "eval": lambda m: m.eval(),
    "requires_grad_": lambda m: m.weight.requires_grad_(False) is not None and m,
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_leave_the_codes_alone(module, name):
    expected = copy.deepcopy(module)
    moved = MOVES[name](module)
    assert moved is module
    assert_packed_as(module, expected)
    x = torch.ones(2, 128, dtype=module.scale.dtype)
    torch.testing.assert_close(module(x).float(), expected(torch.ones(2, 128)), rtol=0.02, atol=1)


def test_deepcopy_is_independent(module):
    copied = copy.deepcopy(module)
    assert_packed_as(copied, module)
    before = module.weight.unpack()
    copied.weight.zero_()
    assert_same(module.weight.unpack(), before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_load_state_dict(layout, module, assign, strict):
    other = PackedLinear(layout, seed=5)
    weight = module.weight
    payload = weight.payload
    result = module.load_state_dict(other.state_dict(), strict=strict, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_packed_as(module, other)
    if assign:
        assert module.weight.payload.data_ptr() == other.weight.payload.data_ptr()
    else:
        assert module.weight is weight
        assert module.weight.payload is payload


def test_load_state_dict_of_another_layout(module):
    for source in LAYOUTS.values():
        other = PackedLinear(source, seed=6)
        packing = module.weight.packing
        module.load_state_dict(other.state_dict())
        assert module.weight.packing is packing
        assert_same(module.weight.unpack(), other.weight.unpack())


def test_load_state_dict_of_plain_codes(module):
    state = {**module.state_dict(), "weight": torch_codes(seed=7)}
    module.load_state_dict(state)
    assert_same(module.weight.unpack(), torch_codes(seed=7))


@pytest.mark.parametrize(
    ("weight", "words"),
    [(torch.full(SHAPE, 16, dtype=torch.uint8), r"0\.\.15"), (torch_codes((64, 64)), "size mismatch")],
    ids=["over 15", "shape"],
)
def test_load_state_dict_refuses(module, weight, words):
    before = module.weight.payload.clone()
    with pytest.raises((RuntimeError, ValueError), match=words):
        module.load_state_dict({**module.state_dict(), "weight": weight})
    assert_same(module.weight.payload, before)


@pytest.mark.parametrize("weights_only", [False, True])
def test_state_dict_through_a_file(layout, module, weights_only):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    fresh = PackedLinear(layout, seed=8)
    fresh.load_state_dict(torch.load(buffer, weights_only=weights_only))
    assert_packed_as(fresh, module)


def test_a_whole_module_through_a_file(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    assert_packed_as(torch.load(buffer, weights_only=False), module)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_state_dict_and_forward_under(module, mode):
    expected = module(torch.ones(2, 128))
    with mode():
        state = module.state_dict()
        assert_same(module(torch.ones(2, 128)), expected.detach())
        assert_same(state["weight"], module.weight.detach())


def test_built_on_meta_then_assigned(layout, module):
    with torch.device("meta"):
        fresh = torch.nn.Module()
        codes = torch.zeros(SHAPE, dtype=torch.uint8)
        weight = AWQPackedTensor.pack(codes, layout.packing, layout.reorder)
        fresh.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert isinstance(fresh.weight, AWQPackedTensor)
    assert fresh.weight.payload.is_meta
    fresh.load_state_dict({"weight": module.state_dict()["weight"]}, assign=True)
    assert_same(fresh.weight.detach(), module.weight.detach())


class Dequantize(torch.nn.Module):
    def forward(self, weight):
        return weight.unpack().float() * 2


def test_parametrize(module):
    expected = module.weight.unpack().float() * 2
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Dequantize(), unsafe=True)
    assert_same(module.weight, expected)
    assert isinstance(module.parametrizations.weight.original, AWQPackedTensor)


def test_data_is_assigned(layout):
    # param.data = value is how loaders replace a weight: the packed tensor holds it afterwards.
    parameter = torch.nn.Parameter(packed_tensor(layout), requires_grad=False)
    parameter.data = packed_tensor(layout, seed=4)
    assert_same(parameter.unpack(), torch_codes(seed=4))


def test_codes_are_assigned_as_data(layout):
    # nn.Module.cpu() does this with a parameter that leaves the GPU, after to("cpu") has made plain codes of it.
    parameter = torch.nn.Parameter(packed_tensor(layout), requires_grad=False)
    parameter.data = torch_codes(seed=4)
    assert type(parameter) is AWQPackedTensor
    assert_same(parameter.unpack(), torch_codes(seed=4))


def share(packed_in, packed_out):
    weight = packed_in.get(timeout=60)
    weight.fill_(9)
    packed_out.put(type(weight).__name__)


def test_share_memory():
    # In a child: a segmentation fault there is a failed test here, and not the end of the test run.
    def run(send):
        packed = packed_tensor(LAYOUTS["v1"])
        assert packed.share_memory_() is packed
        assert packed.is_shared()
        assert packed.payload.is_shared()
        assert torch.equal(packed.unpack(), torch_codes())
        send.send("done")

    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=run, args=(send,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert receive.recv() == "done"


def test_a_queue_shares_the_payload():
    context = torch.multiprocessing.get_context("fork")
    packed_in, packed_out = context.Queue(), context.Queue()
    packed = packed_tensor(LAYOUTS["v2"])
    child = context.Process(target=share, args=(packed_in, packed_out))
    child.start()
    packed_in.put(packed)
    assert packed_out.get(timeout=60) == "AWQPackedTensor"
    child.join(60)
    assert bool((packed.unpack() == 9).all())


def test_data_loader_workers(layout):
    packed = packed_tensor(layout)
    loader = torch.utils.data.DataLoader([packed] * 4, num_workers=1, batch_size=2, multiprocessing_context="fork")
    for batch in loader:
        assert_same(batch, torch.stack([torch_codes()] * 2))

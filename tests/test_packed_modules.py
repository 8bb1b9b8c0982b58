"""Packed tensors as parameters and buffers of modules: moved, saved, loaded, shared, parametrized."""

import multiprocessing

import pytest
import torch
from models import SHAPE, PackedLinear
from shared import PACKINGS, assert_same, packed_tensor, torch_codes

from awqpack import AWQPackedTensor


@pytest.fixture
def module(packing):
    return PackedLinear(packing)


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


def test_a_parameter_that_requires_grad_is_refused(packing):
    with pytest.raises(RuntimeError, match="floating point"):
        torch.nn.Parameter(packed_tensor(packing))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_load_state_dict(packing, module, assign, strict):
    other = PackedLinear(packing, seed=5)
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
    for source in PACKINGS.values():
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


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_state_dict_and_forward_under(module, mode):
    expected = module(torch.ones(2, 128))
    with mode():
        state = module.state_dict()
        assert_same(module(torch.ones(2, 128)), expected.detach())
        assert_same(state["weight"], module.weight.detach())


def test_share_memory():
    # In a child: a segmentation fault there is a failed test here, and not the end of the test run.
    def run(send):
        packed = packed_tensor(PACKINGS["v1"])
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

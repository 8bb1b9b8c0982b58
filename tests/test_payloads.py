"""store_as_payloads: a state_dict of plain payloads, and what loads from one."""

import copy
import io

import pytest
import torch
from models import PackedLinear
from shared import PACKINGS, assert_same, packed_tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from awqpack import AWQPackedTensor, AWQPacking, store_as_payloads
from awqpack.formats import format_of


def suffix(packing):
    return format_of(packing.number, packing.reorder).suffix


def net(packing, device="cpu", seed=0):
    """Two packed layers, one inside the other's container, the way models nest them."""
    layers = [PackedLinear(packing, device, seed), torch.nn.Sequential(PackedLinear(packing, device, seed + 1))]
    return store_as_payloads(torch.nn.ModuleDict({"first": layers[0], "inner": layers[1]}))


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_equal_modules(actual, expected):
    """The same parameters and buffers by name, packed as they were."""
    assert tensors(actual).keys() == tensors(expected).keys()
    for name, tensor in tensors(expected).items():
        assert isinstance(tensors(actual)[name], torch.nn.Parameter) is isinstance(tensor, torch.nn.Parameter)
        assert_same(tensors(actual)[name].detach(), tensor.detach())


def test_a_state_dict_holds_payloads(packing, device):
    module = net(packing, device)
    state, expected = module.state_dict(), {}
    for at, layer in (("first", module["first"]), ("inner.0", module["inner"][0])):
        expected[f"{at}.scale"] = layer.scale.detach()
        expected[f"{at}.weight.{suffix(packing)}"] = layer.weight.payload
        expected[f"{at}.zeros.{suffix(packing)}"] = layer.zeros.payload
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same(state[name], tensor)
        assert state[name].data_ptr() == tensor.data_ptr()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_dcp_names(source, target):
    set_model_state_dict(target, get_model_state_dict(source))


LOADS = {
    "load_state_dict": lambda source, target: target.load_state_dict(source.state_dict()),
    "strict=False": lambda source, target: target.load_state_dict(source.state_dict(), strict=False),
    "assign=True": lambda source, target: target.load_state_dict(copy.deepcopy(source.state_dict()), assign=True),
    "a plain file": lambda source, target: target.load_state_dict(through_a_file(source.state_dict())),
    "set_model_state_dict": through_dcp_names,
    "keep_vars": lambda source, target: target.load_state_dict(source.state_dict(keep_vars=True)),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_payloads_load_into_packed_tensors(load, packing, device):
    source, target = net(packing, device), net(packing, device, seed=5)
    payload = target["first"].weight.payload.data_ptr()
    result = load(source, target)
    assert result is None or (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_equal_modules(target, source)
    is_kept = load is not LOADS["assign=True"]
    assert (target["first"].weight.payload.data_ptr() == payload) is is_kept


def test_assigned_on_meta(packing):
    source = net(packing)
    target = net(packing, seed=5).to("meta")
    target.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    assert_equal_modules(target, source)


def test_packed_tensors_still_load(packing):
    packed = torch.nn.ModuleDict(
        {"first": PackedLinear(packing), "inner": torch.nn.Sequential(PackedLinear(packing, seed=1))}
    )
    target = net(packing, seed=5)
    target.load_state_dict(packed.state_dict())
    assert_equal_modules(target, packed)


def test_strides_and_reorder_are_those_of_what_is_loaded_into():
    def module(seed):
        codes = packed_tensor(PACKINGS["v2"], (128, 64), seed=seed).unpack().t()
        result = torch.nn.Module()
        result.weight = torch.nn.Parameter(AWQPackedTensor.pack(codes, AWQPacking.V2, True), requires_grad=False)
        return store_as_payloads(result)

    source, target = module(1), module(2)
    target.load_state_dict(source.state_dict())
    assert_same(target.weight.detach(), source.weight.detach())
    assigned = module(3)
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert assigned.weight.stride() == (1, 64)
    assert assigned.weight.reorder is True


@pytest.mark.parametrize("given", PACKINGS)
def test_a_payload_of_another_packing_loads_its_codes(given, packing):
    source, target = net(PACKINGS[given]), net(packing, seed=5)
    target.load_state_dict(source.state_dict())
    assert (target["first"].weight.packing, target["first"].weight.reorder) == packing
    assert torch.equal(target["first"].weight.unpack(), source["first"].weight.unpack())


def test_codes_take_a_payload():
    target = torch.nn.Module()
    target.weight = torch.nn.Parameter(torch.zeros(64, 128, dtype=torch.uint8), requires_grad=False)
    packed = packed_tensor(PACKINGS["v2"])
    store_as_payloads(target).load_state_dict({"weight.awq_v2": packed.payload})
    assert_same(target.weight.detach(), packed.unpack())


# --- what does not fit is named as torch names it ---


def float_target():
    return store_as_payloads(torch.nn.Linear(128, 64, bias=False))


def packed_target():
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(packed_tensor(PACKINGS["v2"]), requires_grad=False)
    return store_as_payloads(module)


PAYLOAD = packed_tensor(PACKINGS["v2"]).payload
UNFIT = {
    "floats in its place": (float_target, {"weight.awq_v2": PAYLOAD}, r"weight\.awq_v2: .*torch\.float32"),
    "another dtype": (packed_target, {"weight.awq_v2": PAYLOAD.int()}, r"weight\.awq_v2: .*int16"),
    "another size": (packed_target, {"weight.awq_v2": PAYLOAD[:4]}, r"size mismatch for weight"),
    "one dimension": (packed_target, {"weight.awq_v2": PAYLOAD[0]}, r"weight\.awq_v2: .*2 dimensions"),
    "no tensor": (packed_target, {"weight.awq_v2": 3}, r"weight\.awq_v2: .*int"),
    "given twice": (packed_target, {"weight.awq_v2": PAYLOAD, "weight.awq_v1": PAYLOAD}, "more than once"),
    "nothing": (packed_target, {}, r'Missing key\(s\) in state_dict: "weight\.awq_v2"'),
    "a name of nothing": (packed_target, {"other.awq_v2": PAYLOAD}, r'Unexpected key\(s\) in state_dict: "other'),
}


@pytest.mark.parametrize(("make", "state", "text"), UNFIT.values(), ids=UNFIT.keys())
def test_what_does_not_fit_is_named(make, state, text):
    module = make()
    before = module.weight.detach().clone()
    with pytest.raises(RuntimeError, match=text):
        module.load_state_dict(state)
    assert torch.equal(module.weight, before)


def test_missing_payloads_are_missing_under_their_names(packing):
    result = net(packing).load_state_dict({}, strict=False)
    assert f"first.weight.{suffix(packing)}" in result.missing_keys
    assert "first.weight" not in result.missing_keys


def test_calling_again_changes_nothing(packing):
    once, twice = net(packing), store_as_payloads(net(packing))
    assert list(once.state_dict()) == list(twice.state_dict())
    assert len(twice["first"]._state_dict_hooks) == 1


def test_a_copy_is_a_module_of_its_own(packing):
    """Hooks and get_submodule are copied and pickled with it."""
    module = net(packing)
    for other in (copy.deepcopy(module), saved_whole(module)):
        assert_equal_modules(other, module)
        assert list(other.state_dict()) == list(module.state_dict())
        assert other.get_submodule("first") is other["first"]
        assert other.get_submodule("") is other


def saved_whole(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_buffers_that_are_not_persistent_stay_out(packing):
    module = torch.nn.Module()
    module.register_buffer("zeros", packed_tensor(packing), persistent=False)
    assert list(store_as_payloads(module).state_dict()) == []
    assert module.load_state_dict({}).missing_keys == []


def test_a_packed_tensor_answers_to_the_name_of_its_payload(packing):
    packed = packed_tensor(packing)
    for name, other in PACKINGS.items():
        if other == packing:
            assert getattr(packed, suffix(other)) is packed.payload
        else:
            assert not hasattr(packed, suffix(other)), name


def test_only_modules_are_taken():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        store_as_payloads({"w": packed_tensor(PACKINGS["v1"])})

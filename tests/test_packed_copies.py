"""Copies, pickles, files and flattening of packed tensors: equal, packed and independent (design.md section 5)."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from contract import as_parameter
from shared import PACKINGS, assert_same, packed_tensor, torch_codes

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

SHAPE = (64, 128)


@pytest.fixture
def packed(packing, device):
    return packed_tensor(packing, SHAPE, device)


# --- copies, pickles, files ---


def through_pickle(packed):
    return pickle.loads(pickle.dumps(packed))


def through_torch_save(packed, **kwargs):
    buffer = io.BytesIO()
    torch.save({"weight": packed}, buffer)
    buffer.seek(0)
    return torch.load(buffer, **kwargs)["weight"]


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": through_pickle,
    "torch.save": lambda p: through_torch_save(p, weights_only=False),
    "torch.save, weights_only": lambda p: through_torch_save(p, weights_only=True),
    "torch.save, as torch.load is called": through_torch_save,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_column_major_strides(packing, way):
    packed = AWQPackedTensor.pack(torch_codes((128, 64)).t(), *packing)
    copied = COPIES[way](packed)
    assert copied.stride() == copied.unpack().stride() == (1, 64)
    assert_same(copied, packed)


def test_v2_keeps_its_reorder_metadata():
    packed = AWQPackedTensor.pack(torch_codes(), AWQPacking.V2, True)
    assert_same(packed.payload, packed_tensor(PACKINGS["v2"]).payload)
    for way in (*COPIES.values(), torch.Tensor.detach):
        assert way(packed).reorder is True


@pytest.mark.parametrize("way", ["deepcopy", "copy", "torch.save", "pickle"])
def test_copies_of_a_parameter(packing, way):
    parameter = torch.nn.Parameter(packed_tensor(packing), requires_grad=False)
    copied = COPIES[way](parameter)
    assert isinstance(copied, torch.nn.Parameter)
    assert isinstance(copied, AWQPackedTensor)
    assert not copied.requires_grad
    assert_same(copied, parameter)


class Grouped(AWQPackedTensor):
    """A subclass as users write one, with a slot and a constructor of its own."""

    __slots__ = ("scales",)

    def __init__(self, *args, **kwargs):
        self.scales = "none yet"


KEEPS_ATTRIBUTES = {**COPIES, "spawned": lambda p: ForkingPickler.loads(ForkingPickler.dumps(p))}


@pytest.mark.parametrize("make", [lambda p: p, as_parameter], ids=["tensor", "parameter"])
@pytest.mark.parametrize("way", KEEPS_ATTRIBUTES)
def test_attributes_and_class_are_kept(way, make):
    cls = AWQPackedTensor if way in ("torch.save, weights_only", "torch.save, as torch.load is called") else Grouped
    packed = make(cls.pack(torch_codes(), AWQPacking.V2))
    packed.group_size = {"along": ["K", 128]}
    if cls is Grouped:
        packed.scales = [1.5]
    copied = KEEPS_ATTRIBUTES[way](packed)
    assert type(copied) is cls
    assert isinstance(copied, torch.nn.Parameter) == isinstance(packed, torch.nn.Parameter)
    assert vars(copied) == vars(packed)
    assert getattr(copied, "scales", None) == getattr(packed, "scales", None)
    assert (copied.group_size is packed.group_size) == (way == "copy")
    assert_same(copied.unpack(), packed.unpack())


def test_a_subclass_is_loaded_with_weights_only_where_it_is_allowed():
    packed = Grouped.pack(torch_codes())
    with pytest.raises(pickle.UnpicklingError, match="Grouped"):
        through_torch_save(packed, weights_only=True)
    with torch.serialization.safe_globals([Grouped]):
        assert type(through_torch_save(packed, weights_only=True)) is Grouped


@pytest.mark.parametrize("state", [{"_data": None}, {"_meta": (), "note": 1}, ("note", 1), None], ids=repr)
def test_a_state_that_is_no_attributes_is_refused(state):
    packed = packed_tensor(PACKINGS["v1"])
    with pytest.raises(ValueError, match="attributes"):
        packed.__setstate__(state)
    assert_same(packed, packed_tensor(PACKINGS["v1"]))


def test_a_pickle_without_attributes_is_as_it_was_before_there_were_any(packing):
    packed = packed_tensor(packing)
    function, arguments = packed.__reduce_ex__(2)
    assert function is awqpack.rebuild_packed_tensor
    assert arguments[1:] == (packing.number, packing.reorder, SHAPE, (128, 1), False)


def test_deepcopy_keeps_sharing(packing):
    packed = packed_tensor(packing)
    first, second = copy.deepcopy([packed, packed])
    assert first is second


@pytest.mark.parametrize("twin", [lambda p: p.detach(), lambda p: p[...], as_parameter, copy.copy])
def test_deepcopy_keeps_twins_together(packed, twin):
    first, second, payload = copy.deepcopy([packed, twin(packed), packed.payload])
    assert first.payload is second.payload is payload
    assert first.payload is not packed.payload
    assert first.untyped_storage()._cdata == second.untyped_storage()._cdata
    first.fill_(3)
    assert bool((second == 3).all())
    assert_same(packed.unpack(), torch_codes(device=packed.device))


def test_deepcopy_of_twins_that_are_packed_otherwise():
    plain = packed_tensor(PACKINGS["v1"])
    reordered = AWQPackedTensor.from_payload(plain.payload, AWQPacking.V1, True)
    first, second = copy.deepcopy([plain, reordered])
    assert first.payload is second.payload
    assert (first.reorder, second.reorder) == (False, True)


def test_loading_on_another_device(packing):
    loaded = through_torch_save(packed_tensor(packing), map_location="meta")
    assert isinstance(loaded, AWQPackedTensor)
    assert loaded.device.type == loaded.payload.device.type == "meta"


BAD_REBUILDS = [
    ("packing", (torch.zeros(8, 8, dtype=torch.int32), 3, False, (8, 64), (64, 1), False)),
    ("dtype", (torch.zeros(8, 8, dtype=torch.int16), 1, False, (8, 64), (64, 1), False)),
    ("size", (torch.zeros(8, 8, dtype=torch.int32), 1, False, (9, 64), (64, 1), False)),
    ("stride", (torch.zeros(8, 8, dtype=torch.int32), 1, False, (8, 64), (0, 0), False)),
    ("huge stride", (torch.zeros(8, 8, dtype=torch.int32), 1, False, (8, 64), (2**62, 1), False)),
]


@pytest.mark.parametrize("arguments", [row[1] for row in BAD_REBUILDS], ids=[row[0] for row in BAD_REBUILDS])
def test_a_damaged_pickle_is_refused(arguments):
    with pytest.raises(ValueError, match=r"expects|is not a valid"):
        awqpack.rebuild_packed_tensor(*arguments)


# --- flatten ---


@pytest.mark.parametrize("transposed", [False, True])
def test_flatten_round_trip(packing, device, transposed):
    codes = torch_codes((128, 128), device)
    packed = AWQPackedTensor.pack(codes.t() if transposed else codes, *packing)
    names, metadata = packed.__tensor_flatten__()
    inner = {name: getattr(packed, name) for name in names}
    again = AWQPackedTensor.__tensor_unflatten__(inner, metadata, packed.size(), packed.stride())
    assert_same(again, packed)
    assert again.payload is packed.payload
    assert again.unpack().stride() == packed.stride()


def test_flatten_metadata_is_plain_and_comparable(packed):
    names, metadata = packed.__tensor_flatten__()
    assert names == ["_data"]
    assert {type(key) for key in metadata} == {str}
    assert {type(value) for value in metadata.values()} <= {int, bool, str}
    assert metadata == copy.deepcopy(packed).__tensor_flatten__()[1]
    assert pickle.loads(pickle.dumps(metadata)) == metadata


def test_flatten_metadata_tells_layouts_and_strides_apart():
    packed = [packed_tensor(packing, (64, 64)) for packing in PACKINGS.values()]
    packed += [AWQPackedTensor.pack(torch_codes((64, 64)).t(), *packing) for packing in PACKINGS.values()]
    seen = [p.__tensor_flatten__()[1] for p in packed]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


BAD_METADATA = [{}, {"packing": 1}, {"packing": 1, "reorder": False, "stride_order": None}]


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=repr)
def test_unflatten_refuses_other_metadata(metadata):
    packed = packed_tensor(PACKINGS["v1"])
    with pytest.raises(ValueError, match="expects"):
        AWQPackedTensor.__tensor_unflatten__({"_data": packed.payload}, metadata, packed.size(), packed.stride())


# Metadata is data: nothing in it is evaluated, and no value of it may crash.
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"packing": 3}, ValueError),
        ({"packing": "__import__('os')"}, TypeError),
        ({"stride_order": "__import__('os').abort()"}, ValueError),
        ({"stride_order": "0, 9"}, ValueError),
        ({"stride_order": "0"}, ValueError),
        ({"stride_order": "99999999999999999999, 0"}, (OverflowError, RuntimeError)),
        ({"reorder": "no"}, (TypeError, RuntimeError)),
    ],
    ids=str,
)
def test_unflatten_evaluates_nothing(changes, error):
    packed = packed_tensor(PACKINGS["v1"])
    metadata = {**packed.__tensor_flatten__()[1], **changes}
    with pytest.raises(error):
        AWQPackedTensor.__tensor_unflatten__(
            {"_data": packed.payload}, metadata, packed.size(), packed.stride()
        ).unpack()

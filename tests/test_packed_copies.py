"""Copies, pickles, files and flattening of packed tensors: equal, packed and independent (design.md section 5)."""

import copy
import io
import pickle

import pytest
import torch
from shared import LAYOUTS, assert_same, packed_tensor, torch_codes

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

SHAPE = (64, 128)


@pytest.fixture
def packed(layout, device):
    return packed_tensor(layout, SHAPE, device)


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
def test_copies_keep_column_major_strides(layout, way):
    packed = AWQPackedTensor.pack(torch_codes((128, 64)).t(), layout.packing, layout.reorder)
    copied = COPIES[way](packed)
    assert copied.stride() == copied.unpack().stride() == (1, 64)
    assert_same(copied, packed)


def test_v2_keeps_its_reorder_metadata():
    packed = AWQPackedTensor.pack(torch_codes(), AWQPacking.V2, True)
    assert_same(packed.payload, packed_tensor(LAYOUTS["v2"]).payload)
    for way in (*COPIES.values(), torch.Tensor.detach):
        assert way(packed).reorder is True


@pytest.mark.parametrize("way", ["deepcopy", "copy", "torch.save", "pickle"])
def test_copies_of_a_parameter(layout, way):
    parameter = torch.nn.Parameter(packed_tensor(layout), requires_grad=False)
    copied = COPIES[way](parameter)
    assert isinstance(copied, torch.nn.Parameter)
    assert isinstance(copied, AWQPackedTensor)
    assert not copied.requires_grad
    assert_same(copied, parameter)


def test_attributes_of_the_user_are_copied():
    packed = packed_tensor(LAYOUTS["v1"])
    packed.note = ["group", 128]
    shallow, deep = copy.copy(packed), copy.deepcopy(packed)
    assert shallow.note is packed.note
    assert deep.note == packed.note
    assert deep.note is not packed.note


def test_deepcopy_keeps_sharing(layout):
    packed = packed_tensor(layout)
    first, second = copy.deepcopy([packed, packed])
    assert first is second


def test_loading_on_another_device(layout):
    loaded = through_torch_save(packed_tensor(layout), map_location="meta")
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
def test_flatten_round_trip(layout, device, transposed):
    codes = torch_codes((128, 128), device)
    packed = AWQPackedTensor.pack(codes.t() if transposed else codes, layout.packing, layout.reorder)
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
    packed = [packed_tensor(layout, (64, 64)) for layout in LAYOUTS.values()]
    packed += [AWQPackedTensor.pack(torch_codes((64, 64)).t(), *layout) for layout in LAYOUTS.values()]
    seen = [p.__tensor_flatten__()[1] for p in packed]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


BAD_METADATA = [{}, {"packing": 1}, {"packing": 1, "reorder": False, "stride_order": None}]


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=repr)
def test_unflatten_refuses_other_metadata(metadata):
    packed = packed_tensor(LAYOUTS["v1"])
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
    packed = packed_tensor(LAYOUTS["v1"])
    metadata = {**packed.__tensor_flatten__()[1], **changes}
    with pytest.raises(error):
        AWQPackedTensor.__tensor_unflatten__(
            {"_data": packed.payload}, metadata, packed.size(), packed.stride()
        ).unpack()

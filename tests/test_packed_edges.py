"""Ways around dispatch, and objects that are not what they seem: a result or an error, no crash and no lost write."""

import copy
import io
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from shared import PACKINGS, assert_same, packed_tensor, torch_codes

from awqpack import AWQPackedTensor, AWQPacking

V1 = AWQPacking.V1


def small(value=1):
    return AWQPackedTensor.pack(torch.full((8, 16), value, dtype=torch.uint8))


def test_dlpack_exports_codes(packing):
    packed = packed_tensor(packing)
    assert_same(torch.from_dlpack(packed), torch_codes())
    assert (np.from_dlpack(packed) == torch_codes().numpy()).all()


def test_dlpack_exports_no_copy_as_if_it_were_the_tensor():
    packed = small()
    with pytest.raises(BufferError, match=r"p\.payload"):
        np.from_dlpack(packed, copy=False)
    array = np.from_dlpack(packed.payload, copy=False)
    array[:] = 0x33333333
    assert int(packed.unique()) == 3


def test_the_data_pointer_tells_ties_from_copies(packing):
    packed = packed_tensor(packing)
    assert packed.data_ptr() == packed.detach().data_ptr() == packed.payload.data_ptr() != 0
    assert packed.data_ptr() != copy.deepcopy(packed).data_ptr()
    with pytest.raises(RuntimeError, match="data pointer"):
        torch.Tensor.data_ptr(packed)


# Whoever reads `numel` bytes of a tensor asks one of these first; where codes would be, only half as many lie.
READERS = {
    "safetensors": lambda p: save_file({"w": p}, "w.safetensors"),
    "its typed address": lambda p: p.storage().data_ptr(),
    "bytes of its typed storage": lambda p: p.storage()[0],
    "its address": lambda p: p.untyped_storage().data_ptr(),
    "bytes of it": lambda p: p.untyped_storage()[0],
    "a copy of it": lambda p: p.untyped_storage().clone(),
    "floats of it": lambda p: p.untyped_storage().float(),
    "a copy into another": lambda p: torch.UntypedStorage(p.numel()).copy_(p.untyped_storage()),
    "a pickle of it": lambda p: pickle.dumps(p.untyped_storage()),
    "a handle of it": lambda p: p.untyped_storage()._share_fd_cpu_(),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_no_memory_is_taken_for_codes(read, packing):
    with pytest.raises(RuntimeError, match=r"awqpack\.store_as_payloads|invalid python storage"):
        read(packed_tensor(packing))


def test_the_storage_can_be_compared(packing):
    packed = packed_tensor(packing)
    storage = packed.untyped_storage()
    assert storage._cdata == packed.detach().untyped_storage()._cdata != copy.deepcopy(packed).untyped_storage()._cdata
    assert storage.nbytes() == packed.storage().size() == packed.numel()
    assert "holds none" in repr(storage)


def test_the_storage_keeps_nothing_alive(packing):
    packed = packed_tensor(packing)
    gone = weakref.ref(packed), weakref.ref(packed.payload)
    packed.untyped_storage()
    del packed
    assert [reference() for reference in gone] == [None, None]


def test_a_gpu_array_of_codes_is_refused():
    assert not hasattr(small(), "__cuda_array_interface__")


def test_attributes_that_others_copy_leave_the_payload_alone():
    """compressed-tensors moves a tensor and then gives it the class and the attributes of the one that it was."""
    source, moved = small(1), small(2)
    source.tag = "w"
    assert vars(source) == {"tag": "w"}
    moved.__class__ = source.__class__
    moved.__dict__ = source.__dict__.copy()
    assert moved.tag == "w"
    assert_same(moved.unpack(), torch.full((8, 16), 2, dtype=torch.uint8))


def test_a_plain_tensor_does_not_become_packed():
    with pytest.raises(TypeError, match="layout differs"):
        torch.ones(8, 16, dtype=torch.uint8).__class__ = AWQPackedTensor


def test_apply_():
    packed = small()
    assert packed.apply_(lambda code: code + 2) is packed
    assert_same(packed.unpack(), torch.full((8, 16), 3, dtype=torch.uint8))


HOSTILE = {
    "payload of codes": {"payload": torch.zeros(64, 128, dtype=torch.uint8)},
    "payload of another packing": {"payload": torch.zeros(16, 128, dtype=torch.int16)},
    "payload that is no tensor": {"payload": 3},
    "order of 5000": {"stride_order": ", ".join(map(str, range(5000)))},
    "order of one": {"stride_order": "0"},
    "order of words": {"stride_order": "a, b"},
    "order twice": {"stride_order": "1, 1"},
    "packing 7": {"packing": 7},
    "packing of a word": {"packing": "V1"},
    "reorder of a word": {"reorder": "yes"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(name):
    inner, metadata = (
        {"_data": packed_tensor(PACKINGS["v1"]).payload},
        {"packing": 1, "reorder": False, "stride_order": ""},
    )
    change = dict(HOSTILE[name])
    inner["_data"] = change.pop("payload", inner["_data"])
    with pytest.raises((ValueError, TypeError)):
        AWQPackedTensor.__tensor_unflatten__(inner, metadata | change, (64, 128), (128, 1)).numpy()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("_data", torch.zeros(4, 4, dtype=torch.uint8)),
        ("_data", None),
        ("_meta", 3),
        ("_meta", ()),
        ("_meta", (1, 2, 3, 4, 5)),
    ],
    ids=repr,
)
def test_attributes_that_were_replaced(attribute, value):
    packed = packed_tensor(PACKINGS["v1"])
    setattr(packed, attribute, value)
    for call in (packed.numpy, packed.unpack, lambda: packed + 1):
        with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError, IndexError)):
            call()


def test_twins_of_one_payload_are_written_once_each():
    packed = small()
    torch._foreach_add_([packed, packed.detach()], 1)
    assert_same(packed.unpack(), torch.full((8, 16), 3, dtype=torch.uint8))


def test_aliases_among_plain_tensors_are_kept():
    packed, plain = small(), torch.ones(8, 16, dtype=torch.uint8)
    torch._foreach_add_([packed, plain, plain.view(16, 8)], 1)
    assert int(plain.unique()) == 3


def test_a_refused_write_takes_plain_tensors_back():
    packed, plain = small(15), torch.ones(8, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="is 16"):
        torch._foreach_add_([plain, packed], 1)
    assert int(plain.unique()) == 1
    assert int(packed.unpack().unique()) == 15


def test_an_output_that_cannot_be_resized_changes_nothing():
    values, packed = torch.full((1, 8, 16), 7, dtype=torch.uint8), small()
    indices = torch.from_numpy(np.zeros(3, np.int64))
    with pytest.raises(RuntimeError, match="not resizable"):
        torch.max(values, 0, out=(packed, indices))
    assert int(packed.unpack().unique()) == 1


def test_an_expanded_payload_changes_nothing():
    expanded = AWQPackedTensor(torch.zeros(1, 2, dtype=torch.int32).expand(8, 2), V1, False, (8, 16), (16, 1))
    packed = small()
    with pytest.raises(RuntimeError, match="memory for each element"):
        torch._foreach_add_([packed, expanded], 1)
    assert int(packed.unpack().unique()) == 1


def test_deepcopy_of_a_circle():
    packed = small()
    packed.me = packed
    copied = copy.deepcopy(packed)
    assert copied.me is copied
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(small(), requires_grad=False)
    layer.weight.loader = layer.forward
    weight = copy.deepcopy(layer.weight)
    assert weight.loader.__self__.weight is weight


def test_a_parameter_as_payload():
    payload = torch.nn.Parameter(packed_tensor(PACKINGS["v1"]).payload, requires_grad=False)
    packed = AWQPackedTensor(payload, V1, False, (64, 128), (128, 1))
    assert (packed.numpy() == torch_codes().numpy()).all()
    assert "codes=" in repr(packed)
    packed.zero_()
    assert int(payload.ne(0).sum()) == 0


@pytest.mark.parametrize(
    "size", [np.array([64, 128]), iter((64, 128)), torch.Size([64, 128])], ids=["array", "iterator", "Size"]
)
def test_sizes_of_any_sequence(size):
    stride = np.array([128, 1])
    packed = AWQPackedTensor(packed_tensor(PACKINGS["v1"]).payload, V1, False, size, stride)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True).unpack(), torch_codes())


def test_first_writes_from_many_threads():
    # Each thread may be the first to see an op: what it learns of the op must outlive the others' finding the same.
    names = ["add_", "mul_", "bitwise_or_", "bitwise_xor_", "bitwise_and_", "sub_", "clamp_max_", "fmod_"]
    errors = []

    def work(index):
        try:
            packed = small()
            for turn in range(50):
                getattr(packed, names[(index + turn) % len(names)])(1)
                packed.fill_(1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_strides_of_a_batch_of_transposed_matrices_compiled(fresh_dynamo):
    codes = torch.randint(0, 16, (3, 64, 128), dtype=torch.uint8).transpose(1, 2)
    for dynamic in (False, True):
        packed = torch.compile(AWQPackedTensor.pack, fullgraph=True, backend="aot_eager", dynamic=dynamic)(codes)
        assert packed.stride() == AWQPackedTensor.pack(codes).stride() == codes.stride()
        assert_same(packed.unpack(), codes)


def test_packed_data_of_a_plain_parameter_is_lost():
    """torch takes `parameter.data = packed` for any wrapper and drops what it wraps; a new Parameter keeps it."""
    layer = torch.nn.Linear(64, 8, bias=False).requires_grad_(False)
    packed = small()
    layer.weight.data = packed
    assert type(layer.weight) is torch.nn.Parameter  # without values: any op that reads them would crash
    assert not isinstance(layer.weight.data, AWQPackedTensor)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert isinstance(layer.weight, AWQPackedTensor)
    assert_same(layer.weight + 0, packed.unpack())

"""The contract of AWQPackedTensor (design.md section 5): what it looks like, where it stays packed, what it shows."""

import copy
import pickle

import numpy as np
import pytest
import torch
from shared import (
    PACKINGS,
    SHAPE,
    Memory,
    assert_same,
    is_plain,
    packed_tensor,
    random_codes,
    require_fake_tensors,
    torch_codes,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

# --- what it looks like ---


def test_it_looks_like_its_codes(packed, packing, device):
    assert isinstance(packed, torch.Tensor)
    assert packed.dtype is torch.uint8
    assert packed.shape == SHAPE
    assert packed.stride() == (128, 1)
    assert packed.device.type == device
    assert packed.layout is torch.strided
    assert packed.dim() == 2
    assert packed.numel() == 64 * 128
    assert packed.is_contiguous()
    assert not packed.requires_grad
    assert (packed.packing, packed.reorder) == (packing.packing, packing.reorder)
    assert (packed._packing, packed._reorder) == (packing.packing, packing.reorder)
    assert packed.payload is packed._data
    assert packed.payload.dtype is packing.payload_dtype
    assert packed.payload.shape == packing.payload_shape(SHAPE)


@pytest.mark.parametrize("name", ["payload", "packing", "reorder"])
def test_public_attributes_are_read_only(name):
    packed = packed_tensor(PACKINGS["v1"])
    with pytest.raises(AttributeError):
        setattr(packed, name, None)


@pytest.mark.parametrize(
    ("order", "shape"),
    [
        ((0, 1), SHAPE),
        ((1, 0), SHAPE),
        ((0, 2, 1), (3, 8, 64)),
        ((2, 0, 1), (3, 8, 64)),
        ((1, 3, 0, 2), (2, 3, 4, 64)),
    ],
)
def test_dense_codes_keep_their_strides(order, shape, packing, device):
    shape = packing.fit(shape)
    dense = torch_codes(tuple(shape[d] for d in order), device).permute(tuple(np.argsort(order).tolist()))
    assert dense.shape == shape
    packed = AWQPackedTensor.pack(dense, *packing)
    assert packed.stride() == dense.stride() == packed.unpack().stride() == packed.detach().stride()
    assert_same(packed.unpack(), dense)
    assert_same(packed.numpy(), dense.cpu().numpy())
    assert packed.numpy().strides == dense.stride()


@pytest.mark.parametrize("memory", [m for m in Memory if m.is_for_torch and m.value.endswith(("strided", "step"))])
def test_other_codes_record_contiguous_strides(memory, packing):
    codes = torch.from_numpy(memory.copy(random_codes(SHAPE)))
    packed = AWQPackedTensor.pack(codes, *packing)
    assert packed.stride() == packed.unpack().stride() == (128, 1)
    assert_same(packed.unpack(), codes)


def test_expanded_codes(packing):
    codes = torch_codes((1, 64)).expand(packing.fit((8, 64)))
    packed = AWQPackedTensor.pack(codes, *packing)
    assert packed.stride() == packed.unpack().stride() == (64, 1)
    assert_same(packed.unpack(), codes)


def test_construction_from_a_payload(packed, packing):
    again = AWQPackedTensor(packed.payload, *packing, packed.size(), packed.stride())
    assert again.payload is packed.payload
    assert_same(again, packed)
    by_name = AWQPackedTensor(
        data=packed.payload,
        packing=packing.packing,
        reorder=packing.reorder,
        size=list(SHAPE),
        stride=[1, 64],
        requires_grad=False,
    )
    assert by_name.stride() == by_name.unpack().stride() == (1, 64)
    assert_same(by_name.unpack(), packed.unpack())


def test_from_payload_finds_size_and_strides(packing, device):
    codes = torch_codes((3, 64, 64), device)
    packed = AWQPackedTensor.from_payload(awqpack.pack(codes, *packing), *packing)
    assert (packed.shape, packed.stride()) == (codes.shape, codes.stride())
    assert_same(packed.unpack(), codes)


def test_from_payload_of_checkpoints():
    weight = torch_codes((64, 128))
    gemm = awqpack.pack(weight.t(), AWQPacking.V1, True)
    assert_same(AWQPackedTensor.from_payload(gemm, AWQPacking.V1, True).unpack().t(), weight)
    gptq = awqpack.pack(weight).t().contiguous()
    packed = AWQPackedTensor.from_payload(gptq.t(), AWQPacking.V1)
    assert_same(packed.unpack(), weight)
    packed.zero_()
    assert not gptq.any()


class Mine(AWQPackedTensor):
    pass


def test_class_methods_make_the_class_they_are_called_on(packed, packing):
    assert type(Mine.from_payload(packed.payload, *packing)) is Mine
    assert type(Mine.pack(packed.unpack(), *packing)) is Mine
    assert type(Mine.pack(packed.numpy(), *packing)) is Mine


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(8, 8, dtype=torch.int16), AWQPacking.V1), ValueError, "int16"),
        ((torch.zeros(8, dtype=torch.int32), AWQPacking.V1), ValueError, "2 dimensions"),
        ((torch.zeros(8, 63, dtype=torch.int16), AWQPacking.V2), ValueError, "multiple of 64"),
        ((np.zeros((8, 8), np.int32), AWQPacking.V1), TypeError, "torch.Tensor"),
        ((torch.zeros(8, 8, dtype=torch.int32), 1), TypeError, "AWQPacking.V1"),
        ((torch.zeros(8, 8, dtype=torch.int32), AWQPacking.V1, 1), TypeError, "reorder expects True or False"),
    ],
    ids=["dtype", "dimensions", "columns", "array", "number", "reorder"],
)
def test_from_payload_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        AWQPackedTensor.from_payload(*arguments)


@pytest.mark.parametrize("memory", Memory)
def test_pack_of_an_array(memory, packing):
    codes = memory.copy(random_codes((3, 64, 64)))
    codes.flags.writeable = False
    packed = AWQPackedTensor.pack(codes, *packing)
    assert_same(packed.unpack(), torch.from_numpy(codes.copy()))
    is_dense = memory in (Memory.CONTIGUOUS, Memory.COLUMN_MAJOR, Memory.UNALIGNED, Memory.BATCH_INNERMOST)
    assert packed.stride() == (codes.strides if is_dense else (4096, 64, 1))
    with pytest.raises(ValueError, match=r"codes\[0, 0, 0\] is"):
        AWQPackedTensor.pack(codes | 16, *packing)


@pytest.mark.parametrize("transposed", [False, True])
def test_unpack_into_a_buffer(packed, transposed):
    out = (
        torch.zeros(SHAPE[::-1], dtype=torch.uint8, device=packed.device).t()
        if transposed
        else torch.zeros_like(packed)
    )
    version = out._version
    assert packed.unpack(out=out) is out
    assert_same(out, packed.unpack())
    assert out._version > version
    assert_same(packed.unpack(out=None), out)


@pytest.mark.usefixtures("fresh_dynamo")
def test_unpack_into_a_buffer_compiled(packed):
    def unpack(p, out):
        p.unpack(out=out)
        return out + 1

    out = torch.zeros_like(packed)
    result = torch.compile(unpack, fullgraph=True, backend="aot_eager")(packed, out)
    assert_same(out, packed.unpack())
    assert_same(result, out + 1)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "words"),
    [
        ((), {"out": torch.zeros(64, 128)}, ValueError, "uint8"),
        ((), {"out": torch.zeros(8, 64, dtype=torch.uint8)}, ValueError, "shape"),
        ((), {"out": np.zeros(SHAPE, np.uint8)}, TypeError, "torch.Tensor"),
        ((torch.zeros(SHAPE, dtype=torch.uint8),), {}, TypeError, "out="),
        ((), {"into": None}, TypeError, "out="),
    ],
    ids=["dtype", "shape", "array", "position", "name"],
)
def test_unpack_into_something_else_is_refused(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        packed_tensor(PACKINGS["v1"]).unpack(*args, **kwargs)


def test_pack_skips_the_check_when_asked(packing):
    packed = AWQPackedTensor.pack(torch_codes() | 0xF0, *packing, validate=False)
    assert_same(packed, packed_tensor(packing))


# --- detach, to, offload ---


def test_a_copy_with_contiguous_format_has_contiguous_strides(packing, device):
    packed = AWQPackedTensor.pack(torch_codes((128, 64), device).t(), *packing)
    moved = packed.to(device, copy=True, memory_format=torch.contiguous_format)
    assert isinstance(moved, AWQPackedTensor)
    assert moved.stride() == moved.unpack().stride() == (128, 1)
    assert_same(moved.unpack(), packed.unpack())
    assert packed.to(device, copy=True).stride() == (1, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int8, torch.int32, torch.bool])
@pytest.mark.parametrize(
    "convert",
    [
        lambda p, dtype: p.to(dtype),
        lambda p, dtype: p.to(p.device, dtype),
        lambda p, dtype: p.to(dtype=dtype, copy=True),
        lambda p, dtype: p.type(dtype),
        lambda p, dtype: torch.ops.aten._to_copy.default(p, dtype=dtype),
    ],
    ids=["to", "to device", "to copy", "type", "_to_copy"],
)
def test_another_dtype_is_refused(packed, dtype, convert):
    before = packed.payload.clone()
    with pytest.raises(ValueError, match=f"torch.uint8.*{dtype}"):
        convert(packed, dtype)
    assert_same(packed.payload, before)


@pytest.mark.parametrize("name", ["half", "float", "double", "bfloat16", "int", "long", "bool"])
def test_dtype_methods_are_refused(name):
    with pytest.raises(ValueError, match=r"torch\.uint8 .*cannot become torch\."):
        getattr(packed_tensor(PACKINGS["v1"]), name)()


def test_offload_on_the_cpu_is_the_same_tensor(packing):
    packed = packed_tensor(packing)
    assert packed.offload() is packed
    assert packed.offload("cpu") is packed
    assert packed.offload(device=torch.device("cpu"), non_blocking=True) is packed


@pytest.mark.parametrize("device", [1.5, torch.float16, torch.zeros(1), "nope"], ids=repr)
def test_offload_takes_devices_only(packing, device):
    packed = packed_tensor(packing)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        packed.offload(device)


def test_offload_to_meta_keeps_metadata_and_drops_values(packing):
    packed = packed_tensor(packing)
    meta = packed.offload("meta")
    assert isinstance(meta, AWQPackedTensor)
    assert meta.payload.is_meta
    assert (meta.device.type, meta.shape, meta.packing) == ("meta", packed.shape, packed.packing)
    assert meta.unpack().is_meta


def test_a_move_to_meta_keeps_metadata_and_drops_values(packing, device):
    """There are no values that could be unpacked, and what is loaded later must know the packing."""
    packed = packed_tensor(packing, device=device)
    for meta in (
        packed.to("meta"),
        packed.to(device="meta", copy=True),
        torch.ops.aten._to_copy(packed, device="meta"),
    ):
        assert isinstance(meta, AWQPackedTensor)
        assert meta.is_meta
        assert meta.payload.is_meta
        assert (meta.shape, meta.packing, meta.reorder) == (packed.shape, *packing)
        with pytest.raises(NotImplementedError, match="no data"):
            meta.to(device)


# --- AWQPackedTensor(p, requires_grad=False): how libraries rebuild a parameter, as nn.Parameter allows ---


def test_a_packed_tensor_alone_is_wrapped_again(packed):
    again = AWQPackedTensor(packed)
    assert type(again) is AWQPackedTensor
    assert again is not packed
    assert again.payload.data_ptr() == packed.payload.data_ptr()
    assert_same(again, packed)
    assert not isinstance(again, torch.nn.Parameter)


def test_with_requires_grad_it_is_a_parameter(packed):
    packed.tag = "mine"
    again = AWQPackedTensor(packed, requires_grad=False)
    assert isinstance(again, torch.nn.Parameter)
    assert vars(again) == {"_is_param": True}
    assert not isinstance(packed, torch.nn.Parameter)


def test_attributes_of_a_parameter_are_keywords(packed):
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    parameter.tag = "mine"
    again = type(parameter)(packed, requires_grad=False, **parameter.__dict__)
    assert vars(again) == {"_is_param": True, "tag": "mine"}
    assert vars(packed) == {}


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"requires_grad": True}, ValueError, "requires_grad=False"),
        ({"requires_grad": True, "_is_param": True}, ValueError, "requires_grad=False"),
        ({"tag": 1}, TypeError, "'tag'"),
        ({"reorder": True}, TypeError, "'reorder'"),
    ],
)
def test_what_a_packed_tensor_is_not_wrapped_with(keywords, error, text, packed):
    with pytest.raises(error, match=text):
        AWQPackedTensor(packed, **keywords)


def test_a_subclass_wraps_again(packed):
    class Mine(AWQPackedTensor):
        pass

    mine = Mine(packed)
    assert type(mine) is Mine
    assert type(AWQPackedTensor(mine)) is type(Mine(mine)) is Mine
    assert_same(mine.unpack(), packed.unpack())
    assert mine.untyped_storage() is packed.untyped_storage()
    with pytest.raises(TypeError, match="expects a subclass"):
        AWQPackedTensor.__new__(3, packed)


def test_a_parameter_rebuilt_on_meta_packs_codes_as_it_was(packing, device):
    """accelerate keeps codes on a disk; when they come back it asks the parameter for nothing but its class."""
    packed = packed_tensor(packing, device=device)
    parameter = AWQPackedTensor(packed.to("meta"), requires_grad=False)
    assert isinstance(parameter, AWQPackedTensor)
    back = type(parameter)(packed.unpack(), requires_grad=False)
    assert type(back) is type(type(parameter)(packed)) is AWQPackedTensor
    assert isinstance(back, torch.nn.Parameter)
    assert_same(back.detach(), packed)
    with pytest.raises(ValueError, match="uint8 codes"):
        type(parameter)(packed.unpack().float())


def test_what_leaves_meta_is_of_the_usual_class(packing, device):
    parameter = AWQPackedTensor(packed_tensor(packing).to("meta"), requires_grad=False)
    module = torch.nn.Module()
    module.weight = copy.deepcopy(parameter)
    assert type(module.weight) is type(parameter)
    assert type(module.to_empty(device=device).weight) is AWQPackedTensor
    assert type(pickle.loads(pickle.dumps(parameter))) is AWQPackedTensor


def fake_packed(packing, device, order=None):
    payload = torch.empty(packing.payload_shape(SHAPE), dtype=packing.payload_dtype, device=device)
    stride = (128, 1) if order is None else order
    return AWQPackedTensor(payload, *packing, SHAPE, stride)


@pytest.mark.parametrize("source", ["cuda", "xpu"])
def test_cpu_method_unpacks_and_offload_does_not(source, packing):
    require_fake_tensors(source)
    with FakeTensorMode():
        packed = fake_packed(packing, source)
        assert not isinstance(packed.cpu(), AWQPackedTensor)
        offloaded = packed.offload()
        assert isinstance(offloaded, AWQPackedTensor)
        assert offloaded.device.type == offloaded.payload.device.type == "cpu"


# --- repr, numpy, tolist ---


def test_repr_shows_what_it_is(packed, packing, device):
    text = repr(packed)
    for word in ("AWQPackedTensor", str(SHAPE), packing.packing.name, f"reorder={packing.reorder}", device):
        assert word in text
    first = ", ".join(str(code) for code in packed.unpack()[0, :8].tolist())
    assert first in text
    assert str(packed) == text == f"{packed}"


def test_repr_of_a_parameter():
    parameter = torch.nn.Parameter(packed_tensor(PACKINGS["v1"]), requires_grad=False)
    assert repr(parameter).startswith("Parameter containing:\nAWQPackedTensor(shape=(64, 128), packing=V1")
    assert repr(parameter.detach()).startswith("AWQPackedTensor(shape=(64, 128), packing=V1")


def test_repr_reads_no_values_that_are_not_there(packing):
    meta = packed_tensor(packing).offload("meta")
    assert "device='meta'" in repr(meta)
    assert "codes" not in repr(meta)
    real = packed_tensor(packing)
    with FakeTensorMode():
        fake = fake_packed(packing, "cpu")
        assert str(SHAPE) in repr(fake)
        assert "codes" not in repr(fake)
        assert str(SHAPE) in repr(real)
    assert "codes" not in repr(fake)


@pytest.mark.parametrize("shape", [(64, 0), (0, 64), (2, 64, 0)], ids=str)
def test_repr_of_no_codes(shape, packing):
    text = repr(AWQPackedTensor.pack(torch.zeros(shape, dtype=torch.uint8), *packing))
    assert str(shape) in text
    assert "codes" not in text


@pytest.mark.parametrize("shape", [(2, 3, 8, 64), (3, 5, 4, 64, 64)], ids=str)
def test_repr_of_a_batch(shape, packing):
    packed = packed_tensor(packing, packing.fit(shape))
    assert str(packing.fit(shape)) in repr(packed)
    assert ", ".join(str(code) for code in packed.unpack().flatten()[:8].tolist()) in repr(packed)


def test_numpy_is_a_new_writable_array(packed):
    array = packed.numpy()
    assert_same(array, packed.unpack().cpu().numpy())
    assert array.flags.c_contiguous
    assert array.flags.owndata
    assert array.flags.writeable
    before = packed.payload.clone()
    array[:] = 0
    assert_same(packed.payload, before)
    assert_same(packed.numpy(force=True), packed.unpack().cpu().numpy())


def test_numpy_of_a_payload_with_strides(packing):
    codes = random_codes(SHAPE)
    payload = awqpack.pack(codes, *packing)
    strided = torch.from_numpy(Memory.COLUMN_MAJOR_STRIDED.copy(payload))
    packed = AWQPackedTensor(strided, *packing, SHAPE, (1, 64))
    assert_same(packed.numpy(), codes)
    assert packed.numpy().strides == (1, 64)
    assert_same(packed.unpack(), torch.from_numpy(codes))


def test_np_asarray(packed):
    if packed.device.type == "cpu":
        assert_same(np.asarray(packed), packed.numpy())
    else:
        with pytest.raises(TypeError, match="cuda"):
            torch.Tensor.__array__(packed.unpack())


def test_tolist(packed):
    assert packed.tolist() == packed.unpack().tolist()


def test_length_iteration_and_items(packed):
    codes = packed.unpack()
    assert len(packed) == 64
    assert is_plain(packed[3], codes[3])
    assert is_plain(packed[..., 5:9], codes[..., 5:9])
    assert all(is_plain(row, codes[i]) for i, row in enumerate(packed))
    assert packed[2, 3].item() == codes[2, 3].item()
    assert packed.max().item() == codes.max().item()
    assert bool((packed == codes).all())

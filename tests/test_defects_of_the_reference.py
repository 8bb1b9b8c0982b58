"""The defects of the reference implementation (design.md section 6), one test named after each: none is here."""

import copy

import numpy as np
import pytest
import torch
from shared import assert_same, packed_tensor, require_fake_tensors, torch_codes
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

SHAPE = (64, 128)


def test_flatten_unflatten_raises(packing, device):
    packed = packed_tensor(packing, device=device)
    names, metadata = packed.__tensor_flatten__()
    inner = {name: getattr(packed, name) for name in names}
    again = AWQPackedTensor.__tensor_unflatten__(inner, metadata, packed.size(), packed.stride())
    assert_same(again, packed)


@pytest.mark.usefixtures("fresh_dynamo")
def test_torch_compile_raises(packing, device):
    packed = packed_tensor(packing, device=device)
    result = torch.compile(lambda p: p + 1, fullgraph=True, backend="aot_eager")(packed)
    assert_same(result, packed.unpack() + 1)


def test_deepcopy_raises(packing, device):
    packed = packed_tensor(packing, device=device)
    copied = copy.deepcopy(packed)
    assert_same(copied, packed)
    assert copied.payload.data_ptr() != packed.payload.data_ptr()


def test_copy_is_lost(packing, device):
    packed = packed_tensor(packing, device=device)
    packed.copy_(torch_codes(device=device, seed=8))
    assert_same(packed.unpack(), torch_codes(device=device, seed=8))


def test_zero_is_lost(packing, device):
    packed = packed_tensor(packing, device=device)
    packed.zero_()
    assert not packed.payload.any()
    assert not packed.unpack().any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float32])
def test_v2_dtype_is_never_checked(dtype, device):
    codes = torch_codes(device=device).to(dtype)
    with pytest.raises(ValueError, match=f"uint8.*{dtype}"):
        AWQPackedTensor.pack(codes, AWQPacking.V2)
    with pytest.raises(ValueError, match=f"int16.*{dtype}"):
        AWQPackedTensor(codes, AWQPacking.V2, False, (256, 128), (128, 1))


def test_xpu_moves_unpack(packing):
    require_fake_tensors("xpu")
    with FakeTensorMode():
        payload = torch.empty(packing.payload_shape(SHAPE), dtype=packing.payload_dtype)
        packed = AWQPackedTensor(payload, *packing, SHAPE, (128, 1))
        moved = torch.ops.aten._to_copy.default(packed, device=torch.device("xpu"))
        assert isinstance(moved, AWQPackedTensor)
        assert moved.payload.device.type == "xpu"


def test_kwargs_none_crashes(packing, device):
    packed = packed_tensor(packing, device=device)
    result = AWQPackedTensor.__torch_dispatch__(torch.ops.aten.add.Tensor, (), (packed, 1), None)
    assert_same(result, packed.unpack() + 1)


def test_codes_over_15_corrupt_neighbours(packing, device):
    codes = torch_codes(device=device)
    codes[7, 9] = 0xF3
    with pytest.raises(ValueError, match=r"codes\[7, 9\] is 243"):
        AWQPackedTensor.pack(codes, *packing)
    unchecked = AWQPackedTensor.pack(codes, *packing, validate=False)
    codes[7, 9] = 3
    assert_same(unchecked.unpack(), codes)


@pytest.mark.parametrize("cols", [1, 7, 12, 65])
def test_k_that_is_no_multiple_of_8_is_silently_truncated(cols, device):
    codes = torch.zeros(4, cols, dtype=torch.uint8, device=device)
    for packing, unit in ((AWQPacking.V1, 8), (AWQPacking.V2, 64)):
        with pytest.raises(ValueError, match=f"multiple of {unit}; got {cols}"):
            AWQPackedTensor.pack(codes, packing)
        with pytest.raises(ValueError, match=f"multiple of {unit}; got {cols}"):
            awqpack.pack(np.zeros((4, cols), np.uint8), packing)


def test_stride_metadata_disagrees_with_the_unpacked_tensor(packing, device):
    codes = torch_codes((128, 64), device)
    inputs = [
        codes,
        codes.t().contiguous().t(),
        torch_codes((64, 128), device).t(),
        torch_codes((256, 64), device)[::2],
    ]
    for tensor in inputs:
        packed = AWQPackedTensor.pack(tensor, *packing)
        assert packed.stride() == packed.unpack().stride() == (packed + 0).stride()
        assert packed.is_contiguous() == packed.unpack().is_contiguous()
        assert_same(packed.unpack(), tensor)

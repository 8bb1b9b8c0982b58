"""The reference implementation's own payloads, bit for bit, both ways, through every door."""

import numpy as np
import pytest
import torch
from checkpoints import REFERENCE_NAMES, reference
from shared import PACKINGS, REFERENCE, assert_same, pack_array, unpack_array

import awqpack
from awqpack import AWQPackedTensor

CASES = [
    pytest.param(name.split("/")[0], PACKINGS[name.split("/")[1]], name, id=name.replace("/", "-"))
    for name in REFERENCE.files
    if not name.endswith("/codes")
]
vectors = pytest.mark.parametrize(("shape_name", "packing", "payload_name"), CASES)


@pytest.fixture
def codes(shape_name):
    return REFERENCE[f"{shape_name}/codes"]


@pytest.fixture
def payload(payload_name):
    return REFERENCE[payload_name]


def test_the_vectors_cover_every_layout():
    counts = {name: sum(key.endswith(f"/{name}") for key in REFERENCE.files) for name in ("codes", *PACKINGS)}
    assert counts == {"codes": 15, "v1": 15, "v1_reorder": 15, "v2": 10, "marlin": 0}


def test_marlin_is_what_an_engine_makes_of_a_layer(device, variant):
    """The layers whose rows are whole blocks. Who made the payloads is not recorded: data/README.md."""
    packing, seen = PACKINGS["marlin"], 0
    for name in REFERENCE_NAMES:
        tensors = reference(name)[2]
        if "marlin.qweight" not in tensors:
            continue
        seen += 1
        codes, payload = tensors["codes"], tensors["marlin.qweight"]
        assert_same(pack_array(codes.numpy(), packing, variant=variant), payload.numpy())
        assert_same(unpack_array(payload.numpy(), packing, variant=variant), codes.numpy())
        assert_same(awqpack.pack(codes.to(device), *packing).cpu(), payload)
        assert_same(awqpack.unpack(payload.to(device), *packing).cpu(), codes)
        assert_same(awqpack.ops.portable.pack(codes, packing.number, False), payload)
    assert seen == 2


@vectors
def test_every_variant_on_arrays(codes, packing, payload, variant):
    assert_same(pack_array(codes, packing, variant=variant), payload)
    assert_same(unpack_array(payload, packing, variant=variant), codes)


@vectors
def test_every_variant_on_column_major_arrays(codes, packing, payload, variant):
    assert_same(pack_array(np.asfortranarray(codes), packing, variant=variant), payload)
    out = np.empty_like(codes, order="F")
    assert unpack_array(payload, packing, out=out, variant=variant) is out
    assert_same(out, codes)


@vectors
def test_the_torch_ops(codes, packing, payload, device):
    codes, payload = torch.from_numpy(codes).to(device), torch.from_numpy(payload).to(device)
    column_major = codes.t().contiguous().t()
    assert_same(torch.ops.awqpack.pack(codes, packing.number, packing.reorder), payload)
    assert_same(torch.ops.awqpack.pack(column_major, packing.number, packing.reorder), payload)
    assert_same(torch.ops.awqpack.unpack(payload, packing.number, packing.reorder), codes)
    unpacked = torch.ops.awqpack.unpack(payload, packing.number, packing.reorder, (1, 0))
    assert_same(unpacked, codes)
    assert unpacked.t().is_contiguous()


@vectors
def test_the_portable_kernels(codes, packing, payload):
    codes, payload = torch.from_numpy(codes), torch.from_numpy(payload)
    assert_same(awqpack.ops.portable.pack(codes, packing.number, packing.reorder), payload)
    assert_same(awqpack.ops.portable.unpack(payload, packing.number, packing.reorder), codes)


@vectors
def test_pack_and_unpack(codes, packing, payload):
    assert_same(awqpack.pack(codes, *packing), payload)
    assert_same(awqpack.unpack(payload, *packing), codes)
    tensor = awqpack.pack(torch.from_numpy(codes), *packing)
    assert_same(tensor, torch.from_numpy(payload))
    assert_same(awqpack.unpack(tensor, *packing), torch.from_numpy(codes))


@vectors
def test_the_class(codes, packing, payload, device):
    tensor = torch.from_numpy(codes).to(device)
    packed = AWQPackedTensor.pack(tensor, *packing)
    assert_same(packed.payload, torch.from_numpy(payload).to(device))
    assert_same(packed.unpack(), tensor)
    assert_same(packed.numpy(), codes)


@vectors
def test_the_class_on_column_major_codes(codes, packing, payload, device):
    column_major = torch.from_numpy(codes).to(device).t().contiguous().t()
    packed = AWQPackedTensor.pack(column_major, *packing)
    assert_same(packed.payload, torch.from_numpy(payload).to(device))
    assert packed.unpack().stride() == packed.stride()
    assert_same(packed.unpack(), column_major)
    assert_same(packed.numpy(), codes)

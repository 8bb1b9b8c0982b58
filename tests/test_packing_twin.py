"""The slow twin agrees with the reference vectors, and the fast paths agree with the twin."""

import numpy as np
import pytest
import torch
import twin
from shared import (
    PACKINGS,
    REFERENCE,
    assert_same,
    pack_array,
    packed_tensor,
    random_codes,
    random_payload,
    unpack_array,
)

import awqpack

CASES = [name for name in REFERENCE.files if not name.endswith("/codes")]
SHAPES = [(4, 64), (8, 192), (2, 12, 64), (3, 2, 4, 128), (2, 1, 2, 4, 64)]


@pytest.mark.parametrize("name", CASES)
def test_the_twin_matches_the_reference(name):
    shape_name, layout_name = name.split("/")
    packing = PACKINGS[layout_name]
    codes = REFERENCE[f"{shape_name}/codes"]
    assert_same(twin.pack(codes, *packing), REFERENCE[name])
    assert_same(twin.unpack(REFERENCE[name], *packing), codes)


def test_the_twin_places_every_code_once(packing):
    rows, cols = packing.fit((8, 192))
    places = list(twin.places(rows, cols, *packing))
    assert len({place[:2] for place in places}) == len({place[2:] for place in places}) == rows * cols


# (packing, code W[n, k], its payload item, its nibble), worked out by hand from design.md section 3
BY_HAND = [
    ("v1", (0, 0), (0, 0), 0),
    ("v1", (2, 13), (2, 1), 5),
    ("v1_reorder", (0, 1), (0, 0), 4),
    ("v1_reorder", (0, 2), (0, 0), 1),
    ("v1_reorder", (3, 15), (3, 1), 7),
    ("v2", (0, 8), (0, 0), 1),
    ("v2", (1, 0), (0, 16), 0),
    ("v2", (3, 32), (0, 56), 0),
    ("v2", (5, 64 + 32 + 24 + 7), (1, 64 + 16 + 8 + 7), 3),
    ("marlin", (0, 8), (0, 0), 1),
    ("marlin", (8, 0), (0, 0), 2),
    ("marlin", (0, 1), (0, 0), 4),
    ("marlin", (16, 2), (0, 5), 0),
    ("marlin", (63, 127), (7, 127), 7),
]


@pytest.mark.parametrize(("name", "code", "item", "nibble"), BY_HAND)
def test_one_code_lands_where_the_formula_says(name, code, item, nibble, variant):
    codes = np.zeros(PACKINGS[name].fit((8, 128)), np.uint8)
    codes[code] = 9
    expected = np.zeros(PACKINGS[name].payload_shape(codes.shape), np.int64)
    expected[item] = 9 << (4 * nibble)
    for payload in (pack_array(codes, PACKINGS[name], variant=variant), twin.pack(codes, *PACKINGS[name])):
        unsigned = payload.view(np.uint32 if payload.itemsize == 4 else np.uint16)
        np.testing.assert_array_equal(unsigned, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arrays_match_the_twin(shape, packing, variant):
    shape = packing.fit(shape)
    codes, payload = random_codes(shape), random_payload(shape, packing)
    assert_same(pack_array(codes, packing, variant=variant), twin.pack(codes, *packing))
    assert_same(unpack_array(payload, packing, variant=variant), twin.unpack(payload, *packing))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_match_the_twin(shape, packing, device):
    shape = packing.fit(shape)
    codes, payload = random_codes(shape), random_payload(shape, packing)
    packed = awqpack.pack(torch.from_numpy(codes).to(device), *packing)
    assert_same(packed.cpu().numpy(), twin.pack(codes, *packing))
    unpacked = awqpack.unpack(torch.from_numpy(payload).to(device), *packing)
    assert_same(unpacked.cpu().numpy(), twin.unpack(payload, *packing))
    assert_same(packed_tensor(packing, shape, device).numpy(), codes)


def test_portable_matches_the_twin_on_every_layout(packing):
    for shape in map(packing.fit, SHAPES):
        codes, payload = random_codes(shape), random_payload(shape, packing)
        packed = awqpack.ops.portable.pack(torch.from_numpy(codes), packing.number, packing.reorder)
        assert_same(packed.numpy(), twin.pack(codes, *packing))
        unpacked = awqpack.ops.portable.unpack(torch.from_numpy(payload), packing.number, packing.reorder)
        assert_same(unpacked.numpy(), twin.unpack(payload, *packing))


def test_reorder_never_changes_a_v2_payload():
    codes = random_codes((8, 128))
    plain, reordered = (awqpack.pack(codes, awqpack.AWQPacking.V2, reorder) for reorder in (False, True))
    assert_same(plain, reordered)
    assert_same(awqpack.unpack(plain, awqpack.AWQPacking.V2, True), codes)

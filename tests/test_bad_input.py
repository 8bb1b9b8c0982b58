"""Bad input: an error that names what was expected and what came, through every door, and nothing written."""

import numpy as np
import pytest
import torch
from shared import assert_same, packed_tensor, random_codes, refused

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

V1, V2 = AWQPacking.V1, AWQPacking.V2


def pack_op(codes, packing):
    return torch.ops.awqpack.pack.default(codes, packing.value, False)


def pack_out_op(codes, packing):
    # The output does not fit: the input is checked first.
    out = torch.zeros(1, 1, dtype=torch.int32, device=codes.device)
    return torch.ops.awqpack.pack_out.default(codes, packing.value, False, out=out)


TORCH_PACKERS = {
    "op": pack_op,
    "out_op": pack_out_op,
    "function": awqpack.pack,
    "portable": lambda codes, packing: awqpack.ops.portable.pack(codes, packing.value, False),
    "class": AWQPackedTensor.pack,
}
TORCH_UNPACKERS = {
    "op": lambda payload, packing: torch.ops.awqpack.unpack.default(payload, packing.value, False),
    "out_op": lambda payload, packing: torch.ops.awqpack.unpack_out.default(
        payload, packing.value, False, out=torch.zeros(1, 1, dtype=torch.uint8, device=payload.device)
    ),
    "function": awqpack.unpack,
    "portable": lambda payload, packing: awqpack.ops.portable.unpack(payload, packing.value, False),
    "class": lambda payload, packing: AWQPackedTensor(payload, packing, False, (8, 64), (64, 1)),
}


# what, codes, packing, essential words; the same for arrays and tensors
BAD_CODES = [
    ("int8", np.zeros((8, 64), np.int8), V1, ["uint8", "int8", "quantized first"]),
    ("int16", np.zeros((8, 64), np.int16), V2, ["uint8", "int16", "codes.to(torch.uint8)"]),
    (
        "int32",
        np.zeros((8, 64), np.int32),
        V1,
        ["uint8", "int32", "codes.to(torch.uint8)", "astype(numpy.uint8)"],
    ),
    ("int64", np.zeros((8, 64), np.int64), V1, ["uint8", "int64", "codes.to(torch.uint8)"]),
    ("bool", np.zeros((8, 64), np.bool_), V1, ["uint8", "bool"]),
    ("float16", np.zeros((8, 64), np.float16), V1, ["uint8", "float16", "quantized first"]),
    ("float32", np.zeros((8, 64), np.float32), V2, ["uint8", "float32", "quantized first"]),
    ("float64", np.zeros((8, 64), np.float64), V1, ["uint8", "float64", "quantized first"]),
    ("complex64", np.zeros((8, 64), np.complex64), V1, ["uint8", "complex64"]),
    ("complex128", np.zeros((8, 64), np.complex128), V2, ["uint8", "complex128"]),
    ("0-d", np.zeros((), np.uint8), V1, ["at least 2 dimensions", "()"]),
    ("1-d", np.zeros(64, np.uint8), V1, ["at least 2 dimensions", "(64,)"]),
    ("1-d V2", np.zeros(64, np.uint8), V2, ["at least 2 dimensions", "(64,)"]),
    ("K % 8", np.zeros((4, 12), np.uint8), V1, ["V1", "in_features", "multiple of 8", "12", "(4, 12)"]),
    ("K % 8 batched", np.zeros((3, 4, 7), np.uint8), V1, ["multiple of 8", "7", "(3, 4, 7)"]),
    ("K % 64", np.zeros((4, 96), np.uint8), V2, ["V2", "in_features", "multiple of 64", "96", "(4, 96)"]),
    ("K % 64, short", np.zeros((4, 8), np.uint8), V2, ["V2", "multiple of 64", "8", "(4, 8)"]),
    ("N % 4", np.zeros((6, 64), np.uint8), V2, ["V2", "out_features", "multiple of 4", "6", "(6, 64)"]),
    ("N % 4 batched", np.zeros((4, 1, 64), np.uint8), V2, ["multiple of 4", "1", "(4, 1, 64)"]),
]
bad_codes = pytest.mark.parametrize(
    ("codes", "packing", "words"), [row[1:] for row in BAD_CODES], ids=[row[0] for row in BAD_CODES]
)


@bad_codes
@pytest.mark.parametrize("door", TORCH_PACKERS)
def test_codes_refused_as_tensor(codes, packing, words, door, device):
    refused(TORCH_PACKERS[door], torch.from_numpy(np.array(codes)).to(device), packing, words=words)


@bad_codes
def test_codes_refused_as_array(codes, packing, words):
    refused(awqpack.pack, codes, packing, words=words)


@bad_codes
def test_codes_refused_as_fake_tensor(codes, packing, words):
    refused(pack_op, torch.from_numpy(np.array(codes)).to("meta"), packing, words=words)


BAD_PAYLOADS = [
    ("V1 int16", np.zeros((8, 8), np.int16), V1, ["V1", "int32", "int16"]),
    ("V1 uint8", np.zeros((8, 8), np.uint8), V1, ["V1", "int32", "uint8"]),
    ("V1 int64", np.zeros((8, 8), np.int64), V1, ["V1", "int32", "int64"]),
    ("V1 uint32", np.zeros((8, 8), np.uint32), V1, ["V1", "int32", "uint32"]),
    ("V1 float32", np.zeros((8, 8), np.float32), V1, ["V1", "int32", "float32"]),
    ("V2 int32", np.zeros((2, 64), np.int32), V2, ["V2", "int16", "int32"]),
    ("V2 uint16", np.zeros((2, 64), np.uint16), V2, ["V2", "int16", "uint16"]),
    ("V2 float16", np.zeros((2, 64), np.float16), V2, ["V2", "int16", "float16"]),
    ("V2 complex64", np.zeros((2, 64), np.complex64), V2, ["V2", "int16", "complex64"]),
    ("V1 0-d", np.zeros((), np.int32), V1, ["at least 2 dimensions", "()"]),
    ("V1 1-d", np.zeros(8, np.int32), V1, ["at least 2 dimensions", "(8,)"]),
    ("V2 1-d", np.zeros(64, np.int16), V2, ["at least 2 dimensions", "(64,)"]),
    ("V2 K % 64", np.zeros((2, 72), np.int16), V2, ["multiple of 64", "72", "(2, 72)"]),
]
bad_payloads = pytest.mark.parametrize(
    ("payload", "packing", "words"), [row[1:] for row in BAD_PAYLOADS], ids=[row[0] for row in BAD_PAYLOADS]
)


@bad_payloads
@pytest.mark.parametrize("door", TORCH_UNPACKERS)
def test_payload_refused_as_tensor(payload, packing, words, door, device):
    refused(TORCH_UNPACKERS[door], torch.from_numpy(np.array(payload)).to(device), packing, words=words)


@bad_payloads
def test_payload_refused_as_array(payload, packing, words):
    refused(awqpack.unpack, payload, packing, words=words)


# Arrays that only NumPy has
BAD_ARRAYS = [
    ("object", np.zeros((8, 64), object), ["uint8", "object"]),
    ("big-endian", np.zeros((8, 64), ">i4"), ["uint8", ">i4"]),
    ("uint16", np.zeros((8, 64), np.uint16), ["uint8", "uint16"]),
    ("void", np.zeros((8, 64), "V1"), ["uint8", "V1"]),
    ("structured", np.zeros((8, 64), [("a", "u1")]), ["uint8", "'a'"]),
    ("string", np.zeros((8, 64), "S1"), ["uint8", "S1"]),
    ("datetime", np.zeros((8, 64), "M8[s]"), ["uint8", "datetime64"]),
]


@pytest.mark.parametrize(("codes", "words"), [row[1:] for row in BAD_ARRAYS], ids=[row[0] for row in BAD_ARRAYS])
def test_array_refused(codes, words):
    refused(awqpack.pack, codes, words=words)


@pytest.mark.parametrize(("dtype", "packing"), [(">i4", V1), (">i2", V2)])
def test_big_endian_payload_refused(dtype, packing):
    refused(awqpack.unpack, np.zeros((8, 64), dtype), packing, words=[dtype, "not native byte order"])


def test_an_array_whose_strides_split_its_items_is_refused():
    payload = np.zeros((4, 64), [("payload", np.int32), ("rest", np.uint8)])["payload"]
    refused(awqpack.unpack, payload, words=["strides", "multiples of the item size", "int32"])


@pytest.mark.parametrize("value", [None, [[1] * 8], b"12345678", 7, np.uint8(3)], ids=repr)
@pytest.mark.parametrize("call", [awqpack.pack, awqpack.unpack], ids=["pack", "unpack"])
def test_neither_tensor_nor_array(call, value):
    refused(call, value, error=TypeError, words=["torch.Tensor", "numpy.ndarray", type(value).__name__])


@pytest.mark.parametrize("value", [None, [[1] * 8]], ids=["None", "list"])
def test_the_class_packs_tensors_and_arrays_only(value):
    refused(AWQPackedTensor.pack, value, error=TypeError, words=["torch.Tensor", type(value).__name__])


# torch's own kinds of tensors; building them warns of their deprecation
ODD_TENSORS = {
    "sparse_coo": (lambda t: t.to_sparse(), ["dense", "sparse_coo"]),
    "sparse_csr": (lambda t: t.to_sparse_csr(), ["dense", "sparse_csr"]),
    "quantized": (
        lambda t: torch.quantize_per_tensor(t.float(), 1.0, 0, torch.quint8),
        ["quantized", "int_repr"],
    ),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
@pytest.mark.parametrize("door", ["op", "out_op", "function", "portable", "class"])
@pytest.mark.filterwarnings("ignore")
def test_sparse_and_quantized_codes(kind, door):
    make, words = ODD_TENSORS[kind]
    refused(TORCH_PACKERS[door], make(torch.ones(8, 64, dtype=torch.uint8)), V1, words=words)


@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr"])
@pytest.mark.parametrize("door", TORCH_UNPACKERS)
@pytest.mark.filterwarnings("ignore")
def test_sparse_payload(kind, door):
    make, words = ODD_TENSORS[kind]
    refused(TORCH_UNPACKERS[door], make(torch.ones(8, 8, dtype=torch.int32)), V1, words=words)


# shape, {index: value}, the index named: the first in row-major order
INVALID_CODES = [
    ((1, 8), {(0, 7): 16}, (0, 7)),
    ((5, 24), {(4, 23): 255}, (4, 23)),
    ((5, 24), {(3, 1): 200, (2, 20): 17, (4, 0): 255}, (2, 20)),
    ((64, 64), {(0, 0): 128}, (0, 0)),
    ((64, 128), {(63, 127): 16, (63, 126): 31}, (63, 126)),
    ((2, 3, 8, 64), {(1, 2, 7, 63): 64}, (1, 2, 7, 63)),
    ((2, 3, 8, 64), {(1, 0, 0, 0): 16, (0, 2, 5, 9): 240}, (0, 2, 5, 9)),
    ((700, 320), {(699, 319): 16, (350, 100): 99}, (350, 100)),
]


def is_v2(shape):
    return shape[-1] % 64 == 0 and shape[-2] % 4 == 0


def invalid_codes(shape, values):
    codes = random_codes(shape)
    for index, value in values.items():
        codes[index] = value
    return codes


@pytest.mark.parametrize(("shape", "values", "named"), INVALID_CODES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_code_over_15_is_named(shape, values, named, order, device):
    codes = np.asarray(invalid_codes(shape, values), order=order)
    tensor = torch.from_numpy(codes).to(device)
    words = ["0..15", f"codes[{', '.join(map(str, named))}] is {values[named]}"]
    for packing in (V1, V2) if is_v2(shape) else (V1,):
        for name in ("op", "function", "portable", "class"):
            refused(TORCH_PACKERS[name], tensor, packing, words=words)
        refused(awqpack.pack, codes, packing, words=words)
        assert_same(codes, invalid_codes(shape, values))
        out = torch.zeros(awqpack.pack(codes & 15, packing).shape, dtype=torch.int32, device=device)
        out = out if packing is V1 else out.to(torch.int16)
        refused(awqpack.pack, tensor, packing, out=out, words=words)


@pytest.mark.parametrize("position", range(64))
def test_a_code_over_15_is_seen_wherever_it_is(position, packing, variant):
    codes = np.zeros(packing.fit((4, 64)), np.uint8)
    codes[3, position] = 16
    words = [f"codes[3, {position}] is 16"]
    refused(awqpack._C.pack_array, codes, packing.number, packing.reorder, True, None, variant, words=words)


def test_codes_over_15_never_reach_a_packed_tensor(packing, device):
    packed = packed_tensor(packing, device=device)
    before = packed.payload.clone()
    bad = packed.unpack()
    bad[5, 6] = 16
    refused(packed.copy_, bad, words=["codes[5, 6] is 16"])
    assert_same(packed.payload, before)


def test_zero_sizes_are_valid(packing, device):
    for shape in map(packing.fit, [(0, 64), (4, 0), (0, 0), (0, 4, 64), (2, 0, 64), (2, 4, 0)]):
        codes = np.zeros(shape, np.uint8)
        payload_shape = packing.payload_shape(shape)
        array = awqpack.pack(codes, *packing)
        assert array.shape == payload_shape
        assert_same(awqpack.unpack(array, *packing), codes)
        tensor = awqpack.pack(torch.from_numpy(codes).to(device), *packing)
        assert tensor.shape == payload_shape
        assert tensor.dtype == packing.payload_dtype
        assert_same(awqpack.unpack(tensor, *packing), torch.from_numpy(codes).to(device))
        packed = packed_tensor(packing, shape, device)
        assert packed.shape == shape
        assert_same(packed.unpack(), torch.from_numpy(codes).to(device))
        assert str(shape) in repr(packed)


def test_read_only_arrays_are_valid_input(packing):
    shape = packing.fit((8, 64))
    codes = random_codes(shape)
    codes.flags.writeable = False
    payload = awqpack.pack(codes, *packing)
    payload.flags.writeable = False
    unpacked = awqpack.unpack(payload, *packing)
    assert_same(unpacked, random_codes(shape))
    assert unpacked.flags.writeable

"""Bad input: an error that names what was expected and what came, through every door, and nothing written."""

import threading

import numpy as np
import pytest
import torch
from shared import PACKET_ERROR, assert_same, packed_tensor, random_codes

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

V1, V2, MARLIN = AWQPacking.V1, AWQPacking.V2, AWQPacking.MARLIN


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


def refused(call, *args, error=ValueError, words, **kwargs):
    """call(*args) raises exactly `error`, with all of the words in its message."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is error
    assert [word for word in words if word not in str(caught.value)] == []


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


NO_PACKINGS = [1, 3, "V1", None, AWQPacking, True]


@pytest.mark.parametrize("packing", NO_PACKINGS, ids=repr)
def test_packing_that_is_no_awqpacking(packing):
    payload = torch.zeros(8, 8, dtype=torch.int32)
    words = ["AWQPacking.V1, AWQPacking.V2 or AWQPacking.MARLIN", repr(packing)]
    refused(awqpack.pack, torch_zeros(), packing, error=TypeError, words=words)
    refused(awqpack.pack, np.zeros((8, 64), np.uint8), packing, error=TypeError, words=words)
    refused(awqpack.unpack, payload, packing, error=TypeError, words=words)
    refused(AWQPackedTensor.pack, torch_zeros(), packing, error=TypeError, words=["AWQPacking", repr(packing)])
    refused(
        AWQPackedTensor,
        payload,
        packing,
        False,
        (8, 64),
        (64, 1),
        error=TypeError,
        words=["AWQPacking", repr(packing)],
    )


@pytest.mark.parametrize("reorder", ["yes", 1, None], ids=repr)
def test_reorder_that_is_no_bool(reorder):
    payload = torch.zeros(8, 8, dtype=torch.int32)
    words = ["reorder expects True or False", repr(reorder)]
    refused(awqpack.pack, torch_zeros(), V1, reorder, error=TypeError, words=words)
    refused(awqpack.pack, np.zeros((8, 64), np.uint8), V1, reorder, error=TypeError, words=words)
    refused(awqpack.unpack, payload, V1, reorder, error=TypeError, words=words)
    refused(AWQPackedTensor.pack, torch_zeros(), V1, reorder, error=TypeError, words=words)
    refused(AWQPackedTensor, payload, V1, reorder, (8, 64), (64, 1), error=TypeError, words=words)
    refused(AWQPackedTensor.from_payload, payload, V1, reorder, error=TypeError, words=words)


@pytest.mark.parametrize("validate", ["no", 0, None], ids=repr)
def test_validate_that_is_no_bool(validate):
    words = ["validate expects True or False", repr(validate)]
    refused(awqpack.pack, torch_zeros(), validate=validate, error=TypeError, words=words)
    refused(awqpack.pack, np.zeros((8, 64), np.uint8), validate=validate, error=TypeError, words=words)
    refused(AWQPackedTensor.pack, torch_zeros(), validate=validate, error=TypeError, words=words)


def test_out_of_another_kind_or_device():
    on_meta = torch.empty(8, 8, dtype=torch.int32, device="meta")
    refused(awqpack.pack, torch_zeros(), out=on_meta, words=["out expects the device of the input, cpu", "meta"])
    refused(
        torch.ops.awqpack.pack_out.default,
        torch_zeros(),
        1,
        False,
        out=on_meta,
        words=["out expects the device of the input"],
    )
    array = np.zeros((8, 64), np.uint8)
    refused(awqpack.pack, array, out=torch.empty(8, 8), error=TypeError, words=["numpy.ndarray", "torch.Tensor"])


@pytest.mark.parametrize("number", [0, 4, -1, 2**40])
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_packing_number_of_the_ops(number, where):
    words = ["1 (AWQPacking.V1), 2 (AWQPacking.V2) or 3 (AWQPacking.MARLIN)", str(number)]
    payload = torch.zeros(8, 8, dtype=torch.int32, device=where)
    refused(torch.ops.awqpack.pack.default, torch_zeros().to(where), number, False, words=words)
    refused(torch.ops.awqpack.unpack.default, payload, number, False, words=words)


def torch_zeros(shape=(8, 64)):
    return torch.zeros(shape, dtype=torch.uint8)


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


BAD_OUTPUTS = [
    ("dtype", lambda make: make((8, 8), "int64"), ["int32", "int64"]),
    ("codes' dtype", lambda make: make((8, 64), "uint8"), ["int32", "uint8"]),
    ("shape", lambda make: make((8, 9), "int32"), ["(8, 8)", "(8, 9)"]),
    ("ndim", lambda make: make((1, 8, 8), "int32"), ["(8, 8)", "(1, 8, 8)"]),
]


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in BAD_OUTPUTS], ids=[row[0] for row in BAD_OUTPUTS])
def test_out_that_does_not_fit(make, words, device):
    array = make(lambda shape, dtype: np.full(shape, 7, dtype))
    tensor = make(lambda shape, dtype: torch.full(shape, 7, dtype=getattr(torch, dtype), device=device))
    refused(awqpack.pack, np.zeros((8, 64), np.uint8), out=array, words=["out", *words])
    refused(awqpack.pack, torch_zeros().to(device), out=tensor, words=["out", *words])
    assert (array == 7).all()
    assert bool((tensor == 7).all())


def test_out_of_another_kind():
    words = ["out", "torch.Tensor", "ndarray"]
    refused(awqpack.pack, torch_zeros(), out=np.zeros((8, 8), np.int32), error=TypeError, words=words)
    words = ["out", "Tensor"]
    refused(awqpack.pack, np.zeros((8, 64), np.uint8), out=torch.zeros(8, 8), error=TypeError, words=words)


def test_out_that_is_read_only():
    out = np.zeros((8, 8), np.int32)
    out.flags.writeable = False
    refused(awqpack.pack, np.full((8, 64), 1, np.uint8), out=out, words=["out", "writeable", "read-only"])
    assert not out.any()


def test_out_whose_elements_overlap():
    out = torch.zeros(1, 8, dtype=torch.int32).expand(8, 8)
    refused(awqpack.pack, torch_zeros() + 1, out=out, words=["out", "overlapping strides", "(0, 1)"])
    assert not out.any()
    array = np.broadcast_to(np.zeros((1, 8), np.int32), (8, 8))
    array.flags.writeable = True
    refused(awqpack.pack, np.ones((8, 64), np.uint8), out=array, words=["out", "overlapping strides"])
    assert not array.any()


def test_out_that_overlaps_the_input():
    memory = np.ones(8 * 64, np.uint8)
    codes, out = memory.reshape(8, 64), memory[256:].view(np.int32).reshape(8, 8)
    refused(awqpack.pack, codes, out=out, words=["out", "overlap"])
    shared = torch.from_numpy(memory)
    tensor_out = shared[256:].view(torch.int32).view(8, 8)
    refused(awqpack.pack, shared.view(8, 64), out=tensor_out, words=["out", "overlap"])
    assert (memory == 1).all()


# data, packing, size, stride, essential words
BAD_GEOMETRY = [
    ("too many rows", (9, 64), (64, 1), ["(8, 64)", "(9, 64)", "(8, 8)"]),
    ("too few columns", (8, 56), (56, 1), ["(8, 64)", "(8, 56)"]),
    ("another ndim", (1, 8, 64), (512, 64, 1), ["(8, 64)", "(1, 8, 64)"]),
    ("the payload's own", (8, 8), (8, 1), ["(8, 64)", "(8, 8)"]),
    ("negative", (-8, -64), (64, 1), ["(8, 64)", "(-8, -64)"]),
    ("strides with gaps", (8, 64), (65, 1), ["dense", "(65, 1)"]),
    ("overlapping strides", (8, 64), (1, 1), ["dense", "(1, 1)"]),
    ("zero strides", (8, 64), (0, 1), ["dense", "(0, 1)"]),
    ("negative strides", (8, 64), (-64, 1), ["dense", "(-64, 1)"]),
    ("too few strides", (8, 64), (1,), ["dense", "(1,)"]),
    ("too many strides", (8, 64), (512, 64, 1), ["dense", "(512, 64, 1)"]),
]


@pytest.mark.parametrize(
    ("size", "stride", "words"), [row[1:] for row in BAD_GEOMETRY], ids=[row[0] for row in BAD_GEOMETRY]
)
def test_size_and_stride_must_fit_the_payload(size, stride, words):
    refused(AWQPackedTensor, torch.zeros(8, 8, dtype=torch.int32), V1, False, size, stride, words=words)


@pytest.mark.parametrize("value", [None, 8, "ab", (8, "64"), (8.0, 64.0), (8, None)], ids=repr)
def test_size_and_stride_must_be_ints(value):
    payload = torch.zeros(8, 8, dtype=torch.int32)
    refused(AWQPackedTensor, payload, V1, False, value, (64, 1), error=TypeError, words=["size"])
    refused(AWQPackedTensor, payload, V1, False, (8, 64), value, error=TypeError, words=["stride"])


def test_requires_grad_is_refused():
    payload = torch.zeros(8, 8, dtype=torch.int32)
    refused(AWQPackedTensor, payload, V1, False, (8, 64), (64, 1), True, words=["requires_grad=False", "True"])


@pytest.mark.parametrize("data", [None, np.zeros((8, 8), np.int32), [[1]]], ids=["None", "ndarray", "list"])
def test_the_payload_must_be_a_tensor(data):
    words = ["torch.Tensor", type(data).__name__]
    refused(AWQPackedTensor, data, V1, False, (8, 64), (64, 1), error=TypeError, words=words)


def test_arguments_are_counted_from_1():
    refused(AWQPackedTensor, torch.zeros(8, 8, dtype=torch.int32), error=TypeError, words=["'packing' (pos 2)"])
    refused(AWQPackedTensor, error=TypeError, words=["'data' (pos 1)"])
    arguments = (torch.zeros(8, 8, dtype=torch.int32), V1, False, (8, 64), (64, 1), False)
    refused(AWQPackedTensor, *arguments, None, error=TypeError, words=["at most 6 arguments", "7 given"])


# --- the type of an error under torch 2.15 and newer, which make RuntimeError of every error of a C++ op ---

PACKET_CALLS = {
    "pack": lambda ops: ops.pack(torch_zeros().int(), 1, False),
    "unpack": lambda ops: ops.unpack(torch_zeros(), 1, False),
    "pack_out": lambda ops: ops.pack_out(torch_zeros(), 1, False, out=torch_zeros()),
    "unpack_out": lambda ops: ops.unpack_out(torch_zeros(), 1, False, out=torch_zeros()),
}


@pytest.mark.parametrize("name", PACKET_CALLS)
def test_packets_raise_what_torch_makes_of_it(name):
    refused(PACKET_CALLS[name], torch.ops.awqpack, error=PACKET_ERROR, words=["uint8", "int32"])


@pytest.mark.parametrize("name", ["pack", "unpack", "pack_out", "unpack_out"])
def test_overloads_raise_value_errors(name):
    class Overloads:
        """torch.ops.awqpack with the overload in place of each packet."""

        def __getattr__(self, op):
            return getattr(torch.ops.awqpack, op).default

    refused(PACKET_CALLS[name], Overloads(), words=["uint8", "int32"])


def raises(error):
    def call(*args, **kwargs):
        raise error

    return call


def test_only_an_error_that_an_op_raised_becomes_a_value_error():
    keep = awqpack._C.keep_value_errors
    with pytest.raises((ValueError, RuntimeError)) as caught:
        torch.ops.awqpack.pack(torch_zeros().int(), 1, False)
    text = str(caught.value)
    refused(keep(raises(RuntimeError(text))), 1, key=2, words=[text])
    for other in (
        RuntimeError("CUDA error"),
        RuntimeError(""),
        RuntimeError(),
        NotImplementedError(text),
        KeyError(text),
    ):
        with pytest.raises(type(other)) as kept:
            keep(raises(other))()
        assert kept.value is other


def test_an_error_of_another_thread_becomes_none():
    keep, texts = awqpack._C.keep_value_errors, []

    def fail_there():
        with pytest.raises((ValueError, RuntimeError)) as caught:
            torch.ops.awqpack.pack(torch.zeros(8, 24, dtype=torch.int16), 1, False)
        texts.append(str(caught.value))

    thread = threading.Thread(target=fail_there)
    thread.start()
    thread.join()
    refused(keep(raises(RuntimeError(texts[0]))), error=RuntimeError, words=["int16"])


def test_no_memory_is_a_memory_error(packing):
    payload = torch.zeros(1, 128, dtype=packing.payload_dtype).expand(2**50, 128)
    for call in (awqpack.unpack, lambda p, *how: AWQPackedTensor.pack(awqpack.unpack(p, *how))):
        refused(call, payload, *packing, error=MemoryError, words=["could not allocate", "torch.uint8"])


def test_results_and_keywords_pass_through():
    call = awqpack._C.keep_value_errors(lambda *args, **kwargs: (args, kwargs))
    assert call(1, [2], key=None) == ((1, [2]), {"key": None})
    assert call() == ((), {})


# payload, source, target, options, words
BAD_RELAYOUTS = [
    ("int16 as V1", torch.zeros(8, 8, dtype=torch.int16), V1, V2, {}, ["V1", "int32", "int16"]),
    ("1-d", torch.zeros(64, dtype=torch.int32), V1, V2, {}, ["at least 2 dimensions", "(64,)"]),
    ("half a block", torch.zeros(2, 72, dtype=torch.int16), V2, V1, {}, ["multiple of 64", "72"]),
    ("K % 64", torch.zeros(4, 4, dtype=torch.int32), V1, V2, {}, ["V2", "in_features", "multiple of 64", "32"]),
    (
        "N % 64",
        torch.zeros(32, 8, dtype=torch.int32),
        V1,
        MARLIN,
        {},
        ["MARLIN", "out_features", "multiple of 64", "32"],
    ),
    (
        "N % 64 once turned",
        torch.zeros(64, 4, dtype=torch.int32),
        V1,
        MARLIN,
        {"transpose": True},
        ["MARLIN", "out_features", "multiple of 64", "32"],
    ),
    ("out dtype", torch.zeros(64, 8, dtype=torch.int32), V1, V2, {"out": torch.zeros(16, 64)}, ["int16", "float32"]),
    (
        "out shape",
        torch.zeros(64, 8, dtype=torch.int32),
        V1,
        MARLIN,
        {"out": torch.zeros(4, 64, dtype=torch.int32)},
        ["(4, 128)", "(4, 64)"],
    ),
]


@pytest.mark.parametrize(
    ("payload", "source", "target", "options", "words"),
    [case[1:] for case in BAD_RELAYOUTS],
    ids=[c[0] for c in BAD_RELAYOUTS],
)
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_relayouts(payload, source, target, options, words, where):
    options = {key: value.to(where) if key == "out" else value for key, value in options.items()}
    refused(awqpack.relayout, payload.to(where), source, target, words=words, **options)


def test_a_relayout_onto_itself():
    payload = torch.zeros(64, 8, dtype=torch.int32)
    refused(awqpack.relayout, payload, V1, (V1, True), out=payload, words=["overlap"])


@pytest.mark.parametrize("packed", [1, "V1", None, (V1,), (V1, True, 2), (V1, 1), ("V1", True), [V1, True]])
def test_what_a_relayout_is_between(packed):
    payload = torch.zeros(64, 8, dtype=torch.int32)
    refused(awqpack.relayout, payload, packed, V1, error=TypeError, words=["expects"])
    refused(awqpack.relayout, payload, V1, packed, error=TypeError, words=["expects"])


def test_relayout_of_no_tensor():
    refused(awqpack.relayout, np.zeros((64, 8), np.int32), V1, V2, error=TypeError, words=["torch.Tensor", "ndarray"])
    refused(awqpack.relayout, torch.zeros(64, 8, dtype=torch.int32), V1, V2, transpose=1, error=TypeError, words=["1"])


@pytest.mark.parametrize("number", [0, 4, -1])
def test_packing_numbers_of_a_relayout(number):
    op, payload = torch.ops.awqpack.relayout.default, torch.zeros(64, 8, dtype=torch.int32)
    refused(op, payload, number, False, 1, False, False, words=["3 (AWQPacking.MARLIN)", str(number)])
    refused(op, payload, 1, False, number, False, False, words=["3 (AWQPacking.MARLIN)", str(number)])

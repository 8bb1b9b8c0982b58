"""Bad arguments beside the codes: packings, flags, buffers, sizes and strides, and those of a relayout."""

import numpy as np
import pytest
import torch
from shared import refused, torch_zeros

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

V1, V2, MARLIN = AWQPacking.V1, AWQPacking.V2, AWQPacking.MARLIN

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

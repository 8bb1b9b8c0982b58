"""What the constructor and __tensor_unflatten__ accept is a packed tensor; all else is a TypeError or a ValueError."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from shared import PACKINGS

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

ODD = [None, "", "1", -1, 0, 2, 3, 4, 1 << 31, 1 << 63, 1 << 64, 1.0, float("nan"), True, (), [], b"", {}, object()]
SHAPES = {"v1": (8, 64), "v1_reorder": (2, 8, 64), "v2": (8, 64), "marlin": (64, 32)}
ORDERS = [
    "",
    "0, 1",
    "1, 0",
    "0,1",
    " 1 , 0 ",
    "0, 1, 2",
    "2, 0, 1",
    "-1, 0",
    "0",
    "0, 0",
    ",",
    "0, 1,",
    "9" * 40,
    "1, 00",
]


class Case(NamedTuple):
    name: str  # in PACKINGS
    payload: str
    packing: object
    reorder: object
    size: object
    stride: object
    order: object
    key: object  # of the metadata, which is left out, or added
    requires_grad: object


def around(name):
    """Sizes that fit, or nearly."""
    shape = SHAPES[name]
    fits = [shape, list(shape), torch.Size(shape), shape[::-1], (1, *shape), shape[1:], (*shape[:-1], shape[-1] + 1)]
    numbers = st.sampled_from([*shape, 0, 1, -1, 16, 4, 1 << 31, 1 << 62, 1 << 63, None, 1.5, True])
    return st.sampled_from(fits) | st.lists(numbers, max_size=4).map(tuple) | st.sampled_from(ODD)


def strides(name):
    *batch, rows, cols = SHAPES[name]
    fits = [(cols, 1), (1, rows)] if not batch else [(rows * cols, cols, 1), (1, batch[0] * cols, batch[0])]
    numbers = st.sampled_from([*SHAPES[name], 0, 1, -1, rows * cols, 1 << 62, 1 << 63, None, True])
    return st.sampled_from(fits) | st.lists(numbers, max_size=4).map(tuple) | st.sampled_from(ODD)


PAYLOADS = {
    "as it is": lambda t: t,
    "in steps": lambda t: torch.stack([t, t], -1)[..., 0],
    "turned": lambda t: t.mT.contiguous().mT,
    "a row less": lambda t: t[..., 1:, :],
    "int64": lambda t: t.long(),
    "floats": lambda t: t.float(),
    "bits": lambda t: t.view(torch.uint8),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "no tensor": lambda t: t.numpy(),
    "empty": lambda t: t[..., :0],
    "one number": lambda t: t.reshape(-1)[0],
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "packed": lambda t: awqpack.AWQPackedTensor.pack(torch.zeros(8, 8, dtype=torch.uint8)),
    "a parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
}
CASES = st.sampled_from(sorted(PACKINGS)).flatmap(
    lambda name: st.builds(
        Case,
        st.just(name),
        st.just("as it is") | st.sampled_from(sorted(PAYLOADS)),
        st.just(PACKINGS[name].packing) | st.sampled_from([*AWQPacking, 1, 2, 3]) | st.sampled_from(ODD),
        st.just(PACKINGS[name].reorder) | st.sampled_from(ODD),
        around(name),
        strides(name),
        st.sampled_from(ORDERS) | st.text("01, -9", max_size=9) | st.sampled_from(ODD),
        st.none() | st.sampled_from(["packing", "reorder", "stride_order", "other", 3]),
        st.sampled_from([False, False, False, True, None, 0, 1, "no"]),
    )
)


def payload_of(case):
    codes = (torch.arange(2 * 64 * 64) * 7 % 16).to(torch.uint8)
    shape = torch.Size(SHAPES[case.name])
    packing = PACKINGS[case.name]
    return PAYLOADS[case.payload](awqpack.pack(codes[: shape.numel()].view(shape), packing.packing, packing.reorder))


def check(case):
    payload = payload_of(case)
    number = getattr(case.packing, "value", case.packing)
    metadata = {"packing": number, "reorder": case.reorder, "stride_order": case.order}
    if case.key in metadata:
        del metadata[case.key]
    elif case.key is not None:
        metadata[case.key] = 1
    made = AWQPackedTensor.__tensor_unflatten__
    ways = [
        lambda: AWQPackedTensor(payload, case.packing, case.reorder, case.size, case.stride, case.requires_grad),
        lambda: made({"_data": payload}, metadata, case.size, case.stride),
        lambda: made({"_data": payload}, metadata, case.size, None),
        lambda: made(case.size, metadata, case.size, case.stride),
        lambda: made({"_data": payload}, case.order, case.size, case.stride),
    ]
    for way in ways:
        try:
            packed = way()
        except (TypeError, ValueError, OverflowError) as error:
            assert str(error), "an error without words"
        else:
            check_packed(packed, payload)


def check_packed(packed, payload):
    """It reads as the codes of its payload, in the memory that it records, and says the same to who takes it apart."""
    if packed.device.type == "meta":
        return
    codes = awqpack.unpack(payload.detach(), packed.packing, packed.reorder)
    assert packed.shape == codes.shape
    assert torch.equal(packed.unpack(), codes)
    assert packed.unpack().stride() == packed.stride()
    names, metadata = packed.__tensor_flatten__()
    assert names == ["_data"]
    again = AWQPackedTensor.__tensor_unflatten__({"_data": packed._data}, metadata, packed.shape, packed.stride())
    assert (again.packing, again.reorder, again.stride()) == (packed.packing, packed.reorder, packed.stride())
    assert torch.equal(pickle.loads(pickle.dumps(packed)).unpack(), codes)

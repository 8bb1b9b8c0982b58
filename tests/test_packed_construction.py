"""What the class and __tensor_unflatten__ are given that does not fit: an error that names it, never a crash."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from shared import PACKINGS, assert_same, packed_tensor, torch_codes
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from awqpack import AWQPackedTensor, AWQPacking, pack

V1 = AWQPacking.V1

# Inside dispatch torch leaves out the steps that give such tensors their values.
WITHOUT_VALUES = {
    "negated": (torch._neg_view, "negated view"),
    "zeros of no memory": (lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), "without memory"),
    "a storage that was emptied": (lambda t: (t.untyped_storage().resize_(0), t)[1], "without memory"),
}


@pytest.mark.parametrize("name", WITHOUT_VALUES)
def test_a_payload_without_values_of_its_own_is_refused(packing, name):
    make, words = WITHOUT_VALUES[name]
    packed = packed_tensor(packing)
    metadata = packed.__tensor_flatten__()[1]
    payload = make(packed.payload.clone())
    with pytest.raises(ValueError, match=words):
        AWQPackedTensor(payload, *packing, packed.shape, packed.stride())
    with pytest.raises(ValueError, match=words):
        AWQPackedTensor.__tensor_unflatten__({"_data": payload}, metadata, packed.shape, packed.stride())


class Symbol:
    """Looks symbolic to who asks for `node` alone."""

    node = 1

    def __mul__(self, other):
        return self

    __rmul__ = __mul__


class Liar:
    """Of another length than what it iterates over."""

    def __init__(self, length, *items):
        self.length, self.items = length, items

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.items[0]

    def __iter__(self):
        return iter(self.items)


SIZES = {
    "symbols": (Symbol(), Symbol()),
    "a long liar": Liar(2000, Symbol(), Symbol()),
    "a liar of ints": Liar(2000, 64, 128),
    "too short": (64,),
    "another": (5, 5),
    "negative": (-64, -128),
    "no sequence": 3,
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    "order", ["", "0, 1", "0, 0", "-1, -2", "1, 0, 2", ", ".join(map(str, range(2000)))], ids=lambda order: order[:8]
)
def test_unflatten_believes_nothing(name, order):
    payload = packed_tensor(PACKINGS["v1"]).payload
    metadata = {"packing": 1, "reorder": False, "stride_order": order}
    fits = name == "a liar of ints" and order in ("", "0, 1")
    try:
        packed = AWQPackedTensor.__tensor_unflatten__({"_data": payload}, metadata, SIZES[name], None)
    except (TypeError, ValueError):
        assert not fits
    else:
        assert fits
        assert_same(packed.unpack(), torch_codes())


@pytest.mark.parametrize("order", ["0, 0", "-1, -2", "1, 0, 2", "2, 0"])
def test_an_order_of_symbols_is_looked_at(order):
    """Of plain sizes the kernels' own checks would tell; of symbols nothing else would."""
    payload = packed_tensor(PACKINGS["v1"]).payload
    shapes = ShapeEnv()
    size = (shapes.create_unbacked_symint(), shapes.create_unbacked_symint())
    metadata = {"packing": 1, "reorder": False, "stride_order": order}
    with pytest.raises(ValueError, match="stride_order expects a permutation of the 2 dimensions"):
        AWQPackedTensor.__tensor_unflatten__({"_data": payload}, metadata, size, None)


class Emptying(int):
    """Drops what it lies beside when it is looked at."""

    def __index__(self):
        self.metadata.clear()
        return 1

    __int__ = __index__


def test_metadata_that_empties_itself():
    metadata = {"packing": Emptying(1), "reorder": False, "stride_order": " ".join(["0,", "1"])}
    metadata["packing"].metadata = metadata
    payload = packed_tensor(PACKINGS["v1"]).payload
    packed = AWQPackedTensor.__tensor_unflatten__({"_data": payload}, metadata, (64, 128), None)
    assert_same(packed.unpack(), torch_codes())


class Splitting(str):
    """Falls into parts of its own."""

    def split(self, *_):
        return ("0", "1")


def test_an_order_is_read_as_text():
    metadata = {"packing": 1, "reorder": False, "stride_order": Splitting("1, 0")}
    payload = packed_tensor(PACKINGS["v1"]).payload
    packed = AWQPackedTensor.__tensor_unflatten__({"_data": payload}, metadata, (64, 128), None)
    assert packed.stride() == (1, 64)


REPLACED = {
    "a list": lambda meta: list(meta),
    "packing": lambda meta: (torch.ops.aten.detach.default, *meta[1:]),
    "reorder": lambda meta: (*meta[:1], 1, *meta[2:]),
    "order": lambda meta: (*meta[:2], "0, 1", *meta[3:]),
    "size": lambda meta: (*meta[:3], None, meta[4]),
    "too short": lambda meta: meta[:4],
    "too long": lambda meta: (*meta, 0),
}


@pytest.mark.parametrize("name", REPLACED)
def test_metadata_that_was_replaced_is_named(name):
    packed = packed_tensor(PACKINGS["v1"])
    packed._meta = REPLACED[name](packed._meta)
    calls = [packed.unpack, packed.detach, packed.numpy, lambda: repr(packed), lambda: packed.packing]
    for call in [*calls, lambda: packed + 1, lambda: packed.fill_(1), lambda: packed[...]]:
        with pytest.raises(ValueError, match="_meta"):
            call()


@pytest.mark.parametrize("cls", [3, int, torch.Tensor, None], ids=str)
def test_construction_of_another_class_is_refused(cls):
    packed = packed_tensor(PACKINGS["v1"])
    with pytest.raises(TypeError, match="subclass of AWQPackedTensor"):
        AWQPackedTensor.__new__(cls, packed.payload, V1, False, packed.shape, packed.stride())


def test_dequantize_needs_scales(packed):
    with pytest.raises(RuntimeError, match=r"awqpack\.dequantize\(p\.payload, scales"):
        packed.dequantize()


def test_naming_a_code_that_is_too_large_lets_other_threads_run():
    codes = np.zeros((4096, 16384), np.uint8, order="F")
    codes[-1, -1] = 99
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        begin = time.perf_counter()
        with pytest.raises(ValueError, match=r"codes\[4095, 16383\] is 99"):
            pack(codes)
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    times = [begin, *(t for t in ticks if begin < t < end), end]
    assert max(b - a for a, b in pairwise(times)) < (end - begin) / 2

"""What the tests share: packings, devices, random codes, memory strides, and the hypothesis profiles."""

import os
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack
from awqpack import _C, AWQPackedTensor, AWQPacking

hypothesis.settings.register_profile("quick", max_examples=100, deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("deep", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


class Packing(NamedTuple):
    """One way to pack; `number` is what the ops call the packing."""

    packing: AWQPacking
    reorder: bool

    @property
    def number(self):
        return self.packing.value

    @property
    def payload_dtype(self):
        return torch.int16 if self.packing is AWQPacking.V2 else torch.int32

    @property
    def block(self):
        """Rows and columns of the codes that the packing keeps together."""
        return {AWQPacking.V1: (1, 8), AWQPacking.V2: (4, 64), AWQPacking.MARLIN: (64, 16)}[self.packing]

    def fit(self, shape):
        """The least shape of whole blocks that holds this one."""
        *batch, rows, cols = shape
        return (*batch, *(-(-size // unit) * unit for size, unit in zip((rows, cols), self.block, strict=True)))

    def payload_shape(self, shape):
        *batch, rows, cols = shape
        shapes = {
            AWQPacking.V1: (rows, cols // 8),
            AWQPacking.V2: (rows // 4, cols),
            AWQPacking.MARLIN: (cols // 16, 2 * rows),
        }
        return (*batch, *shapes[self.packing])


PACKINGS = {
    "v1": Packing(AWQPacking.V1, False),
    "v1_reorder": Packing(AWQPacking.V1, True),
    "v2": Packing(AWQPacking.V2, False),
    "marlin": Packing(AWQPacking.MARLIN, False),
}
# Compiling takes a tenth of a second and more: each packing once, static and dynamic both, not all pairs.
COMPILED = [
    pytest.param(packing, bool(i % 2), id=f"{name}-dynamic" if i % 2 else name)
    for i, (name, packing) in enumerate(PACKINGS.items())
]
VARIANTS = _C.variants()
HAS_CUDA = torch.cuda.is_available() and bool(awqpack.build_info()["cuda_archs"])
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not HAS_CUDA, reason="needs an NVIDIA GPU and a build with CUDA kernels"),
    ],
)
# What torch.ops.awqpack.pack(...) raises for a bad argument; torch.ops.awqpack.pack.default and all that awqpack offers
# raise ValueError under every torch.
PACKET_ERROR = ValueError if torch.__version__ < "2.15" else RuntimeError
REFERENCE = np.load(Path(__file__).parent / "data" / "reference_vectors.npz")


@pytest.fixture(params=PACKINGS.values(), ids=PACKINGS.keys())
def packing(request):
    return request.param


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def require_fake_tensors(*devices):
    """Skips where torch cannot even pretend to have such a device: its CUDA builds refuse fake XPU tensors."""
    for device in devices:
        try:
            with FakeTensorMode():
                torch.empty(1, device=device)
        except (AssertionError, RuntimeError) as error:
            pytest.skip(f"this torch makes no fake {device} tensors: {error}")


@pytest.fixture
def fresh_dynamo(monkeypatch):
    """For tests that compile: dynamo counts the recompiles of a function over the whole process."""
    torch._dynamo.reset()
    # Dynamo times each guard once, for its log, on a cache that it empties first: that takes longer than many a trace.
    monkeypatch.setattr("torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0, raising=False)
    yield
    torch._dynamo.reset()


def random_codes(shape, seed=0):
    """A contiguous array of codes 0..15."""
    return np.random.default_rng(seed).integers(0, 16, shape, dtype=np.uint8)


def random_payload(shape, packing, seed=0):
    """A contiguous payload array for codes of this shape: every bit pattern is valid."""
    dtype = np.int16 if packing.packing is AWQPacking.V2 else np.int32
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(
        info.min, info.max, packing.payload_shape(shape), dtype=dtype, endpoint=True
    )


def torch_codes(shape=(64, 128), device="cpu", seed=0):
    return torch.from_numpy(random_codes(shape, seed)).to(device)


def packed_tensor(packing, shape=(64, 128), device="cpu", seed=0):
    return AWQPackedTensor.pack(torch_codes(shape, device, seed), *packing)


def pack_array(codes, packing, *, validate=True, out=None, variant=None):
    return _C.pack_array(codes, packing.number, packing.reorder, validate, out, variant)


def unpack_array(payload, packing, *, out=None, variant=None):
    return _C.unpack_array(payload, packing.number, packing.reorder, out, variant)


def assert_same(actual, expected):
    """Equal dtype, shape and values, of two tensors or two arrays; packed tensors are compared as themselves."""
    assert type(actual) is type(expected)
    assert actual.dtype == expected.dtype
    assert tuple(actual.shape) == tuple(expected.shape)
    if isinstance(actual, np.ndarray):
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(actual, AWQPackedTensor):
        assert (actual.packing, actual.reorder, actual.stride()) == (
            expected.packing,
            expected.reorder,
            expected.stride(),
        )
        assert_same(actual.payload, expected.payload)
    else:
        assert actual.device == expected.device
        assert torch.equal(actual, expected)


class Memory(Enum):
    """How an array's elements may lie in memory, and how to make one: views into a larger, guarded buffer."""

    CONTIGUOUS = "contiguous"
    ROW_STRIDED = "row_strided"
    COLUMN_MAJOR = "column_major"
    COLUMN_MAJOR_STRIDED = "column_major_strided"
    COLUMN_STEP = "column_step"
    ROW_STEP = "row_step"
    NEGATIVE_ROWS = "negative_rows"
    NEGATIVE_COLUMNS = "negative_columns"
    UNALIGNED = "unaligned"
    UNMERGEABLE_BATCH = "unmergeable_batch"
    BATCH_INNERMOST = "batch_innermost"

    def empty(self, shape, dtype):
        """(bytes of the whole buffer, a view of `shape` inside it)."""
        *batch, rows, cols = shape
        if self is Memory.ROW_STRIDED:
            buffer, view = _guarded((*batch, rows, cols + 5), dtype)
            return buffer, view[..., 2 : cols + 2]
        if self is Memory.COLUMN_MAJOR:
            buffer, view = _guarded((*batch, cols, rows), dtype)
            return buffer, view.swapaxes(-1, -2)
        if self is Memory.COLUMN_MAJOR_STRIDED:
            buffer, view = _guarded((*batch, cols, rows + 3), dtype)
            return buffer, view[..., 1 : rows + 1].swapaxes(-1, -2)
        if self is Memory.COLUMN_STEP:
            buffer, view = _guarded((*batch, rows, 3 * cols), dtype)
            return buffer, view[..., ::3]
        if self is Memory.ROW_STEP:
            buffer, view = _guarded((*batch, 2 * rows, cols), dtype)
            return buffer, view[..., ::2, :]
        if self is Memory.NEGATIVE_ROWS:
            buffer, view = _guarded((*batch, rows, cols), dtype)
            return buffer, view[..., ::-1, :]
        if self is Memory.NEGATIVE_COLUMNS:
            buffer, view = _guarded((*batch, rows, cols), dtype)
            return buffer, view[..., ::-1]
        if self is Memory.UNALIGNED:
            return _guarded(shape, dtype, offset=1)
        if self is Memory.UNMERGEABLE_BATCH:
            buffer, view = _guarded((*(size + 1 for size in batch), rows, cols), dtype)
            return buffer, view[tuple(slice(size) for size in batch)]
        if self is Memory.BATCH_INNERMOST:
            buffer, view = _guarded((rows, cols, *batch), dtype)
            return buffer, np.moveaxis(view, (0, 1), (-2, -1))
        return _guarded(shape, dtype)

    def copy(self, array):
        """The values of `array` in this kind of memory."""
        _, view = self.empty(array.shape, array.dtype)
        view[...] = array
        return view

    @property
    def is_for_torch(self):
        """Torch has no negative strides, and its tensors are aligned to their items."""
        return self not in (Memory.NEGATIVE_ROWS, Memory.NEGATIVE_COLUMNS)


GUARD = 0xA5


def _guarded(shape, dtype, offset=0):
    """A buffer of guard bytes, and a view of it with 64 (+ offset) guard bytes before and 64 behind."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.full(count + 128 + offset, GUARD, np.uint8)
    begin = 64 + offset
    return buffer, buffer[begin : begin + count].view(dtype).reshape(shape)


def assert_guards_untouched(buffer, view):
    """Only the view's own elements of the buffer were written (this overwrites them)."""
    view[...] = np.frombuffer(bytes([GUARD]) * view.itemsize, view.dtype)[0]
    assert (buffer == GUARD).all()


SHAPE = (64, 128)


@pytest.fixture
def packed(packing, device):
    return packed_tensor(packing, SHAPE, device)


def is_plain(result, expected):
    """A plain tensor equal to expected, not a packed one."""
    assert type(result) is torch.Tensor
    assert_same(result, expected)
    return True


def refused(call, *args, error=ValueError, words, **kwargs):
    """call(*args) raises exactly `error`, with all of the words in its message."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is error
    assert [word for word in words if word not in str(caught.value)] == []


def torch_zeros(shape=(8, 64)):
    return torch.zeros(shape, dtype=torch.uint8)

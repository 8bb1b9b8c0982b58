"""detach() and to() go past torch's dispatcher where nothing could see it; whoever watches it still sees them."""

import warnings

import forked
import pytest
import torch
from shared import PACKINGS, assert_same, packed_tensor, torch_codes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from awqpack import AWQPackedTensor

CALLS = {
    "detach": (lambda p: p.detach(), torch.ops.aten.detach.default),
    "to": (lambda p: p.to(p.device, copy=True), torch.ops.aten._to_copy.default),
}
calls = pytest.mark.parametrize(("call", "op"), CALLS.values(), ids=CALLS.keys())


class LoggedOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


class LoggedFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


@calls
def test_a_dispatch_mode_sees_the_op(packed, call, op):
    with LoggedOps() as log:
        result = call(packed)
    assert op in log.ops
    assert_same(result, packed)


@calls
def test_a_function_mode_sees_the_method(packed, call, op):
    with LoggedFunctions() as log:
        result = call(packed)
    assert getattr(torch.Tensor, op._schema.name.split("::")[1].strip("_").removesuffix("_copy")) in log.functions
    assert_same(result, packed)


@calls
def test_a_subclass_sees_the_op(packed, call, op):
    seen = []

    class Watching(AWQPackedTensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_dispatch__(func, types, args, kwargs)

    watching = Watching(packed.payload, packed.packing, packed.reorder, packed.shape, packed.stride())
    result = call(watching)
    assert type(result) is Watching
    assert op in seen


@calls
def test_fake_tensors_stay_fake(packing, call, op):
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(packed_tensor(packing))
        result = call(fake)
    assert isinstance(result, AWQPackedTensor)
    assert type(result.payload) is type(fake.payload) is not torch.Tensor


@calls
def test_a_trace_keeps_the_argument(call, op):
    packed, other = packed_tensor(PACKINGS["v1"]), packed_tensor(PACKINGS["v1"], seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda p: call(p) + 1, (packed,))
        assert_same(traced(other), other.unpack() + 1)


@calls
def test_inside_transforms(packed, call, op):
    weight = packed.unpack().float()
    x = torch.ones_like(weight)
    expected = torch.func.vmap(lambda row: row + weight[0])(x)
    assert_same(torch.func.vmap(lambda row: row + call(packed)[0])(x), expected)


def test_detached_tensors_share_memory_and_version(packed):
    detached = packed.detach()
    packed.fill_(3)
    assert detached._version == packed._version > 0
    assert_same(detached, packed)
    detached.fill_(5)
    assert detached._version == packed._version
    assert_same(detached, packed)


def test_a_saved_tensor_notices_a_write_through_its_detached_twin(packed):
    class Save(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, p):
            ctx.save_for_backward(p)
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            (p,) = ctx.saved_tensors
            return grad * p.shape[0], None

    result = Save.apply(torch.ones(1, device=packed.device, requires_grad=True), packed)
    packed.detach().fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_what_torch_makes_and_what_the_shortcut_makes_are_alike(packed):
    ours, theirs = packed.detach(), torch.Tensor.detach(packed)
    assert_same(ours, theirs)
    for question in ("is_inference", "_is_view", "storage_offset", "is_contiguous", "is_pinned"):
        assert getattr(ours, question)() == getattr(theirs, question)()
    assert (ours.requires_grad, ours.is_leaf, ours.grad_fn) == (theirs.requires_grad, theirs.is_leaf, theirs.grad_fn)
    assert vars(ours).keys() == vars(theirs).keys()
    for detached in (ours, theirs):
        with pytest.raises(RuntimeError):
            torch.Tensor.data_ptr(detached)


def test_assigning_data_to_the_detached_leaves_the_original(packed):
    before, detached = packed.unpack(), packed.detach()
    detached.data = AWQPackedTensor.pack(15 - before, packed.packing, packed.reorder)
    assert_same(packed.unpack(), before)
    assert_same(detached.unpack(), 15 - before)


def test_detached_parameter(packed):
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    assert isinstance(parameter, torch.nn.Parameter)
    assert not isinstance(parameter.detach(), torch.nn.Parameter)
    assert_same(parameter.detach(), packed)


@pytest.mark.parametrize(
    "to",
    [
        lambda p, d: p.to(d, None, False, True),
        lambda p, d: p.to(d, torch.uint8, copy=True),
        lambda p, d: p.to(device=d, non_blocking=True, copy=True),
        lambda p, d: p.to(str(d), copy=True),
        lambda p, d: p.to(torch.uint8, copy=True),
        lambda p, d: p.to(None, copy=True),
        lambda p, d: p.to(p, copy=True),
        lambda p, d: p.to(d, copy=True, memory_format=torch.preserve_format),
    ],
    ids=["positions", "dtype", "names", "text", "only dtype", "none", "like a tensor", "memory format"],
)
def test_every_form_of_a_copy(packed, to):
    copied = to(packed, packed.device)
    assert_same(copied, packed)
    assert copied.payload.data_ptr() != packed.payload.data_ptr()
    assert copied._version == 0


@pytest.mark.parametrize("to", ["to", "_to_copy"])
@pytest.mark.parametrize(
    "lay",
    [
        lambda t: t,
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.cat([t, t])[t.shape[0] :],
        lambda t: t.expand(2, *t.shape),
    ],
    ids=["contiguous", "column-major", "strided", "with an offset", "expanded"],
)
def test_a_copied_payload_lies_as_torch_would_lay_it(packed, lay, to):
    payload = lay(packed.payload)
    expected = payload.to(payload.device, copy=True)
    shape = (*payload.shape[:-2], *packed.shape[-2:])
    around = AWQPackedTensor(payload, packed.packing, packed.reorder, shape, torch.empty(shape).stride())
    copied = around.to(around.device, copy=True) if to == "to" else torch.ops.aten._to_copy.default(around)
    assert_same(copied.payload, expected)
    assert copied.payload.stride() == expected.stride()
    assert copied.payload.data_ptr() != payload.data_ptr()


def test_a_payload_that_became_another_dtype_is_copied_as_it_is(packed):
    floats = torch.float32 if packed.payload.dtype == torch.int32 else torch.float16
    packed.payload.data = packed.payload.data.to(floats)
    assert_same(packed.to(packed.device, copy=True).payload, packed.payload)


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (4, 64), (4, 3, 64, 128), (2048, 1024)], ids=str)
def test_copies_of_every_size(packing, device, shape):
    """The largest is one that torch copies with all its threads."""
    shape = packing.fit(shape)
    packed = packed_tensor(packing, shape, device)
    copied = packed.to(device=packed.device, copy=True)
    assert_same(copied, packed)
    assert copied.stride() == copied.unpack().stride() == packed.unpack().stride()
    copied.fill_(7)
    assert_same(packed.unpack(), torch_codes(shape, device))


def test_torch_runs_no_op_for_a_copy(packing):
    """A torch that no longer lent what this needs would copy as rightly, but slower."""
    packed = packed_tensor(packing, (256, 1024))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        packed.to("cpu", copy=True)
        torch.empty(0)
    assert [event.name for event in profile.events()] == ["aten::empty"]


# A process of its own for each torch, as awqpack asks it once.
COPY_BY_TORCH = """
import ctypes, os, torch

name = b"dlpack_exchange_api"
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
next_major = (ctypes.c_uint64 * 16)(2)
answers = {
    "nothing": None,
    "another name": new_capsule(ctypes.addressof(next_major), b"another", None),
    "the next major version": new_capsule(ctypes.addressof(next_major), name, None),
    "no such attribute": AttributeError,
    "no tensor for a handle": torch.Tensor.__dlpack_c_exchange_api__,
    "no tensor for these arguments": torch.Tensor.__dlpack_c_exchange_api__,
}
for what, answer in answers.items():
    torch.Tensor.__dlpack_c_exchange_api__ = answer
    if answer is AttributeError:
        del torch.Tensor.__dlpack_c_exchange_api__
    if what == "no tensor for a handle":
        del torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs
    if what == "no tensor for these arguments":
        torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs = lambda: None
    child = os.fork()
    if child == 0:
        from awqpack import AWQPackedTensor, AWQPacking
        packed = AWQPackedTensor.pack(torch.arange(64, dtype=torch.uint8).view(1, 64) % 16, AWQPacking.V1)
        copied = packed.to("cpu", copy=True)
        assert torch.equal(copied.payload, packed.payload) and copied.payload is not packed.payload
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, what
"""


def test_torch_copies_where_it_lends_nothing_usable():
    done = forked.run(COPY_BY_TORCH)
    assert done.returncode == 0, done.stderr


def test_a_copy_keeps_column_major_strides(packing, device):
    packed = AWQPackedTensor.pack(torch_codes((128, 64), device).t(), *packing)
    copied = packed.to(packed.device, copy=True)
    assert copied.stride() == copied.unpack().stride() == (1, 64)
    assert_same(copied, packed)


@pytest.mark.parametrize(
    "to", [lambda p, d: p.to(d), lambda p, d: p.to(d, torch.uint8, True), lambda p, d: p.to(device=d)]
)
def test_no_copy_is_made_of_what_is_there(packed, to):
    assert to(packed, packed.device) is packed


def test_uninitialized_memory_that_torch_fills_is_overwritten(packed):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(packed.to(packed.device, copy=True), packed)
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"args": ("nope",)},
        {"args": ("cpu",), "kwargs": {"device": "cpu"}},
        {"args": ("cpu", None, 2)},
        {"args": ("cpu",), "kwargs": {"copy": 1}},
        {"args": ("cpu",), "kwargs": {"unknown": True}},
        {"args": ("cpu", torch.uint8, False, False, None)},
    ],
    ids=repr,
)
def test_bad_arguments_of_to_are_refused_as_by_a_plain_tensor(arguments):
    packed = packed_tensor(PACKINGS["v1"])
    args, kwargs = arguments["args"], arguments.get("kwargs", {})
    with pytest.raises((TypeError, RuntimeError)) as expected:
        packed.unpack().to(*args, **kwargs)
    with pytest.raises(type(expected.value)) as error:
        packed.to(*args, **kwargs)
    assert str(error.value) == str(expected.value)


def test_a_tensor_given_twice_is_unpacked_once(packed):
    with LoggedOps() as log:
        result = AWQPackedTensor.__torch_dispatch__(torch.ops.aten.cat.default, (), ([packed] * 20,))
    assert log.ops.count(torch.ops.awqpack.unpack.default) == 1
    assert_same(result, torch.cat([packed.unpack()] * 20))

"""quantize, dequantize and min_max_scales as ops of torch: schemas, opcheck, modes, fake kernels, compile, versions."""

import contextlib
import functools

import pytest
import torch
from shared import COMPILED, PACKINGS, assert_same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import awqpack

SCHEMAS = {
    "quantize": "(Tensor weight, Tensor scales, Tensor? zeros, int packing, bool reorder, bool validate=True) "
    "-> Tensor",
    "quantize_out": "(Tensor weight, Tensor scales, Tensor? zeros, int packing, bool reorder, bool validate=True, "
    "*, Tensor(a!) out) -> ()",
    "dequantize": "(Tensor payload, Tensor scales, Tensor? zeros, int packing, bool reorder, ScalarType dtype, "
    "int[]? stride_order=None) -> Tensor",
    "dequantize_out": "(Tensor payload, Tensor scales, Tensor? zeros, int packing, bool reorder, "
    "*, Tensor(a!) out) -> ()",
    "min_max_scales": "(Tensor weight, int group_rows, int group_cols, str formula, ScalarType dtype) "
    "-> (Tensor, Tensor)",
    "min_max_scales_out": "(Tensor weight, int group_rows, int group_cols, str formula, "
    "*, Tensor(a!) scales, Tensor(b!) zeros) -> ()",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name):
    assert str(getattr(torch.ops.awqpack, name).default._schema) == f"awqpack::{name}{SCHEMAS[name]}"


@pytest.mark.parametrize(("name", "zeros"), [("v1", True), ("v1_reorder", False), ("v2", True), ("marlin", False)])
def test_opcheck(name, zeros, device):
    packing = PACKINGS[name]
    ops, number = torch.ops.awqpack, (packing.number, packing.reorder)
    weight = torch.randn(64, 128, device=device)
    scales, found = ops.min_max_scales(weight, 1, 64, "asymmetric", torch.float16)
    given = (scales, found if zeros else None, *number)
    payload = ops.quantize(weight, *given)
    # For a compiler, which takes most of the time, packings differ by a number and the shape of their payload.
    kinds = ["test_schema", "test_autograd_registration", "test_faketensor"]
    kinds += ["test_aot_dispatch_dynamic"] if name in ("v1", "marlin") else []
    check = functools.partial(torch.library.opcheck, test_utils=kinds)
    check(ops.quantize.default, (weight, *given))
    check(ops.quantize_out.default, (weight, *given), {"out": torch.empty_like(payload)})
    check(ops.dequantize.default, (payload, *given, torch.bfloat16))
    check(ops.dequantize.default, (payload, *given, torch.float32, (1, 0)))
    check(ops.dequantize_out.default, (payload, *given), {"out": torch.empty_like(weight)})
    check(ops.min_max_scales.default, (weight, 1, 64, "absmax/7", torch.float16))
    check(
        ops.min_max_scales_out.default,
        (weight, 1, 64, "absmax/7"),
        {"scales": torch.empty_like(scales), "zeros": torch.empty_like(found)},
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, None])
def test_a_mode_sees_the_dtype_that_is_asked_for(dtype):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert (func, args[5]) == (torch.ops.awqpack.dequantize.default, dtype or torch.bfloat16)
            return func(*args, **(kwargs or {}))

    payload, scales = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=torch.bfloat16)
    with Watch():
        assert awqpack.dequantize(payload, scales, dtype=dtype).dtype == (dtype or torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, None])
@pytest.mark.parametrize("who", ["mode", "subclass"])
def test_torch_functions_see_the_dtype_that_is_asked_for(who, dtype):
    seen = []

    def look(func, args, kwargs):
        seen.extend(args[5:6] if getattr(func, "__name__", "").startswith("dequantize") else ())
        return func(*args, **(kwargs or {}))

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return look(func, args, kwargs)

    class Scales(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                return look(func, args, kwargs)

    payload, scales = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=torch.bfloat16)
    with Mode() if who == "mode" else contextlib.nullcontext():
        awqpack.dequantize(payload, scales if who == "mode" else scales.as_subclass(Scales), dtype=dtype)
    assert seen == [dtype or torch.bfloat16]


@pytest.mark.parametrize("fake", ["meta", "fake"])
@pytest.mark.parametrize("shape", [(64, 128), (3, 64, 64)])
def test_fake_kernels_know_shapes(fake, shape, packing):
    mode, device = (FakeTensorMode(), "cpu") if fake == "fake" else (torch.no_grad(), "meta")
    with mode:
        weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
        scales, zeros = awqpack.min_max_scales(weight, 64)
        assert (scales.dtype, zeros.dtype) == (torch.bfloat16, torch.uint8)
        payload = awqpack.quantize(weight, scales, zeros, *packing)
        assert (tuple(payload.shape), payload.dtype) == (packing.payload_shape(shape), packing.payload_dtype)
        back = awqpack.dequantize(payload, scales, zeros, *packing, dtype=torch.float16)
        assert (back.shape, back.dtype, back.device) == (weight.shape, torch.float16, weight.device)
        with pytest.raises(ValueError, match="whose last two sizes divide"):
            awqpack.dequantize(payload, scales[..., :0], zeros, *packing)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("packing", "dynamic"), COMPILED)
def test_compile(packing, dynamic, device):
    def there_and_back(weight, out):
        scales, zeros = awqpack.min_max_scales(weight, 64)
        payload = awqpack.quantize(weight, scales, zeros, *packing)
        awqpack.dequantize(payload, scales, zeros, *packing, out=out)
        return payload, awqpack.dequantize(payload, scales, zeros, *packing) * 2

    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((64, 128), (128, 256)):
        weight = torch.randn(shape, device=device)
        outs = torch.zeros_like(weight), torch.zeros_like(weight)
        for actual, expected in zip(compiled(weight, outs[0]), there_and_back(weight, outs[1]), strict=True):
            assert_same(actual, expected)
        assert_same(*outs)


def test_out_moves_the_version(packing):
    weight = torch.randn(64, 64)
    scales, zeros = awqpack.min_max_scales(weight, 64)
    payload = awqpack.quantize(weight, scales, zeros, *packing)
    for call, out in (
        (lambda out: awqpack.quantize(weight, scales, zeros, *packing, out=out), torch.zeros_like(payload)),
        (lambda out: awqpack.dequantize(payload, scales, zeros, *packing, out=out), torch.zeros_like(weight)),
        (lambda out: awqpack.min_max_scales(weight, 64, out=(out, torch.zeros_like(zeros))), torch.zeros_like(scales)),
    ):
        version = out._version
        call(out)
        assert out._version > version

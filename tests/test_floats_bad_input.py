"""Bad input to quantize, dequantize and min_max_scales: errors that name what was expected and what came."""

import pytest
import torch
from shared import assert_same

import awqpack
from awqpack.ops import floats as portable

W, S = torch.zeros(64, 128), torch.ones(64, 2)
Z, P = torch.full((64, 2), 8, dtype=torch.uint8), torch.zeros(64, 16, dtype=torch.int32)


def spoiled(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


NAN, INF = float("nan"), float("inf")
# What is wrong with scales and zeros, of both ways.
BAD_SCALES = {
    "scales do not divide rows": ({"scales": torch.ones(48, 2)}, r"divide those of the weight, \(64, 128\).*\(48, 2\)"),
    "scales do not divide columns": ({"scales": torch.ones(64, 3)}, r"divide .* got shape \(64, 3\)"),
    "no scales": ({"scales": torch.ones(64, 0)}, r"got shape \(64, 0\)"),
    "1-D scales": ({"scales": torch.ones(64)}, r"got shape \(64,\)"),
    "a batch of scales": ({"scales": torch.ones(2, 64, 2)}, r"got shape \(2, 64, 2\)"),
    "float64 scales": ({"scales": S.double()}, "scales of float16, bfloat16 or float32; got dtype torch.float64"),
    "complex scales": ({"scales": S.cfloat()}, "got dtype torch.complex64"),
    "integer scales": ({"scales": S.int()}, "got dtype torch.int32"),
    "negative": ({"scales": spoiled(S, (3, 1), -0.5)}, r"finite and not negative; scales\[3, 1\] is -0.5"),
    "nan": ({"scales": spoiled(S, (63, 0), NAN).half()}, r"scales\[63, 0\] is nan"),
    "infinite": ({"scales": spoiled(S, (0, 1), INF).bfloat16()}, r"scales\[0, 1\] is inf"),
    "transposed nan": ({"scales": spoiled(S, (5, 1), NAN).t().contiguous().t()}, r"scales\[5, 1\] is nan"),
    "int8 zeros": ({"zeros": Z.to(torch.int8)}, "uint8 zeros in 0..15; got dtype torch.int8"),
    "float zeros": ({"zeros": Z.float()}, "uint8 zeros in 0..15; got dtype torch.float32"),
    "shape of zeros": ({"zeros": Z[:, :1]}, r"the shape of the scales, \(64, 2\); got shape \(64, 1\)"),
    "zeros above 15": ({"zeros": spoiled(Z, (7, 1), 16)}, r"zeros are expected in 0..15; zeros\[7, 1\] is 16"),
}
BAD_WEIGHTS = {
    "float8": ({"weight": W.to(torch.float8_e4m3fn)}, "got dtype torch.float8_e4m3fn"),
    "float64": ({"weight": W.double()}, "a weight of float16, bfloat16 or float32; got dtype torch.float64"),
    "complex": ({"weight": W.cfloat()}, "got dtype torch.complex64"),
    "integers": ({"weight": W.int()}, "got dtype torch.int32"),
    "1-D": ({"weight": W[0]}, r"a weight of 2 to 64 dimensions .* got shape \(128,\)"),
    "0-D": ({"weight": W[0, 0]}, r"got shape \(\)"),
    "nan": ({"weight": spoiled(W, (3, 17), NAN)}, r"a finite weight; weight\[3, 17\] is nan"),
    "infinite": ({"weight": spoiled(W, (63, 127), -INF).half()}, r"weight\[63, 127\] is -inf"),
    "two": (
        {"weight": spoiled(spoiled(W, (9, 1), NAN), (8, 100), INF).t().contiguous().t()},
        r"weight\[8, 100\] is inf",
    ),
}
BATCH = {"weight": spoiled(W.half().expand(2, 3, 64, 128), (1, 2, 3, 4), NAN)}
QUANTIZE = {
    **BAD_SCALES,
    **BAD_WEIGHTS,
    "in a batch": (
        {**BATCH, "scales": S.expand(2, 3, 64, 2), "zeros": Z.expand(2, 3, 64, 2)},
        r"weight\[1, 2, 3, 4\] is nan",
    ),
    "columns": ({"weight": W[:, :12], "scales": S[:, :1], "zeros": None}, "quantize as V1 .* multiple of 8; got 12"),
}
DEQUANTIZE = {
    **BAD_SCALES,
    "int16": ({"payload": P.short()}, "dequantize of V1 expects an int32 payload; got dtype torch.int16"),
    "codes": ({"payload": W.byte()}, "got dtype torch.uint8"),
    "1-D": ({"payload": P[0]}, "dequantize expects a payload of at least 2 dimensions"),
    "to float64": ({"dtype": torch.float64}, "dequantize expects dtype .* got torch.float64"),
    "to int32": ({"dtype": torch.int32}, "dequantize expects dtype .* got torch.int32"),
}
MIN_MAX = {
    **BAD_WEIGHTS,
    "in a batch": (BATCH, r"weight\[1, 2, 3, 4\] is nan"),
    "groups": ({"group_size": 48}, r"groups of \(1, 48\) for shape \(64, 128\)"),
    "groups of rows": ({"group_size": (5, 1)}, r"groups of \(5, 1\)"),
    "group 0": ({"group_size": 0}, "a positive number, or -1"),
    "group -2": ({"group_size": -2}, "a positive number, or -1"),
    "formula": ({"formula": "absmax"}, "formula expects asymmetric, .* got absmax"),
    "to int8": ({"dtype": torch.int8}, "min_max_scales expects dtype .* got torch.int8"),
    "range": (
        {"weight": spoiled(W, (1, 1), 3e38), "dtype": torch.float16},
        r"float16 holds; scales\[1, 0\] would be infinite",
    ),
}


def quantize_portably(weight, scales, zeros):
    return portable.quantize(weight, scales, zeros, 1, False)


def dequantize_portably(payload, scales, zeros, dtype=torch.float32):
    return portable.dequantize(payload, scales, zeros, 1, False, dtype)


@pytest.mark.parametrize("case", QUANTIZE)
@pytest.mark.parametrize("quantize", [awqpack.quantize, quantize_portably])
def test_quantize(case, quantize):
    changes, words = QUANTIZE[case]
    with pytest.raises(ValueError, match=words):
        quantize(**{"weight": W, "scales": S, "zeros": Z, **changes})


@pytest.mark.parametrize("case", DEQUANTIZE)
@pytest.mark.parametrize("dequantize", [awqpack.dequantize, dequantize_portably])
def test_dequantize(case, dequantize):
    changes, words = DEQUANTIZE[case]
    with pytest.raises(ValueError, match=words):
        dequantize(**{"payload": P, "scales": S, "zeros": Z, **changes})


@pytest.mark.parametrize("case", MIN_MAX)
def test_min_max_scales(case):
    changes, words = MIN_MAX[case]
    with pytest.raises(ValueError, match=words):
        awqpack.min_max_scales(**{"weight": W, "group_size": 64, **changes})


OUTS = {
    "shape": (lambda: torch.zeros(64, 8, dtype=torch.int32), lambda: torch.zeros(32, 128), "out expects shape"),
    "dtype": (lambda: P.long(), lambda: W.double(), "expects dtype"),
    "strides": (lambda: P[:1].expand(64, 16), lambda: W[:1].expand(64, 128), "memory of its own"),
    "device": (lambda: P.to("meta"), lambda: W.to("meta"), "out expects the device of the input, cpu; got meta"),
}


@pytest.mark.parametrize("case", OUTS)
def test_out_that_does_not_fit(case):
    payload, weight, words = OUTS[case]
    with pytest.raises(ValueError, match=words):
        awqpack.quantize(W, S, Z, out=payload())
    with pytest.raises(ValueError, match=words):
        awqpack.dequantize(P, S, Z, out=weight())


def test_out_that_overlaps():
    memory = torch.zeros(64, 128)
    with pytest.raises(ValueError, match="overlap"):
        awqpack.quantize(memory, S, Z, out=memory.view(torch.int32)[:, :16])
    with pytest.raises(ValueError, match="overlap"):
        awqpack.dequantize(P, memory[:, :2], Z, out=memory)
    with pytest.raises(ValueError, match="overlap"):
        awqpack.min_max_scales(memory, 64, out=(memory[:, :2], torch.zeros(64, 2, dtype=torch.uint8)))


@pytest.mark.parametrize("spoil", [{"scales": -S}, {"zeros": Z + 16}, {"scales": torch.ones(64, 3)}])
def test_nothing_is_written(spoil):
    given = {"scales": S, "zeros": Z, **spoil}
    payload, weight = torch.full_like(P, 77), torch.full_like(W, 77)
    with pytest.raises(ValueError, match="expect"):
        awqpack.quantize(W, **given, out=payload)
    with pytest.raises(ValueError, match="expect"):
        awqpack.dequantize(P, **given, out=weight)
    assert bool((payload == 77).all())
    assert bool((weight == 77).all())


def test_no_gradient():
    weight, scales = W.clone().requires_grad_(), S.clone().requires_grad_()
    for call in (
        lambda: awqpack.quantize(weight, S, Z),
        lambda: awqpack.quantize(W, scales, Z),
        lambda: awqpack.dequantize(P, scales, Z),
        lambda: awqpack.dequantize(P, S, Z, out=W.clone().requires_grad_()),
        lambda: awqpack.min_max_scales(weight, 64),
        lambda: awqpack.min_max_scales(W, 64, out=(S.clone().requires_grad_(), Z.clone())),
    ):
        with pytest.raises(ValueError, match=r"has no gradient.*torch.no_grad\(\)"):
            call()
        with torch.no_grad():
            call()
    with torch.no_grad():
        assert_same(awqpack.quantize(weight, scales, Z), awqpack.quantize(W, S, Z))


def test_no_tangents():
    for call, given in (
        (lambda given: awqpack.quantize(given, S), W),
        (lambda given: awqpack.quantize(W, given), S),
        (lambda given: awqpack.dequantize(P, given), S),
        (lambda given: awqpack.min_max_scales(given)[0], W),
    ):
        with pytest.raises(ValueError, match=r"has no derivative, and (weight|scales) has a tangent"):
            torch.func.jvp(call, (given,), (torch.ones_like(given),))
        with torch.autograd.forward_ad.dual_level():
            call(given)


def inference(tensor):
    with torch.inference_mode():
        return tensor.clone()


def test_an_inference_tensor_is_written_in_inference_mode_alone(packing):
    codes = torch.arange(64 * 128, dtype=torch.uint8).view(64, 128) % 16
    payload, weight = awqpack.pack(codes, *packing), codes.float() - 7
    for call in (
        lambda out=None: awqpack.pack(codes, *packing, out=out),
        lambda out=None: awqpack.unpack(payload, *packing, out=out),
        lambda out=None: awqpack.relayout(payload, packing, packing, out=out),
        lambda out=None: awqpack.quantize(weight, S, None, *packing, out=out),
        lambda out=None: awqpack.dequantize(payload, S, None, *packing, out=out),
        lambda out=None: awqpack.min_max_scales(weight, 64, out=None if out is None else (out, Z.clone()))[0],
    ):
        expected = call()
        assert expected.any()
        out = inference(torch.zeros_like(expected))
        with pytest.raises(ValueError, match="out expects a tensor made outside of inference mode"):
            call(out)
        assert not out.any()
        with torch.inference_mode():
            assert_same(call(out), expected)


def test_an_out_of_negatives_is_named():
    out = torch.zeros(64, 128, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match="out expects a tensor that holds its values"):
        awqpack.dequantize(P, S, out=out)
    with pytest.raises(ValueError, match=r"out\[0\] expects a tensor that holds its values"):
        awqpack.min_max_scales(W, 64, out=(out[:, :2], Z.clone()))
    assert not out.resolve_neg().any()


TYPES = {
    "weight": lambda: awqpack.quantize(W.numpy(), S),
    "scales": lambda: awqpack.quantize(W, 0.5),
    "zeros": lambda: awqpack.dequantize(P, S, 8),
    "packing": lambda: awqpack.quantize(W, S, Z, 1),
    "reorder": lambda: awqpack.dequantize(P, S, Z, awqpack.AWQPacking.V1, 1),
    "validate": lambda: awqpack.quantize(W, S, Z, validate=1),
    "dtype": lambda: awqpack.dequantize(P, S, dtype="float16"),
    "group_size": lambda: awqpack.min_max_scales(W, 64.0),
    "group_size expects an int or a pair": lambda: awqpack.min_max_scales(W, (1, 2, 3)),
    "formula": lambda: awqpack.min_max_scales(W, formula=7),
    "out": lambda: awqpack.quantize(W, S, out=P.numpy()),
    "out expects a pair of tensors": lambda: awqpack.min_max_scales(W, 64, out=S.clone()),
    "out expects a pair of tensors, for scales and zeros": lambda: awqpack.min_max_scales(W, 64, out=(S, Z, Z)),
}


@pytest.mark.parametrize("name", TYPES)
def test_types(name):
    with pytest.raises(TypeError, match=name if " " in name else f"{name} expects"):
        TYPES[name]()


def test_meta_beside_cpu():
    with pytest.raises(ValueError, match="scales expects the device of the input"):
        portable.quantize(W, S.to("meta"), None, 1, False)

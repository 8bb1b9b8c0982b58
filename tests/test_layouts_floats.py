"""From float weights to the tensors of any layout: encode_float, quantize_layer, and Layer.dequantize back."""

import pytest
import torch
from checkpoints import LAYOUT_NAMES, random_layer
from shared import assert_same

import awqpack
from awqpack.layouts import LAYOUTS, Layer, LayoutError, quantize_layer


def same_tensors(actual, expected):
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert_same(actual[name].contiguous(), tensor.contiguous())


def positive(layer, zeros):
    """The layer with scales that quantize takes."""
    scales = layer.scales.abs().clamp(min=2**-10)
    return Layer(layer.codes, scales, layer.zeros if zeros else None, layer.group_size, layer.bias)


@pytest.mark.parametrize("has_zeros", [True, False])
@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_encode_float_is_encode_of_what_was_dequantized(name, has_zeros, device):
    layer = positive(random_layer(64, 256, 64, bias=True, layouts=(name,)), has_zeros)
    expected = LAYOUTS[name].encode(layer)
    weight, scales, zeros = (tensor.to(device) for tensor in (layer.dequantize(), layer.scales, layer.zeros))
    bias = None if layer.bias is None else layer.bias.to(device)
    tensors = LAYOUTS[name].encode_float(weight, scales, zeros if has_zeros else None, bias)
    same_tensors({key: tensor.cpu() for key, tensor in tensors.items()}, expected)
    turned = LAYOUTS[name].encode_float(weight.t().contiguous().t(), scales, zeros if has_zeros else None, bias)
    same_tensors({key: tensor.cpu() for key, tensor in turned.items()}, expected)


@pytest.mark.parametrize(
    ("name", "symmetric"), [(name, s) for name in LAYOUT_NAMES for s in (False, True) if s or name != "modelopt"]
)
def test_quantize_layer(name, symmetric):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).half()
    bias = torch.randn(64).half()
    tensors = quantize_layer(weight, LAYOUTS[name], 64, symmetric=symmetric, bias=bias)
    layer = LAYOUTS[name].decode(tensors, 64)
    scales, zeros = awqpack.min_max_scales(weight, 64, symmetric=symmetric)
    assert_same(layer.scales.contiguous(), scales)
    assert_same(layer.zeros.contiguous(), zeros)
    assert_same(layer.bias, bias)
    payload = awqpack.quantize(weight, scales, zeros)
    assert_same(layer.codes.contiguous(), awqpack.unpack(payload))
    assert_same(layer.dequantize(), awqpack.dequantize(payload, scales, zeros))


def weight_without_negatives(dtype):
    """Float32 (8, 128) of 2 groups a row; in the first of each, what round-to-nearest gives a zero of 0."""
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:, :64] = weight[:, :64].abs()
    weight[1, :64] = 3  # a range of nothing
    weight[2, :64] = 0
    weight[2, 1:64:2] *= -1  # -0, of which no scale may be made
    weight[3, 5] = -weight[3, :64].max() / 64  # less than half a step
    return weight


def lifted(weight, scales, zeros):
    """A zero of 0 becomes 1, beside a scale by which code 15 is the largest weight of the group. The twin, in loops."""
    scales, zeros, size = scales.clone(), zeros.clone(), weight.shape[1] // scales.shape[1]
    for row in range(zeros.shape[0]):
        for group in range(zeros.shape[1]):
            if zeros[row, group] == 0:
                scales[row, group] = weight[row, group * size : (group + 1) * size].float().max() / 14
                zeros[row, group] = 1
    return scales, zeros


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gptq_rounds_without_a_zero_of_0(dtype):
    weight = weight_without_negatives(dtype)
    scales, zeros = awqpack.min_max_scales(weight, 64)
    assert bool((zeros[:, 0] == 0).all() and (zeros[:, 1] != 0).all())
    with pytest.raises(LayoutError, match="has no place for the 0 of row 0, group 0: gptq_v2 has"):
        LAYOUTS["gptq"].encode_float(weight, scales, zeros)  # somebody's own stay as they are
    layer = LAYOUTS["gptq"].decode(quantize_layer(weight, LAYOUTS["gptq"], 64), 64)
    expected_scales, expected_zeros = lifted(weight, scales, zeros)
    assert_same(layer.scales.contiguous(), expected_scales)
    assert_same(layer.zeros.contiguous(), expected_zeros)
    assert_same(layer.codes.contiguous(), awqpack.unpack(awqpack.quantize(weight, expected_scales, expected_zeros)))
    assert layer.codes[[0, 1, 3], :64].amax(1).tolist() == [15, 15, 15]
    assert bool((layer.codes[2, :64] == 1).all())
    assert_same(LAYOUTS["gptq_v2"].decode(quantize_layer(weight, LAYOUTS["gptq_v2"], 64), 64).zeros.contiguous(), zeros)


def test_gptq_names_a_scale_that_is_none():
    weight = torch.ones(8, 128)
    weight[5, 70] = 65504 * 14.5  # a range of 15 steps that float16 holds, and none of 14
    weight[6, 0] = 65504 * 14.9
    with pytest.raises(LayoutError, match=r"no float16 is 67843\.4, the scale of row 5, group 1, beside a zero of 1"):
        quantize_layer(weight, LAYOUTS["gptq"], 64, dtype=torch.float16)


def test_dequantize_of_any_scale_and_order():
    layer = random_layer(64, 256, 64)
    scales = layer.scales * torch.where(torch.arange(4) % 2 == 0, 1, -1).half()
    order = (torch.arange(256, dtype=torch.int32) * 7) % 4
    for given in (layer.scales, scales):
        for columns in (None, order):
            index = torch.arange(256) // 64 if columns is None else columns.long()
            expected = (layer.codes.float() - layer.zeros[:, index].float()) * given[:, index].float()
            found = Layer(layer.codes, given, layer.zeros, 64, None, columns).dequantize()
            assert_same(found, expected.half())
    narrow = Layer(layer.codes[:, :60], layer.scales[:, :1], layer.zeros[:, :1], 60).dequantize()
    assert_same(narrow, layer.dequantize()[:, :60])


GIVEN = {"weight": torch.zeros(64, 256), "scales": torch.ones(64, 4), "zeros": None}
NO_LAYER = {
    "one dimension": ({"weight": torch.zeros(64)}, LayoutError, r"weight expects .* got float32 \(64,\)"),
    "float64": ({"weight": torch.zeros(64, 256).double()}, LayoutError, "got float64"),
    "groups": ({"scales": torch.ones(64, 3)}, LayoutError, "G a divisor of K"),
    "rows": ({"scales": torch.ones(32, 4)}, LayoutError, "scales expects"),
    "zeros": ({"zeros": torch.full((64, 4), 16, dtype=torch.uint8)}, LayoutError, "zeros expects 0..15"),
    "infinite": ({"weight": torch.full((64, 256), float("inf"))}, ValueError, r"weight\[0, 0\] is inf"),
    "negative": ({"scales": -torch.ones(64, 4)}, ValueError, r"scales\[0, 0\] is -1"),
    "sizes": ({"weight": torch.zeros(64, 252)}, LayoutError, "cannot hold the layer"),
}


@pytest.mark.parametrize("case", NO_LAYER)
def test_no_layer(case):
    changes, error, words = NO_LAYER[case]
    with pytest.raises(error, match=words):
        LAYOUTS["compressed-tensors"].encode_float(**{**GIVEN, **changes})


def test_dequantize_rounds_once_to_any_dtype():
    layer = positive(random_layer(64, 256, 64), True)
    payload = awqpack.pack(layer.codes)
    for scales in (layer.scales, -layer.scales):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            exact = awqpack.dequantize(payload, layer.scales, layer.zeros, dtype=torch.float32)
            found = Layer(layer.codes, scales, layer.zeros, 64).dequantize(dtype)
            assert_same(found, (exact if scales is layer.scales else -exact).to(dtype))


def test_what_quantize_layer_refuses():
    weight = torch.randn(64, 256)
    with pytest.raises(TypeError, match=r"layout expects one of LAYOUTS, such as LAYOUTS\['gemm'\]; got 'gemm'"):
        quantize_layer(weight, "gemm")
    with pytest.raises(
        LayoutError, match=r"weight expects \(N, K\), of one layer or expert at a time; got .*\(8, 64, 256"
    ):
        quantize_layer(weight.expand(8, 64, 256), LAYOUTS["gemm"])
    with pytest.raises(LayoutError, match="modelopt has no zeros: it expects symmetric=True"):
        quantize_layer(weight, LAYOUTS["modelopt"])

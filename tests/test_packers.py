"""Packers of others beside ours, on the same codes, byte for byte."""

import pytest
import torch
from shared import assert_same, torch_codes

from awqpack import AWQPacking, min_max_scales, pack, quantize, unpack

V1 = AWQPacking.V1
GROUP = 32


@pytest.mark.parametrize("shape", [(8, 16), (96, 256), (3, 64, 128)])
@pytest.mark.parametrize("packed_dim", [0, 1])
def test_compressed_tensors(packed_dim, shape):
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    codes = torch_codes(shape)
    theirs = pack_to_int32((codes.to(torch.int16) - 8).to(torch.int8), 4, packed_dim)
    ours = pack(codes, V1) if packed_dim == 1 else pack(codes.mT, V1).mT
    assert_same(theirs.contiguous(), ours.contiguous())
    back = unpack_from_int32(ours, 4, torch.Size(shape), packed_dim)
    assert_same((back.to(torch.int16) + 8).to(torch.uint8), codes)
    assert_same(unpack(theirs if packed_dim == 1 else theirs.mT, V1), codes if packed_dim == 1 else codes.mT)


@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_tensors_rounds_to_the_same_codes(symmetric):
    """Its own code, in float32 and in float16: what test_floats_peers.py counts differences of."""
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    import test_floats_peers as peers
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize as theirs

    weight = peers.random_weight()[:128]
    scales, zeros = min_max_scales(weight, peers.GROUP, symmetric=symmetric)
    how = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=peers.GROUP)
    for dtype in (torch.float32, torch.float16):
        signed = zeros.to(torch.int8) - 8
        codes = theirs(weight.to(dtype), scales.to(dtype), None if symmetric else signed, how, dtype=torch.int8) + 8
        assert_same(codes.to(torch.uint8), peers.compressed_tensors(weight, scales, zeros, dtype))
        if dtype == torch.float32:
            assert_same(pack(codes.to(torch.uint8), V1), quantize(weight, scales, zeros))


@pytest.fixture(params=[(64, 128), (96, 256)], ids=str)
def layer(request):
    """A linear layer that quantizes to these codes: (linear, codes, scales (N, G), zeros (N, G))."""
    rows, cols = request.param
    codes, zeros = torch_codes((rows, cols)), torch_codes((rows, cols // GROUP), seed=1)
    scales = torch.rand(rows, cols // GROUP) + 0.5
    linear = torch.nn.Linear(cols, rows, bias=False)
    wide = [tensor.repeat_interleave(GROUP, 1) for tensor in (zeros.float(), scales)]
    linear.weight.data = (codes - wide[0]) * wide[1]
    return linear, codes, scales, zeros


@pytest.fixture
def auto_round():
    return pytest.importorskip("auto_round", reason="needs the package auto-round")


@pytest.mark.clients
def test_auto_round_as_awq(layer, auto_round):
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM

    linear, codes, scales, zeros = layer
    theirs = WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.t(), zeros=zeros.t(), device="cpu")
    assert_same(theirs.qweight, pack(codes.t(), V1, True))
    assert_same(theirs.qzeros, pack(zeros.t(), V1, True))


@pytest.mark.clients
@pytest.mark.parametrize(("variant", "stored"), [("qlinear_torch", 0), ("qlinear_torch_zp", 1)])
def test_auto_round_as_gptq(variant, stored, layer, auto_round):
    """The second variant stores zeros minus one, and cannot hold a zero of 0."""
    module = pytest.importorskip(f"auto_round_extension.torch.{variant}")
    linear, codes, scales, zeros = layer
    theirs = module.QuantLinear(4, GROUP, linear.in_features, linear.out_features, False)
    theirs.device = torch.device("cpu")
    theirs.pack(linear, scales, zeros.float(), None, "cpu")
    assert_same(theirs.qweight, pack(codes, V1).t().contiguous())
    assert_same(theirs.qzeros, pack((zeros.t().int() - stored).clamp(min=0).to(torch.uint8), V1))


@pytest.mark.clients
@pytest.mark.parametrize("shape", [(64, 128), (96, 256)], ids=str)
def test_modelopt(shape):
    """What ModelOpt's exporter makes of a weight is the layout's tensor of the same codes; every zero is 8."""
    quant_utils = pytest.importorskip("modelopt.torch.export.quant_utils", reason="needs the package nvidia-modelopt")
    from awqpack.layouts import LAYOUTS, Layer

    codes = torch_codes(shape)
    scales = torch.rand(shape[0], shape[1] // GROUP) + 0.5
    layer = Layer(codes, scales, None, GROUP)
    theirs = quant_utils.pack_int4_in_uint8(layer.dequantize(), scales, GROUP)
    tensors = LAYOUTS["modelopt"].encode(layer)
    assert_same(theirs, tensors["weight"])
    assert_same(LAYOUTS["modelopt"].decode(tensors | {"weight": theirs}, GROUP).codes, codes)

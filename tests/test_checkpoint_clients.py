"""Converted checkpoints in the hands of others: compressed-tensors, transformers and MLX."""

import json

import numpy
import pytest
import torch
from checkpoints import REFERENCE_NAMES, contents, random_layer, reference
from fp4_twin import random_tensors, scheme
from llama import write_llama
from safetensors.torch import load_file, save_file
from shared import assert_same

from awqpack import checkpoint
from awqpack.layouts import FLOAT_LAYOUTS, LAYOUTS, Layer

GROUP_SIZE = 32


@pytest.fixture(scope="module", autouse=True)
def transformers():
    """Imported when a test here runs, not whenever tests are collected: the two take seconds."""
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    return pytest.importorskip("transformers", reason="needs the package transformers")


@pytest.mark.parametrize("source", ["gemm", "gemv", "gemv_fast", "llm-awq"])
@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_compressed_tensors_decompresses_the_same_weights(name, source, tmp_path):
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    layouts, group_size, expected = reference(name)
    folder = tmp_path / "given"
    folder.mkdir()
    save_file({f"fc.{key}": value for key, value in layouts[source].items()}, folder / "model.safetensors")
    config = {"quant_method": "awq", "version": source, "bits": 4, "group_size": group_size, "zero_point": True}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    checkpoint.convert(folder, tmp_path / "out", "compressed-tensors")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(written).config_groups["group_0"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    state = {key.removeprefix("fc."): value for key, value in tensors.items()}
    weight = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    assert torch.equal(weight, expected["dequantized"])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["mxfp4-pack-quantized", "nvfp4-pack-quantized"])
def test_compressed_tensors_decompresses_the_same_floats(name, seed):
    """Of 4-bit floats, whatever the bytes are: bit for bit in bfloat16, which it computes."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    tensors = random_tensors(name, 64, 512, seed)
    compressor = BaseCompressor.get_value_from_registry(name)
    weight = compressor.decompress(tensors, QuantizationScheme.model_validate(scheme(name)))["weight"]
    found = FLOAT_LAYOUTS[name].dequantize(tensors, torch.bfloat16)
    assert weight.dtype == torch.bfloat16
    assert_same(found.view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_transformers_decodes_the_same_experts(dtype, tmp_path):
    """Of gpt-oss, which it dequantizes where there is no GPU for them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 64, 3, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(90, 150, (2, 64, 3), generator=generator).to(torch.uint8)
    given = {"mlp.experts.down_proj_blocks": blocks, "mlp.experts.down_proj_scales": scales}
    save_file(given, tmp_path / "given.safetensors")
    name = str(dtype).removeprefix("torch.")
    checkpoint.convert(tmp_path / "given.safetensors", tmp_path / "out.safetensors", name)
    found = load_file(tmp_path / "out.safetensors")["mlp.experts.down_proj"]
    assert_same(found, convert_moe_packed_tensors(blocks, scales, dtype=dtype))


def test_compressed_tensors_packs_experts_the_same(tmp_path):
    """Tensors of three dimensions, as it stores parameters that hold several experts."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    layers = [random_layer(16, 64, 32, seed=seed) for seed in range(3)]
    codes, zeros = (torch.stack([getattr(x, part).char() - 8 for x in layers]) for part in ("codes", "zeros"))
    given = {
        "mlp.experts.down_proj_packed": pack_to_int32(codes, 4),
        "mlp.experts.down_proj_zero_point": pack_to_int32(zeros, 4, packed_dim=0).contiguous(),
        "mlp.experts.down_proj_scale": torch.stack([x.scales for x in layers]),
        "mlp.experts.down_proj_shape": torch.tensor([3, 16, 64]),
    }
    save_file(given, tmp_path / "given.safetensors")
    checkpoint.convert(tmp_path / "given.safetensors", tmp_path / "out.safetensors", "float16")
    found = load_file(tmp_path / "out.safetensors")["mlp.experts.down_proj"]
    assert_same(found, torch.stack([x.dequantize() for x in layers]))


def test_compressed_tensors_pads_zeros_the_same():
    """Of rows that fill no word."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    layer = random_layer(12, 64, 32)
    tensors = LAYOUTS["compressed-tensors"].encode(layer)
    assert_same(tensors["weight_zero_point"], pack_to_int32(layer.zeros.char() - 8, 4, packed_dim=0).contiguous())
    assert_same(LAYOUTS["compressed-tensors"].decode(tensors).zeros.contiguous(), layer.zeros)


@pytest.fixture(scope="module")
def llama(transformers, tmp_path_factory):
    """A tiny Llama as a gemm checkpoint, and the same model with dequantized weights."""
    return write_llama(tmp_path_factory.mktemp("llama") / "gemm", GROUP_SIZE)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("gemm", "modelopt")])  # not symmetric
def test_a_llama_survives_every_layout_byte_for_byte(layout, llama, tmp_path):
    folder, _ = llama
    assert len(list(folder.glob("*.safetensors"))) > 1
    checkpoint.convert(folder, tmp_path / "there", layout)
    assert checkpoint.inspect(tmp_path / "there").problems == ()
    assert len(checkpoint.inspect(tmp_path / "there").layers) == 14
    checkpoint.convert(tmp_path / "there", tmp_path / "back", "gemm")
    assert contents(tmp_path / "back") == contents(folder)


def test_transformers_loads_the_compressed_tensors_checkpoint(transformers, llama, tmp_path):
    """On the CPU, where AWQ's own kernels do not run: the same logits as the dequantized model's."""
    folder, model = llama
    checkpoint.convert(folder, tmp_path / "ct", "compressed-tensors")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ct", dtype=torch.float32).eval()
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected, actual = model(tokens).logits, loaded(tokens).logits
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_transformers_loads_the_model_in_floats(transformers, llama, tmp_path):
    """As any model: the very weights of the one that was dequantized, and its logits."""
    folder, model = llama
    checkpoint.convert(folder, tmp_path / "floats", "float32", max_shard_size="200KB")
    assert len(list((tmp_path / "floats").glob("*.safetensors"))) > 1
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "floats").eval()
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.float32
    expected = model.state_dict()
    assert {name: torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items()} == dict.fromkeys(
        expected, True
    )
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("symmetric", [False, True])
def test_transformers_loads_what_was_quantized(symmetric, transformers, llama, tmp_path):
    """A model in floats, rounded to compressed-tensors: the logits of the one that convert makes of it."""
    folder, _ = llama
    checkpoint.convert(folder, tmp_path / "floats", "float32")
    done = checkpoint.quantize(
        tmp_path / "floats", tmp_path / "ct", "compressed-tensors", group_size=32, symmetric=symmetric
    )
    assert done.layers == 14
    checkpoint.convert(tmp_path / "ct", tmp_path / "again", "float32")
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ct", dtype=torch.float32).eval()
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("source", ["gemm", "compressed-tensors", "gptq_v2"])
@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_mlx_dequantizes_the_same_weights(name, source, tmp_path):
    """With scales in float32, where code * scale + bias is exact; in float16 the bias is rounded before MLX adds it."""
    mx = pytest.importorskip("mlx.core", reason="needs the package mlx")
    layouts, group_size, expected = reference(name)
    layer = LAYOUTS[source].decode(layouts[source], group_size)
    tensors = LAYOUTS["mlx"].encode(Layer(layer.codes, layer.scales.float(), layer.zeros, group_size))
    weight = mx.array(tensors["weight"].view(torch.int32).numpy().view("uint32"))
    scales, biases = (mx.array(tensors[key].numpy()) for key in ("scales", "biases"))
    found = mx.dequantize(weight, scales, biases, group_size=group_size, bits=4)
    assert torch.equal(torch.from_numpy(numpy.array(found)).half(), expected["dequantized"])

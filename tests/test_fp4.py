"""4-bit floats, MXFP4 and NVFP4: what compressed-tensors and ModelOpt write becomes the floats that they read."""

import json
import shutil

import pytest
import torch
from checkpoints import contents
from fp4_twin import FLOATS, GROUP, NAMES, obvious, quantization_config, random_tensors, scheme, write
from safetensors.torch import load_file, save_file
from shared import assert_same

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.layouts import FLOAT_LAYOUTS, LAYOUTS, LayoutError, TensorSpec, detect, layout_of_config


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_becomes_floats(name, dtype, tmp_path):
    layers = {"model.layers.0.up": random_tensors(name), "model.layers.0.down": random_tensors(name, 7, 544, seed=1)}
    bias = {"model.layers.0.up.bias": torch.ones(24), "model.norm.weight": torch.ones(8).half()}
    given = write(tmp_path / "given", name, layers, bias)
    found = checkpoint.inspect(given)
    assert (found.layout, found.group_size, found.problems) == (name, None if "opt" in name else GROUP[name], ())
    assert [(layer.out_features, layer.in_features) for layer in found.layers] == [(7, 544), (24, 128)]
    done = checkpoint.convert(given, tmp_path / "out", dtype)
    assert (done.source_layout, done.layers) == (name, 2)
    expected = bias | {f"{layer}.weight": obvious(name, of, FLOATS[dtype]) for layer, of in layers.items()}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert_same(found[key], tensor)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"torch_dtype": dtype}


@pytest.mark.parametrize("name", NAMES)
def test_more_than_a_chunk(name, tmp_path):
    tensors = random_tensors(name, 1031, 1088)
    given = write(tmp_path / "given", name, {"fc": tensors})
    checkpoint.convert(given, tmp_path / "out", "bfloat16")
    assert_same(load_file(tmp_path / "out" / "model.safetensors")["fc.weight"], obvious(name, tensors, torch.bfloat16))


@pytest.mark.parametrize("exponents", [(0, 1), (1, 252)])
def test_every_exponent(exponents):
    """Down to the scale that is no normal float32: every product is exact in bfloat16."""
    tensors = random_tensors("mxfp4-pack-quantized", 64, 512, exponents=exponents)
    found = FLOAT_LAYOUTS["mxfp4-pack-quantized"].dequantize(tensors, torch.bfloat16)
    assert_same(found, obvious("mxfp4-pack-quantized", tensors, torch.bfloat16))
    assert_same(found.float(), obvious("mxfp4-pack-quantized", tensors, torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_detection_needs_no_configuration(name, tmp_path):
    tensors = random_tensors(name)
    assert detect({key: TensorSpec.of(value) for key, value in tensors.items()}).name == name
    assert layout_of_config(quantization_config(name)).name == name
    save_file({f"fc.{key}": value for key, value in tensors.items()}, tmp_path / "a.safetensors")
    assert checkpoint.inspect(tmp_path / "a.safetensors").layout == name
    checkpoint.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "float32")
    assert_same(load_file(tmp_path / "b.safetensors")["fc.weight"], obvious(name, tensors, torch.float32))


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_layout_of_whole_numbers_holds_them(name, target, tmp_path):
    given = write(tmp_path / "given", name, {"fc": random_tensors(name, 64, 512)})
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} holds 4-bit floats, .* quantize that --to {target}"):
        checkpoint.convert(given, tmp_path / "out", target)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_verify(name, tmp_path):
    tensors = random_tensors(name)
    one, other = (write(tmp_path / folder, name, {"fc": tensors}) for folder in ("one", "other"))
    assert checkpoint.verify(one, other).is_equal
    for key, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1:].view(torch.uint8)[0] ^= 1
        shutil.rmtree(other)
        write(other, name, {"fc": tensors | {key: changed}})
        (difference,) = checkpoint.verify(one, other).differences
        last = tuple(length - 1 for length in tensor.shape)
        assert (difference.what, difference.part, difference.index) == ("fc", key, last)


def test_verify_tells_layouts_apart(tmp_path):
    folders = [write(tmp_path / name, name, {"fc": random_tensors(name)}) for name in NAMES[1:]]
    assert "layout" in [difference.part for difference in checkpoint.verify(*folders).differences]


# --- gpt-oss' experts ---


def gpt_oss(path, experts=3, n=64, k=96, seed=0):
    """A layer as its checkpoints have it: experts in blocks of 32 columns, and a bias for each."""
    generator = torch.Generator().manual_seed(seed)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {
        f"{name}_blocks": torch.randint(0, 256, (experts, n, k // 32, 16), dtype=torch.uint8, generator=generator),
        f"{name}_scales": torch.randint(90, 138, (experts, n, k // 32), generator=generator).to(torch.uint8),
        f"{name}_bias": torch.randn(experts, n, generator=generator).bfloat16(),
        "model.norm.weight": torch.ones(k),
    }
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "quantization_config": config}))
    return name, tensors


@pytest.mark.parametrize("dtype", FLOATS)
def test_gpt_oss(dtype, tmp_path):
    """In floats its models have in_features before out_features."""
    name, tensors = gpt_oss(tmp_path / "given")
    found = checkpoint.inspect(tmp_path / "given")
    assert (found.layout, found.problems) == ("mxfp4", ())
    assert [(x.name, x.out_features, x.in_features) for x in found.layers] == [(name, 3 * 64, 96)]
    checkpoint.convert(tmp_path / "given", tmp_path / "out", dtype)
    experts = [
        {"weight_packed": blocks.flatten(1), "weight_scale": scales}
        for blocks, scales in zip(tensors[f"{name}_blocks"], tensors[f"{name}_scales"], strict=True)
    ]
    floats = [obvious("mxfp4-pack-quantized", expert, FLOATS[dtype]).t() for expert in experts]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(found.pop(name), torch.stack(floats))
    assert set(found) == {f"{name}_bias", "model.norm.weight"}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert checkpoint.verify(tmp_path / "given", tmp_path / "given").is_equal


def test_gpt_oss_becomes_no_layout(tmp_path):
    gpt_oss(tmp_path / "given")
    with pytest.raises(CheckpointError, match="mxfp4 holds 4-bit floats"):
        checkpoint.convert(tmp_path / "given", tmp_path / "out", "gemm")


def test_fused_experts_of_compressed_tensors(tmp_path):
    name = "mxfp4-pack-quantized"
    experts = [random_tensors(name, 16, 64, seed) for seed in range(3)]
    stacked = {
        f"moe.experts.down_proj_{part}": torch.stack([of[f"weight_{part}"] for of in experts])
        for part in ("packed", "scale")
    }
    given = write(tmp_path / "given", name, {}, stacked)
    checkpoint.convert(given, tmp_path / "out", "bfloat16")
    found = load_file(tmp_path / "out" / "model.safetensors")["moe.experts.down_proj"]
    assert_same(found, torch.stack([obvious(name, of, torch.bfloat16) for of in experts]))


def without(tensors, *names):
    return {key: value for key, value in tensors.items() if key not in names}


MX, NV = (random_tensors(name, 16, 64) for name in NAMES[:2])
TENSORS = {
    "no global scale": ("nvfp4-pack-quantized", without(NV, "weight_global_scale"), "weight_global_scale is missing"),
    "no scale": ("mxfp4-pack-quantized", without(MX, "weight_scale"), "weight_scale is missing"),
    "float scales": (
        "mxfp4-pack-quantized",
        MX | {"weight_scale": torch.ones(16, 2).half()},
        "weight_scale expects uint8 or float8_e8m0fnu; got float16",
    ),
    "few scales": (
        "mxfp4-pack-quantized",
        MX | {"weight_scale": MX["weight_scale"][:, :1].clone()},
        r"weight_scale expects uint8 \(16, 2\)",
    ),
    "several global scales": (
        "nvfp4-pack-quantized",
        NV | {"weight_global_scale": torch.ones(2)},
        r"weight_global_scale expects float32 \(1,\)",
    ),
    "cut columns": (
        "mxfp4-pack-quantized",
        MX | {"weight_packed": MX["weight_packed"][:, :30].clone()},
        "in_features 60 is not a multiple of the group size 32",
    ),
    "words": (
        "mxfp4-pack-quantized",
        MX | {"weight_packed": MX["weight_packed"].view(torch.int32)},
        "weight_packed expects uint8 with 2 dimensions; got int32",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case, tmp_path):
    name, tensors, text = TENSORS[case]
    with pytest.raises(LayoutError, match=text):
        FLOAT_LAYOUTS[name].dequantize(tensors, torch.float32)
    given = write(tmp_path / "given", name, {"fc": tensors})
    with pytest.raises(CheckpointError, match=text):
        checkpoint.convert(given, tmp_path / "out", "bfloat16")
    assert not (tmp_path / "out").exists()


BEYOND = {
    "an exponent that is NaN": (MX, 255, "may be nan, which no bfloat16 is"),
    "beyond bfloat16": (MX, 254, "may be .*, which no bfloat16 is"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_values_beyond(case, tmp_path):
    tensors, exponent, text = BEYOND[case]
    tensors = tensors | {"weight_scale": tensors["weight_scale"].clone()}
    tensors["weight_scale"][3, 1] = exponent
    given = write(tmp_path / "given", "mxfp4-pack-quantized", {"fc": tensors})
    with pytest.raises(CheckpointError, match=f"weights of row 3, group 1 {text}"):
        checkpoint.convert(given, tmp_path / "out", "bfloat16")
    problems = checkpoint.inspect(given).problems
    assert problems == (("fc: the scale of row 3, group 1 is nan",) if exponent == 255 else ())


def groups_of(name, **changes):
    return {"config_groups": {"group_0": scheme(name) | changes}}


CONFIGS = {
    "groups of 64": (
        {"config_groups": {"g": scheme("mxfp4-pack-quantized") | {"weights": {"num_bits": 4, "type": "float"}}}},
        r"config_groups.g.weights expects .*'group_size': 32",
    ),
    "beside FP8": (
        {"config_groups": {"g": scheme("mxfp4-pack-quantized"), "h": {"format": "float-quantized", "weights": {}}}},
        "expects pack-quantized; got 'mxfp4-pack-quantized'",
    ),
    "transformed": ({"transform_config": {"config_groups": {"R1": {}}}}, "no AWQ layout transforms weights"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_nothing_holds(case, tmp_path):
    changes, text = CONFIGS[case]
    given = write(tmp_path / "given", "mxfp4-pack-quantized", {"fc": MX}, **changes)
    with pytest.raises(CheckpointError, match=text):
        checkpoint.convert(given, tmp_path / "out", "bfloat16")


def test_scales_of_the_cache_go_with_the_quantization(tmp_path):
    more = {"self_attn.k_scale": torch.ones(1), "self_attn.v_scale": torch.ones(())}
    given = write(tmp_path / "given", "nvfp4-pack-quantized", {"fc": NV}, more, kv_cache_scheme={"num_bits": 8})
    checkpoint.convert(given, tmp_path / "out", "bfloat16")
    assert list(load_file(tmp_path / "out" / "model.safetensors")) == ["fc.weight"]


# --- beside compressed-tensors itself ---


@pytest.fixture
def peer(request):
    """compressed-tensors' compressor of a format, and its scheme."""
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    name = request.param
    return name, BaseCompressor.get_value_from_registry(name), QuantizationScheme.model_validate(scheme(name))


both = pytest.mark.parametrize("peer", NAMES[:2], indirect=True)


@pytest.mark.clients
@both
def test_it_compresses_what_we_read(peer, tmp_path):
    """Weights that its own code has rounded, through a file, to every dtype."""
    name, compressor, its_scheme = peer
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 256, generator=generator)
    largest = weight.view(48, -1, GROUP[name]).abs().amax(2)
    state = {"weight": weight, "weight_scale": 2.0 ** largest.log2().floor().sub(2)}
    if name.startswith("nv"):
        state["weight_global_scale"] = 448 * 6 / weight.abs().max().view(1)
        scales = (largest / 6 * state["weight_global_scale"]).to(torch.float8_e4m3fn)
        state["weight_scale"] = scales.float()
    compressed = compressor.compress(state, its_scheme)
    given = write(tmp_path / "given", name, {"fc": compressed})
    expected = compressor.decompress(compressed, its_scheme)["weight"]
    assert (expected.float() - weight).abs().max() < 1
    for dtype in FLOATS:
        checkpoint.convert(given, tmp_path / dtype, dtype)
        found = load_file(tmp_path / dtype / "model.safetensors")["fc.weight"]
        assert_same(found, obvious(name, compressed, FLOATS[dtype]))
        if dtype != "float16":
            assert_same(found.bfloat16(), expected)


@pytest.mark.clients
@both
def test_a_model_that_it_saved(peer, tmp_path):
    """A tiny Llama, compressed and saved by its own ModelCompressor: the floats load as an ordinary model, which gives
    what transformers makes of the compressed one."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    name, _, _ = peer
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        dtype="bfloat16",
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    its_config = quantization_config(name)
    del its_config["config_groups"]["group_0"]["input_activations"]
    its_config["quantization_status"] = "frozen"
    apply_quantization_config(model, QuantizationConfig.model_validate(its_config))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            largest = module.weight.float().unflatten(1, (-1, GROUP[name])).abs().amax(2)
            if name.startswith("nv"):
                module.weight_global_scale.data.copy_(448 * 6 / largest.max())
                largest = largest / 6 * module.weight_global_scale.float()
                module.weight_scale.data = largest.to(torch.float8_e4m3fn).to(module.weight_scale.dtype)
            else:
                module.weight_scale.data = (2.0 ** largest.log2().floor().sub(2)).to(torch.bfloat16)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "given")
    compressor.update_config(tmp_path / "given")
    assert checkpoint.inspect(tmp_path / "given").layout == name
    checkpoint.convert(tmp_path / "given", tmp_path / "out", "bfloat16")
    ids = torch.arange(12).view(1, 12)
    loaded = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype=torch.bfloat16).eval()
        for folder in ("given", "out")
    ]
    assert type(loaded[1].model.layers[0].mlp.up_proj) is torch.nn.Linear
    with torch.no_grad():
        assert_same(*(one(ids).logits for one in loaded))

"""Checkpoints that become ordinary models in floats, as convert --to float16, bfloat16 and float32 writes them."""

import json

import pytest
import torch
from checkpoints import (
    LAYOUT_NAMES,
    REFERENCE_NAMES,
    ZEROS_OF,
    contents,
    random_layer,
    reference,
    reference_layer,
    some_layers,
    some_tensors,
    write_checkpoint,
    write_reference,
)
from safetensors.torch import load_file
from shared import assert_same

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.layouts import Layer

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def obvious(layer, dtype):
    """(code - zero) * scale in float32, rounded once."""
    groups = torch.arange(layer.codes.shape[1]) // layer.group_size if layer.order is None else layer.order.long()
    weight = (layer.codes.float() - layer.zeros[:, groups].float()) * layer.scales[:, groups].float()
    return weight.to(dtype)


def merged(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize("source", LAYOUT_NAMES)
def test_reference_layers(source, name, tmp_path):
    """What AutoAWQ, GPTQModel and compressed-tensors dequantized; with other zeros, what is obvious."""
    zeros = ZEROS_OF.get(source, "as they are")
    given = write_reference(tmp_path, source, name, zeros)
    checkpoint.convert(given, tmp_path / "out.safetensors", "float16", layout=source)
    found = load_file(tmp_path / "out.safetensors")
    weight = found.pop("model.fc.weight")
    assert_same(weight, obvious(reference_layer(name, zeros), torch.float16))
    _, _, expected = reference(name)
    if zeros == "as they are":
        assert_same(weight, expected["dequantized"])
    assert set(found) == ({"model.fc.bias"} if "bias" in expected else set())


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", LAYOUT_NAMES)
def test_folders_become_ordinary_models(source, target, tmp_path):
    layers = some_layers(source)
    given = write_checkpoint(tmp_path / "given", source, layers, symmetric=source == "modelopt")
    done = checkpoint.convert(given, tmp_path / "out", target)
    assert (done.source_layout, done.target_layout, done.layers) == (source, target, len(layers))
    expected = some_tensors() | {f"{name}.weight": obvious(layer, FLOATS[target]) for name, layer in layers.items()}
    expected |= {f"{name}.bias": layer.bias for name, layer in layers.items() if layer.bias is not None}
    found = merged(tmp_path / "out")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert_same(found[name], tensor)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    rest = {"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "name": "ä"}
    assert config == rest | {"torch_dtype": target}
    assert not [name for name in contents(tmp_path / "out") if "quant" in name]
    assert (tmp_path / "out" / "extra" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize("source", ["gptq", "gptq_v2"])
def test_columns_in_the_order_of_activations(source, tmp_path):
    """desc_act: g_idx names the group of each column."""
    layer = random_layer(64, 256, 64, layouts=[source])
    order = (torch.randperm(256, generator=torch.Generator().manual_seed(0)) // 64).int()
    layer = Layer(layer.codes, layer.scales, layer.zeros, 64, None, order)
    given = write_checkpoint(tmp_path / "given", source, {"fc": layer}, {}, shards=1, group_size=64, desc_act=True)
    checkpoint.convert(given, tmp_path / "out", "bfloat16")
    assert_same(merged(tmp_path / "out")["fc.weight"], obvious(layer, torch.bfloat16))


@pytest.mark.parametrize(
    "source", ["gemm", "gemv", "gemv_fast", "compressed-tensors", "gptq", "modelopt", "quark-int4"]
)
def test_more_than_a_chunk(source, tmp_path):
    layer = random_layer(2056, 1024, 128, symmetric=source == "modelopt", layouts=[source])
    given = write_checkpoint(tmp_path / "given", source, {"fc": layer}, {}, shards=1, symmetric=source == "modelopt")
    checkpoint.convert(given, tmp_path / "out", "float32")
    assert_same(merged(tmp_path / "out")["fc.weight"], obvious(layer, torch.float32))


@pytest.mark.parametrize("source", ["gemm", "compressed-tensors", "mlx"])
def test_negative_scales(source, tmp_path):
    layer = random_layer(64, 256)
    layer = Layer(layer.codes, -layer.scales, layer.zeros, 128)
    given = write_checkpoint(tmp_path / "given", source, {"fc": layer}, {}, shards=1)
    checkpoint.convert(given, tmp_path / "out", "float16")
    assert_same(merged(tmp_path / "out")["fc.weight"], obvious(layer, torch.float16))


@pytest.mark.parametrize(("limit", "count"), [("200KB", 5), (None, 1)])
def test_shards_and_index(limit, count, tmp_path):
    """Floats are larger than the files that they come from: these are cut anew."""
    given = write_checkpoint(tmp_path / "given", "gemm", shards=3)
    checkpoint.convert(given, tmp_path / "out", "float32", max_shard_size=limit)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) >= count) if limit else [file.name for file in files] == ["model.safetensors"]
    if limit:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged(tmp_path / "out").values())


CONFIGS = {
    "as transformers 5 says it": ({"dtype": "float16"}, {"dtype": "bfloat16"}),
    "both": ({"dtype": "float16", "torch_dtype": "float16"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
    "parts": (
        {
            "torch_dtype": "float16",
            "text_config": {"torch_dtype": "float16", "quantization_config": {"quant_method": "awq"}},
            "vision_config": {"torch_dtype": "float32"},
        },
        {
            "torch_dtype": "bfloat16",
            "text_config": {"torch_dtype": "bfloat16"},
            "vision_config": {"torch_dtype": "float32"},
        },
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration(case, tmp_path):
    before, after = CONFIGS[case]
    given = write_checkpoint(tmp_path / "given", "gemm", {"fc": random_layer(64, 256)}, {}, shards=1)
    quantization = json.loads((given / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    (given / "config.json").write_text(json.dumps({**before, "quantization_config": quantization}))
    (given / "quant_config.json").write_text(json.dumps({"w_bit": 4, "q_group_size": 128, "zero_point": True}))
    checkpoint.convert(given, tmp_path / "out", "bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == after
    assert not (tmp_path / "out" / "quant_config.json").exists()


REFUSED = {
    "beyond float16": (1e4, {}, "float16", {}, r"float16 cannot hold 1 of 1 layers: fc \(weights of row 0, group 0"),
    "scaled activations": (1, {"act.scales": torch.full((8,), 2.0)}, "float16", {}, "divides the output"),
    "scales": (1, {}, "float16", {"scale_dtype": "float16"}, "float16 has no scales"),
    "no target": (1, {}, "float8", {}, "to expects one of gemm, .*, float16, bfloat16, float32; got 'float8'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    factor, tensors, target, options, words = REFUSED[case]
    layer = random_layer(64, 256, dtype=torch.bfloat16)
    layer = Layer(layer.codes, layer.scales * 0 + factor, layer.zeros, 128)
    given = write_checkpoint(tmp_path / "given", "gemm", {"fc": layer}, tensors, shards=1)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.convert(given, tmp_path / "out", target, **options)
    assert not (tmp_path / "out").exists()

"""awqpack.checkpoint.Writer: the lines in which a quantizer ends."""

import json

import pytest
import torch
from checkpoints import LAYOUT_NAMES, contents, leftovers, random_layer
from safetensors.torch import load_file, save_file
from shared import assert_same

import awqpack
from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError, Writer
from awqpack.layouts import LAYOUTS


def write_floats(path, layers):
    """A model in floats of these layers, in two files."""
    path.mkdir()
    one = {f"{name}.weight": layer.dequantize() for name, layer in layers.items()}
    two = {"embed_tokens.weight": torch.ones(8, 64).half(), "lm_head.weight": torch.ones(8, 64).half()}
    two |= {
        "visual.qkv.weight": torch.ones(8, 64),
        "norm.weight": torch.ones(3).bfloat16(),
        "b.fc.bias": torch.ones(64),
    }
    files = {"model-00001-of-00002.safetensors": one, "model-00002-of-00002.safetensors": two}
    for name, tensors in files.items():
        save_file(tensors, path / name)
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    return path


def some_layers(target):
    symmetric = target == "modelopt"
    return {
        "a.fc": random_layer(72, 256, bias=True, symmetric=symmetric, layouts=[target]),
        "b.fc": random_layer(64, 128, symmetric=symmetric, seed=1, layouts=[target]),
    }


def merged(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("kind", ["codes", "floats"])
@pytest.mark.parametrize("target", LAYOUT_NAMES)
def test_every_layout(target, kind, tmp_path):
    layers = some_layers(target)
    given = write_floats(tmp_path / "given", layers)
    with Writer(tmp_path / "out", target) as writer:
        for name, layer in layers.items():
            weight = layer.codes if kind == "codes" else layer.dequantize()
            writer.add(name, weight, layer.scales, None if target == "modelopt" else layer.zeros, layer.bias)
        writer.copy(given)
    found = checkpoint.inspect(tmp_path / "out")
    assert (found.layout, found.group_size, found.problems) == (target, 128, ())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    expected = {name: tensor for name, tensor in merged(given).items() if name not in ("a.fc.weight", "b.fc.weight")}
    for name, layer in layers.items():
        expected |= {f"{name}.{suffix}": tensor for suffix, tensor in LAYOUTS[target].encode(layer).items()}
    written = merged(tmp_path / "out")
    assert set(written) == set(expected)
    for name, tensor in expected.items():
        assert_same(written[name], tensor.contiguous())


def test_files_are_what_safetensors_writes(tmp_path):
    layers = some_layers("gemm")
    given = write_floats(tmp_path / "given", layers)
    with Writer(tmp_path / "out", "gemm", max_shard_size="10KB") as writer:
        for name, layer in layers.items():
            writer.add(name, layer.codes, layer.scales, layer.zeros, layer.bias)
        writer.copy(given)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged(tmp_path / "out").values())
    for file in files:
        save_file(load_file(file), tmp_path / "again.safetensors", metadata={"format": "pt"})
        assert file.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_of_a_model_in_memory(tmp_path):
    layer = random_layer(64, 256)
    with Writer(tmp_path / "out", "gemm", config={"model_type": "llama"}) as writer:
        writer.add("fc", layer.codes, layer.scales, layer.zeros)
        writer.tensor("norm.weight", torch.ones(3))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert sorted(contents(tmp_path / "out")) == ["config.json", "model.safetensors"]


def twice(writer, layer, folder):
    writer.add("a.fc", layer.codes, layer.scales, layer.zeros)
    writer.add("a.fc", layer.codes, layer.scales, layer.zeros)


def of_two_kinds(writer, layer, folder):
    writer.add("a.fc", layer.codes, layer.scales, layer.zeros)
    writer.add("b.fc", layer.codes, layer.scales)


def of_two_sizes(writer, layer, folder):
    writer.add("a.fc", layer.codes, layer.scales, layer.zeros)
    writer.add("b.fc", layer.codes, layer.scales[:, :1], layer.zeros[:, :1])


def of_nan(writer, layer, folder):
    writer.add("a.fc", torch.full((64, 256), float("nan")), layer.scales, layer.zeros)


def of_no_weight(writer, layer, folder):
    writer.add("c.fc", layer.codes, layer.scales, layer.zeros)
    writer.copy(folder)


def after_copy(writer, layer, folder):
    writer.copy(folder)
    writer.add("a.fc", layer.codes, layer.scales, layer.zeros)


REFUSED = {
    "after copy": (after_copy, r"a\.fc: a\.fc\.weight is written already"),
    "twice": (twice, r"a\.fc: a\.fc\.qweight is written already"),
    "zeros of some": (of_two_kinds, r"b\.fc: zeros expects those of every layer, or of none"),
    "two sizes": (of_two_sizes, r"b\.fc: expects groups of the size of the layers before it; got 256"),
    "NaN": (of_nan, r"a\.fc: .*weight\[0, 0\] is nan"),
    "scales": (lambda w, x, _: w.add("a.fc", x.codes, x.scales[:, :0]), "a.fc: expects a weight"),
    "a layer of another model": (of_no_weight, r"has no c\.fc\.weight, of a layer that was added"),
    "nothing": (lambda *_: None, "expects a layer at least"),
    "no such source": (lambda w, x, folder: w.copy(folder / "none"), "no such file or directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    """And nothing is left."""
    use, words = REFUSED[case]
    given = write_floats(tmp_path / "given", some_layers("gemm"))
    with pytest.raises(CheckpointError, match=words), Writer(tmp_path / "out", "gemm") as writer:
        use(writer, random_layer(64, 256), given)
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def fails_after(writer, layer):
    writer.add("fc", layer.codes, layer.scales, layer.zeros)
    raise ZeroDivisionError


def test_an_exception_leaves_what_was_there(tmp_path):
    layer = random_layer(64, 256)
    for scale in (1, 2):
        with Writer(tmp_path / "out", "gemm", force=True) as writer:
            writer.add("fc", layer.codes, layer.scales * scale, layer.zeros)
    before = contents(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "out", "gemm", force=True) as writer:
        fails_after(writer, layer)
    assert contents(tmp_path / "out") == before
    assert not leftovers(tmp_path)
    with pytest.raises(CheckpointError, match="expects to be entered"):
        writer.tensor("fc", layer.scales)
    with pytest.raises(CheckpointError, match="exists already"):
        Writer(tmp_path / "out", "gemm")
    with pytest.raises(CheckpointError, match="expects a directory"):
        Writer(tmp_path / "out.safetensors", "gemm")


def test_a_quantization_pipeline(tmp_path):
    """A model of transformers, scales of one's own, and a checkpoint that transformers loads on the CPU."""
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "llama")

    # The pipeline.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    with Writer(tmp_path / "llama-4bit", "compressed-tensors") as writer:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                weight, best = module.weight.detach(), None
                for factor in (1.0, 0.95, 0.9, 0.85):  # clip a little, if that is closer
                    scales, zeros = awqpack.min_max_scales(weight * factor, 32)
                    rounded = awqpack.dequantize(awqpack.quantize(weight, scales, zeros), scales, zeros)
                    loss = float((rounded - weight).square().mean())
                    if best is None or loss < best[0]:
                        best = loss, scales, zeros, rounded
                writer.add(name, weight, best[1], best[2])
                module.weight.data = best[3]
        writer.copy(tmp_path / "llama")

    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama-4bit", dtype=torch.float32)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)

"""Every file and key that says how a checkpoint is quantized: all of them follow the target, or an error names one."""

import json

import pytest
import torch
from checkpoints import contents, layer_tensors, quantization_config, random_layer, write_checkpoint
from safetensors.torch import load_file, save_file
from shared import assert_same

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError

GEMM = quantization_config("gemm", not_converted=None)


def make(path, **files):
    """A checkpoint of one gemm layer, with these JSON files."""
    write_checkpoint(path, "gemm", {"model.x": random_layer(64, 128)}, {}, shards=1, config=False)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def read(path, name="config"):
    return json.loads((path / f"{name}.json").read_text())


def found_in(content, keys):
    for key in keys:
        content = content[key]
    return content


# keys that lead to each quantization_config of a config.json
NESTED = {
    "the model": [()],
    "text_config": [("text_config",)],
    "llm_config, of InternVL": [("llm_config",)],
    "language_config, of DeepSeek-VL": [("language_config",)],
    "the model and its text": [(), ("text_config",)],
    "thinker_config, of Qwen-Omni, both levels": [("thinker_config",), ("thinker_config", "text_config")],
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("target", ["gemv_fast", "compressed-tensors"])
def test_every_place_in_config_json_follows(name, target, tmp_path):
    content = {"hidden_size": 1}
    for keys in NESTED[name]:
        place = content
        for key in keys:
            place = place.setdefault(key, {"n": 2})
        place["quantization_config"] = GEMM
    given = make(tmp_path / "given", config=content)
    checkpoint.convert(given, tmp_path / "out", target)
    for keys in NESTED[name]:
        assert found_in(read(tmp_path / "out"), keys)["quantization_config"] == quantization_config(
            target, not_converted=None
        )
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    assert not checkpoint.inspect(tmp_path / "out").problems
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "gemm")
    assert contents(tmp_path / "back") == contents(given)


GPTQMODEL = GEMM | {"method": "awq", "format": "gemm", "checkpoint_format": "gemm", "pack_dtype": "int32"}


@pytest.mark.parametrize("files", [("config",), ("config", "quantize_config"), ("quantize_config",)])
def test_every_field_of_gptqmodel_follows(files, tmp_path):
    """It reads quantize_config.json first, which says nothing about a layout of other tools and is left out then."""
    contents_of = {"config": {"quantization_config": GPTQMODEL}, "quantize_config": GPTQMODEL}
    given = make(tmp_path / "given", **{name: contents_of[name] for name in files})
    checkpoint.convert(given, tmp_path / "fast", "gemv_fast")
    fast = dict.fromkeys(["version", "format", "checkpoint_format"], "gemv_fast") | {"pack_dtype": "int16"}
    for name in files:
        content = read(tmp_path / "fast", name)
        assert content.get("quantization_config", content) == GPTQMODEL | fast
    checkpoint.convert(given, tmp_path / "ct", "compressed-tensors")
    assert [path.name for path in (tmp_path / "ct").glob("*config.json")] == ["config.json"]
    assert read(tmp_path / "ct")["quantization_config"]["quant_method"] == "compressed-tensors"
    for out in ("fast", "ct"):
        assert checkpoint.verify(given, tmp_path / out).is_equal
        assert not checkpoint.inspect(tmp_path / out).problems


CONTRADICTIONS = {
    "another layout": (
        {"config": {"quantization_config": GEMM, "text_config": {"quantization_config": GEMM | {"version": "gemv"}}}},
        "config.json: text_config.quantization_config: says layout gemv; config.json says gemm",
    ),
    "another group size": (
        {"config": {"quantization_config": GEMM}, "quant_config": {"q_group_size": 64, "w_bit": 4, "version": "GEMM"}},
        "quant_config.json: says group_size 64; config.json says 128",
    ),
    "another method": (
        {
            "config": {
                "quantization_config": GEMM,
                "vision_config": {"quantization_config": {"quant_method": "fp8"}},
            }
        },
        "vision_config.quantization_config: quant_method is 'fp8'",
    ),
    "GPTQ": (
        {"config": {"quantization_config": GEMM}, "quantize_config": {"bits": 4, "group_size": 128, "desc_act": True}},
        "quantize_config.json: says layout gptq; config.json says gemm",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_places_that_disagree(name, tmp_path):
    """Some reader would take the target for what it is not, and so the one that is left is named."""
    files, text = CONTRADICTIONS[name]
    given = make(tmp_path / "given", **files)
    assert any(text in problem for problem in checkpoint.inspect(given).problems)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.convert(given, tmp_path / "out", "gemv")
    assert text in str(caught.value)


def test_the_layout_that_is_asked_for_is_obeyed(tmp_path):
    """Whatever the configuration calls it."""
    mixed = GEMM | {"quant_method": "of tomorrow"}
    given = make(tmp_path / "given", config={"quantization_config": mixed})
    with pytest.raises(CheckpointError, match="quant_method is 'of tomorrow'"):
        checkpoint.inspect(given)
    assert not checkpoint.inspect(given, layout="gemm").problems
    checkpoint.convert(given, tmp_path / "out", "gemv", layout="gemm")
    assert read(tmp_path / "out")["quantization_config"] == quantization_config("gemv", not_converted=None)


def test_auto_rounds_awq_format(tmp_path):
    config = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "sym": False, "group_size": 128}
    given = make(tmp_path / "given", config={"quantization_config": config})
    (given / "quantization_config.json").write_text(json.dumps(config))  # as its exporter leaves it, too
    assert (checkpoint.inspect(given).layout, checkpoint.inspect(given).problems) == ("gemm", ())
    checkpoint.convert(given, tmp_path / "out", "gemv")
    assert not (tmp_path / "out" / "quantization_config.json").exists()
    assert read(tmp_path / "out")["quantization_config"] == quantization_config("gemv", not_converted=None)
    assert checkpoint.verify(given, tmp_path / "out").is_equal


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"version": "gemm"}, "has no quant_method, bits, group_size, zero_point, without which no engine reads it"),
        ({"quant_method": "awq", "version": "gemm"}, "has no bits, group_size, zero_point, which vLLM asks for"),
    ],
)
def test_a_configuration_that_engines_refuse(config, text, tmp_path):
    """It is read as AutoAWQ would; inspect says what is missing, and convert writes all of it."""
    given = make(tmp_path / "given", config={"quantization_config": config})
    assert any(
        problem.startswith(f"config.json: quantization_config {text}") for problem in checkpoint.inspect(given).problems
    )
    checkpoint.convert(given, tmp_path / "out", "gemv")
    assert not checkpoint.inspect(tmp_path / "out").problems


@pytest.mark.parametrize("place", [{"quantization_config": 3}, {"llm_config": {"quantization_config": [1]}}])
def test_a_place_that_is_no_object(place, tmp_path):
    with pytest.raises(CheckpointError, match="quantization_config expects an object; got"):
        checkpoint.inspect(make(tmp_path / "given", config=place))


# --- several config_groups ---

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": False}


def several(path, layers, *groups, more=None):
    """A compressed-tensors checkpoint whose layers differ."""
    path.mkdir()
    tensors = dict(more or {})
    for name, layer in layers.items():
        tensors |= layer_tensors("compressed-tensors", name, layer)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = quantization_config("compressed-tensors", not_converted=None)
    config["config_groups"] = {f"group_{i}": {"targets": ["Linear"], "weights": g} for i, g in enumerate(groups)}
    (path / "config.json").write_text(json.dumps({"quantization_config": config}))
    return path


def test_groups_of_several_sizes(tmp_path):
    """Floats need no size; a layout with one size for all is refused with the names of the others."""
    layers = {"a": random_layer(64, 256), "b": random_layer(64, 256, 32), "c": random_layer(64, 512)}
    given = several(tmp_path / "given", layers, INT4, INT4 | {"group_size": 32})
    found = checkpoint.inspect(given)
    assert (found.group_size, found.problems) == (None, ())
    assert [layer.group_size for layer in found.layers] == [128, 32, 128]
    for target in ("gemm", "gptq_v2", "mlx"):
        text = rf"{target} has one group size for all layers; most have 128, but 1 of 3 others: b \(32\)"
        with pytest.raises(CheckpointError, match=text):
            checkpoint.convert(given, tmp_path / "out", target)
        assert not (tmp_path / "out").exists()
    checkpoint.convert(given, tmp_path / "out", "float16")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, layer in layers.items():
        assert_same(written[f"{name}.weight"], layer.dequantize())


def test_groups_of_one_size(tmp_path):
    """Groups that differ in what they target alone."""
    layers = {"a": random_layer(64, 256), "b": random_layer(64, 256, seed=1)}
    given = several(tmp_path / "given", layers, INT4, INT4 | {"observer": "mse"})
    checkpoint.convert(given, tmp_path / "out", "gemm")
    assert read(tmp_path / "out")["quantization_config"]["group_size"] == 128


@pytest.mark.parametrize("target", ["gemm", "bfloat16"])
def test_layers_of_eight_bits_are_named(target, tmp_path):
    eight = {
        "c.weight_packed": torch.zeros(64, 64, dtype=torch.int32),
        "c.weight_scale": torch.ones(64, 2).half(),
        "c.weight_zero_point": torch.zeros(8, 2, dtype=torch.int32),
        "c.weight_shape": torch.tensor([64, 256]),
    }
    given = several(tmp_path / "given", {"a": random_layer(64, 256)}, INT4, INT4 | {"num_bits": 8}, more=eight)
    with pytest.raises(CheckpointError, match=r"of 2.*: c \(weight_packed holds 8-bit codes|others: c"):
        checkpoint.convert(given, tmp_path / "out", target)
    assert not (tmp_path / "out").exists()
    assert checkpoint.inspect(given).problems == ("c: weight_packed holds 8-bit codes, by its weight_shape",)


def test_rows_that_fill_no_word(tmp_path):
    """compressed-tensors pads the zeros of 12 rows to 16; floats have 12, and most layouts whole words."""
    layer = random_layer(12, 256)
    given = several(tmp_path / "given", {"a": layer}, INT4)
    assert load_file(given / "model.safetensors")["a.weight_zero_point"].shape == (2, 2)
    checkpoint.convert(given, tmp_path / "out", "float16")
    assert_same(load_file(tmp_path / "out" / "model.safetensors")["a.weight"], layer.dequantize())
    with pytest.raises(CheckpointError, match=r"a \(out_features 12 is not a multiple of 8\)"):
        checkpoint.convert(given, tmp_path / "out", "gemm", force=True)


def test_columns_that_fill_no_word(tmp_path):
    padded = {
        "c.weight_packed": torch.zeros(64, 8, dtype=torch.int32),
        "c.weight_scale": torch.ones(64, 1).half(),
        "c.weight_zero_point": torch.zeros(8, 1, dtype=torch.int32),
        "c.weight_shape": torch.tensor([64, 60]),
    }
    given = several(tmp_path / "given", {}, INT4 | {"strategy": "channel", "group_size": None}, more=padded)
    for target in ("gemm", "bfloat16"):
        with pytest.raises(
            CheckpointError, match=r"c \(in_features 60 is not a multiple of 8, up to which it is padded"
        ):
            checkpoint.convert(given, tmp_path / "out", target)

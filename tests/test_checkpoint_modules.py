"""Which linears a checkpoint leaves unquantized, and how the target's configuration names them."""

import json

import pytest
import torch
from checkpoints import layer_tensors, quantization_config, random_layer, write_checkpoint
from safetensors.torch import save_file

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.checkpoint.modules import is_embedding
from awqpack.checkpoint.patterns import matches

QUANTIZED = "model.layers.0.mlp.up_proj"


def make(path, layout, layers, linears, change=None, files=None):
    """A checkpoint of these layers and unquantized linears, with an edited configuration."""
    path.mkdir()
    tensors = {f"{name}.weight": torch.ones(8, 64) for name in linears}
    for name in layers:
        tensors |= layer_tensors(layout, name, random_layer(64, 64, 64))
    save_file(tensors, path / "model.safetensors")
    if files is None:
        config = quantization_config(layout, 64, not_converted=None) | (change or {})
        files = {"config.json": {"quantization_config": config}}
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


def quantization_of(path):
    return json.loads((path / "config.json").read_text())["quantization_config"]


SCHEME = {"num_bits": 4, "group_size": 64, "strategy": "group", "symmetric": False, "type": "int"}
MLP_ALONE = {"config_groups": {"g": {"targets": ["re:.*mlp.*_proj$"], "weights": SCHEME}}, "ignore": []}
LEFT_OUT = {
    "targets that match some linears": ("gemm", [QUANTIZED], ["self_attn.q_proj"], MLP_ALONE, ["self_attn.q_proj"]),
    "names": ("gemm", [QUANTIZED], ["mlp.gate"], {"ignore": ["mlp.gate"]}, ["mlp.gate"]),
    "a pattern": ("gemm", [QUANTIZED], ["a.gate", "b.gate"], {"ignore": ["re:.*gate$"]}, ["a.gate", "b.gate"]),
    "nothing": ("gemm", [QUANTIZED], [], {"ignore": ["lm_head"]}, None),
    "the head, which AWQ never quantizes": ("gemm", [QUANTIZED], ["lm_head"], {"ignore": ["lm_head"]}, None),
    "embeddings are none": ("gemm", [QUANTIZED], ["model.embed_tokens", "transformer.wte"], {"ignore": []}, None),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_from_compressed_tensors(name, tmp_path):
    """Its readers leave out what no target matches, and AWQ's what is named: all of it is."""
    target, layers, linears, change, expected = LEFT_OUT[name]
    given = make(tmp_path / "given", "compressed-tensors", layers, linears, change)
    checkpoint.convert(given, tmp_path / "out", target)
    assert quantization_of(tmp_path / "out")["modules_to_not_convert"] == expected
    assert checkpoint.verify(given, tmp_path / "out").is_equal


IGNORED = {
    "a vision tower that nobody named": (["visual.blocks.0.attn.qkv"], None, [r"visual\.blocks\.0\.attn\.qkv"]),
    "GPT-NeoX's head": (["embed_out"], None, ["embed_out"]),
    "linears with embed in their names": (["a.embedding_projection"], None, [r"a\.embedding_projection"]),
    "a part that quantized layers contain": (["mlp.gate"], ["mlp"], [r"mlp\.gate"]),
    "embeddings": (["model.embed_tokens", "gpt_neox.embed_in", "transformer.wpe"], None, []),
}


@pytest.mark.parametrize("name", IGNORED)
def test_from_gemm(name, tmp_path):
    """Names match under the prefixes that transformers 5 gives to modules: model.visual for the files' visual."""
    linears, named, expected = IGNORED[name]
    given = make(tmp_path / "given", "gemm", [QUANTIZED], linears, {"modules_to_not_convert": named})
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    ignored = quantization_of(tmp_path / "out")["ignore"]
    assert ignored == ["lm_head", *(rf"re:(.*\.)?{pattern}$" for pattern in expected)]
    for prefix in ("", "model."):
        found = matches([entry[3:] for entry in ignored if entry.startswith("re:")], [prefix + m for m in linears])
        assert [len(of_pattern) for of_pattern in found] == [1] * len(expected)
    assert checkpoint.verify(given, tmp_path / "out").is_equal


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.embed_tokens", True),
        ("gpt_neox.embed_in", True),
        ("transformer.wte", True),
        ("bert.embeddings.word_embeddings", True),
        ("visual.patch_embed", True),
        ("embed_out", False),
        ("encoder.embedding_hidden_mapping_in", False),
        ("visual.patch_embed.proj", False),
    ],
)
def test_embeddings_by_name(module, expected):
    assert is_embedding(module) is expected


GATE = {"quantization_config": quantization_config("gemm", 64, not_converted=("gate",))}
SPELLINGS = {
    "a part of quantized layers' names": {"config.json": GATE},
    "an older file that names nothing": {
        "config.json": {"model_type": "llama"},
        "quant_config.json": {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
    },
    "null": {"config.json": {"quantization_config": quantization_config("gemm", 64, not_converted=None)}},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_verify_compares_modules_not_spellings(name, tmp_path):
    """What convert writes is what it read; a linear that is left out no more is a difference."""
    given = make(tmp_path / "given", "gemm", ["mlp.experts.0.gate_proj"], ["mlp.gate"], files=SPELLINGS[name])
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    assert checkpoint.verify(given, tmp_path / "out").differences == ()
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "gemm")
    path = tmp_path / "back" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["other"]
    path.write_text(json.dumps(config))
    differences = checkpoint.verify(tmp_path / "out", tmp_path / "back").differences
    assert [str(difference) for difference in differences] == []
    differences = checkpoint.verify(given, tmp_path / "back").differences
    if name != "null" and "gate" in str(SPELLINGS[name]["config.json"]):
        assert [str(difference) for difference in differences] == [
            "the quantization_config: leaves out mlp.gate and nothing"
        ]


@pytest.mark.parametrize("target", ["gemm", "gemv"])
def test_a_quantized_head_is_named_and_warned_of(target, tmp_path):
    """vLLM and GPTQModel read "lm_head": true; AutoAWQ and transformers would leave the head as it was made."""
    given = make(tmp_path / "given", "compressed-tensors", ["lm_head", QUANTIZED], [], {"ignore": []})
    done = checkpoint.convert(given, tmp_path / "out", target)
    assert quantization_of(tmp_path / "out")["lm_head"] is True
    assert done.warnings == (
        "lm_head is quantized, which vLLM and GPTQModel read, and AutoAWQ and transformers do not",
    )
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "compressed-tensors")
    assert quantization_of(tmp_path / "back")["ignore"] == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("re:.*(a+)+c$", "take longer than"),
        ("re:a{99999999999}", "is no pattern"),
        ("re:(", "is no pattern"),
        ("re:(?P<a>x)(?P<a>y)", "is no pattern"),
    ],
)
def test_patterns_that_are_hostile(pattern, text, tmp_path, monkeypatch):
    """A match that backtracks for ever ends; one that overflows says so."""
    monkeypatch.setattr("awqpack.checkpoint.patterns._SECONDS", 1.0)
    linears = ["model." + "a" * 40]
    given = make(tmp_path / "given", "compressed-tensors", [QUANTIZED], linears, {"ignore": [pattern]})
    with pytest.raises(CheckpointError, match=f"config.json: ignore expects patterns; .*{text}"):
        checkpoint.convert(given, tmp_path / "out", "gemm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "pattern",
    [".*mlp.gate$", r"^model\.layers\.\d+\.", "(?!.*experts).*gate", r".*(up|down)_proj", "", "a|b", ".*?_proj$"],
)
def test_patterns_match_as_their_readers_do(pattern):
    import re

    names = ["model.layers.0.mlp.gate", "model.layers.11.mlp.experts.3.up_proj", "b", "x" * 600 + ".mlp.gate"]
    assert matches([pattern], names) == [[name for name in names if re.match(pattern, name)]]


@pytest.mark.parametrize(("target", "symmetric", "warned"), [("gptq", 0, 1), ("gptq", 1, 0), ("gptq_v2", 0, 0)])
def test_zeros_that_gptqmodel_does_not_read_are_warned_of(target, symmetric, warned, tmp_path):
    """Its loader refuses "sym": false of the first version of the format, from whatever writer (7.7.0)."""
    layers = {QUANTIZED: random_layer(64, 256, symmetric=symmetric, layouts=["gptq"])}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, symmetric=symmetric)
    done = checkpoint.convert(given, tmp_path / "out", target)
    assert done.warnings == ("GPTQModel reads zeros other than 8 from gptq_v2 alone",) * warned

"""Models in floats that are rounded to 4 bits: which linears, to what, and what is refused."""

import json

import pytest
import torch
from checkpoints import LAYOUT_NAMES, contents, leftovers
from safetensors.torch import load_file, save_file
from shared import assert_same

import awqpack
from awqpack import checkpoint, cli
from awqpack.checkpoint import CheckpointError
from awqpack.layouts import LAYOUTS, quantize_layer
from awqpack.ops.floats import FORMULAS

KEPT = {
    "lm_head": "the head",
    "model.embed_tokens": "an embedding",
    "model.layers.1.mlp.gate": "a router or gate",
    "visual.blocks.0.qkv": "no part of the text model",
    "projector": "outside of the blocks",
}
LINEARS = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts.0.up_proj"]


def some_floats(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    shapes = {**dict.fromkeys(KEPT, (64, 256)), **dict.fromkeys(LINEARS, (72, 256))}
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.randn(72, generator=generator).to(dtype)
    tensors["model.layers.0.input_layernorm.weight"] = torch.ones(256, dtype=dtype)
    return tensors


def write_floats(path, tensors=None, **config):
    path.mkdir()
    save_file(some_floats() if tensors is None else tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(
        json.dumps({"model_type": "llama", "torch_dtype": "bfloat16", **config}, indent=2)
    )
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("target", LAYOUT_NAMES)
def test_every_layout(target, symmetric, tmp_path):
    tensors = some_floats()
    given = write_floats(tmp_path / "given", tensors)
    if target == "modelopt" and not symmetric:
        with pytest.raises(CheckpointError, match="has no zeros"):
            checkpoint.quantize(given, tmp_path / "out", target)
        return
    done = checkpoint.quantize(given, tmp_path / "out", target, symmetric=symmetric)
    assert (list(done.quantized), done.kept) == (sorted(LINEARS), dict(sorted(KEPT.items())))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    found = checkpoint.inspect(tmp_path / "out")
    assert (found.problems, found.layout, found.group_size) == ((), target, 128)
    written = load_file(tmp_path / "out" / "model.safetensors")
    with checkpoint.Checkpoint(tmp_path / "out") as opened:
        for name in LINEARS:
            weight = tensors.pop(f"{name}.weight")
            scales, zeros = awqpack.min_max_scales(weight, formula=LAYOUTS[target].formulas[symmetric])
            layer = opened.decode(name)
            assert_same(layer.scales.contiguous(), scales)
            assert_same(layer.zeros.contiguous(), zeros)
            assert_same(layer.codes.contiguous(), awqpack.unpack(awqpack.quantize(weight, scales, zeros)))
    for name, tensor in tensors.items():
        assert_same(written[name], tensor)


@pytest.mark.parametrize("target", ["gemm", "compressed-tensors", "gemv_fast", "gptq_v2"])
def test_more_than_a_chunk(target, tmp_path):
    weight = torch.randn(2056, 1024, generator=torch.Generator().manual_seed(0))
    given = write_floats(tmp_path / "given", {"layers.0.fc.weight": weight})
    checkpoint.quantize(given, tmp_path / "out", target, group_size=64)
    scales, zeros = awqpack.min_max_scales(weight, 64, formula=LAYOUTS[target].formulas[0], dtype=torch.float16)
    with checkpoint.Checkpoint(tmp_path / "out") as opened:
        layer = opened.decode("layers.0.fc")
    assert_same(layer.scales.contiguous(), scales)
    assert_same(layer.codes.contiguous(), awqpack.unpack(awqpack.quantize(weight, scales, zeros)))


def test_gptq_takes_weights_without_negatives(tmp_path):
    """As quantize_layer has it; chunk by chunk."""
    weight = torch.randn(2056, 1024, generator=torch.Generator().manual_seed(0)).abs()
    given = write_floats(tmp_path / "given", {"layers.0.fc.weight": weight})
    checkpoint.quantize(given, tmp_path / "out", "gptq", group_size=64)
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = quantize_layer(weight, LAYOUTS["gptq"], 64, formula=LAYOUTS["gptq"].formulas[0], dtype=torch.float16)
    for name, tensor in expected.items():
        assert_same(written[f"layers.0.fc.{name}"], tensor.contiguous())


@pytest.mark.parametrize(
    ("target", "value", "words"),
    [
        ("gemm", float("nan"), r"weight\[1500, 200\] is nan, where min_max_scales expects a finite weight"),
        ("gemm", 1e7, r"scales\[1500, 3\] would be infinite, where .* expects weights whose range float16 holds"),
        ("gptq", 65504 * 14.5, r"no float16 is 67843\.4, the scale of row 1500, group 3, beside a zero of 1"),
    ],
)
def test_a_row_past_the_first_chunk_is_named(target, value, words, tmp_path):
    weight = torch.ones(2056, 1024)
    weight[1500, 200] = value
    given = write_floats(tmp_path / "given", {"layers.0.fc.weight": weight})
    with pytest.raises(CheckpointError, match=rf"layers\.0\.fc: {words}"):
        checkpoint.quantize(given, tmp_path / "out", target, group_size=64)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("target", ["gemm", "compressed-tensors"])
def test_every_formula(target, formula, tmp_path):
    tensors = some_floats()
    given = write_floats(tmp_path / "given", tensors)
    checkpoint.quantize(given, tmp_path / "out", target, formula=formula)
    assert checkpoint.inspect(tmp_path / "out").is_symmetric == formula.startswith("absmax/")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in LINEARS:
        bias = tensors.get(f"{name}.bias")
        expected = quantize_layer(tensors[f"{name}.weight"], LAYOUTS[target], formula=formula, bias=bias)
        for suffix, tensor in expected.items():
            assert_same(written[f"{name}.{suffix}"], tensor.contiguous())


CHOICES = {
    "as it is": ({}, LINEARS),
    "without attention": ({"ignore": ["self_attn"]}, LINEARS[1:]),
    "by a pattern": ({"ignore": [r"re:model\.layers\.1\..*"]}, LINEARS[:2]),
    "with the head": ({"include": ["lm_head"]}, ["lm_head", *LINEARS]),
    "ignored first": ({"include": ["mlp"], "ignore": ["gate", "experts"]}, LINEARS[:2]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_which_linears(case, tmp_path):
    options, expected = CHOICES[case]
    given = write_floats(tmp_path / "given")
    done = checkpoint.quantize(given, tmp_path / "out", "compressed-tensors", dry_run=True, **options)
    assert set(done.quantized) == set(expected)
    assert set(done.kept) == {*KEPT, *LINEARS} - set(expected)
    assert not (tmp_path / "out").exists()


def bad(name, value):
    def change(tensors):
        tensors[f"{name}.weight"][70, 9] = value

    return change


def narrow(tensors):
    for name in LINEARS[:2]:
        tensors[f"{name}.weight"] = torch.ones(64, 192)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64])
def test_linears_of_other_dtypes_are_kept_and_named(dtype, tmp_path):
    tensors = some_floats()
    for name in (LINEARS[0], "lm_head"):
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(dtype)
    given = write_floats(tmp_path / "given", tensors)
    done = checkpoint.quantize(given, tmp_path / "out", "gemm", ignore=["lm_head"])
    reason = f"its dtype is {str(dtype).removeprefix('torch.')}"
    assert (set(done.quantized), done.kept[LINEARS[0]], done.kept["lm_head"]) == (set(LINEARS[1:]), reason, reason)
    assert done.warnings == (f"2 linears of other dtypes are kept in floats, such as lm_head: {reason}",)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert LINEARS[0] in config["modules_to_not_convert"]
    assert load_file(tmp_path / "out" / "model.safetensors")[f"{LINEARS[0]}.weight"].dtype == dtype
    with pytest.raises(CheckpointError, match=rf"holds no linear to quantize \(.*{reason}\)"):
        checkpoint.quantize(given, tmp_path / "none", "gemm", ignore=[r"re:.*(down|up)_proj"])


REFUSED = {
    "NaN": (bad(LINEARS[0], float("nan")), {}, {}, r"layers\.0\.self_attn\.q_proj: weight\[70, 9\] is nan"),
    "infinite": (bad(LINEARS[1], float("-inf")), {}, {}, r"layers\.0\.mlp\.down_proj: weight\[70, 9\] is -inf"),
    "K": (narrow, {}, {}, r"cannot hold 2 of 3 layers: .*down_proj \(in_features 192 .*q_proj \(.*--ignore"),
    "quantized": (None, {"quantization_config": {"quant_method": "awq"}}, {}, "is quantized already, as config.json"),
    "turned": (None, {"model_type": "gpt2"}, {}, "gpt2 has no linears but Conv1D"),
    "nothing left": (None, {}, {"ignore": ["layers"]}, "holds no linear to quantize"),
    "no such name": (None, {}, {"ignore": ["q_prj"]}, "ignore expects names of linear modules; 'q_prj' names none"),
    "no pattern": (None, {}, {"ignore": ["re:("]}, "ignore expects names of modules, or patterns"),
    "formula": (
        None,
        {},
        {"formula": "absmax"},
        r"formula expects one of asymmetric, .*, without symmetric; got 'absmax'",
    ),
    "both": (None, {}, {"formula": "absmax/7", "symmetric": True}, "formula expects one of .*, without symmetric"),
    "group": (None, {}, {"group_size": 0}, "group_size expects a positive number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    change, config, options, words = REFUSED[case]
    tensors = some_floats()
    if change is not None:
        change(tensors)
    given = write_floats(tmp_path / "given", tensors, **config)
    before = contents(given)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.quantize(given, tmp_path / "out", "gemm", **options)
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)
    assert contents(given) == before


def test_the_command_says_what_it_does(tmp_path, capsys):
    given = write_floats(tmp_path / "given")
    assert cli.main(["quantize", str(given), str(tmp_path / "out"), "--to", "gemm", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[:8] == [
        "would round 3 linears to gemm, without a search for scales:",
        "  model.layers.*.mlp.down_proj",
        "  model.layers.*.self_attn.q_proj",
        "  model.layers.*.mlp.experts.*.up_proj",
        "and keep 5 other linears in floats:",
        "  lm_head: the head",
        "  model.embed_tokens: an embedding",
        "  model.layers.*.mlp.gate: a router or gate",
    ]
    assert cli.main(["quantize", str(given), str(tmp_path / "out"), "--to", "gemm", "--scale-dtype", "float16"]) == 0
    assert "3 linears rounded to gemm, without a search for scales; 5 others kept in floats" in capsys.readouterr().out
    assert checkpoint.inspect(tmp_path / "out").layers[0].dtypes["scales"] == "F16"

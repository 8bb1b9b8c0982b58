"""Experts that share a tensor: read expert by expert, as layouts hold them, and whole, as models in floats do."""

import json

import pytest
import torch
from checkpoints import contents, layer_tensors, quantization_config, random_layer
from safetensors.torch import load_file, save_file
from shared import assert_same

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.layouts import LAYOUTS, Layer

EXPERTS, HIDDEN, INNER, GROUP = 3, 128, 64, 32
MOE = "model.layers.0.mlp.experts"
ATTENTION = "model.layers.0.self_attn.o_proj"
SIDE = ("packed", "scale", "zero_point")


def experts(symmetric=False, layouts=()):
    """Layers by parameter: gate and up of each expert on top of each other, and down."""
    shapes = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    return {
        name: [random_layer(*shape, GROUP, symmetric=symmetric, seed=i, layouts=layouts) for i in range(EXPERTS)]
        for name, shape in shapes.items()
    }


def rows(layer, begin, end):
    return Layer(layer.codes[begin:end], layer.scales[begin:end], layer.zeros[begin:end], layer.group_size)


def one_by_one(of, moe=MOE, names=("gate_proj", "up_proj", "down_proj")):
    """The same as a layer for each expert."""
    layers = {}
    for i in range(EXPERTS):
        both = of["gate_up_proj"][i]
        parts = rows(both, 0, INNER), rows(both, INNER, 2 * INNER), of["down_proj"][i]
        layers |= {f"{moe}.{i}.{name}": layer for name, layer in zip(names, parts, strict=True)}
    return layers


def stacked(tensors):
    return torch.stack([tensor.contiguous() for tensor in tensors])


def fused(of, symmetric=False):
    """As llm-compressor 0.12 wrote them: packed expert by expert, and stacked."""
    tensors = {}
    for name, layers in of.items():
        encoded = [LAYOUTS["compressed-tensors"].encode(layer) for layer in layers]
        for part in SIDE[: 2 if symmetric else 3]:
            tensors[f"{MOE}.{name}_{part}"] = stacked(each[f"weight_{part}"] for each in encoded)
        tensors[f"{MOE}.{name}_shape"] = torch.tensor([EXPERTS, *layers[0].codes.shape])
    return tensors


def of_mlx(of, module="mlp"):
    """As mlx-lm stores them: gate, up and down apart, each stacked."""
    layers = one_by_one(of)
    tensors = {}
    for name in ("gate_proj", "up_proj", "down_proj"):
        encoded = [LAYOUTS["mlx"].encode(layers[f"{MOE}.{i}.{name}"]) for i in range(EXPERTS)]
        for part in encoded[0]:
            tensors[f"model.layers.0.{module}.switch_mlp.{name}.{part}"] = stacked(each[part] for each in encoded)
    return tensors


def write(path, layout, tensors, symmetric=False, with_attention=True):
    path.mkdir()
    more = {"model.norm.weight": torch.ones(HIDDEN)}
    if with_attention:
        more |= layer_tensors(layout, ATTENTION, random_layer(64, HIDDEN, GROUP, symmetric=True), symmetric)
    save_file({key: value.contiguous() for key, value in (tensors | more).items()}, path / "model.safetensors")
    config = quantization_config(layout, GROUP, symmetric, not_converted=None)
    keys = LAYOUTS[layout].config_keys
    (path / "config.json").write_text(json.dumps(dict.fromkeys(keys, config), indent=2))
    return path


def obvious(layer):
    scales, zeros = (t.float().repeat_interleave(layer.group_size, 1) for t in (layer.scales, layer.zeros))
    return (layer.codes.float() - zeros) * scales


def merged(folder):
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert_same(found[key], tensor)


SOURCES = {
    "compressed-tensors": ("compressed-tensors", fused, False),
    "compressed-tensors, symmetric": ("compressed-tensors", lambda of: fused(of, True), True),
    "mlx": ("mlx", of_mlx, False),
}
every = pytest.mark.parametrize("source", SOURCES)


@every
@pytest.mark.parametrize(("target", "limit"), [*((name, None) for name in LAYOUTS), ("gemm", "20KB"), ("mlx", "20KB")])
def test_they_become_layers_of_their_own(source, target, limit, tmp_path):
    """The same bytes as of a checkpoint that has each expert as a module."""
    layout, write_as, symmetric = SOURCES[source]
    of = experts(symmetric or target == "modelopt", layouts=(target,))
    given = write(tmp_path / "given", layout, write_as(of), symmetric)
    layers = {name: layer_tensors(layout, name, layer, symmetric) for name, layer in one_by_one(of).items()}
    each = write(tmp_path / "each", layout, {k: v for t in layers.values() for k, v in t.items()}, symmetric)
    if target == layout == "mlx":  # whose readers take them as they are
        checkpoint.convert(given, tmp_path / "out", target, max_shard_size=limit)
        assert_same_tensors(merged(tmp_path / "out"), merged(given))
        return
    done = checkpoint.convert(given, tmp_path / "out", target, max_shard_size=limit)
    assert done.layers == 3 * EXPERTS + 1
    checkpoint.convert(each, tmp_path / "expected", target)
    assert_same_tensors(merged(tmp_path / "out"), merged(tmp_path / "expected"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1 or limit is None
    assert (tmp_path / "out" / "config.json").read_text() == (tmp_path / "expected" / "config.json").read_text()
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    assert checkpoint.verify(tmp_path / "out", given).is_equal


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_in_floats_they_stay_one_parameter(symmetric, dtype, tmp_path):
    of = experts(symmetric)
    given = write(tmp_path / "given", "compressed-tensors", fused(of, symmetric), symmetric)
    checkpoint.convert(given, tmp_path / "out", dtype)
    found = merged(tmp_path / "out")
    for name, layers in of.items():
        assert_same(found.pop(f"{MOE}.{name}"), torch.stack([obvious(x) for x in layers]).to(getattr(torch, dtype)))
    assert set(found) == {f"{ATTENTION}.weight", "model.norm.weight"}


def test_mlxs_become_modules_in_floats_too(tmp_path):
    """Whose models have a module for each expert, as transformers reads them."""
    of = experts()
    checkpoint.convert(write(tmp_path / "given", "mlx", of_mlx(of)), tmp_path / "out", "float32")
    found = merged(tmp_path / "out")
    for name, layer in one_by_one(of).items():
        assert_same(found.pop(f"{name}.weight"), obvious(layer))
    assert set(found) == {f"{ATTENTION}.weight", "model.norm.weight"}


def test_mixtrals_names(tmp_path):
    of = experts()
    given = write(tmp_path / "given", "mlx", of_mlx(of, "block_sparse_moe"))
    checkpoint.convert(given, tmp_path / "out", "gemm")
    names = one_by_one(of, "model.layers.0.block_sparse_moe.experts", ("w1", "w3", "w2"))
    found = merged(tmp_path / "out")
    for name, layer in names.items():
        assert_same(found[f"{name}.qweight"], LAYOUTS["gemm"].encode(layer)["qweight"])


@pytest.mark.parametrize("source", SOURCES)
def test_inspect_counts_them_expert_by_expert(source, tmp_path):
    layout, write_as, symmetric = SOURCES[source]
    of = experts(symmetric)
    given = write(tmp_path / "given", layout, write_as(of), symmetric)
    found = checkpoint.inspect(given)
    assert (found.layout, found.problems, len(found.layers)) == (layout, (), 3 * EXPERTS + 1)
    sizes = {layer.name: (layer.out_features, layer.in_features, layer.group_size) for layer in found.layers}
    assert sizes[f"{MOE}.2.gate_proj"] == (INNER, HIDDEN, GROUP)
    assert sizes[f"{MOE}.0.down_proj"] == (HIDDEN, INNER, GROUP)
    total = sum(t.nbytes for name, t in merged(given).items() if name != "model.norm.weight")
    assert abs(found.quantized_bytes - total) <= 48  # of the shapes
    alone = write(tmp_path / "alone", layout, write_as(of), symmetric, with_attention=False)
    (alone / "config.json").unlink()
    assert checkpoint.inspect(alone).layout == layout


def test_a_changed_code_is_found(tmp_path):
    of = experts()
    given = write(tmp_path / "given", "compressed-tensors", fused(of))
    of["gate_up_proj"][1].codes[INNER + 5, 7] ^= 1
    other = write(tmp_path / "other", "compressed-tensors", fused(of))
    (difference,) = checkpoint.verify(given, other).differences
    assert (difference.what, difference.part, difference.index) == (f"{MOE}.1.up_proj", "codes", (5, 7))


def without(*names):
    return lambda tensors: {key: value for key, value in tensors.items() if not key.endswith(names)}


def but(name, change):
    return lambda tensors: tensors | {f"{MOE}.{name}": change(tensors[f"{MOE}.{name}"])}


BAD = {
    "no scales": (without("gate_up_proj_scale"), "gate_up_proj: weight_scale is missing"),
    "no zeros": (without("down_proj_zero_point"), "down_proj: weight_zero_point is missing"),
    "another shape": (
        but("down_proj_shape", lambda t: t + 1),
        r"down_proj_shape expects \[3, 128, 64\]; got \[4, 129, 65\]",
    ),
    "few scales": (but("down_proj_scale", lambda t: t[:, :64]), r"weight_scale expects float16 \(128, 2\)"),
    "no experts": (but("down_proj_packed", lambda t: t[0]), "down_proj_packed: packed as one parameter, but not as"),
    "bytes": (
        but("down_proj_packed", lambda t: t.view(torch.uint8)),
        "down_proj: weight_packed expects int32 with 2 dimensions; got uint8",
    ),
    "other experts": (
        lambda tensors: tensors | {f"{MOE}.qweight": torch.zeros(3, 64, 8, dtype=torch.int32)},
        "expects weight_packed; got",
    ),
    "a module of the same name": (
        lambda tensors: tensors | layer_tensors("compressed-tensors", f"{MOE}.0.up_proj", random_layer(64, 128, 32)),
        r"experts\.0\.up_proj: is there twice",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit(case, tmp_path):
    change, text = BAD[case]
    given = write(tmp_path / "given", "compressed-tensors", change(fused(experts())))
    before = contents(tmp_path)
    for target in ("gemm", "bfloat16"):
        with pytest.raises(CheckpointError, match=text):
            checkpoint.convert(given, tmp_path / "out", target)
    assert contents(tmp_path) == before
    assert checkpoint.inspect(given).problems != ()


def test_zeros_of_two_experts_in_a_word(tmp_path):
    of = {"gate_up_proj": [random_layer(24, HIDDEN, GROUP, seed=i) for i in range(EXPERTS)]}
    given = write(tmp_path / "given", "compressed-tensors", fused(of))
    with pytest.raises(CheckpointError, match=r"experts\.0\.gate_proj has 12 rows, not a multiple of 8, and zeros"):
        checkpoint.convert(given, tmp_path / "out", "float16")


@every
def test_a_bias_of_all_experts(source, tmp_path):
    layout, write_as, symmetric = SOURCES[source]
    name = f"{MOE}.down_proj_bias" if layout != "mlx" else "model.layers.0.mlp.switch_mlp.down_proj.bias"
    tensors = write_as(experts(symmetric)) | {name: torch.ones(EXPERTS, HIDDEN)}
    given = write(tmp_path / "given", layout, tensors, symmetric)
    with pytest.raises(CheckpointError, match=f"down_proj .*{name} is one tensor of all experts"):
        checkpoint.convert(given, tmp_path / "out", "gemm")
    if layout != "mlx":
        checkpoint.convert(given, tmp_path / "out", "bfloat16")
        assert_same(merged(tmp_path / "out")[name], tensors[name])


# --- written as one tensor, where readers have them so ---


def each_of(of, layout="gemm"):
    return {k: v for name, layer in one_by_one(of).items() for k, v in layer_tensors(layout, name, layer).items()}


@pytest.mark.parametrize("limit", [None, "20KB"])
def test_mlx_has_them_in_one_tensor(limit, tmp_path):
    """As mlx-lm's own conversion stores them; back, each is a module again."""
    of = experts()
    given = write(tmp_path / "given", "gemm", each_of(of))
    done = checkpoint.convert(given, tmp_path / "out", "mlx", max_shard_size=limit)
    assert done.layers == 3 * EXPERTS + 1
    found = {key: tensor for key, tensor in merged(tmp_path / "out").items() if "mlp" in key}
    assert_same_tensors(found, of_mlx(of))
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "gemm")
    assert_same_tensors(merged(tmp_path / "back"), merged(given))
    checkpoint.convert(tmp_path / "out", tmp_path / "wider", "mlx", scale_dtype="float32")
    assert checkpoint.verify(tmp_path / "out", tmp_path / "wider").is_equal
    assert merged(tmp_path / "wider").keys() == merged(tmp_path / "out").keys()


@pytest.mark.parametrize(
    ("model_type", "name"), [("qwen3_moe", "mlp.switch_mlp"), ("llama4", "mlp.experts"), (None, "mlp.switch_mlp")]
)
def test_mlx_names_them_by_the_model(model_type, name, tmp_path):
    given = write(tmp_path / "given", "gemm", each_of(experts()))
    config = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    checkpoint.convert(given, tmp_path / "out", "mlx")
    assert merged(tmp_path / "out")[f"model.layers.0.{name}.gate_proj.weight"].shape == (EXPERTS, INNER, HIDDEN // 8)
    assert checkpoint.verify(given, tmp_path / "out").is_equal


def only(*numbers):
    return lambda tensors: {k: v for k, v in tensors.items() if int(k.removeprefix(f"{MOE}.")[0]) in numbers}


NOT_STACKED = {
    "one is missing": only(0, 2),
    "another size": lambda t: t | layer_tensors("gemm", f"{MOE}.1.down_proj", random_layer(64, 64, 32)),
    "a bias": lambda t: t | {f"{MOE}.0.down_proj.bias": torch.ones(HIDDEN)},
}


@pytest.mark.parametrize("case", NOT_STACKED)
def test_what_is_not_alike_stays_apart(case, tmp_path):
    given = write(tmp_path / "given", "gemm", NOT_STACKED[case](each_of(experts())))
    checkpoint.convert(given, tmp_path / "out", "mlx")
    assert f"{MOE}.0.down_proj.weight" in merged(tmp_path / "out")
    assert checkpoint.verify(given, tmp_path / "out").is_equal


def test_quantized_experts_too(tmp_path):
    (tmp_path / "given").mkdir()
    weights = {f"{name}.weight": obvious(layer).half() for name, layer in one_by_one(experts()).items()}
    save_file(weights, tmp_path / "given" / "model.safetensors")
    (tmp_path / "given" / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
    results = {}
    for target in ("mlx", "gemm"):
        results[target] = checkpoint.quantize(tmp_path / "given", tmp_path / target, target, group_size=32)
    assert set(results["mlx"].quantized) == set(results["gemm"].quantized) == set(one_by_one(experts()))
    assert len(merged(tmp_path / "mlx")) == 9
    layers = [checkpoint.inspect(tmp_path / target).layers for target in ("mlx", "gemm")]
    assert {layer.name for layer in layers[0]} == {layer.name for layer in layers[1]}


# --- rounded from floats ---


def floats(is_turned=False, hidden=HIDDEN, inner=INNER):
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
    weights = {name: torch.randn(EXPERTS, *shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    stored = {f"{MOE}.{name}": (w.transpose(1, 2) if is_turned else w).contiguous() for name, w in weights.items()}
    each = {}
    for i in range(EXPERTS):
        gate_up = weights["gate_up_proj"][i]
        parts = {"gate_proj": gate_up[:inner], "up_proj": gate_up[inner:], "down_proj": weights["down_proj"][i]}
        each |= {f"{MOE}.{i}.{name}.weight": w.contiguous() for name, w in parts.items()}
    return stored, each


def write_floats(path, tensors, **config):
    path.mkdir()
    attention = {f"{ATTENTION}.weight": torch.ones(64, HIDDEN).bfloat16()}
    save_file(tensors | attention, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"text_config": {"hidden_size": HIDDEN}, **config}))
    return path


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("target", ["gemm", "compressed-tensors", "mlx"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_they_are_rounded_expert_by_expert(is_turned, target, symmetric, tmp_path):
    """As llm-compressor does, whichever of the two orders their model has: the bytes of experts that are modules."""
    stored, each = floats(is_turned)
    options = {"group_size": 32, "symmetric": symmetric}
    for name, tensors in (("given", stored), ("each", each)):
        write_floats(tmp_path / name, tensors)
        done = checkpoint.quantize(tmp_path / name, tmp_path / f"{name}.out", target, **options)
        assert (len(done.quantized), done.kept, done.warnings) == (3 * EXPERTS + 1, {}, ())
    assert contents(tmp_path / "given.out") == contents(tmp_path / "each.out")


def test_large_experts_are_rounded_a_chunk_at_a_time(tmp_path):
    for is_turned in (False, True):
        stored, each = floats(is_turned, inner=2304)
        checkpoint.quantize(write_floats(tmp_path / f"{is_turned}", stored), tmp_path / f"{is_turned}.out", "gemm")
    checkpoint.quantize(write_floats(tmp_path / "each", each), tmp_path / "each.out", "gemm")
    assert contents(tmp_path / "True.out") == contents(tmp_path / "False.out") == contents(tmp_path / "each.out")


def test_a_square_expert_goes_by_its_like(tmp_path):
    """Where 2 I is the hidden size, only down tells which of the two comes first."""
    for is_turned in (False, True):
        stored, _ = floats(is_turned)
        assert stored[f"{MOE}.gate_up_proj"].shape[1:] == (2 * INNER, HIDDEN) == (HIDDEN, HIDDEN)
        given = write_floats(tmp_path / f"given{is_turned}", stored)
        checkpoint.quantize(given, tmp_path / f"out{is_turned}", "gemm", group_size=32)
    assert contents(tmp_path / "outFalse") == contents(tmp_path / "outTrue")


KEPT = {
    "no size": ({"text_config": {}}, {}, {}, "no size tells its out_features"),
    "every size": ({}, {"hidden": 128, "inner": 128}, {}, "no size tells its out_features"),
    "alternating": ({"model_type": "gpt_oss"}, {}, {}, "gate and up take turns in it"),
    "a bias": (
        {},
        {},
        {f"{MOE}.gate_up_proj_bias": torch.ones(3, 128), f"{MOE}.down_proj_bias": torch.ones(3, 128)},
        "has a bias of all experts",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_experts_that_stay_in_floats(case, tmp_path):
    """Named with the reason, and to the target's readers."""
    config, sizes, more, reason = KEPT[case]
    stored, _ = floats(**sizes)
    if case == "every size":
        stored.pop(f"{MOE}.gate_up_proj")
    given = write_floats(tmp_path / "given", stored | more, **config)
    done = checkpoint.quantize(given, tmp_path / "out", "compressed-tensors", group_size=32)
    assert done.kept == dict.fromkeys(stored, reason)
    assert done.warnings[0].endswith(f"such as {min(stored)}: {reason}")
    assert_same_tensors({k: v for k, v in merged(tmp_path / "out").items() if MOE in k}, stored | more)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["ignore"] == ["lm_head", r"re:(.*\.)?model\.layers\.0\.mlp\.experts$"]


def test_a_tensor_is_kept_as_a_whole(tmp_path):
    """One expert that is ignored keeps all that share its tensor."""
    given = write_floats(tmp_path / "given", floats()[0])
    done = checkpoint.quantize(given, tmp_path / "out", "gemm", group_size=32, ignore=["experts.1.up_proj"])
    assert set(done.kept) == {f"{MOE}.{i}.{name}" for i in range(EXPERTS) for name in ("gate_proj", "up_proj")}
    assert set(done.kept.values()) == {"ignored"}
    assert f"{MOE}.gate_up_proj" in merged(tmp_path / "out")
    assert f"{MOE}.0.down_proj.qweight" in merged(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["modules_to_not_convert"] == list(done.kept)  # and not what is quantized beside them

"""Checkpoints from any layout to any other: what changes, what is kept."""

import itertools
import json
import os

import pytest
import torch
from checkpoints import (
    LAYOUT_NAMES,
    REFERENCE_NAMES,
    ZEROS_OF,
    contents,
    quantization_config,
    random_layer,
    some_layers,
    write_checkpoint,
    write_reference,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shared import CUDA, assert_same

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.layouts import LAYOUTS

PAIRS = list(itertools.permutations(LAYOUT_NAMES, 2))
# Why a layout does not hold the zeros of a reference layer; all others hold all of them.
REASONS = {
    (
        "gptq",
        "as they are",
    ): r"fc \(a zero is stored minus one, which has no place for the 0 of row \d+",
    ("modelopt", "as they are"): r"fc \(zeros are none but 8; row \d+, group \d+ has \d+\)",
    ("modelopt", "none of 0"): r"fc \(zeros are none but 8; row \d+, group \d+ has \d+\)",
}


@pytest.mark.parametrize("name", REFERENCE_NAMES)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_reference_layers_in_every_pair(source, target, name, tmp_path):
    """Byte for byte, there and back, or the named reason; and then a layer with zeros that both hold."""
    zeros = ZEROS_OF.get(source, "as they are")
    reason = REASONS.get((target, zeros))
    if reason is not None:
        given = write_reference(tmp_path, source, name, zeros)
        with pytest.raises(CheckpointError, match=f"{target} cannot hold 1 of 1 layers: model.{reason}"):
            checkpoint.convert(given, tmp_path / "out.safetensors", target, layout=source)
        assert not (tmp_path / "out.safetensors").exists()
        zeros = ZEROS_OF[target]
    given, expected = (write_reference(tmp_path, layout, name, zeros) for layout in (source, target))
    out, back = tmp_path / "out.safetensors", tmp_path / "back.safetensors"
    done = checkpoint.convert(given, out, target, layout=source)
    assert (done.source_layout, done.target_layout, done.layers) == (source, target, 1)
    assert out.read_bytes() == expected.read_bytes()
    checkpoint.convert(out, back, source, layout=target)
    assert back.read_bytes() == given.read_bytes()


@pytest.mark.parametrize("target", LAYOUT_NAMES)
@pytest.mark.parametrize("source", LAYOUT_NAMES)
def test_folders_become_what_would_have_been_saved(source, target, tmp_path):
    """File for file the bytes that the target's own tools would write, and back."""
    layers = some_layers(source, target)
    is_symmetric = "modelopt" in (source, target)
    given = write_checkpoint(tmp_path / "given", source, layers, symmetric=is_symmetric)
    out, back = tmp_path / "out", tmp_path / "back"
    checkpoint.convert(given, out, target)
    assert checkpoint.verify(given, out).is_equal
    loaded = {}
    for file in out.glob("*.safetensors"):
        loaded |= load_file(file)
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt", "note": "kept"}
    expected_folder = write_checkpoint(tmp_path / "expected", target, layers, shards=1, symmetric=is_symmetric)
    expected = load_file(expected_folder / "model.safetensors")
    assert set(loaded) == set(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    if not {source, target} & {"mlx", "modelopt"}:  # MLX names no modules, ModelOpt does not say that zeros are stored
        assert written["quantization_config"] == quantization_config(target)
    assert (out / "extra" / "notes.txt").read_text() == "kept"
    checkpoint.convert(out, back, source)
    assert merged(back) == merged(given)
    if not {source, target} & MAKE_ANEW:
        assert contents(back) == contents(given)


# g_idx is made anew, beside the weight; so are a file of ModelOpt's own, and names of modules that MLX does without.
MAKE_ANEW = {"gptq", "gptq_v2", "modelopt", "mlx"}


ZEROS_NAMES = {f"fc.{layout.names['zeros']}" for layout in LAYOUTS.values() if "zeros" in layout.names}
SAY_ONE_SIZE = {"mlx", "modelopt", "quark", "quark-int4"}  # of the groups, and never a whole row


def merged(folder):
    """Names, dtypes and bytes of every tensor, whatever file it is in."""
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {name: (str(t.dtype), t.contiguous().flatten().view(torch.uint8).tolist()) for name, t in tensors.items()}


def test_one_file_in_a_folder(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", shards=1)
    checkpoint.convert(given, tmp_path / "out", "gemv")
    assert sorted(contents(tmp_path / "out")) == [
        "config.json",
        "extra/notes.txt",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_the_index_is_rewritten(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", shards=3)
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    where, total = {}, 0
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        tensors = load_file(file)
        where |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    assert index == {"metadata": {"total_parameters": 7, "total_size": total}, "weight_map": where}


@pytest.mark.parametrize(("limit", "expected"), [("20KB", None), ("1GB", ["model.safetensors"])])
def test_max_shard_size(limit, expected, tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", shards=3)
    done = checkpoint.convert(given, tmp_path / "out", "gemv_fast", max_shard_size=limit)
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(done.files)
    has_index = (tmp_path / "out" / "model.safetensors.index.json").exists()
    if expected is None:
        assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
        assert len(files) > 3
        assert has_index
        for layer in checkpoint.inspect(tmp_path / "out").layers:
            homes = {f for f in files for name in load_file(tmp_path / "out" / f) if name.startswith(layer.name + ".q")}
            assert len(homes) == 1
    else:
        assert files == expected
        assert not has_index


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("77", 77), (12, 12)])
def test_sizes(text, size):
    from awqpack.checkpoint.plan import parse_size

    assert parse_size(text) == size


@pytest.mark.parametrize("target", LAYOUT_NAMES)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_groups_and_scales(target, group_size, dtype, tmp_path):
    layers = {
        "a.fc": random_layer(72, 256, group_size, dtype=dtype, bias=True, layouts=[target]),
        "b.fc": random_layer(8, 384, group_size, dtype=dtype, layouts=[target]),
    }
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1, group_size=group_size)
    if group_size == -1 and target in SAY_ONE_SIZE:
        with pytest.raises(CheckpointError, match=r"groups of one size|group size .* is none of"):
            checkpoint.convert(given, tmp_path / "out", target)
        return
    checkpoint.convert(given, tmp_path / "out", target)
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    assert checkpoint.inspect(tmp_path / "out").group_size == group_size
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "gemm")
    if target in MAKE_ANEW:
        assert merged(tmp_path / "back") == merged(given)
    else:
        assert contents(tmp_path / "back") == contents(given)


@pytest.mark.parametrize("target", LAYOUT_NAMES)
def test_symmetric_checkpoints_stay_symmetric(target, tmp_path):
    layers = {"fc": random_layer(64, 256, symmetric=True)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1, symmetric=True)
    checkpoint.convert(given, tmp_path / "out", target)
    found = checkpoint.inspect(tmp_path / "out")
    assert found.is_symmetric
    assert not found.problems
    has_zeros = any(name in load_file(tmp_path / "out" / "model.safetensors") for name in ZEROS_NAMES)
    assert has_zeros == LAYOUTS[target].stores_symmetric_zeros
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "gemm")
    if target == "mlx":  # which does not say so, and names no modules
        assert merged(tmp_path / "back") == merged(given)
        return
    if "zero_point" not in quantization_config(target):  # whether zeros are stored: from here on they are
        edit_quantization(tmp_path / "back", zero_point=False)
        edit_quantization(given)
    assert contents(tmp_path / "back") == contents(given)


def test_zeros_that_are_stored_are_said_to_be_there(tmp_path):
    """vLLM's awq_marlin asks for zero_point true, and otherwise takes its slower kernel, for float16 alone."""
    layers = {"fc": random_layer(64, 256, symmetric=True)}
    given = write_checkpoint(tmp_path / "given", "compressed-tensors", layers, {}, shards=1, symmetric=True)
    checkpoint.convert(given, tmp_path / "out", "gemm")
    assert quantization_of(tmp_path / "out")["zero_point"] is True
    assert "fc.qzeros" in load_file(tmp_path / "out" / "model.safetensors")
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "compressed-tensors")
    assert contents(tmp_path / "back") == contents(given)


@pytest.mark.parametrize("target", LAYOUT_NAMES)
def test_scales_of_another_dtype(target, tmp_path):
    """Which float16-only kernels want of a bfloat16 model: exact, or the layers are named."""
    layers = {name: random_layer(64, 256, dtype=torch.bfloat16, layouts=[target]) for name in ("a.fc", "b.fc")}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1)
    checkpoint.convert(given, tmp_path / "out", target, scale_dtype="float16")
    with checkpoint.Checkpoint(tmp_path / "out") as opened:
        for name, layer in layers.items():
            assert_same(opened.decode(name).scales.contiguous(), layer.scales.half())
            assert_same(opened.decode(name).codes.contiguous(), layer.codes)
            assert_same(opened.decode(name).zeros.contiguous(), layer.zeros)
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    checkpoint.convert(tmp_path / "out", tmp_path / "back", "gemm", scale_dtype=torch.bfloat16)
    assert merged(tmp_path / "back") == merged(given)
    assert target in MAKE_ANEW or contents(tmp_path / "back") == contents(given)


def test_scales_that_no_other_dtype_holds(tmp_path):
    layers = {"a.fc": random_layer(64, 256, dtype=torch.bfloat16), "b.fc": random_layer(64, 256, dtype=torch.bfloat16)}
    layers["b.fc"].scales[3, 1] = 1e-9
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1)
    text = r"cannot hold 1 of 2 layers: b.fc \(no float16 is 9\.968\d+e-10, the scale of row 3, group 1\)"
    with pytest.raises(CheckpointError, match=text):
        checkpoint.convert(given, tmp_path / "out", "gemv", scale_dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_symmetric_configuration_that_is_not_true_loses_no_zero(tmp_path):
    layers = {"fc": random_layer(64, 256)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1, symmetric=True)
    assert "the configuration is symmetric" in checkpoint.inspect(given).problems[0]
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    assert checkpoint.inspect(tmp_path / "out").is_symmetric is False
    with checkpoint.Checkpoint(tmp_path / "out") as opened:
        assert torch.equal(opened.decode("fc").zeros, layers["fc"].zeros)


def test_symmetric_layers_may_lack_their_zeros(tmp_path):
    layers = {"fc": random_layer(64, 256, symmetric=True)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1, symmetric=True)
    tensors = load_file(given / "model.safetensors")
    del tensors["fc.qzeros"]
    save_file(tensors, given / "model.safetensors")
    checkpoint.convert(given, tmp_path / "out", "gemv")
    with checkpoint.Checkpoint(tmp_path / "out") as opened:
        assert opened.decode("fc").is_symmetric


def test_keys_of_an_engine_in_the_configuration_stay(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["do_fuse"] = False
    (given / "config.json").write_text(json.dumps(config))
    checkpoint.convert(given, tmp_path / "out", "gemv")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written == config["quantization_config"] | {"version": "gemv"}


def test_configuration_of_the_text_part(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    config = {"text_config": {"quantization_config": config.pop("quantization_config"), "n": 1}, "vision_config": {}}
    (given / "config.json").write_text(json.dumps(config, indent=4))
    checkpoint.convert(given, tmp_path / "out", "gemv_fast")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["text_config"]["quantization_config"]["version"] == "gemv_fast"
    assert written["text_config"]["n"] == 1
    assert checkpoint.verify(given, tmp_path / "out").is_equal


LEGACY = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}


def test_the_older_quant_config(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", config=False)
    (given / "quant_config.json").write_text(json.dumps(LEGACY))
    (given / "config.json").write_text('{"a": 1}')
    checkpoint.convert(given, tmp_path / "fast", "gemv_fast")
    assert json.loads((tmp_path / "fast" / "quant_config.json").read_text()) == LEGACY | {"version": "GEMV_FAST"}
    checkpoint.convert(given, tmp_path / "ct", "compressed-tensors")
    assert not (tmp_path / "ct" / "quant_config.json").exists()
    written = json.loads((tmp_path / "ct" / "config.json").read_text())
    expected = quantization_config("compressed-tensors", not_converted=None)
    expected["ignore"].append(r"re:(.*\.)?visual\.blocks\.0\.qkv$")
    assert written == {"a": 1, "quantization_config": expected}


def test_to_its_own_layout_copies(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    checkpoint.convert(given, tmp_path / "out", "gemm")
    assert contents(tmp_path / "out") == contents(given)


def test_without_a_configuration_tensors_tell(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemv", config=False)
    done = checkpoint.convert(given, tmp_path / "out", "gemm")
    assert (done.source_layout, done.is_configured) == ("gemv", False)
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_source_layout_can_be_named(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemv")
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["version"] = "gemm"
    (given / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not gemm but gemv, by its tensors"):
        checkpoint.convert(given, tmp_path / "out", "gemv_fast")
    checkpoint.convert(given, tmp_path / "out", "gemv_fast", layout="gemv")
    assert not checkpoint.inspect(tmp_path / "out").problems


def edit_quantization(path, **change):
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] |= change
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")


def quantization_of(path):
    return json.loads((path / "config.json").read_text(encoding="utf-8"))["quantization_config"]


GATES = {
    "model.layers.0.mlp.gate.weight": torch.ones(4, 256),
    "model.layers.1.mlp.gate.weight": torch.ones(4, 256),
    "model.norm.weight": torch.ones(256),
}


def test_part_of_a_name_that_quantized_layers_contain(tmp_path):
    """compressed-tensors would take mlp.gate_proj for unquantized: the gates are named one by one."""
    layers = {"model.layers.0.mlp.gate_proj": random_layer(64, 256)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, GATES, modules_to_not_convert=["mlp.gate", "visual"])
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    assert quantization_of(tmp_path / "out")["ignore"] == [
        "lm_head",
        "re:.*visual.*",
        r"re:(.*\.)?model\.layers\.0\.mlp\.gate$",
        r"re:(.*\.)?model\.layers\.1\.mlp\.gate$",
    ]


def test_linears_that_are_not_quantized_are_ignored(tmp_path):
    """compressed-tensors expects every linear that it does not ignore to be quantized, named in the source or not."""
    layers = {"model.layers.0.mlp.up_proj": random_layer(64, 256)}
    plain = {
        "model.embed_tokens.weight": torch.ones(4, 256),
        "visual.patch.weight": torch.ones(4, 3, 2, 2),
        "lm_head.weight": torch.ones(4, 256),
    }
    given = write_checkpoint(tmp_path / "given", "gemm", layers, GATES | plain, modules_to_not_convert=None)
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    assert quantization_of(tmp_path / "out")["ignore"] == [
        "lm_head",
        r"re:(.*\.)?model\.layers\.0\.mlp\.gate$",
        r"re:(.*\.)?model\.layers\.1\.mlp\.gate$",
    ]


def test_patterns_become_the_modules_they_match(tmp_path):
    layers = {"model.layers.0.mlp.up_proj": random_layer(64, 256)}
    given = write_checkpoint(tmp_path / "given", "compressed-tensors", layers, GATES)
    edit_quantization(given, ignore=["lm_head", "re:.*mlp.gate$", "re:.*visual.*"])
    assert not checkpoint.inspect(given).problems
    checkpoint.convert(given, tmp_path / "out", "gemm")
    names = ["visual", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    assert quantization_of(tmp_path / "out")["modules_to_not_convert"] == names
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    edit_quantization(given, ignore=["re:("])
    with pytest.raises(CheckpointError, match="ignore expects patterns"):
        checkpoint.convert(given, tmp_path / "other", "gemm")


def test_a_quantized_head_is_not_ignored(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", {"lm_head": random_layer(64, 256)}, {})
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    assert quantization_of(tmp_path / "out")["ignore"] == ["re:.*visual.*"]


def test_the_head_may_be_named(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", modules_to_not_convert=["visual", "lm_head"])
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    assert checkpoint.verify(given, tmp_path / "out").is_equal


def test_the_older_name_of_the_configuration(tmp_path):
    given = write_checkpoint(tmp_path / "given", "compressed-tensors")
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    config["compression_config"] = config.pop("quantization_config")
    (given / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint.convert(given, tmp_path / "out", "gemm")
    assert quantization_of(tmp_path / "out")["version"] == "gemm"
    assert "compression_config" not in json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))


def test_an_older_configuration_beside_the_newer_one(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    (given / "quant_config.json").write_text(json.dumps(LEGACY))
    checkpoint.convert(given, tmp_path / "fast", "gemv_fast")
    assert json.loads((tmp_path / "fast" / "quant_config.json").read_text())["version"] == "GEMV_FAST"
    checkpoint.convert(given, tmp_path / "ct", "compressed-tensors")
    assert not (tmp_path / "ct" / "quant_config.json").exists()


def test_links_to_directories_and_empty_directories_are_kept(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    (tmp_path / "code").mkdir()
    (given / "code").symlink_to("../code")
    (given / "nothing").mkdir()
    checkpoint.convert(given, tmp_path / "out", "gemv")
    assert os.readlink(tmp_path / "out" / "code") == str(tmp_path / "code")
    assert (tmp_path / "out" / "nothing").is_dir()
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    (tmp_path / "out" / "code").unlink()
    assert str(checkpoint.verify(given, tmp_path / "out").differences[0]) == "code: only the first has it"


def test_metadata_of_all_files_is_kept_and_compared(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    file = given / "model-00002-of-00002.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "note": "kept", "second": "too"})
    checkpoint.convert(given, tmp_path / "out", "gemv", max_shard_size="1GB")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "note": "kept", "second": "too"}
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    save_file(load_file(file), file, metadata={"format": "pt", "note": "kept"})
    assert [d.part for d in checkpoint.verify(given, tmp_path / "out").differences] == ["second"]


def test_layers_are_named_together_before_anything_is_written(tmp_path):
    layers = some_layers() | {"x.fc": random_layer(64, 96, 32), "y.fc": random_layer(64, 32, 32)}
    layers = {name: layer for name, layer in layers.items() if layer.group_size == 32}
    layers["z.fc"] = random_layer(64, 64, 32)
    given = write_checkpoint(tmp_path / "given", "gemm", layers, group_size=32)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.convert(given, tmp_path / "out", "gemv_fast")
    assert str(caught.value) == (
        "gemv_fast cannot hold 2 of 3 layers: x.fc (in_features 96 is not a multiple of 64), "
        "y.fc (in_features 32 is not a multiple of 64)"
    )
    assert contents(tmp_path) == before


def test_a_zero_that_would_be_lost_is_named_before_anything_is_written(tmp_path):
    layer = random_layer(64, 256)
    layer.scales[3, 1] = 0
    layer.zeros[3, 1] = 5
    given = write_checkpoint(tmp_path / "given", "gemm", {"fc": layer}, {})
    with pytest.raises(CheckpointError, match=r"cannot hold 1 of 1 layers: fc \(.*would lose zero 5 of row 3, group 1"):
        checkpoint.convert(given, tmp_path / "out", "llm-awq")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("target", LAYOUT_NAMES[1:])
def test_on_a_gpu(target, device, tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", some_layers("gemm", target))
    checkpoint.convert(given, tmp_path / "gpu", target, device=device)
    checkpoint.convert(given, tmp_path / "cpu", target)
    assert contents(tmp_path / "gpu") == contents(tmp_path / "cpu")


def test_an_index_may_leave_tensors_out(tmp_path):
    """Loaders read every tensor of the files it names: so do we, and inspect says so."""
    given = write_checkpoint(tmp_path / "given", "gemm")
    path = given / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["counter"]
    path.write_text(json.dumps(index))
    assert any("counter" in problem and "index" in problem for problem in checkpoint.inspect(given).problems)

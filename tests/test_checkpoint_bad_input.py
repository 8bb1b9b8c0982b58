"""What is wrong with a checkpoint or a target: one line on stderr that says it, exit status 2, nothing written."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import contents, leftovers, quantization_config, random_layer, write_checkpoint
from safetensors.torch import load_file, save_file

from awqpack import checkpoint, cli
from awqpack.checkpoint import CheckpointError


@pytest.fixture
def given(tmp_path):
    return write_checkpoint(tmp_path / "given", "gemm")


def fails(capsys, *arguments):
    """The one line of a command that fails, without its start."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    start = f"awqpack {arguments[0]}: error: "
    assert printed.err.startswith(start)
    return printed.err.removeprefix(start).rstrip("\n")


def edit_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content))


def edit_config(change):
    return lambda path: edit_json(path / "config.json", lambda content: change(content["quantization_config"]))


def edit_index(change):
    return lambda path: edit_json(path / "model.safetensors.index.json", change)


def edit_tensors(change):
    def edit(path):
        for file in path.glob("*.safetensors"):
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file)

    return edit


def truncate(path):
    file = path / "model-00001-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def overwrite_header(path):
    with open(path / "model-00001-of-00002.safetensors", "r+b") as file:
        file.seek(8)
        file.write(b"not json")


def oversize_header(path):
    with open(path / "model-00001-of-00002.safetensors", "r+b") as file:
        file.write((1 << 62).to_bytes(8, "little"))


def drop(suffix):
    def change(tensors):
        for name in [name for name in tensors if name.endswith(suffix)]:
            del tensors[name]

    return edit_tensors(change)


def add_g_idx(tensors):
    for name in [name for name in tensors if name.endswith(".qweight")]:
        tensors[name.replace("qweight", "g_idx")] = torch.zeros(4, dtype=torch.int32)


def fill_weight_map(name):
    def change(index):
        index["weight_map"] = dict.fromkeys(index["weight_map"], name)

    return edit_index(change)


SOURCES = {
    "truncated": (truncate, "model-00001-of-00002.safetensors: not a safetensors file, or cut short"),
    "header is no JSON": (overwrite_header, "not a safetensors file, or cut short"),
    "header is endless": (oversize_header, "not a safetensors file, or cut short"),
    "empty file": (
        lambda path: (path / "model-00001-of-00002.safetensors").write_bytes(b""),
        "not a safetensors file, or cut short",
    ),
    "missing shard": (
        lambda path: (path / "model-00002-of-00002.safetensors").unlink(),
        "names model-00002-of-00002.safetensors, which is missing",
    ),
    "index leads up": (fill_weight_map("../given/model-00001-of-00002.safetensors"), "expects plain file names"),
    "index leads to the root": (fill_weight_map("/etc/passwd"), "expects plain file names; .* is in '/etc/passwd'"),
    "index names a folder": (fill_weight_map(".."), "expects plain file names"),
    "index names no file": (fill_weight_map(3), "expects plain file names"),
    "index names what no file is called": (fill_weight_map("a" * 300), "names aaa.*, which is missing"),
    "index without a map": (edit_index(lambda index: index.clear()), "expects a weight_map"),
    "index is a list": (
        lambda path: (path / "model.safetensors.index.json").write_text("[]"),
        "expects a JSON object; got list",
    ),
    "index has a tensor elsewhere": (
        edit_index(lambda index: index["weight_map"].update(gone="model-00001-of-00002.safetensors")),
        "gone is not in model-00001-of-00002.safetensors, where the index has it",
    ),
    "config is no JSON": (lambda path: (path / "config.json").write_text("{"), "config.json: not JSON"),
    "config is endless": (lambda path: (path / "config.json").write_text("[" * 200000), "config.json: not JSON"),
    "quantization_config is a list": (
        lambda path: edit_json(path / "config.json", lambda config: config.update(quantization_config=[])),
        r"quantization_config expects an object; got \[\]",
    ),
    "8 bits": (edit_config(lambda config: config.update(bits=8)), "config.json: bits expects 4; got 8"),
    "gptq": (
        edit_config(lambda config: config.update(quant_method="gptq")),
        "not gptq but gemm, by its tensors",
    ),
    "unknown version": (edit_config(lambda config: config.update(version="marlin")), "got 'marlin'"),
    "group size does not divide": (
        edit_config(lambda config: config.update(group_size=100)),
        "in_features 256 is not a multiple of the group size 100",
    ),
    "another group size": (
        edit_config(lambda config: config.update(group_size=64)),
        "qzeros expects int32 .* for groups of 64",
    ),
    "config says gemv": (
        edit_config(lambda config: config.update(version="gemv")),
        "not gemv but gemm, by its tensors",
    ),
    "qzeros absent": (drop(".qzeros"), "qzeros is missing"),
    "scales absent": (drop(".scales"), "scales is missing"),
    "no quantized layer": (drop(".qweight"), "holds no quantized layer"),
    "g_idx": (edit_tensors(add_g_idx), "g_idx is there, which gemm does not have"),
}


# the index of an edited checkpoint would be a second thing that is wrong
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("command", ["convert", "verify", "inspect"])
def test_sources(name, command, given, tmp_path, capsys):
    damage, text = SOURCES[name]
    if damage.__name__ == "edit":
        one = write_checkpoint(tmp_path / "one", "gemm", shards=1)
        shutil.rmtree(given)
        one.rename(given)
    damage(given)
    before = contents(tmp_path)
    arguments = {
        "convert": (given, tmp_path / "out", "--to", "gemv_fast"),
        "verify": (given, given),
        "inspect": (given,),
    }[command]
    if command == "inspect" and cli.main(["inspect", str(given)]) == 1:
        printed = capsys.readouterr().out
        problems = [line for line in printed.splitlines() if line.startswith("inconsistent: ")]
        assert any(re.search(text, line) for line in problems)
    else:
        capsys.readouterr()
        message = fails(capsys, command, *arguments)
        assert re.search(text, message), message
    assert contents(tmp_path) == before
    assert leftovers(tmp_path) == []


def touch(path):
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path / "nothing", "nothing: no such file or directory"),
        (
            lambda path: Path("org/model-AWQ"),
            "to get a model of the Hugging Face Hub: hf download org/model",
        ),
        (
            lambda path: touch(path / "model.pt"),
            "model.pt: expects a directory or a .safetensors file",
        ),
        (
            lambda path: touch(path / "old" / "pytorch_model.bin").parent,
            "holds no .safetensors file but pytorch_model",
        ),
        (lambda path: path / "given" / "tokenizer.json", "tokenizer.json: not a safetensors file"),
        (lambda path: path / "given" / "extra", "extra: holds no .safetensors file"),
    ],
)
def test_paths_that_are_no_checkpoint(make, text, given, tmp_path, capsys):
    assert text in fails(capsys, "inspect", make(tmp_path))


def test_two_shards_with_one_tensor(given, tmp_path, capsys):
    (given / "model.safetensors.index.json").unlink()
    shutil.copy(given / "model-00001-of-00002.safetensors", given / "model-00003.safetensors")
    assert "is in model-00001-of-00002.safetensors and in model-00003.safetensors" in fails(capsys, "inspect", given)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("given", "the target is the source"),
        ("given/../given", "the target is the source"),
        ("given/inside", "lie inside each other"),
        (".", "lie inside each other"),
        ("nowhere/out", "the directory .*nowhere does not exist"),
        ("there", "there: exists already; --force"),
        ("out.safetensors", "expects a directory, as the source is one"),
    ],
)
def test_targets(target, text, given, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    before = contents(tmp_path)
    message = fails(capsys, "convert", given, tmp_path / target, "--to", "gemv")
    assert re.search(text, message), message
    assert contents(tmp_path) == before


def test_a_target_that_links_to_the_source(given, tmp_path, capsys):
    (tmp_path / "link").symlink_to(given)
    assert "the target is the source" in fails(capsys, "convert", given, tmp_path / "link", "--to", "gemv", "--force")
    assert (given / "config.json").exists()


def test_a_target_that_cannot_be_written(given, capsys, monkeypatch):
    monkeypatch.setattr("awqpack.checkpoint.staging.Staging.require_space", lambda self, nbytes: None)
    # not even root makes folders there
    assert "cannot be written" in fails(capsys, "convert", given, "/sys/awqpack-out", "--to", "gemv")


def test_a_read_only_target(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "is not writable" in fails(capsys, "convert", given, tmp_path / "out", "--to", "gemv")


def test_too_little_space(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    message = fails(capsys, "convert", given, tmp_path / "out", "--to", "gemv")
    assert re.search(r"out: needs \d+ bytes; .* has 10 free", message)


@pytest.mark.parametrize("after", [0, 1, 5])
def test_the_disk_fills_up(after, given, tmp_path, capsys, monkeypatch):
    write, calls = os.pwrite, []

    def pwrite(fd, data, offset):
        calls.append(offset)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    out = tmp_path / "out"
    assert cli.main(["convert", str(given), str(out), "--to", "gemv_fast"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("out: cannot be written (the disk is full)")
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_memory_that_is_not_mapped_is_allocated(tmp_path, monkeypatch):
    """Nor is the system's refusal taken for one of the target's file system."""

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    given = write_checkpoint(tmp_path / "given", "gemm", {"fc": random_layer(128, 128)}, {})
    checkpoint.convert(given, tmp_path / "mapped", "gemv")
    monkeypatch.setattr("awqpack.checkpoint.workers.mmap.mmap", refuse)
    checkpoint.convert(given, tmp_path / "allocated", "gemv")
    for path in (tmp_path / "mapped").glob("*.*"):
        assert (tmp_path / "allocated" / path.name).read_bytes() == path.read_bytes()


def test_a_full_file_system(tmp_path, capsys, monkeypatch):
    """A real one, of one megabyte."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "awqpack", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        given = write_checkpoint(tmp_path / "large", "gemm", {"fc": random_layer(2048, 2048)}, {})
        assert "has" in fails(capsys, "convert", given, small / "out", "--to", "gemv_fast")
        monkeypatch.setattr("awqpack.checkpoint.staging.Staging.require_space", lambda self, nbytes: None)
        assert cli.main(["convert", str(given), str(small / "out"), "--to", "gemv_fast"]) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--max-shard-size", "many"), '--max-shard-size\': expects a size such as "5GB" or "500MB"; got \'many\''),
        (("--max-shard-size", "0"), "--max-shard-size': expects at least one byte"),
        (("--device", "nonsense"), "device 'nonsense' cannot be used"),
        (("--device", "meta"), "device 'meta' cannot be used (it holds no values)"),
        (("--group-size", "64"), "config.json: group_size is 128; 64 was asked for"),
    ],
)
def test_options(arguments, text, given, tmp_path, capsys):
    assert text in fails(capsys, "convert", given, tmp_path / "out", "--to", "gemv", *arguments)


def test_a_source_that_links_into_the_target(tmp_path, capsys):
    real = write_checkpoint(tmp_path / "real", "gemm", shards=1)
    (tmp_path / "snapshot").mkdir()
    for file in real.iterdir():
        if file.is_file():
            (tmp_path / "snapshot" / file.name).symlink_to(file)
    before = contents(tmp_path)
    assert "is a link into it" in fails(capsys, "convert", tmp_path / "snapshot", real, "--to", "gemv", "--force")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_links_that_lead_nowhere(command, given, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    (given / "gone").symlink_to("nowhere")
    if command == "convert":
        message = fails(capsys, "convert", given, tmp_path / "out", "--to", "gemv")
        assert "gone: cannot be read" in message
        assert "loop" in fails(capsys, "convert", tmp_path / "loop", tmp_path / "out", "--to", "gemv")
    else:
        assert "loop" in fails(capsys, "inspect", tmp_path / "loop")


def test_a_path_that_is_too_long(given, tmp_path, capsys):
    # from 3.14 on, Python's lexists says no more than that nothing is there
    text = "File name too long" if sys.version_info < (3, 14) else "no such file"
    assert text in fails(capsys, "inspect", "x" * 5000)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("thesis", "thesis: is no checkpoint; only one, or an empty directory, is replaced"),
        ("file", "file: is no checkpoint"),
        ("here", "here: is the current directory"),
    ],
)
def test_force_replaces_nothing_but_checkpoints(target, text, given, tmp_path, capsys, monkeypatch):
    for name in ("thesis", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    assert text in fails(capsys, "convert", given, tmp_path / target, "--to", "gemv", "--force")
    assert (tmp_path / "thesis" / "thesis.txt").exists()


def test_arguments_of_the_library(given, tmp_path):
    with pytest.raises(CheckpointError, match="to expects one of gemm, gemv"):
        checkpoint.convert(given, tmp_path / "out", "marlin")
    with pytest.raises(CheckpointError, match="layout expects auto or one of gemm"):
        checkpoint.inspect(given, layout="marlin")
    with pytest.raises(CheckpointError, match='max_shard_size expects a size such as "5GB"'):
        checkpoint.convert(given, tmp_path / "out", "gemv", max_shard_size="many")
    with pytest.raises(CheckpointError, match="scale_dtype expects one of float16"):
        checkpoint.convert(given, tmp_path / "out", "gemv", scale_dtype="float8")


def test_a_scheme_no_awq_layout_holds(tmp_path, capsys):
    given = write_checkpoint(tmp_path / "given", "compressed-tensors")
    config = quantization_config("compressed-tensors")
    config["config_groups"]["group_0"]["weights"]["num_bits"] = 8
    edit_json(given / "config.json", lambda content: content.update(quantization_config=config))
    assert "expects 4-bit int; got num_bits 8" in fails(capsys, "convert", given, tmp_path / "out", "--to", "gemm")

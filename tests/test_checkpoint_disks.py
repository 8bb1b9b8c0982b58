"""Checkpoints as they lie on disks: caches, clones, half downloads, files that change, fail or are none."""

import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

import forked
import pytest
import torch
from checkpoints import contents, leftovers, quantization_config, random_layer, write_checkpoint
from safetensors.torch import load_file, save_file

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError, Progress
from awqpack.layouts import LAYOUTS

LAYER = random_layer(64, 128)


def tensors(*names, layout="gemm"):
    return {f"{name}.{k}": v.contiguous() for name in names for k, v in LAYOUTS[layout].encode(LAYER).items()}


def make(path, files, layout="gemm"):
    """A folder with a configuration and these safetensors files."""
    path.mkdir(parents=True)
    for name, content in files.items():
        save_file(content, path / name)
    config = {"quantization_config": quantization_config(layout, not_converted=None)}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def given(tmp_path):
    return write_checkpoint(tmp_path / "given", "gemm")


def refused(source, target, to="gemv_fast", **options):
    """What convert says, having written nothing."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.convert(source, target, to, **options)
    assert not target.exists()
    assert leftovers(target.parent) == []
    return str(caught.value)


# --- the Hub's cache ---


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one model: files are links from a snapshot into blobs."""
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.chdir(tmp_path)
    folder = hub / "models--org--name"
    real = write_checkpoint(tmp_path / "real", "gemm")
    for number, file in enumerate(path for path in sorted(real.rglob("*")) if path.is_file()):
        blob = folder / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link = folder / "snapshots" / "abc" / file.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "snapshots" / "older").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    return folder


def test_a_model_is_found_in_the_cache_by_its_name(cache, tmp_path):
    assert checkpoint.inspect("org/name").path == str(cache / "snapshots" / "abc")
    checkpoint.convert("org/name", tmp_path / "out", "gemv")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert checkpoint.verify("org/name", tmp_path / "out").is_equal


@pytest.mark.parametrize("has_refs", [True, False])
def test_the_snapshot_is_named(has_refs, cache):
    if not has_refs:
        shutil.rmtree(cache / "refs")
        os.utime(cache / "snapshots" / "older", (1, 1))
    with pytest.raises(CheckpointError, match=f"name the snapshot in it: {cache}/snapshots/abc"):
        checkpoint.inspect(cache)
    shutil.rmtree(cache / "snapshots")
    with pytest.raises(CheckpointError, match="org/name: no such file or directory; to get a model"):
        checkpoint.inspect("org/name")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "https://huggingface.co/o/n",
            "https://huggingface.co/o/n: is a URL; download it, and name the folder: hf download o/n --local-dir n",
        ),
        ("s3://bucket/model", "s3://bucket/model: is a URL; download it, and name the folder"),
        ("a\0b", "expects a path; a NUL cannot be part of one"),
    ],
)
def test_names_that_are_no_path(path, text, given, tmp_path):
    for call in (checkpoint.inspect, lambda p: checkpoint.convert(p, tmp_path / "out", "gemv")):
        with pytest.raises(CheckpointError) as caught:
            call(path)
        assert text in str(caught.value)
    if "\0" in path:
        with pytest.raises(CheckpointError, match="NUL"):
            checkpoint.convert(given, path, "gemv")


# --- clones and half downloads ---

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json", "model.safetensors.index.json"])
def test_git_lfs_pointers_are_named(name, given):
    (given / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name}: is a Git LFS pointer, not the file itself: git lfs pull"):
        checkpoint.inspect(given)


def test_pointers_among_other_files_are_warned_of(given, tmp_path):
    (given / "tokenizer.model").write_text(POINTER)
    (warning,) = checkpoint.convert(given, tmp_path / "out", "gemv").warnings
    assert "tokenizer.model is a Git LFS pointer" in warning


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_that_counts_others_needs_them(number, tmp_path):
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    given = make(tmp_path / "given", {name: tensors(f"fc{i}") for i, name in enumerate(names)})
    assert len(checkpoint.inspect(given).layers) == 3
    (given / names[number - 1]).unlink()
    with pytest.raises(CheckpointError, match=f"{names[number - 1]} is missing, of the 3"):
        checkpoint.inspect(given)


def test_what_git_and_the_hub_keep_stays_behind(given, tmp_path):
    for name in (".git/lfs/objects/aabb", ".cache/huggingface/download/x.metadata", "extra/.cache/kept"):
        (given / name).parent.mkdir(parents=True)
        (given / name).write_text("old weights")
    (given / ".gitattributes").write_text("*.safetensors filter=lfs")
    checkpoint.convert(given, tmp_path / "out", "gemv")
    names = [name for name in contents(tmp_path / "out") if name.startswith((".", "extra"))]
    assert names == [".gitattributes", "extra/.cache/kept", "extra/notes.txt"]
    assert checkpoint.verify(given, tmp_path / "out").is_equal


LINKS = {
    "inside": ("extra", "extra"),
    "inside, by its whole path": ("{given}/extra", "extra"),
    "to itself": (".", "."),
    "outside": ("../shared", "{tmp}/shared"),
    "outside, by its whole path": ("{tmp}/shared", "{tmp}/shared"),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_to_folders_lead_to_the_same(name, given, tmp_path):
    """Wherever the target is; inside the checkpoint, to the target's own."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "elsewhere").mkdir()
    text, expected = (part.format(given=given, tmp=tmp_path) for part in LINKS[name])
    (given / "link").symlink_to(text)
    out = tmp_path / "elsewhere" / "out"
    checkpoint.convert(given, out, "gemv")
    assert os.readlink(out / "link") == expected
    assert (out / "link").is_dir()
    assert checkpoint.verify(given, out).is_equal


# --- tensors that would stay in the old layout ---

SIDE_FILES = {
    "beside model.safetensors": {"model.safetensors": ["a"], "model_mtp.safetensors": ["mtp"]},
    "beside an index": {"model-00001-of-00001.safetensors": ["a"], "mtp.safetensors": ["mtp"]},
}


@pytest.mark.parametrize("limit", [None, "3KB"])
@pytest.mark.parametrize("name", SIDE_FILES)
def test_layers_in_side_files_are_converted(name, limit, tmp_path):
    files = {file: tensors(*layers) for file, layers in SIDE_FILES[name].items()}
    main, side = files
    files[main]["model.norm.weight"] = torch.ones(8)
    given = make(tmp_path / "given", files)
    if "index" in name:
        index = {"weight_map": dict.fromkeys(files[main], main)}
        (given / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint.inspect(given).problems == ()
    checkpoint.convert(given, tmp_path / "out", "gemv_fast", max_shard_size=limit)
    assert load_file(tmp_path / "out" / side).keys() == tensors("mtp", layout="gemv_fast").keys()
    assert load_file(tmp_path / "out" / side)["mtp.qweight"].dtype == torch.int16
    assert checkpoint.verify(given, tmp_path / "out").is_equal
    assert checkpoint.inspect(tmp_path / "out").problems == ()
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() == ("index" in name or limit is not None)
    if index.exists():
        assert side not in json.loads(index.read_text())["weight_map"].values()


def test_side_files_of_floats_are_copied(tmp_path):
    given = make(tmp_path / "given", {"model.safetensors": tensors("a"), "adapter.safetensors": {"b": torch.ones(3)}})
    (given / "broken.safetensors").write_bytes(b"")
    done = checkpoint.convert(given, tmp_path / "out", "gemv_fast")
    assert done.other_files == ("adapter.safetensors", "broken.safetensors")


def test_layers_in_folders_below(tmp_path):
    """A folder with a configuration of its own is a checkpoint of its own; tensors of another would be left behind."""
    given = make(tmp_path / "given", {"model.safetensors": tensors("a")})
    (given / "original").mkdir()
    save_file({"a": torch.ones(3)}, given / "original" / "consolidated.safetensors")
    make(given / "draft", {"model.safetensors": tensors("a")})
    checkpoint.convert(given, tmp_path / "out", "gemv_fast")
    assert contents(tmp_path / "out" / "draft") == contents(given / "draft")
    assert (tmp_path / "out" / "original" / "consolidated.safetensors").exists()
    (given / "draft" / "config.json").unlink()
    assert "draft/model.safetensors holds quantized layers too" in refused(given, tmp_path / "other")


LEFT = {
    "fused experts": (
        "compressed-tensors",
        {"mlp.experts.gate_up_proj_packed": torch.zeros(4, 128, 8, dtype=torch.int32)},
        "mlp.experts.gate_up_proj: weight_zero_point is missing",
    ),
    "a parameter that is packed": (
        "gemm",
        {"mlp.gate_up_proj_qweight": torch.zeros(128, 8, dtype=torch.int32)},
        "mlp.gate_up_proj_qweight: packed as one parameter, but not as experts are",
    ),
    "stacked experts": (
        "gemm",
        {"mlp.experts.qweight": torch.zeros(4, 128, 8, dtype=torch.int32), "mlp.experts.scales": torch.ones(4, 1, 64)},
        "mlp.experts: ",
    ),
    "scaled activations": (
        "gemm",
        {"mlp.act.scales": torch.full((64,), 1.5).half()},
        "mlp.act.scales divides the output of an activation, as AutoAWQ has it; no reader of compressed-tensors does",
    ),
    "unsigned words": (
        "gemm",
        {"b.qweight": torch.zeros(128, 8, dtype=torch.uint32)},
        "b: qzeros is missing",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_tensors_that_no_reader_of_the_target_takes(name, tmp_path):
    layout, more, text = LEFT[name]
    given = make(tmp_path / "given", {"model.safetensors": tensors("a", layout=layout) | more}, layout)
    target = "gemm" if layout == "compressed-tensors" else "compressed-tensors"
    assert text in refused(given, tmp_path / "out", target)
    if name != "scaled activations":
        assert any(text in problem for problem in checkpoint.inspect(given).problems)
    else:
        assert checkpoint.convert(given, tmp_path / "fast", "gemv_fast").layers == 1


def test_dtypes_have_their_own_names(tmp_path):
    unsigned = tensors("a")
    unsigned["a.qweight"] = unsigned["a.qweight"].view(torch.uint32)
    given = make(tmp_path / "given", {"model.safetensors": unsigned})
    assert checkpoint.inspect(given).problems == ("a: qweight expects int32 with 2 dimensions; got uint32 (128, 8)",)


# --- files that change, fail or block ---

CUT = """
import os, sys
from awqpack import checkpoint

class Cut(checkpoint.Progress):
    def cut(self):
        for name in os.listdir(sys.argv[1]):
            if name.endswith(".safetensors"):
                os.truncate(f"{sys.argv[1]}/{name}", 4096)

    def start(self, conversion):
        self.cut()

    def start_comparison(self, nbytes):
        self.cut()

try:
    if sys.argv[3] == "convert":
        checkpoint.convert(sys.argv[1], sys.argv[2], "gemv_fast", progress=Cut())
    else:
        checkpoint.verify(sys.argv[1], sys.argv[1], progress=Cut())
except checkpoint.CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_source_that_is_cut_short_meanwhile(command, given, tmp_path):
    """An error, and no SIGBUS, which would end a server."""
    done = forked.run(CUT, given, tmp_path / "out", command)
    assert done.returncode == 0, done.stderr
    assert "changed while it was read" in done.stdout or "became shorter while it was read" in done.stdout
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


class Zeroing(Progress):
    """Overwrites the last tensors of the source once everything is planned."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, conversion):
        for file in self.folder.glob("*.safetensors"):
            size = file.stat().st_size
            with open(file, "r+b") as opened:
                opened.seek(size // 2)
                opened.write(bytes(size - size // 2))
            os.utime(file, ns=(0, 0))


@pytest.mark.parametrize("target", ["gemv", "gemv_fast"])
def test_a_source_that_is_overwritten_meanwhile(target, given, tmp_path):
    assert "changed while it was read" in refused(given, tmp_path / "out", target, progress=Zeroing(given))


UNREADABLE = """
import os, sys
from awqpack import checkpoint

os.setgid(65534)
os.setuid(65534)
try:
    checkpoint.convert(sys.argv[1], sys.argv[2], "gemv")
except checkpoint.CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not read")
@pytest.mark.parametrize("name", ["tokenizer.json", "model-00001-of-00002.safetensors", "config.json"])
def test_what_cannot_be_read_is_the_sources(name):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for root alone
        given = write_checkpoint(Path(folder) / "given", "gemm")
        os.chmod(folder, 0o777)
        for file in given.iterdir():
            file.chmod(0o755)
        (given / name).chmod(0)
        done = forked.run(UNREADABLE, given, given.with_name("out"))
        assert done.stdout == f"{given / name}: cannot be read (Permission denied)\n", done.stderr


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


NO_FILES = {
    "a named pipe": (pipe, "is a named pipe; only regular files are read"),
    "a socket": (unix_socket, "is a socket; only regular files are read"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device; only regular files are read"),
    "a file of the kernel": (lambda path: path.symlink_to("/proc/self/mem"), "which is not read"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read (Too many levels of symbolic links)"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_only_regular_files_are_opened(name, given, tmp_path, monkeypatch):
    """Others would block, or never end."""
    monkeypatch.chdir(given)  # a socket's path may not be long
    make_it, text = NO_FILES[name]
    make_it((given / "x").relative_to(given))
    assert f"{given}/x: " in (message := refused(given, tmp_path / "out"))
    assert text in message


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_a_pipe_in_the_place_of_a_file(name, given):
    (given / name).unlink()
    pipe(given / name)
    with pytest.raises(CheckpointError):
        checkpoint.inspect(given)


def test_experts_by_the_thousand(tmp_path):
    """Planning and names take no time that grows with the square of their number."""
    layer = random_layer(8, 64, 64)
    encoded = {k: v.contiguous() for k, v in LAYOUTS["compressed-tensors"].encode(layer).items()}
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(5) for j in range(300)]
    path = tmp_path / "given"
    path.mkdir()
    plain = {f"model.layers.{i}.mlp.gate.weight": torch.ones(4, 8) for i in range(5)}
    save_file(
        {f"{name}.{k}": v.clone() for name in names for k, v in encoded.items()} | plain, path / "model.safetensors"
    )
    config = quantization_config("compressed-tensors", 64, not_converted=None) | {"ignore": ["re:.*mlp.gate$"]}
    (path / "config.json").write_text(json.dumps({"quantization_config": config}))
    assert checkpoint.convert(path, tmp_path / "out", "gemm").layers == 1500
    assert checkpoint.verify(path, tmp_path / "out").is_equal

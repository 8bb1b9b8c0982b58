"""The commands as a user meets them: what they print, and their exit status."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import forked
import pytest
from checkpoints import leftovers, random_layer, write_checkpoint
from safetensors.torch import load_file, save_file

from awqpack import checkpoint, cli


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of a command."""
    status = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def given(tmp_path):
    return write_checkpoint(tmp_path / "given", "gemm")


@pytest.mark.parametrize("command", ["inspect", "convert", "verify"])
def test_help_teaches_by_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  awqpack " + command in text
    assert "exit status:" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_inspect(given, capsys):
    status, out, _ = run(capsys, "inspect", given)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"{given}: gemm, groups of 128, with zeros, not quantized: visual"
    assert re.split(r"\s{2,}", lines[1].strip()) == ["layer", "N", "K", "group", "size", "tensors"]
    row = next(line for line in lines if line.startswith("model.layers.0.self_attn.q_proj "))
    assert row.split()[:6] == ["model.layers.0.self_attn.q_proj", "72", "256", "128", "9.72", "kB"]
    assert "bias F16 qweight I32 qzeros I32 scales F16" in row
    assert lines[-1] == "5 quantized layers, 94.8 kB; 10 other tensors, 29.6 kB; 2 files"


def test_inspect_json(given, capsys):
    status, out, _ = run(capsys, "inspect", given, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["layout"] == "gemm"
    assert found["problems"] == []
    assert {layer["name"]: (layer["out_features"], layer["in_features"]) for layer in found["layers"]}[
        "model.layers.1.mlp.down_proj"
    ] == (256, 384)


def test_inspect_names_what_is_inconsistent(tmp_path, capsys):
    layers = {"a.fc": random_layer(64, 256), "b.fc": random_layer(64, 256), "c.fc": random_layer(64, 256)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1)
    tensors = load_file(given / "model.safetensors")
    tensors["a.fc.scales"][1, 5] = float("nan")
    del tensors["b.fc.qweight"]
    del tensors["c.fc.scales"]
    save_file(tensors, given / "model.safetensors")
    status, out, _ = run(capsys, "inspect", given)
    assert status == 1
    assert [line for line in out.splitlines() if line.startswith("inconsistent")] == [
        "inconsistent: c.fc: scales is missing",
        "inconsistent: a.fc: the scale of row 5, group 1 is nan",
        "inconsistent: b.fc.qzeros has no qweight beside it",
    ]


def test_convert_prints_a_line_for_every_file(given, tmp_path, capsys):
    status, out, err = run(capsys, "convert", given, tmp_path / "out", "--to", "gemv_fast")
    assert status == 0
    assert re.fullmatch(rf"{tmp_path}/out: 5 layers from gemm to gemv_fast, 1\d\d kB in \d+\.\d s \(.*/s\)\n", out)
    lines = err.splitlines()
    assert re.fullmatch(r"converting 5 layers from gemm to gemv_fast, 1\d\d kB in 2 files", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["[1/2]", "[2/2]"]
    assert re.search(r"100%  .*/s$", lines[-1])


def test_convert_shows_a_bar_on_a_terminal(given, tmp_path):
    """tqdm's bar: bytes a second and the time left."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "awqpack", "convert", given, tmp_path / "out", "--to", "gemv"],
        stdin=side,
        stdout=subprocess.PIPE,
        stderr=side,
    ) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                data = os.read(main, 4096)
            except OSError:  # the other side is closed
                break
            shown += data
        assert process.wait() == 0
    os.close(main)
    assert re.search(rb"gemm to gemv:.*\d+%.*[kM]?B/s", shown)
    assert re.search(rb"\[\d\d:\d\d<", shown)


def test_dry_run(given, tmp_path, capsys):
    status, out, err = run(capsys, "convert", given, tmp_path / "out", "--to", "gemv", "--dry-run")
    assert (status, err) == (0, "")
    assert out.splitlines()[:3] == [
        "would convert 5 layers from gemm to gemv:",
        "  model-00001-of-00002.safetensors",
        "  model-00002-of-00002.safetensors",
    ]
    assert not (tmp_path / "out").exists()


def test_verify(given, tmp_path, capsys):
    checkpoint.convert(given, tmp_path / "out", "compressed-tensors")
    status, out, _ = run(capsys, "verify", given, tmp_path / "out")
    assert (status, out) == (0, "equal: 5 layers, 11 other tensors, 2 other files\n")


def change_tensor(path, name, change):
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            change(tensors[name])
            save_file(tensors, file, metadata={"format": "pt"})


def flip_lowest_code(qweight):
    qweight[3, 1] ^= 1


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        # word 1 of gemm's row k = 3 holds rows 8..15 of the weight, the first in its lowest nibble
        (
            lambda out: change_tensor(out, "model.layers.1.mlp.down_proj.qweight", flip_lowest_code),
            r"model.layers.1.mlp.down_proj: codes\[8, 3\] \d+ and \d+",
        ),
        (
            lambda out: change_tensor(out, "model.layers.1.mlp.down_proj.qzeros", lambda t: t[2, 0].bitwise_xor_(1)),
            r"model.layers.1.mlp.down_proj: zeros\[0, 2\] \d+ and \d+",
        ),
        (
            lambda out: change_tensor(out, "model.layers.1.mlp.down_proj.scales", lambda t: t[1, 7].mul_(2)),
            r"model.layers.1.mlp.down_proj: scales\[7, 1\] 0\.0\d+ and 0\.0\d+",
        ),
        (
            lambda out: change_tensor(out, "model.layers.0.self_attn.q_proj.bias", lambda t: t[9].add_(1)),
            r"model.layers.0.self_attn.q_proj.bias: values\[9\] .* and .*",
        ),
        (
            lambda out: change_tensor(out, "visual.blocks.0.qkv.weight", lambda t: t[4, 2].add_(1)),
            r"visual.blocks.0.qkv.weight: values\[4, 2\] .* and .*",
        ),
        (
            lambda out: (out / "tokenizer.json").write_text("{}"),
            r"tokenizer.json: contents 8 bytes and 2 bytes",
        ),
        (lambda out: (out / "extra" / "notes.txt").unlink(), r"extra/notes.txt: only the first has it"),
        (
            lambda out: (out / "config.json").write_text(
                (out / "config.json").read_text(encoding="utf-8").replace('"hidden_size": 256', '"hidden_size": 5'),
                encoding="utf-8",
            ),
            r"config.json: hidden_size 256 and 5",
        ),
        (
            lambda out: (out / "config.json").write_text(
                (out / "config.json").read_text(encoding="utf-8").replace('"visual"', '"other"'), encoding="utf-8"
            ),
            r"the quantization_config: leaves out visual.blocks.0.qkv and nothing",
        ),
    ],
)
def test_verify_names_the_first_difference(damage, expected, given, tmp_path, capsys):
    out = tmp_path / "out"
    checkpoint.convert(given, tmp_path / "between", "gemv")
    checkpoint.convert(tmp_path / "between", out, "gemm")
    damage(out)
    for first in (given, tmp_path / "between"):
        status, printed, _ = run(capsys, "verify", first, out)
        assert status == 1
        lines = printed.splitlines()
        assert re.fullmatch(expected, lines[0]), lines[0]
        assert lines[1] == "different: 1 difference in 5 layers, 11 other tensors, 2 other files"


def test_inspect_counts_what_is_wrong_in_the_same_way(tmp_path, capsys):
    layers = {f"layers.{i}.{name}": random_layer(64, 256) for i in range(3) for name in ("q_proj", "k_proj")}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1)
    (given / "config.json").unlink()
    status, out, _ = run(capsys, "inspect", given, "--group-size", "64")
    assert status == 1
    lines = [line for line in out.splitlines() if line.startswith("inconsistent: ")]
    assert len(lines) == 1
    assert lines[0].startswith("inconsistent: layers.0.")
    assert lines[0].endswith("(and 5 others of this kind; --json lists all)")
    _, out, _ = run(capsys, "inspect", given, "--group-size", "64", "--json")
    assert len(json.loads(out)["problems"]) == 6


def test_verify_names_what_only_one_has(tmp_path, capsys):
    layers = {"a.fc": random_layer(64, 256), "b.fc": random_layer(64, 256)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1)
    layers = {"a.fc": random_layer(64, 128)}
    other = write_checkpoint(tmp_path / "other", "gemv", layers, {}, shards=1)
    status, out, _ = run(capsys, "verify", given, other)
    assert status == 1
    assert out.splitlines()[:2] == [
        "a.fc: geometry (64, 256, 128) and (64, 128, 128)",
        "b.fc: only the first has it",
    ]


INTERRUPTED = """
import os, signal, sys
from awqpack import cli
from awqpack.checkpoint import report

signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs start with it ignored

def finish_file(self, name):
    os.kill(os.getpid(), signal.NAME)

report._Lines.finish_file = finish_file
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("name", "status", "what"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_interrupted(name, status, what, given, tmp_path):
    """Ctrl-C and kill: an exit status of their own, one line, nothing left."""
    arguments = ["convert", given, tmp_path / "out", "--to", "gemv_fast"]
    script = INTERRUPTED.replace("NAME", name)
    done = forked.run(script, *arguments)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == f"awqpack convert: {what}"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_the_console_script_is_the_module(monkeypatch):
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="awqpack")
    monkeypatch.setattr(cli, "main", lambda: 7)
    assert script.load()() == 7


def test_interrupted_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", "import sys, awqpack_command; sys.exit(awqpack_command.main())"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "awqpack: interrupted\n")

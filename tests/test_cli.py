"""The commands as a user meets them: what they print, and their exit status."""

import json
import os
import re
import subprocess
import sys

import forked
import pytest
import torch
from checkpoints import leftovers, random_layer, write_checkpoint
from safetensors.torch import load_file, save_file

import awqpack
from awqpack import checkpoint, cli
from awqpack.checkpoint.to_floats import FLOATS
from awqpack.layouts import FLOAT_LAYOUTS, LAYOUTS


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of a command."""
    status = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def given(tmp_path):
    return write_checkpoint(tmp_path / "given", "gemm")


@pytest.mark.parametrize("command", ["inspect", "convert", "quantize", "verify", "conformance", "demo"])
def test_help_teaches_by_example(command, capsys, monkeypatch):
    """In as many columns as the terminal has."""
    monkeypatch.setenv("COLUMNS", "80")
    status, text, _ = run(capsys, command, "--help")
    assert status == 0
    assert "  examples:\n    awqpack " + command in text
    assert "exit status:" in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("words", [("--help",), ("convert", "--help")], ids=" ".join)
def test_help_lists_what_is_known(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(run(capsys, *words)[1].split()).replace("- ", "-")  # names that wrap at a hyphen
    assert f"layouts: {', '.join(LAYOUTS)}; auto-round's checkpoints" in text
    assert f"floats: {', '.join(FLOATS)} 4-bit floats, which become floats alone: {', '.join(FLOAT_LAYOUTS)}" in text


def test_inspect(given, capsys):
    status, out, _ = run(capsys, "inspect", given)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"{given}: gemm, groups of 128, with zeros, not quantized: visual"
    assert re.split(r"\s{2,}", lines[1].strip()) == ["layer", "count", "N", "K", "group", "size", "tensors"]
    row = next(line for line in lines if line.startswith("model.layers.0.self_attn.q_proj "))
    assert row.split()[:7] == ["model.layers.0.self_attn.q_proj", "1", "72", "256", "128", "9.72", "kB"]
    row = next(line for line in lines if line.startswith("model.layers.0.mlp.experts.*.up_proj "))
    assert row.split()[1:6] == ["2", "64", "256", "128", "17"]
    row = next(line for line in lines if line.startswith("model.layers.0.self_attn.q_proj "))
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
    took = r"(\d+ ms|\d+\.\d s) \(.*/s\)"
    assert re.fullmatch(rf"{tmp_path}/out: 5 layers from gemm to gemv_fast, 1\d\d kB in {took}\n", out)
    lines = err.splitlines()
    assert re.fullmatch(r"converting 5 layers from gemm to gemv_fast, 1\d\d kB in 2 files", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["[1/2]", "[2/2]"]
    assert re.search(r"100%  .*/s$", lines[-1])


def test_convert_shows_a_bar_on_a_terminal(given, tmp_path):
    """tqdm's bar: bytes a second and the time left."""
    status, shown = on_a_terminal("convert", given, tmp_path / "out", "--to", "gemv", columns=100)
    assert status == 0
    assert re.search(r"gemm to gemv:.*\d+%.*[kM]?B/s", shown)
    assert re.search(r"\[\d\d:\d\d<", shown)


ON_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios

columns = int(sys.argv.pop(1))
os.environ.pop("COLUMNS", None)
ready, go = os.pipe()
child, terminal = pty.fork()
if child == 0:
    os.read(ready, 1)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # as Python opens them on a terminal
    from awqpack import cli
    sys.exit(cli.main(sys.argv[1:]))
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
os.write(go, b".")
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:  # the other side is closed
        break
    sys.stdout.buffer.write(data)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def on_a_terminal(*arguments, columns=80):
    """(exit status, what a terminal of so many columns shows) of a command."""
    done = forked.run(ON_A_TERMINAL, columns, *arguments)
    return done.returncode, done.stdout.replace("\r\n", "\n")


def test_a_narrow_terminal_keeps_the_numbers(tmp_path, capsys, monkeypatch):
    layers = {f"model.language_model.layers.{i}.mlp.experts.gate_up_proj": random_layer(64, 256) for i in range(12)}
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=1)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    status, shown, _ = run(capsys, "inspect", given)
    assert status == 0
    assert "\x1b" not in shown
    header, row = shown.splitlines()[-3:-1]
    assert header.split()[:5] == ["layer", "count", "N", "K", "group"]
    assert row.split()[1:6] == ["12", "64", "256", "128", "102"]
    assert row.split()[0].endswith("layers.*.mlp.experts.gate_up_proj"[-20:])
    assert max(map(len, shown.splitlines()[1:])) <= 80


def test_verdicts_are_coloured_on_a_terminal(given, tmp_path):
    """And a bar shows how far it is, as that of convert does."""
    checkpoint.convert(given, tmp_path / "out", "gemv")
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    status, shown = on_a_terminal("verify", given, tmp_path / "out")
    assert status == 1
    assert "\x1b[31mdifferent:\x1b[0m 1 difference" in shown
    assert re.search(r"comparing:.*%", shown)


USAGE = {
    "a near miss": (["inspct", "x"], "awqpack: error: inspct is no command (inspect, ", "did you mean inspect?"),
    "an unknown command": (["frobnicate"], "awqpack: error: frobnicate is no command", "conformance, demo)"),
    "a near miss of a layout": (["convert", "a", "b", "--to", "gem"], "awqpack convert: error: ", "mean gemm or gemv?"),
    "an unknown layout": (["convert", "a", "b", "--to", "x"], "awqpack convert: error: ", "expects one of gemm, gemv,"),
    "an unknown option": (["verify", "a", "b", "--jason"], "awqpack verify: error: ", "--jason"),
    "no path": (["inspect"], "awqpack inspect: error: ", "PATH"),
    "no layout": (["convert", "a", "b"], "awqpack convert: error: ", "--to"),
    "too many paths": (["verify", "a", "b", "c"], "awqpack verify: error: ", "c"),
    "no number": (["inspect", "a", "--group-size", "x"], "awqpack inspect: error: ", "--group-size"),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors_are_one_line_of_their_command(name, capsys):
    arguments, start, part = USAGE[name]
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(start)
    assert part in err
    assert err.count("\n") == 1
    assert f"({start.partition(':')[0]} --help)" in err


def test_without_arguments_it_says_what_it_can_do(capsys):
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert out == run(capsys, "--help")[1]
    assert all(command in out for command in ("inspect", "convert", "verify", "demo"))


def test_verify_json(given, tmp_path, capsys):
    checkpoint.convert(given, tmp_path / "out", "gemv")
    status, out, _ = run(capsys, "verify", given, tmp_path / "out", "--json")
    assert (status, json.loads(out)["is_equal"], json.loads(out)["layers"]) == (0, True, 5)
    (tmp_path / "out" / "tokenizer.json").unlink()
    status, out, _ = run(capsys, "verify", given, tmp_path / "out", "--json")
    assert status == 1
    (difference,) = json.loads(out)["differences"]
    assert (difference["what"], difference["part"]) == ("tokenizer.json", "presence")


CLOSED = """
import os, sys
from awqpack import cli

for fd in map(int, "FDS".split()):  # as Python finds them that a shell closed
    os.close(fd)
    setattr(sys, ("stdin", "stdout", "stderr")[fd], None)
os._exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1 2"])
def test_streams_that_are_closed(closed, given, tmp_path):
    """What is written then goes nowhere, least of all into a file of the target."""
    done = forked.run(CLOSED.replace("FDS", closed), "convert", given, tmp_path / "out", "--to", "gemv")
    assert done.returncode == 0
    assert checkpoint.verify(given, tmp_path / "out").is_equal


FULL = """
import os, sys
from awqpack import cli

os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
sys.stdout = os.fdopen(1, "w")
sys.exit(cli.main(sys.argv[1:]))
"""


def test_standard_output_that_is_full(given):
    done = forked.run(FULL, "inspect", given)
    assert (done.returncode, done.stderr) == (2, "awqpack inspect: error: standard output: No space left on device\n")


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

sent = []

def finish_file(self, name):  # files end in several threads
    sent.append(name)
    if len(sent) == 1:
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


TERMINATED_AGAIN = """
import os, signal, sys
from awqpack import cli
from awqpack.checkpoint import report, staging

def finish_file(self, name):
    os.kill(os.getpid(), signal.SIGTERM)

def remove(path, remove=staging._remove):
    os.kill(os.getpid(), signal.SIGTERM)
    remove(path)

report._Lines.finish_file = finish_file
staging._remove = remove
sys.exit(cli.main(sys.argv[1:]))
"""


def test_terminated_again_while_it_cleans_up(given, tmp_path):
    done = forked.run(TERMINATED_AGAIN, "convert", given, tmp_path / "out", "--to", "gemv_fast")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "awqpack convert: terminated")
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


INTERRUPTED_IN_AN_ERROR = """
import os, signal, sys
from awqpack import cli

def one_line(text):
    os.kill(os.getpid(), signal.SIGTERM)

cli._one_line = one_line
sys.exit(cli.main(sys.argv[1:]))
"""


def test_terminated_while_an_error_is_said(tmp_path):
    done = forked.run(INTERRUPTED_IN_AN_ERROR, "convert", tmp_path / "none", tmp_path / "out", "--to", "gemv_fast")
    assert (done.returncode, done.stderr) == (143, "awqpack convert: terminated\n")


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


def test_the_demo_keeps_what_load_file_reads(tmp_path, capsys):
    """And inspect lists it."""
    save_file({"fc.weight": torch.randn(64, 128), "b.weight": torch.randn(8, 24)}, tmp_path / "model.safetensors")
    output = tmp_path / "packed.safetensors"
    status, out, _ = run(capsys, "demo", tmp_path / "model.safetensors", "--output", output)
    assert status == 0, out
    loaded = awqpack.load_file(output)
    assert loaded["fc.v2"].packing is awqpack.AWQPacking.V2
    assert torch.equal(loaded["fc.v2"].unpack(), loaded["fc.v1_reorder"].unpack())
    status, out, _ = run(capsys, "inspect", output)
    assert status == 0
    assert out.splitlines()[0] == f"{output}: packed tensors, which awqpack.load_file reads"
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[2:-1]]
    assert ["fc.v1_reorder", "64x128", "4.1 kB", "V1 reorder"] in rows
    assert ["b.v1", "8x24", "96 B", "V1"] in rows
    status, out, _ = run(capsys, "inspect", output, "--json")
    packed = {name for name, tensor in loaded.items() if isinstance(tensor, awqpack.AWQPackedTensor)}
    assert {tensor["name"] for tensor in json.loads(out)["tensors"]} == packed
    status, _, err = run(capsys, "verify", output, output)
    assert (status, "which awqpack.load_file reads, and no layers" in err) == (2, True)

"""Conversions by several processes, and ones that go on from an interrupted one."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import forked
import pytest
from checkpoints import contents, leftovers, random_layer, write_checkpoint
from torch.distributed import TCPStore

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.checkpoint.orchestration import shares
from awqpack.checkpoint.plan import OutputFile
from awqpack.checkpoint.shard import Entry

RANKS = 4
PARTIAL = ".out.awqpack-partial"

# Runs the command after it put a failure in its own rank: at a byte that it writes, a file that is whole, the rename.
RANK = """
import errno, os, signal, sys, time
from awqpack import cli
from awqpack.checkpoint import journal, staging, writer

rank, where, point = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
passed = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def full():
    raise OSError(errno.ENOSPC, "No space left on device")

def fails_at(owner, name, fail, count, is_before=True):
    kept = getattr(owner, name)
    def replaced(*arguments):
        global passed
        passed += count(arguments)
        if is_before and passed > point:
            fail()
        result = kept(*arguments)
        if passed > point:
            fail()
        return result
    setattr(owner, name, replaced)

if rank == int(os.environ["RANK"]):
    if where == "bytes":
        fails_at(writer.Writer, "_count", die, lambda arguments: arguments[2])
    elif where == "bytes while others write":
        fails_at(writer.Writer, "_count", die, lambda arguments: arguments[2])
    elif where == "before a note":
        fails_at(journal.Journal, "record", die, lambda arguments: 1)
    elif where == "after a note":
        fails_at(journal.Journal, "record", die, lambda arguments: 1, False)
    elif where == "rename":
        fails_at(staging.Staging, "commit", die, lambda arguments: 1)
    elif where == "full":
        fails_at(writer.Writer, "_count", full, lambda arguments: arguments[2])
elif where == "bytes while others write":
    naps = iter([0.5])
    fails_at(writer.Writer, "write", lambda: time.sleep(next(naps, 0)), lambda arguments: 1)
sys.exit(cli.main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A checkpoint of nine files, among which the parts of each layer are dealt out."""
    layers = {f"model.layers.{i}.fc": random_layer(256, 512, seed=i) for i in range(12)}
    return write_checkpoint(tmp_path_factory.mktemp("ranks") / "given", "gemm", layers, shards=9)


@pytest.fixture(scope="module")
def expected(given):
    """What one process writes that nothing interrupts."""
    checkpoint.convert(given, given.with_name("expected"), "gemv_fast")
    return contents(given.with_name("expected"))


class Command(NamedTuple):
    """What ranks carry out, in words and as a function."""

    name: str
    given: pathlib.Path
    options: dict[str, object]
    expected: dict[str, bytes]

    def words(self, out):
        options = [word for option, value in self.options.items() for word in (f"--{option.replace('_', '-')}", value)]
        return [self.name, self.given, out, *options]

    def run(self, out, **options):
        return getattr(checkpoint, self.name)(self.given, out, **self.options, **options)


@pytest.fixture(scope="module")
def commands(given, expected):
    """By name, each with what one process writes that nothing interrupts."""
    floats, rounded = given.with_name("floats"), given.with_name("rounded")
    checkpoint.convert(given, floats, "float16", max_shard_size=3 * 256 * 512)
    options = {"to": "gemv_fast", "group_size": 64}
    checkpoint.quantize(floats, rounded, **options)
    return {
        "convert": Command("convert", given, {"to": "gemv_fast"}, expected),
        "quantize": Command("quantize", floats, options, contents(rounded)),
    }


def run_ranks(*arguments, rank=-1, where="nowhere", point=0, of_rank=None, count=RANKS):
    """A command by several processes, as torchrun starts them: the outcome of each.

    Args:
        arguments: of the command.
        rank, where, point: of the failure.
        of_rank: gives a rank other arguments.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True)
    environment = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
    }

    def one(number):
        own = (of_rank or {}).get(number, arguments)
        return forked.run(RANK, rank, where, point, *own, RANK=str(number), **environment)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def said(done):
    """All that ranks wrote to stderr, but for the lines of progress."""
    lines = [line for rank in done for line in rank.stderr.splitlines()]
    return [line for line in lines if not re.match(r"converting |\[\d+/\d+\] ", line)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("convert", "12 layers from gemm to gemv_fast"),
        ("quantize", "12 linears rounded to gemv_fast, without a search for scales"),
    ],
)
def test_ranks_write_what_one_process_writes(name, text, commands, tmp_path):
    out, command = tmp_path / "out", commands[name]
    done = run_ranks(*command.words(out))
    assert [rank.returncode for rank in done] == [0] * RANKS, said(done)
    assert contents(out) == command.expected
    assert leftovers(tmp_path) == []
    assert said(done) == []
    assert done[0].stdout.startswith(f"{out}: {text}")
    assert [rank.stdout for rank in done[1:]] == [""] * (RANKS - 1)
    lines = done[0].stderr.splitlines()[1:]
    files = sorted(name for name in command.expected if name.endswith(".safetensors"))
    assert sorted(line.split()[1] for line in lines) == files
    assert len(files) > RANKS
    assert re.match(rf"\[{len(files)}/{len(files)}\] .* 100% ", lines[-1])


def test_more_ranks_than_files(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm", shards=1)
    done = run_ranks("convert", given, tmp_path / "out", "--to", "compressed-tensors", count=2)
    assert [rank.returncode for rank in done] == [0, 0], said(done)
    assert checkpoint.verify(given, tmp_path / "out").is_equal


def test_shares_are_of_about_as_many_bytes():
    files = [OutputFile(str(i), {"a": Entry("U8", (n,), 0, n)}, b"") for i, n in enumerate([1, 7, 3, 5, 4, 4])]
    dealt = shares(files, 3)
    assert sorted(file.name for part in dealt for file in part) == [file.name for file in files]
    assert sorted(sum(file.nbytes for file in part) for part in dealt) == [8, 8, 8]
    assert [len(part) for part in shares(files[:1], 3)] == [1, 0, 0]


SHARE = 12 * 256 * 512 // 2 // RANKS  # about what a rank writes, in bytes
KILLS = [  # where, which time or byte, which rank
    ("bytes while others write", 0, 1),
    *(("bytes", random.Random(rank).randrange(SHARE), rank % RANKS) for rank in range(5)),
    ("before a note", 0, 2),
    ("after a note", 0, 0),
    ("after a note", 0, 3),
    ("rename", 0, 0),
]
FEW = {"convert": [0, 9], "quantize": [3]}  # of them; the rest are for -m kills


@pytest.mark.parametrize(
    ("name", "where", "point", "rank"),
    [
        pytest.param(name, *kill, marks=() if i in few else pytest.mark.kills)
        for name, few in FEW.items()
        for i, kill in enumerate(KILLS)
    ],
)
def test_killed_and_resumed(name, where, point, rank, commands, tmp_path):
    """SIGKILL of one rank of four: one message, nothing under the target's name, and the rest later is the same."""
    out, content, command = tmp_path / "out", tmp_path / PARTIAL / "content", commands[name]
    done = run_ranks(*command.words(out), rank=rank, where=where, point=point)
    assert done[rank].returncode == -signal.SIGKILL
    assert [done[i].returncode for i in range(RANKS) if i != rank] == [2] * (RANKS - 1)
    died = f"rank {rank} of {RANKS} died; files that are whole are kept, and --resume goes on"
    assert said(done) == [f"awqpack {name}: error: {died}"]
    assert leftovers(tmp_path) == [PARTIAL]
    assert not out.exists()
    noted = [note.name.removesuffix(".json") for note in (tmp_path / PARTIAL / "whole").glob("*.json")]
    inodes = {name: (content / name).stat().st_ino for name in noted}
    assert len(noted) > 0 or where.startswith(("bytes", "before"))
    if rank % 2 == 0:
        kept = command.run(out, resume=True).kept_files
        assert sorted(kept) == sorted(noted)
    else:
        done = run_ranks(*command.words(out), "--resume", count=3)
        assert [rank.returncode for rank in done] == [0] * 3, said(done)
    assert {name: (out / name).stat().st_ino for name in noted} == inodes
    assert contents(out) == command.expected
    assert leftovers(tmp_path) == []


def test_torchrun_ends_with_one_message(given, expected, tmp_path):
    out = tmp_path / "out"
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    torchrun = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    command = ["1", "bytes", SHARE // 2, "convert", given, out, "--to", "gemv_fast"]
    done = forked.run(torchrun, "--standalone", "--nproc-per-node", "2", script, *command)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("awqpack")]
    assert lines == ["awqpack convert: error: rank 1 of 2 died; files that are whole are kept, and --resume goes on"], (
        done.stderr
    )
    assert not out.exists()
    checkpoint.convert(given, out, "gemv_fast", resume=True)
    assert contents(out) == expected


def test_a_full_disk_on_one_rank(given, expected, tmp_path):
    """Every rank ends; what is whole is kept, and what is not leaves the disk."""
    arguments = ["convert", given, tmp_path / "out", "--to", "gemv_fast"]
    done = run_ranks(*arguments, rank=1, where="full", point=SHARE // 2, count=2)
    assert [rank.returncode for rank in done] == [2, 2]
    text = f"awqpack convert: error: rank 1 of 2: {tmp_path}/out: cannot be written (the disk is full)"
    assert said(done) == [text]
    left = contents(tmp_path / PARTIAL / "content")
    assert {name: data for name, data in left.items() if name.endswith(".safetensors")}.items() <= expected.items()
    checkpoint.convert(given, tmp_path / "out", "gemv_fast", resume=True)
    assert contents(tmp_path / "out") == expected


def test_errors_of_planning_are_said_once(given, tmp_path):
    """And leave nothing."""
    for arguments, text in [
        (["convert", tmp_path / "none", tmp_path / "out", "--to", "gemv"], "none: no such file or directory"),
        (["convert", given, tmp_path / "out", "--to", "gptq"], "gptq cannot hold"),
        (["convert", given, tmp_path / "out", "--to", "gem"], "did you mean gemm or gemv?"),
    ]:
        done = run_ranks(*arguments, count=2)
        assert [rank.returncode for rank in done] == [2, 2]
        (line,) = said(done)
        assert text in line
        assert leftovers(tmp_path) == []


def test_ranks_with_different_arguments(given, tmp_path):
    arguments = ["convert", given, tmp_path / "out", "--to", "gemv"]
    other = {2: ["convert", given, tmp_path / "out", "--to", "gemv_fast"]}
    done = run_ranks(*arguments, of_rank=other, count=3)
    assert said(done) == ["awqpack convert: error: ranks differ: rank 0 has 'gemv' for to; rank 2 has 'gemv_fast'"]
    assert leftovers(tmp_path) == []


def test_ranks_that_see_different_files(given, tmp_path):
    shutil.copytree(given, tmp_path / "copy")
    name = "model-00003-of-00009.safetensors"
    os.utime(tmp_path / "copy" / name, ns=(0, 5))
    for file in set(os.listdir(given)) - {name}:
        shutil.copystat(given / file, tmp_path / "copy" / file)
    arguments = ["convert", given, tmp_path / "out", "--to", "gemv"]
    done = run_ranks(*arguments, of_rank={1: ["convert", tmp_path / "copy", *arguments[2:]]}, count=2)
    (line,) = said(done)
    assert re.fullmatch(rf"awqpack convert: error: ranks differ: .* for {name}; rank 1 has \d+ bytes of 5 ns", line)


# --- --resume by one process ---


class Stop(Exception):
    pass


class Stopping(checkpoint.Progress):
    """Stops a conversion once so many files are whole."""

    def __init__(self, files):
        self.files = files

    def finish_file(self, name):
        self.files -= 1
        if self.files == 0:
            raise Stop


def interrupt(given, out, files=3, to="gemv_fast", **options):
    with contextlib.suppress(Stop):
        checkpoint.convert(given, out, to, resume=True, progress=Stopping(files), **options)
    assert not out.exists()
    return out.with_name(PARTIAL)


def test_resume_keeps_what_is_whole(given, expected, tmp_path):
    partial = interrupt(given, tmp_path / "out")
    inodes = {file.stat().st_ino for file in (partial / "content").glob("*.safetensors")}
    done = checkpoint.convert(given, tmp_path / "out", "gemv_fast", resume=True)
    assert len(done.kept_files) >= 3
    assert {(tmp_path / "out" / name).stat().st_ino for name in done.kept_files} <= inodes
    assert contents(tmp_path / "out") == expected
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("is_file", [False, True])
def test_resume_with_nothing_to_resume(is_file, given, tmp_path):
    source = write_checkpoint(tmp_path / "one", "gemm", shards=1) / "model.safetensors" if is_file else given
    out = tmp_path / ("out.safetensors" if is_file else "out")
    assert checkpoint.convert(source, out, "gemv", resume=True).kept_files == ()
    assert checkpoint.verify(source, out).is_equal
    with pytest.raises(CheckpointError, match="exists already; --force"):
        checkpoint.convert(source, out, "gemv", resume=True)


def test_a_single_file_after_a_kill(tmp_path):
    """Its unfinished copy makes way, resumed or not."""
    source = write_checkpoint(tmp_path / "one", "gemm", shards=1) / "model.safetensors"
    for resume in (False, True):
        out = tmp_path / f"{resume}.safetensors"
        partial = tmp_path / f".{out.name}.awqpack-partial"
        partial.mkdir()
        (partial / out.name).write_bytes(b"half")
        checkpoint.convert(source, out, "gemv", resume=resume)
        assert checkpoint.verify(source, out).is_equal


DAMAGE = {
    "shorter": lambda file: os.truncate(file, file.stat().st_size - 1),
    "changed": lambda file: os.utime(file, ns=(0, 1)),
    "another file": lambda file: (file.rename(file.with_name("x")), shutil.copy2(file.with_name("x"), file)),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_files_that_are_not_what_was_noted_are_written_anew(name, given, expected, tmp_path):
    partial = interrupt(given, tmp_path / "out")
    notes = [note.name.removesuffix(".json") for note in (partial / "whole").iterdir()]
    DAMAGE[name](partial / "content" / notes[0])
    kept = checkpoint.convert(given, tmp_path / "out", "gemv_fast", resume=True).kept_files
    assert sorted(kept) == sorted(notes[1:])
    assert contents(tmp_path / "out") == expected


def test_files_of_before_a_restart_count_only_if_the_disk_had_them(given, expected, tmp_path):
    partial = interrupt(given, tmp_path / "out")
    first, second, *others = sorted((partial / "whole").iterdir())
    for note, boot in ((first, "another"), (second, None)):
        note.write_text(json.dumps(json.loads(note.read_text()) | {"boot": boot}))
    kept = checkpoint.convert(given, tmp_path / "out", "gemv_fast", resume=True).kept_files
    assert sorted(f"{name}.json" for name in kept) == [second.name, *(note.name for note in others)]
    assert contents(tmp_path / "out") == expected


def edited(change):
    def edit(partial, given):
        path = partial / "journal.json"
        path.write_text(change(path.read_text()))

    return edit


JOURNALS = {
    "another version": (
        edited(lambda text: text.replace('"version": 1', '"version": 7')),
        "is of version 7; .* reads 1",
    ),
    "no JSON": (edited(lambda text: text[:-9]), "is no journal of an interrupted run"),
    "no object": (edited(lambda text: "[]"), "is no journal of an interrupted run"),
    "another source": (
        lambda partial, given: os.utime(given / "model-00002-of-00009.safetensors", ns=(0, 3)),
        "the interrupted run had .* for model-00002-of-00009.safetensors; this has .* of 3 ns",
    ),
    "another configuration": (
        lambda partial, given: (given / "config.json").write_text((given / "config.json").read_text() + " "),
        "the interrupted run had .* for config.json; this has ",
    ),
}


@pytest.mark.parametrize("name", JOURNALS)
def test_journals_of_something_else(name, given, tmp_path):
    """Named, and left as they are; without --resume it begins anew."""
    source = shutil.copytree(given, tmp_path / "given")
    partial = interrupt(source, tmp_path / "out")
    change, text = JOURNALS[name]
    change(partial, source)
    before = contents(partial)
    with pytest.raises(CheckpointError, match=f"journal.json: {text}.*; without --resume it is written anew"):
        checkpoint.convert(source, tmp_path / "out", "gemv_fast", resume=True)
    assert contents(partial) == before
    checkpoint.convert(source, tmp_path / "out", "gemv_fast")
    assert checkpoint.verify(source, tmp_path / "out").is_equal


@pytest.mark.parametrize("options", [{"to": "gemv"}, {"max_shard_size": 300_000}, {"scale_dtype": "float32"}])
def test_journals_of_other_arguments(options, given, tmp_path):
    interrupt(given, tmp_path / "out")
    (name,) = options
    with pytest.raises(CheckpointError, match=f"the interrupted run had .* for {name}; this has "):
        checkpoint.convert(given, tmp_path / "out", **{"to": "gemv_fast", "resume": True} | options)


@pytest.mark.parametrize(
    "options", [{"symmetric": True}, {"ignore": ["0.fc"]}, {"group_size": 128}, {"scale_dtype": "float32"}], ids=str
)
def test_quantize_resumes_with_the_same_arguments_alone(options, commands, tmp_path):
    out, command = tmp_path / "out", commands["quantize"]
    with contextlib.suppress(Stop):
        command.run(out, resume=True, progress=Stopping(3))
    (name,) = options
    with pytest.raises(CheckpointError, match=f"the interrupted run had .* for {name}; this has "):
        checkpoint.quantize(command.given, out, **command.options | options, resume=True)
    assert len(command.run(out, resume=True).kept_files) >= 3
    assert contents(out) == command.expected


def test_without_torchrun_no_store_is_looked_for(monkeypatch):
    """Nor is one by a process that torchrun started alone."""
    from awqpack.checkpoint.team import Ranks, team_of_environment

    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not isinstance(team_of_environment(), Ranks)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not isinstance(team_of_environment(), Ranks)

"""How a conversion writes: nothing half-done is left, no target is lost, memory and open files stay few."""

import gc
import os
import random
import signal

import forked
import pytest
from checkpoints import (
    contents,
    leftovers,
    random_layer,
    write_checkpoint,
)

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")

    class Somebody(checkpoint.Progress):
        def finish_file(self, name):
            (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(CheckpointError, match="appeared while it was written"):
        checkpoint.convert(given, tmp_path / "out", "gemv", progress=Somebody())
    assert list((tmp_path / "out").iterdir()) == []
    assert leftovers(tmp_path) == []


def test_a_lock_on_a_removed_file_is_none(tmp_path):
    """Whoever waited for a lock file that was then removed takes a new one."""
    from awqpack.checkpoint.staging import Staging

    first = Staging(tmp_path / "out", force=False)
    with first:
        stale = os.open(tmp_path / ".out.awqpack-partial" / "lock", os.O_RDWR)
    try:
        with Staging(tmp_path / "out", force=False) as second:
            held, named = os.fstat(second._lock), os.stat(tmp_path / ".out.awqpack-partial" / "lock")
            assert os.path.samestat(held, named)
            assert not os.path.samestat(os.fstat(stale), named)
    finally:
        os.close(stale)


def test_files_of_a_cache_are_links(tmp_path):
    """Snapshots of the hub's cache link to their files: the target has files of its own."""
    given = write_checkpoint(tmp_path / "given", "gemm")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in given.iterdir():
        if file.is_file():
            (snapshot / file.name).symlink_to(file)
    checkpoint.convert(snapshot, tmp_path / "out", "gemv")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_dry_run_writes_nothing(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    before = contents(tmp_path)
    done = checkpoint.convert(given, tmp_path / "out", "gemv_fast", dry_run=True)
    assert done.is_dry_run
    assert done.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert contents(tmp_path) == before
    assert leftovers(tmp_path) == []


def test_force_replaces(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")
    out = tmp_path / "out"
    checkpoint.convert(given, out, "gemv")
    (out / "stale").write_text("")
    with pytest.raises(CheckpointError, match="exists already; --force"):
        checkpoint.convert(given, out, "gemv_fast")
    checkpoint.convert(given, out, "gemv_fast", force=True)
    assert checkpoint.inspect(out).layout == "gemv_fast"
    assert not (out / "stale").exists()
    assert leftovers(tmp_path) == []


def test_force_without_an_exchange_of_names(tmp_path, monkeypatch):
    """File systems that cannot exchange two names at once take two steps, which the next run ends when it must."""
    given = write_checkpoint(tmp_path / "given", "gemm")
    out = tmp_path / "out"
    checkpoint.convert(given, out, "gemv")
    monkeypatch.setattr("awqpack.checkpoint.staging._exchange", lambda first, second: False)
    checkpoint.convert(given, out, "gemv_fast", force=True)
    assert checkpoint.inspect(out).layout == "gemv_fast"
    out.rename(tmp_path / ".out.awqpack-old")  # as a run leaves it that is killed between the two
    checkpoint.convert(given, out, "gemm", force=True)
    assert checkpoint.inspect(out).layout == "gemm"
    assert leftovers(tmp_path) == []


KILLED = """
import os, signal, sys
from awqpack import checkpoint

class Killer(checkpoint.Progress):
    left = int(sys.argv[3])

    def advance(self, nbytes):
        self.left -= nbytes
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

checkpoint.convert(sys.argv[1], sys.argv[2], "gemv_fast", force=True, progress=Killer())
"""


@pytest.mark.parametrize("has_earlier_target", [False, True])
def test_killed_at_random_points(has_earlier_target, tmp_path):
    """SIGKILL at five points: an earlier target is as it was, and running again succeeds."""
    given = write_checkpoint(tmp_path / "given", "gemm")
    out = tmp_path / "out"
    earlier = {}
    if has_earlier_target:
        checkpoint.convert(given, out, "gemv")
        earlier = contents(out)
    size = checkpoint.convert(given, out, "gemv_fast", dry_run=True, force=True).nbytes
    for point in random.Random(0).sample(range(size), 5):
        assert forked.run(KILLED, given, out, point).returncode == -signal.SIGKILL
        assert out.exists() == has_earlier_target
        assert (contents(out) if out.exists() else {}) == earlier
        assert leftovers(tmp_path) == [".out.awqpack-partial"]
    checkpoint.convert(given, out, "gemv_fast", force=has_earlier_target)
    assert checkpoint.verify(given, out).is_equal
    assert leftovers(tmp_path) == []


def test_two_at_once(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")

    class Second(checkpoint.Progress):
        def start(self, conversion):
            self.error = None

        def finish_file(self, name):
            if self.error is None:
                with pytest.raises(CheckpointError, match="another awqpack is writing it") as caught:
                    checkpoint.convert(given, tmp_path / "out", "gemv")
                self.error = caught.value

    progress = Second()
    checkpoint.convert(given, tmp_path / "out", "gemv", progress=progress)
    assert progress.error is not None
    assert checkpoint.verify(given, tmp_path / "out").is_equal


MEMORY = """
import re, sys
from awqpack import checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
checkpoint.convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(peak() - before)
"""


def test_memory_stays_below_two_shards(tmp_path):
    layers = dict.fromkeys((f"{i}.fc" for i in range(24)), random_layer(1024, 8192))
    given = write_checkpoint(tmp_path / "given", "gemm", layers, {}, shards=2)
    shard = max(file.stat().st_size for file in given.glob("*.safetensors"))
    assert shard > 48 << 20
    grown = forked.run(MEMORY, given, tmp_path / "out", "gemv_fast")
    assert grown.returncode == 0, grown.stderr
    assert int(grown.stdout) * 1024 < 2 * shard


def test_progress_counts_every_byte(tmp_path):
    given = write_checkpoint(tmp_path / "given", "gemm")

    class Counting(checkpoint.Progress):
        def __init__(self):
            self.nbytes, self.files = 0, []

        def advance(self, nbytes):
            self.nbytes += nbytes

        def finish_file(self, name):
            self.files.append(name)

    progress = Counting()
    done = checkpoint.convert(given, tmp_path / "out", "gemv_fast", progress=progress)
    assert progress.nbytes == done.nbytes
    assert sorted(progress.files) == sorted(done.files)


def test_open_files_are_not_used_up(tmp_path):
    """Twenty conversions in one process end with the files open that it began with."""
    given = write_checkpoint(tmp_path / "given", "gemm", {"fc": random_layer(8, 64, 64)}, {}, group_size=64)
    gc.collect()
    count = len(os.listdir("/proc/self/fd"))
    for i in range(20):
        checkpoint.convert(given, tmp_path / f"out{i}", "gemv")
    assert len(os.listdir("/proc/self/fd")) == count

"""What the suite `convert` times: copies, conversions by processes as torchrun starts them, others' converters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# Before anything is timed, what waits for the disk is written. Then each removes its own earlier target, just before it
# begins: both find memory that was in use a moment ago, where a virtual machine gives freed memory back to its host and
# gets other memory from there, page by page, at several times the cost of the copy.
SETTLE_SECONDS = 2.1
_WRITTEN_SECONDS = 0.1  # longer than this, something was written, and its disk may be at it still
_BLOCK = 1 << 22  # bytes that a disk is asked for at a time

# A process says when it has imported all, and waits. Once it may begin it prints its seconds, those of its CPUs, the
# peak of its resident memory in kB before and after, and how many threads it had. The seconds are those of the work,
# from where all have come on. VmHWM is of this process, as ru_maxrss is not.
_MEASURED = """
import os, re, shutil, sys, time
import torch

def peak():
    return re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]

def cpu():
    times = os.times()
    return times.user + times.system

def sync(folder):
    for name in os.listdir(folder):
        fd = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

def measure(work, together=lambda: None):
    before = peak()
    print("ready", file=real_stdout, flush=True)
    sys.stdin.readline()
    together()
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(target, ignore_errors=True)
    together()
    start, begin = time.perf_counter(), cpu()
    work()
    together()
    if is_cold:
        sync(target)
    print(time.perf_counter() - start, cpu() - begin, before, peak(), torch.get_num_threads(), file=real_stdout)

real_stdout = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
source, target, is_cold = sys.argv[1], sys.argv[2], sys.argv[3] == "cold"
"""

_RANK = (
    _MEASURED
    + """
from awqpack import checkpoint
from awqpack.checkpoint.team import team_of_environment

team = team_of_environment()
command, to, options = sys.argv[4], sys.argv[5], dict(zip(sys.argv[6::2], sys.argv[7::2]))
limit = options.get("--max-shard-size")
run = getattr(checkpoint, command)
measure(lambda: run(source, target, to, max_shard_size=limit, team=team, force=True), lambda: team.exchange(None))
"""
)

_PEER = (
    _MEASURED
    + """
from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter, CompressedTensorsDequantizer

of_gemm, threads = sys.argv[4] == "gemm", int(sys.argv[5])
converter = AutoAWQConverter(group_size=128) if of_gemm else CompressedTensorsDequantizer(source)
measure(lambda: (os.mkdir(target), convert_checkpoint(source, target, converter, threads)))
"""
)


class Copied(NamedTuple):
    """A copy: seconds, and those of its CPU."""

    seconds: float
    cpu_seconds: float


class Disk(NamedTuple):
    """What a disk does at its best, in bytes a second, and how many files at once that took."""

    read: float
    read_files: int
    written: float
    written_files: int

    def seconds(self, read: int, written: int) -> float:
        """That it needs for so many bytes read and written, one after the other."""
        return read / self.read + written / self.written


class Ran(NamedTuple):
    """A conversion: seconds of the slowest process, of all CPUs together, peaks of the largest, threads of each."""

    seconds: float
    cpu_seconds: float
    peak_before: int
    peak: int
    threads: int


def forget(*folders: Path) -> None:
    """Removes what was timed."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def file_system(folder: Path) -> str:
    """Its type, such as ext4."""
    return subprocess.check_output(["df", "--output=fstype", folder], text=True).split()[-1]


def _settle(source: Path, is_cold: bool) -> None:
    start = time.perf_counter()
    os.sync()
    was_written = time.perf_counter() - start > _WRITTEN_SECONDS
    for file in source.iterdir() if is_cold else ():
        _drop(file)
    if was_written or is_cold:
        time.sleep(SETTLE_SECONDS)


def _drop(file: Path) -> None:
    """Its pages leave the file cache; they have been written."""
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def disk(folder: Path, nbytes: int) -> Disk:
    """Plain files of so many bytes together, written and synced, then dropped from the file cache and read."""
    block = os.urandom(_BLOCK)

    def write(file: Path, length: int) -> None:
        with file.open("wb", buffering=0) as out:
            for _ in range(length // _BLOCK):
                out.write(block)
            os.fsync(out.fileno())

    def read(file: Path, _: int) -> None:
        buffer = bytearray(_BLOCK)
        with file.open("rb", buffering=0) as content:
            while content.readinto(buffer):
                pass

    def rate(work: Callable[[Path, int], None], files: Sequence[Path]) -> float:
        length = nbytes // len(files) // _BLOCK * _BLOCK
        start = time.perf_counter()
        with ThreadPoolExecutor(len(files)) as pool:
            list(pool.map(work, files, [length] * len(files)))
        return length * len(files) / (time.perf_counter() - start)

    written, was_read = {}, {}
    for count in (1, 4, 16):
        files = [folder / f"plain-{i}" for i in range(count)]
        os.sync()
        written[count] = rate(write, files)
        for file in files:
            _drop(file)
        was_read[count] = rate(read, files)
        for file in files:
            file.unlink()
    best_read, best_written = max(was_read, key=was_read.__getitem__), max(written, key=written.__getitem__)
    return Disk(was_read[best_read], best_read, written[best_written], best_written)


def copy(source: Path, target: Path, *, is_cold: bool) -> Copied:
    """`cp -r`; cold, from the disk and to the disk. The copy stays."""
    _settle(source, is_cold)
    forget(target)
    before, start = os.times(), time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for file in target.iterdir() if is_cold else ():
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    seconds, after = time.perf_counter() - start, os.times()
    return Copied(seconds, sum(after[:4]) - sum(before[:4]))


class Ranks:
    """A conversion by so many processes, which find each other as torchrun's do. They are started, and wait.

    Args:
        command, source, target, to, options: what `awqpack` is given; the target stays.
        count: of processes.
        is_cold: from the disk and to the disk.
    """

    def __init__(
        self, command: str, source: Path, target: Path, to: str, count: int, options: Sequence[str], *, is_cold: bool
    ) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._source, self._is_cold = source, is_cold
        self._what = f"{command} {source.name} --to {to} by {count} processes"
        self._store = TCPStore("127.0.0.1", 0, is_master=True)  # lives as long as they do
        environment = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(self._store.port), "TORCHELASTIC_RUN_ID": "bench"}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        if count > 1:
            environment["OMP_NUM_THREADS"] = "1"  # torchrun's
        words = [str(source), str(target), "cold" if is_cold else "cached", command, to, *options]
        self._ranks = [
            subprocess.Popen(
                [sys.executable, "-c", _RANK, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**environment, "RANK": str(i)},
            )
            for i in range(count)
        ]

    def wait(self) -> None:
        """Returns once all have imported what they need, and do nothing."""
        for rank in self._ranks:
            assert rank.stdout is not None
            if rank.stdout.readline() != "ready\n":
                raise SystemExit(f"{self._what} failed")

    def run(self) -> Ran:
        """Converts. They have waited."""
        _settle(self._source, self._is_cold)
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        printed = [rank.communicate()[0] for rank in self._ranks]
        if any(rank.returncode for rank in self._ranks):
            raise SystemExit(f"{self._what} failed")
        return _ran(printed)


def run_ranks(command: str, source: Path, target: Path, to: str, options: Sequence[str]) -> Ran:
    """A conversion by one process, of cached files."""
    ranks = Ranks(command, source, target, to, 1, options, is_cold=False)
    ranks.wait()
    return ranks.run()


def peak_of_torch() -> int:
    """The most memory, in bytes, of a process that imports torch and does nothing else."""
    words = [sys.executable, "-c", _MEASURED + "print(peak(), file=real_stdout)", "", "", ""]
    return int(subprocess.check_output(words, text=True)) * 1024


def run_peer(kind: str, source: Path, target: Path, threads: int) -> Ran | None:
    """compressed-tensors' converter of that source; None where it is not installed."""
    try:
        import compressed_tensors.entrypoints.convert  # noqa: F401
    except ImportError:
        return None
    _settle(source, False)
    words = [str(source), str(target), "cached", kind, str(threads)]
    printed = subprocess.check_output([sys.executable, "-c", _PEER, *words], text=True, input="\n")
    return _ran([printed.removeprefix("ready\n")])


def _ran(printed: Sequence[str]) -> Ran:
    values = [[float(word) for word in line.split()] for line in printed]
    seconds, cpu, before, after, threads = zip(*values, strict=True)
    return Ran(max(seconds), sum(cpu), int(max(before)) * 1024, int(max(after)) * 1024, int(threads[0]))

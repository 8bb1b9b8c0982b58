"""Times `awqpack convert` beside `cp -r` of the same checkpoint, and beside compressed-tensors' own converter.

A sharded gemm checkpoint of random codes is made in a scratch folder, converted to gemv_fast and back, and verified.
The copies and conversions take turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from awqpack import checkpoint
from awqpack.layouts import LAYOUTS

from .harness import Row, compare, print_table
from .synthetic import GROUP_SIZE, gemm_layer, write_checkpoint

# Before anything is timed, what waits for the disk is written, and a virtual machine gives freed memory back to its
# host, which it does some of every two seconds: both would slow whatever runs meanwhile.
_SETTLE_SECONDS = 6

# One conversion, in a process of its own, prints its seconds and the peak of its resident memory in kB before and
# after. The seconds are those of the work, not of the imports. VmHWM is of this process, as ru_maxrss is not.
_CONVERT = """
import os, re, shutil, sys, time
from awqpack import checkpoint

def peak():
    return re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]

os.sync()
time.sleep(float(sys.argv[4]))
shutil.rmtree(sys.argv[2], ignore_errors=True)
before, start = peak(), time.perf_counter()
checkpoint.convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(time.perf_counter() - start, before, peak())
"""


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp -r`."""
    os.sync()
    time.sleep(_SETTLE_SECONDS)
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    return time.perf_counter() - start


def convert(source: Path, target: Path, layout: str) -> tuple[float, tuple[int, int]]:
    """Seconds, and peak resident bytes before and after a conversion."""
    command = [sys.executable, "-c", _CONVERT, str(source), str(target), layout, str(_SETTLE_SECONDS)]
    printed = subprocess.check_output(command, text=True)
    seconds, before, after = printed.split()
    return float(seconds), (int(before) * 1024, int(after) * 1024)


def bench_checkpoint(folder: Path, size: int, turns: int) -> list[Row]:
    """cp -r, gemm -> gemv_fast and back, in turns; verified once."""
    source, copied, fast, back = (folder / name for name in ("gemm", "copied", "fast", "back"))
    total = write_checkpoint(source, size)
    shard = max(file.stat().st_size for file in source.glob("*.safetensors"))
    directions = {"gemm to gemv_fast": (source, fast, "gemv_fast"), "gemv_fast to gemm": (fast, back, "gemm")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in directions}
    peaks: dict[str, tuple[int, int]] = {}
    for turn in range(turns + 1):
        for name, (one, other, layout) in directions.items():
            # Each copy is of the directory that is converted next, and each removes its own earlier target just before:
            # both find the source in the file cache, and memory that was in use a moment ago, where a virtual machine
            # gets other memory from its host, page by page.
            copied_in = copy(one, copied)
            seconds, peaks[name] = convert(one, other, layout)
            if turn > 0:  # the first one finds memory that was never used
                times[name].append((copied_in, seconds))
    found = checkpoint.verify(source, fast)
    if not found.is_equal or not checkpoint.verify(source, back).is_equal:
        raise SystemExit(f"converted checkpoints differ: {found.differences[:3]}")
    rows: list[Row] = []
    print(f"{total / 2**30:.2f} GiB in shards of {shard / 2**20:.0f} MiB, the best of {turns} turns; verified equal")
    for name, pairs in times.items():
        # Memory that a virtual machine must ask its host for makes some turns several times slower, of copies and of
        # conversions alike: the best of each says what the program costs, the median what such a machine adds.
        median = statistics.median(theirs / ours for theirs, ours in pairs)
        copy_seconds, seconds = (min(values) for values in zip(*pairs, strict=True))
        before, after = peaks[name]
        what = {
            "bytes": total,
            "median_ratio": f"{median:.3f}",
            "peak_mib": after >> 20,
            "peak_mib_before": before >> 20,
        }
        rows.append(Row("checkpoint", name, "awqpack", seconds, what, total, "cp -r", copy_seconds))
    columns = ("op", "baseline_ms", "gb_per_s", "median_ratio", "peak_mib", "peak_mib_before")
    print_table("Milliseconds", rows, columns, ("who",), "ms")
    print_table("cp -r / ours (1 = as fast)", rows, ("op",), ("who",))
    return rows


def bench_peer(layers: int, turns: int) -> list[Row]:
    """gemm -> compressed-tensors of the same layers in memory, beside that package's converter."""
    try:
        from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    except ImportError:
        print("compressed-tensors is not installed: left out (pip install 'awqpack[bench]')")
        return []
    generator = torch.Generator().manual_seed(0)
    shape = (4096, 4096)
    tensors: dict[str, torch.Tensor] = {}
    for i in range(layers):
        tensors |= {f"{i}.fc.{name}": t for name, t in gemm_layer(*shape, generator).items()}
    gemm, target = LAYOUTS["gemm"], LAYOUTS["compressed-tensors"]
    converter = AutoAWQConverter(group_size=GROUP_SIZE)

    def ours() -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = {}
        for i in range(layers):
            layer = gemm.decode({n: tensors[f"{i}.fc.{n}"] for n in ("qweight", "qzeros", "scales")}, GROUP_SIZE)
            result |= {f"{i}.fc.{name}": tensor for name, tensor in target.encode(layer).items()}
        return result

    def theirs() -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = converter.process(dict(tensors))
        return result

    expected = theirs()
    if any(not torch.equal(value, expected[name]) for name, value in ours().items()):
        raise SystemExit("awqpack and compressed-tensors convert differently")
    nbytes = sum(t.nbytes for t in tensors.values())
    what = {"bytes": nbytes}
    rows = compare("in memory", "gemm to compressed-tensors", {"awqpack": ours}, {"compressed-tensors": theirs}, turns,
                   moved=nbytes, what=what)  # fmt: skip
    title = f"{layers} layers of {shape[0]}x{shape[1]} in memory, the same tensors: compressed-tensors' time / ours"
    print_table(title, rows, ("op", "baseline_ms", "ms"), ("who",))
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--size-mib", type=int, default=2048, help="of the checkpoint (default 2048)")
    parser.add_argument("--turns", type=int, default=5, help="how often everything is timed (default 5)")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go, four times the size (default: /tmp)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    with tempfile.TemporaryDirectory(prefix="awqpack-bench-", dir=options.folder) as scratch:
        rows = bench_checkpoint(Path(scratch), options.size_mib << 20, options.turns)
    return rows + bench_peer(4, 3)

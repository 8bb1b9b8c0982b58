"""Times `awqpack convert` and `quantize`, by one process and several, beside `cp -r` and others' converters.

A sharded gemm checkpoint of random codes is made in a scratch folder and converted to other layouts, to floats and
back. Each conversion takes turns with a copy of as many bytes, and the last of each is verified.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from awqpack import checkpoint

from . import cpus
from .converting import Copied, Disk, Ran, Ranks, copy, disk, file_system, forget, peak_of_torch, run_peer, run_ranks
from .harness import MIB, Row, print_table
from .synthetic import write_checkpoint

# As torchrun has it, each of several processes has one thread; one alone has as many as torch takes.
PROCESSES = (1, 2, 4, 8)
SHARDS = 16  # files of the checkpoint: a process at least has two
PEER_PARTS = 8  # the share of the checkpoint that peers convert, as they take a minute for what we do in two seconds


class Case(NamedTuple):
    """A conversion, and which of its folders `cp -r` copies for comparison."""

    source: str
    target: str
    command: str
    copied: str

    @property
    def name(self) -> str:
        return f"{self.source} to {self.target}"


# In an order in which each finds its source.
CASES = (
    Case("gemm", "compressed-tensors", "convert", "gemm"),
    Case("compressed-tensors", "gemm", "convert", "compressed-tensors"),
    Case("gemm", "gptq", "convert", "gemm"),
    Case("gptq", "gemm", "convert", "gptq"),
    Case("gemm", "bfloat16", "convert", "bfloat16"),  # it writes four times what it reads
    Case("bfloat16", "gemm", "quantize", "bfloat16"),
)
PEERS = (("gemm", "compressed-tensors"), ("compressed-tensors", "bfloat16"))


def bench(folder: Path, case: Case, counts: list[int], turns: int, plain: Disk | None) -> list[Row]:
    """One conversion by so many processes, each in turns with a copy; verified. From the disk and to it where what that
    does by itself is given; then one copy serves all counts of a turn, as it waits for the disk."""
    is_cold = plain is not None
    source, target = folder / case.source, folder / "target"
    options = ["--max-shard-size", str(max(4 * _size_of(folder / "gemm") // SHARDS, 1))] * (case.target == "bfloat16")
    first = folder / case.target  # what later cases convert; the copy for comparison may be of it
    is_kept = not first.exists()
    if is_kept and (not counts or case.copied == case.target):
        run_ranks(case.command, source, first, case.target, options)
        is_kept = False
    if not counts:
        return []
    pairs: dict[int, list[tuple[Copied, Ran]]] = {count: [] for count in counts}
    for _ in range(turns):
        waiting = [
            Ranks(case.command, source, target, case.target, count, options, is_cold=is_cold) for count in counts
        ]
        for ranks in waiting:
            ranks.wait()
        for count, ranks in zip(counts, waiting, strict=True):
            if not is_cold or count == counts[0]:
                copied = copy(folder / case.copied, folder / "copied", is_cold=is_cold)
            pairs[count].append((copied, ranks.run()))
    if case.command == "convert" and case.target != "bfloat16":
        found = checkpoint.verify(source, target)
        if not found.is_equal:
            raise SystemExit(f"{case.name}: the checkpoints differ: {found.differences[:3]}")
    nbytes = _size_of(folder / case.copied)
    of_disk = None if plain is None else plain.seconds(_size_of(source), _size_of(target))
    if is_kept:
        target.rename(first)
    files = f"{'from the disk and synced' if is_cold else 'cached'}, {file_system(folder)}"
    return [_row(case, count, pairs[count], nbytes, files, of_disk) for count in counts]


def _row(
    case: Case, count: int, pairs: list[tuple[Copied, Ran]], nbytes: int, files: str, of_disk: float | None
) -> Row:
    """The best of each, which says what the programs cost, and the median of the turns' ratios beside it."""
    copied = min(pair[0].seconds for pair in pairs)
    ran = min(pair[1].seconds for pair in pairs)
    what = {
        "files": files,
        "processes": count,
        "threads": pairs[0][1].threads,
        "bytes": nbytes,
        "median_ratio": f"{statistics.median(one.seconds / other.seconds for one, other in pairs):.3f}",
        "cpu_s": f"{min(pair[1].cpu_seconds for pair in pairs):.2f}",
        "copy_cpu_s": f"{min(pair[0].cpu_seconds for pair in pairs):.2f}",
        "peak_mib": max(pair[1].peak for pair in pairs) // MIB,
        "peak_mib_before": max(pair[1].peak_before for pair in pairs) // MIB,
    }
    if of_disk is not None:
        what["disk_ms"] = f"{of_disk * 1e3:.6g}"
    return Row("checkpoint", case.name, "awqpack", ran, dict(what), nbytes, f"cp -r of {case.copied}", copied)


def _rows_of(plain: Disk, nbytes: int) -> list[Row]:
    """What the disk does by itself."""
    ways = (("read", plain.read, plain.read_files), ("write", plain.written, plain.written_files))
    return [
        Row("disk", op, "plain files", nbytes / rate, {"at_once": files, "bytes": nbytes}, nbytes)
        for op, rate, files in ways
    ]


def _show(row: Row) -> None:
    """A line for what is measured, as the whole takes minutes."""
    what = row.what
    print(
        f"{row.op}, processes {what['processes']}: {row.seconds:.2f} s, {row.baseline} {row.baseline_seconds:.2f} s, "
        f"ratio {row.ratio:.2f} (median {what['median_ratio']}), peak {what['peak_mib']} MiB"
        + (f", the disk alone {float(str(what['disk_ms'])) / 1e3:.2f} s" if "disk_ms" in what else ""),
        flush=True,
    )


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def bench_peers(folder: Path, size: int) -> list[Row]:
    """compressed-tensors' own converters on a smaller checkpoint, on disk, beside ours, each in its own process."""
    write_checkpoint(folder / "gemm", size, shard_size=size // 4)
    threads = len(cpus.ALL)
    rows: list[Row] = []
    for source, target in PEERS:
        ours = [run_ranks("convert", folder / source, folder / target, target, []) for _ in range(2)]
        theirs = run_peer(source, folder / source, folder / "theirs", threads)
        if theirs is None:
            print("compressed-tensors is not installed: left out (pip install 'awqpack[bench]')")
            return rows
        nbytes = _size_of(folder / (target if target == "bfloat16" else source))
        best = min(run.seconds for run in ours)
        for who, run in (("awqpack", ours[-1]), ("compressed-tensors", theirs)):
            seconds = best if who == "awqpack" else run.seconds
            what = {"files": "cached", "processes": 1, "threads": threads, "bytes": nbytes, "peak_mib": run.peak // MIB}
            rows.append(Row("peers", f"{source} to {target}", who, seconds, dict(what), nbytes, "awqpack", best))
        forget(folder / "theirs")
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--size-mib", type=int, default=2048, help="of the gemm checkpoint (default 2048)")
    parser.add_argument("--turns", type=int, default=3, help="how often everything is timed (default 3)")
    parser.add_argument("--processes", type=int, nargs="+", help="default: 1, 2, 4, 8, as far as there are CPUs")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="conversions that have one of these in their name")
    parser.add_argument("--cold", action="store_true", help="sources out of the file cache, targets synced to the disk")
    parser.add_argument("--no-peers", action="store_true", help="leave compressed-tensors out")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go, sixteen times the size (default: /tmp)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    counts = options.processes or [count for count in PROCESSES if count <= len(cpus.ALL)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="awqpack-bench-", dir=options.folder) as scratch:
        folder, size = Path(scratch), options.size_mib * MIB
        total = write_checkpoint(folder / "gemm", size, shard_size=size // SHARDS)
        state = "sources not cached, targets synced" if options.cold else "sources in the file cache, nothing synced"
        print(f"{total / 2**30:.2f} GiB of gemm in {SHARDS} files or so, the best of {options.turns} turns; {state}")
        print(f"a process that imports torch and does nothing else: {peak_of_torch() // MIB} MiB at its peak")
        plain = disk(folder, total) if options.cold else None
        if plain is not None:
            rows += _rows_of(plain, total)
            print(f"the disk alone: {plain.read / 1e9:.2f} GB/s read, {plain.written / 1e9:.2f} GB/s written")
        chosen = [case for case in CASES if options.only is None or any(word in case.name for word in options.only)]
        for case in CASES:
            if case in chosen or case.target in {other.source for other in chosen}:
                try:
                    found = bench(folder, case, counts if case in chosen else [], options.turns, plain)
                except KeyboardInterrupt:
                    print("interrupted: the rows so far")
                    break
                for row in found:
                    _show(row)
                rows += found
    columns = (
        "op",
        "processes",
        "threads",
        "baseline_ms",
        "gb_per_s",
        "median_ratio",
        "cpu_s",
        "copy_cpu_s",
        "peak_mib",
        "peak_mib_before",
    )
    conversions = [row for row in rows if row.table == "checkpoint"]
    print_table("Milliseconds", conversions, columns, ("who",), "ms")
    print_table("cp -r / ours (1 = as fast)", conversions, ("op",), ("processes",))
    if not options.no_peers:
        with tempfile.TemporaryDirectory(prefix="awqpack-bench-", dir=options.folder) as scratch:
            peers = bench_peers(Path(scratch), size // PEER_PARTS)
        print_table(
            "compressed-tensors' own converters", peers, ("op", "bytes", "gb_per_s", "peak_mib"), ("who",), "ms"
        )
        rows += peers
    return rows

"""Times what others pack, unpack, quantize and dequantize, each beside awqpack doing the same, on one weight.

The packages are those of `make bench`, at the versions that are named; what cannot run is listed with the reason. Every
result is compared with ours before it is timed. On the CPU or, with --device cuda, on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata

import torch

from .adoption import Layer
from .harness import Row, compare, event, print_table, wall
from .pairs import PEERS, SLOW, CannotRun
from .progress import Step, steps

TABLE, LEFT_OUT = "beside", "left out"
SIDES = {"cpu": 4096, "cuda": 8192}
TURNS = {"cpu": 2, "cuda": 10}


def reason_not_to_run(peer: str) -> str | None:
    """Why a peer cannot be timed here; None when it can be tried."""
    pinned, _ = PEERS[peer]
    if pinned is None:
        return None
    try:
        version = metadata.version(peer)
    except metadata.PackageNotFoundError:
        return f"not installed (make bench installs {pinned})"
    return None if version == pinned else f"{version} is installed; {pinned} is compared"


def version_of(peer: str) -> str:
    """The peer's; torch's where it has none of its own."""
    if "Triton" in peer:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version("triton")
    return PEERS[peer][0] or torch.__version__


def left_out(peer: str, device: str, reason: str) -> Row:
    """A row without a time, for a peer that cannot run."""
    what: dict[str, object] = {"version": version_of(peer), "device": device, "reason": reason}
    return Row(LEFT_OUT, "", "", math.nan, what, baseline=peer)


def timed(peer: str, layer: Layer, turns: int) -> Iterator[Row]:
    """Every op of a peer beside ours, in turns."""
    device = layer.weight.device.type
    what: dict[str, object] = {
        "size": "x".join(map(str, layer.weight.shape)),
        "dtype": "float16",
        "version": version_of(peer),
        "device": device,
    }
    for op, pair in PEERS[peer][1](layer).items():
        is_slow = (peer, op) in SLOW
        pair.ours()
        try:
            if pair.compared and not is_slow:
                theirs, ours = pair.compared()
                different = int((theirs.to(ours.device).reshape(ours.shape) != ours).sum())
                # compressed-tensors and ModelOpt round before they add the zero, torch's ops after.
                what = {**what, "different": different}
            calls, baselines = {"awqpack": pair.ours}, {peer: pair.theirs}
            clock = event if device == "cuda" else wall
            count = 1 if is_slow else turns
            yield from compare(TABLE, op, calls, baselines, count, clock, what=what, is_warm=is_slow)
        except Exception as error:  # whatever a package of others cannot do here
            yield left_out(peer, device, f"{op}: {in_short(error)}")


def in_short(error: Exception) -> str:
    """Its name and first line."""
    lines = str(error).strip().splitlines()
    said = lines[0][:100] if lines else ""
    return said if isinstance(error, CannotRun) else f"{type(error).__name__}: {said}"


def plan(device: str, size: int | None = None, turns: int | None = None) -> Iterator[Step]:
    """A step for each peer."""
    os.environ.setdefault("DISABLE_TQDM", "1")
    layer = Layer(size or SIDES[device], device=device)

    def step(peer: str) -> list[Row]:
        reason = reason_not_to_run(peer)
        if reason is not None:
            return [left_out(peer, device, reason)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return list(timed(peer, layer, turns or TURNS[device]))
            except (CannotRun, ImportError) as error:
                return [left_out(peer, device, in_short(error))]

    for peer in PEERS:
        yield peer, lambda peer=peer: step(peer)  # type: ignore[misc]


def print_tables(rows: Sequence[Row]) -> None:
    """Ours, theirs, how many times as fast; and who is left out."""
    compared = [row for row in rows if row.table == TABLE]
    down = ("baseline", "version")
    if compared:
        size = "{size} in {dtype} on {device}".format(**compared[0].what)
        print_table(f"Milliseconds of awqpack, {size}", compared, down, ("op",), "ms")
        print_table(f"Milliseconds of others, {size}", compared, down, ("op",), "baseline_ms")
        print_table("How many times as fast as others awqpack is", compared, down, ("op",))
    for row in rows:
        if row.table == LEFT_OUT:
            print(f"left out: {row.baseline}: {row.what['reason']}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--device", choices=list(SIDES), default="cpu", help="where (cpu)")
    parser.add_argument("--size", type=int, help="side of the weight (4096; 8192 on a GPU)")
    parser.add_argument("--turns", type=int, help="timed turns of each call (2; 10 on a GPU)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    rows = steps("beside others", list(plan(options.device, options.size, options.turns)))
    print_tables(rows)
    return rows

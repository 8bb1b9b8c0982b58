"""Fuzzing, one property a target. README.md lists the targets; `PYTHONPATH=tests python -m fuzz --help` runs one.

A target is a module here with `check(case)`, which raises for a finding. Where the module has `CASES`, a strategy of
hypothesis, cases are drawn from that; otherwise they are bytes, bred from those of `seeds()`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import hypothesis

CORPUS = Path(__file__).with_name("corpus")
BUILD = Path(__file__).parents[2] / ".build"
# Name: module, and whether branches of awqpack's Python guide it; those of the C kernels do so in jobs.c.
TARGETS = {
    "sequences": ("sequences", False),
    "round-trips": ("round_trips", False),
    "floats": ("floats", False),
    "metadata": ("metadata", False),
    "packed-files": ("packed_files", True),
    "checkpoints": ("checkpoints_on_disk", True),
    "configurations": ("configurations", True),
}
_SETTINGS = {"database": None, "deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
_MOST = 4096  # bytes that stand for a case
_CHUNK = 200  # cases that hypothesis draws before it begins anew, with the next seed


class Count:
    """A check that counts its calls, and passes over what comes after its end, but for a failure to be shown again."""

    def __init__(self, check, end=math.inf):
        self.check, self.end, self.calls, self.has_failed = check, end, 0, False

    def __call__(self, case):
        if self.has_failed or time.monotonic() < self.end:
            self.calls += 1
            try:
                self.check(case)
            except BaseException:
                self.has_failed = True
                raise


def module_of(name):
    return importlib.import_module(f"fuzz.{TARGETS[name][0]}")


def committed(name):
    """The inputs of a target that are kept in corpus/, one a line in hexadecimal."""
    path = CORPUS / f"{name}.txt"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def corpus_of(name):
    """The committed inputs of a target of bytes, and its seeds."""
    return committed(name) + module_of(name).seeds()


def _drawn(module, check, seed, count):
    """A test that draws so many cases. The signature is hypothesis's."""

    def test(case):
        check(case)

    how = hypothesis.settings(max_examples=count, **_SETTINGS)
    return how(hypothesis.seed(seed)(hypothesis.given(case=module.CASES)(test)))


def one_input(name, check):
    """A function of bytes, which stand for a case: what a fuzzer calls. Past their end are zeros: a few bytes do."""
    module = module_of(name)
    if not hasattr(module, "CASES"):
        return check
    draw = _drawn(module, check, 0, 1).hypothesis.fuzz_one_input
    return lambda data: draw(data.ljust(_MOST, b"\0"))


def mutated(rng, data, others):
    """Bytes near to these: flipped, cut, repeated, overwritten by numbers that parsers mind, or by a part of others."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 4, 16])
        part = rng.choice(others)
        begin = rng.randrange(len(part) + 1)
        new = rng.choice(
            [
                rng.randbytes(size),
                b"",
                bytes(data[at : at + size]) * 2,
                part[begin : begin + size],
                rng.choice([b"-1", b"0", b"null", b'""', b"[]", b"{}", b"true", b"1e400", b"18446744073709551616"]),
                rng.choice([b"\0", b"\xff", b"\x7f", b'"', b"\\", b",", b":", b"]"]) * size,
            ]
        )
        data[at : at + rng.choice([0, size, len(new)])] = new
    return bytes(data)


def run(name, *, seconds=None, cases=None, seed=0):
    """Runs a target without a guide for so long, or for so many cases; returns how many. Raises what it finds."""
    module = module_of(name)
    end = math.inf if seconds is None else time.monotonic() + seconds
    check = Count(module.check, end)
    rng = random.Random(seed)
    known = None if hasattr(module, "CASES") else corpus_of(name)
    for data in known or []:
        check(data)
    while (check.calls < cases) if seconds is None else (time.monotonic() < end):
        if known is None:
            _drawn(module, check, seed, _CHUNK if cases is None else cases)()
            seed += 1
            continue
        data = mutated(rng, rng.choice(known), known)
        try:
            check(data)
        except BaseException as error:
            path = kept(name, data)
            raise AssertionError(f"{name}: {error!r}; the input is in {path}") from error
    return check.calls


@functools.cache
def findings():
    folder = BUILD / "fuzz" / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(name, data):
    """Where an input is kept that shows something."""
    path = findings() / f"{name}-{hashlib.sha1(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def run_guided(name, seconds, seed):
    """Runs a target under atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["awqpack"], enable_loader_override=False):
        module = module_of(name)
    known = [] if hasattr(module, "CASES") else corpus_of(name)
    atheris.Setup([sys.argv[0], *_options(name, seconds, seed, known)], one_input(name, module.check))
    atheris.Fuzz()


def run_kernels(seconds, seed):
    """Runs what `make -C tests/c fuzz` built; returns its exit status."""
    options = _options("kernels", seconds, seed, committed("kernels"))
    program = BUILD / "c" / "fuzz" / "jobs"
    return subprocess.run([program, *options, "-max_len=96", "-len_control=0"], check=False).returncode


def _options(name, seconds, seed, known):
    """libFuzzer's: it goes on from the inputs that are known, and from those that it bred before."""
    folder = BUILD / "fuzz" / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in known:
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", f"-artifact_prefix={findings()}/{name}-"]
    return [*options, f"-max_len={_MOST}", "-rss_limit_mb=4096", "-timeout=60", "-print_final_stats=1", str(folder)]

"""The short form of the fuzz targets: the same few cases each time; `make fuzz` looks for minutes."""

import random
import subprocess

import fuzz
import pytest

CASES = {
    "sequences": 4,
    "round-trips": 25,
    "floats": 25,
    "metadata": 60,
    "packed-files": 60,
    "checkpoints": 12,
    "configurations": 40,
}


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_few_cases(name):
    assert fuzz.run(name, cases=CASES[name]) >= CASES[name]


def test_every_module_of_the_folder_is_a_target():
    helpers = {"__init__", "__main__"}
    modules = {path.stem for path in fuzz.CORPUS.parent.glob("*.py")} - helpers
    assert modules == {module for module, _ in fuzz.TARGETS.values()}


def test_make_runs_every_target():
    done = subprocess.run(
        ["make", "--dry-run", "fuzz"], cwd=fuzz.CORPUS.parents[2], capture_output=True, text=True, check=True
    )
    loop = next(line for line in done.stdout.splitlines() if line.startswith("for target in "))
    assert loop.removeprefix("for target in ").partition(";")[0].split() == ["kernels", *fuzz.TARGETS]


def test_a_finding_is_kept_and_replays(monkeypatch, tmp_path):
    """A target of bytes that fails for one byte: the run says where the input is, and the input fails again."""

    def check(data):
        assert b"\xff" not in data

    monkeypatch.setattr(fuzz, "findings", lambda: tmp_path)
    monkeypatch.setattr(fuzz.module_of("configurations"), "check", check)
    with pytest.raises(AssertionError, match="the input is in"):
        fuzz.run("configurations", cases=10_000)
    (path,) = tmp_path.iterdir()
    with pytest.raises(AssertionError):
        fuzz.one_input("configurations", check)(path.read_bytes())


def test_bytes_stand_for_cases_of_a_strategy():
    """As a guided run gives them: some bytes make a case, and a check that fails shows."""
    seen = []
    run_one = fuzz.one_input("metadata", seen.append)
    rng = random.Random(0)
    while len(seen) < 3:
        run_one(rng.randbytes(512))

    failing = fuzz.one_input("metadata", lambda case: 1 / 0)
    data = next(data for data in iter(lambda: rng.randbytes(512), None) if run_one(data) is not None)
    with pytest.raises(ZeroDivisionError):
        failing(data)

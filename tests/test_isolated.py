"""Runs the scripts of tests/isolated, each in a process of its own; AWQPACK_LEAK_ROUNDS sets how long."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent / "isolated").glob("leak_*.py"))

# Importing torch takes longer than a script: one process imports it and each script runs in a fork of that.
RUN_EACH = """
import io, json, os, runpy, sys, traceback
import torch
import awqpack

def run(path):
    sys.argv = [path]
    try:
        runpy.run_path(path, run_name="__main__")
        return ""
    except BaseException:
        return traceback.format_exc()[-2000:]

sys.path.insert(0, os.path.dirname(sys.argv[1]))
pipes = {}
for path in sys.argv[1:]:
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        sys.stdout = io.StringIO()
        os.write(write_end, run(path).encode() + b"<done>")
        os._exit(0)
    os.close(write_end)
    pipes[path] = os.fdopen(read_end)
reports = {path: pipe.read() for path, pipe in pipes.items()}
print(json.dumps(reports))
"""

LEAKS = """
import ctypes
import sys
from leaks import check, packed_tensors

kept, libc = [], ctypes.CDLL(None)
kinds = {
    "a reference": lambda p: ctypes.pythonapi.Py_IncRef(ctypes.py_object(p)),
    "a cycle": lambda p: (lambda cell: cell.append(cell))([]),
    "memory": lambda p: libc.strdup(bytes([1]) * 4096),
    "objects": lambda p: kept.append([]),
}
check(kinds[KIND], packed_tensors())
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each script, and each deliberate leak, reports: "<done>" or a traceback before it."""
    folder = tmp_path_factory.mktemp("leaks")
    paths = [str(path) for path in SCRIPTS]
    for kind in DELIBERATE:
        paths.append(str(folder / f"{kind}.py"))
        Path(paths[-1]).write_text(LEAKS.replace("KIND", repr(kind)))
    # One thread: a pool that starts up late would look like growing memory.
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", **os.environ}
    command = [sys.executable, "-c", RUN_EACH, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {Path(path).stem: report for path, report in json.loads(done.stdout).items()}


DELIBERATE = {
    "a reference": "reference counts moved",
    "a cycle": "objects in cycles",
    "memory": "memory grew",
    "objects": "more objects are alive",
}


def test_there_are_scripts():
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_nothing_leaks(reports, script):
    assert reports[script] == "<done>"


def without_asan(kind):
    """The case of one leak; under AddressSanitizer memory is not watched."""
    has_asan = hasattr(ctypes.CDLL(None), "__asan_init")
    marks = pytest.mark.skipif(has_asan, reason="AddressSanitizer holds on to freed memory") if kind == "memory" else ()
    return pytest.param(kind, marks=marks)


@pytest.mark.parametrize("kind", map(without_asan, DELIBERATE))
def test_a_deliberate_leak_is_found(reports, kind):
    assert DELIBERATE[kind] in reports[kind]

"""What wants a process of its own: the scripts of tests/isolated (AWQPACK_LEAK_ROUNDS sets how long), and importing."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import forked
import pytest

import awqpack

FOLDER = Path(__file__).parent / "isolated"
SCRIPTS = sorted(FOLDER.glob("leak_*.py"))
TIMEOUT = 600 + int(os.environ.get("AWQPACK_LEAK_ROUNDS", "100"))  # seconds

RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""

LEAKS = """
import ctypes, sys
sys.path.insert(0, sys.argv.pop())
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


DELIBERATE = {
    "a reference": "reference counts moved",
    "a cycle": "objects in cycles",
    "memory": "memory grew",
    "objects": "more objects are alive",
}


def test_there_are_scripts():
    assert len(SCRIPTS) == 6


@pytest.mark.parametrize("script", [path.stem for path in SCRIPTS])
def test_nothing_leaks(script):
    done = forked.run(RUN, FOLDER / f"{script}.py", timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


def without_asan(kind):
    """The case of one leak; under AddressSanitizer memory is not watched."""
    has_asan = hasattr(ctypes.CDLL(None), "__asan_init")
    marks = pytest.mark.skipif(has_asan, reason="AddressSanitizer holds on to freed memory") if kind == "memory" else ()
    return pytest.param(kind, marks=marks)


@pytest.mark.parametrize("kind", map(without_asan, DELIBERATE))
def test_a_deliberate_leak_is_found(kind):
    done = forked.run(LEAKS.replace("KIND", repr(kind)), FOLDER, timeout=TIMEOUT)
    assert done.returncode == 1
    assert DELIBERATE[kind] in done.stderr


# --- the processes themselves ---


def test_a_script_that_hangs_is_no_script_that_was_killed():
    forked.run("")  # so that the server is there: the first script waits for torch
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        forked.run("import time; print('begun', flush=True); time.sleep(120)", timeout=2)
    assert caught.value.stdout == "begun\n"


def test_a_script_has_the_folder_and_the_environment_of_its_run(tmp_path, monkeypatch):
    script = "import os; print(os.getcwd(), os.environ.get('OF_ALL'), os.environ.get('OF_ONE'))"
    monkeypatch.setenv("OF_ALL", "1")
    monkeypatch.chdir(tmp_path)
    assert forked.run(script, OF_ONE="2").stdout == f"{tmp_path} 1 2\n"
    monkeypatch.delenv("OF_ALL")
    monkeypatch.chdir(tmp_path.parent)
    assert forked.run(script).stdout == f"{tmp_path.parent} None None\n"


# --- importing ---


def test_a_folder_above_a_clone(tmp_path, monkeypatch):
    """The clone there has the package's name, and no __init__.py: Python must go on to the one that is installed."""
    (tmp_path / "awqpack" / "awqpack").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    done = forked.run("import awqpack; print(awqpack.AWQPacking.V1)")
    assert done.stdout == "AWQPacking.V1\n", done.stderr


def test_a_clone_that_is_not_built_says_so(tmp_path):
    shutil.copytree(Path(awqpack.__file__).parent, tmp_path / "awqpack", ignore=shutil.ignore_patterns("*.so"))
    done = forked.run("import sys; sys.path.insert(0, sys.argv[1]); import awqpack", tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'awqpack'} is awqpack's source, whose C module is not built.")


IMPORT_HAS_NO_OTHER_EFFECT = """
import os, signal, threading, warnings
import numpy, torch

def state():
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "add": torch.Tensor.add,
        "seed": torch.initial_seed(),
        "cuda": torch.cuda.is_initialized(),
        "numpy": numpy.geterr(),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV)],
        "python threads": threading.active_count(),
    }

before = state()
import awqpack
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, changed
"""


# Interrupted at its first line, then at its second, and so on, each time with what the times before have left behind.
IMPORT_IS_INTERRUPTED = """
import sys, torch

def interrupt_after(lines):
    left = [lines]
    def trace(frame, event, arg):
        if "awqpack" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace
    return trace

lines = 0
while "awqpack" not in sys.modules:
    lines += 1
    sys.settrace(interrupt_after(lines))
    try:
        import awqpack
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)

codes = torch.arange(64 * 64, dtype=torch.uint8).view(64, 64) % 16
for packing in awqpack.AWQPacking:
    packed = awqpack.AWQPackedTensor.pack(codes, packing)
    assert torch.equal(packed + 0, codes)
    assert torch.equal(torch.compile(lambda p: p.unpack(), backend="aot_eager")(packed), codes)
assert lines > 100, lines
"""

# What torch lacked is there when the import is tried again.
IMPORT_FAILS_IN_C = """
import torch

kept = torch.empty_strided
del torch.empty_strided
for _ in range(2):
    try:
        import awqpack
    except AttributeError as error:
        assert "empty_strided" in str(error), error
    else:
        raise AssertionError("it was imported")
torch.empty_strided = kept
import awqpack
awqpack.AWQPackedTensor.pack(torch.ones(8, 64, dtype=torch.uint8)).fill_(3)
"""


@pytest.mark.parametrize("script", [IMPORT_IS_INTERRUPTED, IMPORT_FAILS_IN_C], ids=["interrupted", "something lacks"])
def test_an_import_that_failed_can_be_tried_again(script):
    done = forked.run(script, is_taken_apart=True)
    assert done.returncode == 0, done.stderr
    assert "Overriding a previously registered kernel" not in done.stderr


def test_importing_has_no_other_effect():
    done = forked.run(IMPORT_HAS_NO_OTHER_EFFECT)
    assert done.returncode == 0, done.stderr

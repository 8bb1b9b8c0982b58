"""Calls that fail under awqpack._C, as without memory: some operations; `make failing-calls` tries all of them."""

import platform
import shutil
import sys
from pathlib import Path

import forked
import pytest

FAULTS = Path(__file__).parent / "faults"
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import failing_calls
sys.exit(failing_calls.main(sys.argv[2:]))
"""
NEEDS = sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("gcc") is not None
pytestmark = pytest.mark.skipif(not NEEDS, reason="the calls of a module are watched on x86-64 Linux, with gcc")


def test_every_call_of_some_operations_may_fail():
    done = forked.run(SCRIPT, FAULTS, "--quick", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    failed = int(done.stdout.splitlines()[-1].partition(" calls failed, 0 faults")[0])
    assert failed > 500

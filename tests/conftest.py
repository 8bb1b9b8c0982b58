"""What pytest reads: where the fixtures are, and the order of the tests. shared.py has what the tests share."""

import gc
import importlib
from pathlib import Path

import pytest

# Each worker of pytest-xdist begins with an equal share of the tests, in their order. These modules go first and last,
# so that one worker has those that start processes or import the packages of others, and another those that compile:
# what they all wait for once, each time, happens once.
FIRST = [
    "quanto",
    "enable",
    "checkpoint_clients",
    "examples",
    "docs",
    "packers",
    "checkpoint_writer",
    "accelerate",
    "writers",
    "isolated",
    "collectives",
    "cli",
    "checkpoint_writing",
    "checkpoint_ranks",
    "packed_shortcuts",
    "variants",
]
LAST = ["packed_edges", "defects_of_the_reference", "ops", "compile", "contract"]
GONE = [name for name in FIRST + LAST if not Path(__file__).with_name(f"test_{name}.py").exists()]
assert not GONE, f"expected a test_*.py for every name in FIRST and LAST; there is none for {GONE}"


def pytest_configure(config):
    """The process that only hands tests out to workers begins at once, without torch."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        pytest.register_assert_rewrite("shared")
        config.pluginmanager.register(importlib.import_module("shared"))


def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.stem.removeprefix("test_")
        return FIRST.index(name) - len(FIRST) if name in FIRST else LAST.index(name) + 1 if name in LAST else 0

    items.sort(key=rank)


def pytest_collection_finish():
    gc.freeze()  # collections then pass over torch, which takes them a quarter of a second each

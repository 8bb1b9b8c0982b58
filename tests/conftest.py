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
LAST = [
    "packed_edges",
    "defects_of_the_reference",
    "ops",
    "compile",
    "contract",
    "contract_wrappers",
    "contract_compiled",
]
GONE = [name for name in FIRST + LAST if not Path(__file__).with_name(f"test_{name}.py").exists()]
assert not GONE, f"expected a test_*.py for every name in FIRST and LAST; there is none for {GONE}"


def pytest_configure(config):
    """The process that only hands tests out to workers begins at once, without torch."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        gc.disable()  # until all tests are there: torch and they are no garbage
        pytest.register_assert_rewrite("shared")
        config.pluginmanager.register(importlib.import_module("shared"))


def fold(items):
    """One item for all cases of a test that are skipped for the same reason, which says how many more there are.

    A case that is only skipped takes as long as many a test, and without a GPU a quarter of all cases are.
    """
    cases = {}
    for item in items:
        skips = [mark for mark in item.iter_markers("skipif") if mark.args[:1] == (True,)]
        if skips and item.get_closest_marker("cuda"):
            cases.setdefault((item.path, item.originalname, skips[0].kwargs.get("reason")), []).append(item)
    for (_, _, reason), (item, *others) in cases.items():
        if others:
            reason = f"{reason}: this case and {len(others)} more"
            item.add_marker(pytest.mark.skipif(True, reason=reason), append=False)
    dropped = {item for _, *others in cases.values() for item in others}
    return [item for item in items if item not in dropped]


@pytest.hookimpl(trylast=True)  # when what -k and -m leave out is gone
def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.stem.removeprefix("test_")
        return FIRST.index(name) - len(FIRST) if name in FIRST else LAST.index(name) + 1 if name in LAST else 0

    items[:] = sorted(fold(items), key=rank)


def pytest_collection_finish():
    gc.freeze()  # collections then pass over torch, which takes them a quarter of a second each
    gc.enable()


@pytest.hookimpl(trylast=True)  # when what a module's tests shared is gone
def pytest_runtest_teardown(item, nextitem):
    if nextitem and nextitem.path != item.path:
        gc.collect()
        gc.freeze()  # and over what the tests of a module imported

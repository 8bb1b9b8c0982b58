"""inspect, convert and verify take a checkpoint that was tampered with, or refuse it by a CheckpointError; what is
converted is the same model, and a refusal leaves nothing behind."""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from checkpoints import LAYOUT_NAMES, leftovers, random_layer, write_checkpoint
from hypothesis import strategies as st

from awqpack import checkpoint
from awqpack.checkpoint import CheckpointError
from awqpack.layouts import LAYOUTS

ODD = [None, True, -1, 0, 1, 7, 8, 64, 128, 1 << 31, 1 << 63, 1 << 70, 0.5, math.inf, "", "x", "awq", "gemm", "../up"]
ODD += [[], {}, [0], [-1], [1 << 62, 4], [64, 128], {"a": 1}, "\ud800", "a" * 300, "model-00001-of-00002.safetensors"]
# Without one, their tensors are taken for another layout's; convert warns that the target has none.
TOLD_BY_CONFIGURATIONS = ["gptq_v2", "quark-int4"]
TO = [*LAYOUTS, "float16", "bfloat16"]


class Edit(NamedTuple):
    kind: str  # of KINDS
    file: int
    place: float  # in the file, or among the places that its JSON has
    value: object
    amount: int


class Case(NamedTuple):
    layout: str
    to: str
    edits: list


KINDS = ["bytes", "cut", "longer", "header", "header", "config", "config", "index", "values", "remove", "link"]
CASES = st.builds(
    Case,
    st.sampled_from(LAYOUT_NAMES),
    st.sampled_from(TO),
    st.lists(
        st.builds(
            Edit,
            st.sampled_from(KINDS),
            st.integers(0, 3),
            st.floats(0, 1, exclude_max=True),
            st.sampled_from(ODD),
            st.integers(0, 255),
        ),
        max_size=3,
    ),
)


@functools.cache
def room():
    """A folder for all of this process."""
    folder = Path(tempfile.mkdtemp(prefix="awqpack-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    atexit.register(shutil.rmtree, folder, True)
    return folder


@functools.cache
def base(layout):
    layers = {"a.q_proj": random_layer(64, 128, 64, bias=True, layouts=[layout])}
    layers["b.up_proj"] = random_layer(64, 64, 64, seed=1, layouts=[layout])
    return write_checkpoint(room() / f"base-{layout}", layout, layers, group_size=64)


def places(content, keys=()):
    """The keys that lead to each value in JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*keys, key)
        yield from places(value, (*keys, key))


def edited(content, edit):
    """JSON with one value replaced, removed, or under another name."""
    found = list(places(content))
    if not found:
        return content
    *keys, last = found[int(edit.place * len(found))]
    for key in keys:
        content = content[key]
    if edit.amount % 8 == 0:
        del content[last]
    elif edit.amount % 8 == 1 and isinstance(content, dict):
        content[str(edit.value)] = content.pop(last)
    else:
        content[last] = edit.value
    return content


def edit_json(path, edit):
    content = json.loads(path.read_text(encoding="utf-8"))
    edited(content, edit)
    path.write_text(json.dumps(content))


def edit_header(path, edit):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    edited(content, edit)
    header = json.dumps(content).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def apply(folder, edit):
    """Edits what is still there, and readable."""
    shards = sorted(path for path in folder.glob("*.safetensors") if not path.is_symlink())
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = files[edit.file % len(files)]
    data = bytearray(path.read_bytes())
    at = int(edit.place * len(data))
    if edit.kind == "bytes" and data:
        data[at : at + 1 + edit.amount % 8] = bytes([edit.amount]) * (1 + edit.amount % 8)
        path.write_bytes(data)
    elif edit.kind == "cut":
        path.write_bytes(data[:at])
    elif edit.kind == "longer":
        path.write_bytes(data + bytes([edit.amount]) * (1 + edit.amount))
    elif edit.kind == "remove":
        path.unlink()
    elif edit.kind == "link":
        path.unlink()
        path.symlink_to(["nowhere", path.name, "/dev/null", "config.json", ".", "/proc/self/mem"][edit.amount % 6])
    name = {"config": "config.json", "index": "model.safetensors.index.json"}.get(edit.kind)
    try:
        if name is not None and not (folder / name).is_symlink():
            edit_json(folder / name, edit)
        elif edit.kind == "header" and shards:
            edit_header(shards[edit.file % len(shards)], edit)
        elif edit.kind == "values" and shards:
            edit_values(shards[edit.file % len(shards)], edit)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # an edit before has left nothing to edit


def edit_values(path, edit):
    """All ones, all zeros or the like in a run of bytes behind the header."""
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    at = begin + int(edit.place * (len(data) - begin))
    end = min(at + edit.amount, len(data))
    data[at:end] = bytes([edit.amount]) * (end - at)
    path.write_bytes(data)


def check(case):
    folder = room() / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    given, target = folder / "given", folder / "out"
    shutil.copytree(base(case.layout), given)
    for edit in case.edits:
        apply(given, edit)
    inspection = outcome(lambda: checkpoint.inspect(given))
    done = outcome(lambda: checkpoint.convert(given, target, case.to))
    assert leftovers(folder) == []
    if done is None:
        assert not target.exists(), "a refusal left a target"
    elif case.to in LAYOUTS:
        assert inspection is not None, "inspect refuses what convert takes"
        if done.is_configured or case.to not in TOLD_BY_CONFIGURATIONS:
            problems = checkpoint.inspect(target).problems
            assert len(problems) <= len(inspection.problems), f"converted into a checkpoint of which {problems}"
            found = outcome(lambda: checkpoint.verify(given, target))
            # what stays in its layout is copied: nobody has looked at its values
            assert done.source_layout == case.to if found is None else found.is_equal, found and found.differences
    if not case.edits and case.to in TO and case.layout == case.to:
        assert done is not None


def outcome(call):
    """What it returns; None for a refusal of one line."""
    try:
        return call()
    except CheckpointError as error:
        assert str(error), "an error without words"
        assert "\n" not in str(error), str(error)
        return None

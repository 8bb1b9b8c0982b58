"""The files of tests/data are those of their version, the loader reads them, and their page names what they hold."""

import ast
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from data import golden

import awqpack
from awqpack import AWQPacking

FOLDER = Path(golden.__file__).parent
FILES = sorted(path for path in FOLDER.rglob("*") if path.suffix in (".npz", ".safetensors"))
README = (FOLDER / "README.md").read_text()


def test_the_files_are_those_of_the_version():
    sums = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert sums == {str(path.relative_to(FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES}
    digest = hashlib.sha256((FOLDER / "SHA256SUMS").read_bytes()).hexdigest()
    version = re.match(r"# .*, version (\d+)\n", README)[1]
    assert (version, digest[:16]) == ("1", "2aa69516c65e3a6d"), "other files are another version"


def test_the_loader_has_ten_lines():
    (function,) = (node for node in ast.parse(Path(golden.__file__).read_text()).body if hasattr(node, "args"))
    assert function.end_lineno - function.lineno + 1 <= 10


LAYERS = {name: (group_size, layer) for name, group_size, layer in golden.layers(FOLDER)}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_the_page_says(name):
    group_size, layer = LAYERS[name]
    codes, zeros, scales = (layer[""][part] for part in ("codes", "zeros", "scales"))
    rows, cols = codes.shape
    assert f"| `{name}` | {rows} | {cols} | {group_size} | {'yes' if 'bias' in layer[''] else 'no'} |" in README
    assert zeros.shape == scales.shape == (rows, cols // group_size)
    spread = [array.repeat(group_size, 1).astype(np.float32) for array in (zeros, scales)]
    np.testing.assert_array_equal(
        ((codes - spread[0]) * spread[1]).astype(np.float16), layer[""]["dequantized"], strict=True
    )
    assert ("marlin" in layer) == (rows % 64 == 0)
    for layout, tensors in layer.items():
        assert all(f"`{layout}.{part}`" in README or f"`{layout}.*`" in README or layout == "" for part in tensors)


@pytest.mark.parametrize("name", LAYERS)
def test_the_page_s_example(name):
    _, layer = LAYERS[name]
    codes = layer[""]["codes"]
    np.testing.assert_array_equal(awqpack.unpack(layer["gemm"]["qweight"], AWQPacking.V1, True), codes.T)
    np.testing.assert_array_equal(layer["gptq_v2"]["g_idx"], np.arange(codes.shape[1]) // LAYERS[name][0])

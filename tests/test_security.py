"""The claims of SECURITY.md: each names a test or a fuzz target that is there; tests without another home are here."""

import io
import pickle
import re
from pathlib import Path

import fuzz
import pytest
import torch
from checkpoints import random_layer, write_checkpoint
from shared import PACKINGS, packed_tensor

import awqpack
from awqpack import AWQPackedTensor, checkpoint

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text() if (ROOT / "SECURITY.md").exists() else None
needs_page = pytest.mark.skipif(PAGE is None, reason="needs a clone: these tests run without SECURITY.md beside them")


@needs_page
def test_every_claim_names_what_shows_it():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    table = PAGE.split("## What is not trusted")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 12
    assert all(re.search(r"`(test_|make fuzz-)\w+", row.split("|")[-2]) for row in rows)
    missing = [name for name in re.findall(r"`(test_\w+)`", PAGE) if f"def {name}(" not in tests]
    targets = set(re.findall(r"`make fuzz-([\w-]+)`", PAGE)) - {"kernels", *fuzz.TARGETS}
    assert (missing, targets) == ([], set())


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_pickle_cannot_call_what_it_likes(tmp_path):
    path = tmp_path / "made"
    for call in (
        Calls(Path.touch, path),
        Calls(eval, f"open({str(path)!r}, 'w')"),
        Calls(awqpack.load_file, str(path)),
    ):
        with pytest.raises(pickle.UnpicklingError):
            loaded({"weight": call, "packed": packed_tensor(PACKINGS["v1"])})
    assert not path.exists()


def test_a_pickle_may_name_two_things_of_awqpack():
    names = {value for value in torch.serialization.get_safe_globals() if "awqpack" in getattr(value, "__module__", "")}
    assert names == {AWQPackedTensor, awqpack.tensor.rebuild_packed_tensor}


PAYLOAD = awqpack.pack(torch.ones(8, 64, dtype=torch.uint8))
HOSTILE = {
    "another packing": (PAYLOAD, 2, False, (8, 64), (64, 1), False),
    "no packing": (PAYLOAD, 9, False, (8, 64), (64, 1), False),
    "sizes past the payload": (PAYLOAD, 1, False, (8, 1 << 40), (1 << 40, 1), False),
    "negative sizes": (PAYLOAD, 1, False, (-8, -64), (64, 1), False),
    "strides that overlap": (PAYLOAD, 1, False, (8, 64), (0, 1), False),
    "another dtype": (PAYLOAD.float(), 1, False, (8, 64), (64, 1), False),
    "no payload": ("payload", 1, False, (8, 64), (64, 1), False),
    "a class that is none": (PAYLOAD, 1, False, (8, 64), (64, 1), False, torch.Tensor),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_with_hostile_arguments_is_refused(name):
    with pytest.raises((TypeError, ValueError, pickle.UnpicklingError)):
        loaded(Calls(awqpack.tensor.rebuild_packed_tensor, *HOSTILE[name]))


def test_links_are_followed(tmp_path):
    (tmp_path / "secret").write_text("of the user")
    given = write_checkpoint(tmp_path / "given", "gemm", {"fc": random_layer(64, 128)}, {}, shards=1)
    (given / "tokenizer.json").unlink()
    (given / "tokenizer.json").symlink_to(tmp_path / "secret")
    checkpoint.convert(given, tmp_path / "out", "gemv")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "of the user"
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()

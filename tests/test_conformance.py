"""`awqpack conformance`: who unpacks as awqpack does passes; who does not is told where, and what it took it for."""

import numpy as np
import pytest
import torch
import twin
from shared import PACKINGS

import awqpack
from awqpack import cli, conformance

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def obvious_unpack(payload):
    """V1, as anybody would write it."""
    return (payload.unsqueeze(-1) >> torch.arange(0, 32, 4) & 15).flatten(-2)


def without_the_order(payload):
    return obvious_unpack(payload)


def with_its_inverse(payload):
    """The defect that is met most: the order is applied where its inverse belongs."""
    return obvious_unpack(payload).view(len(payload), -1, 8)[..., ORDER].flatten(-2)


def right_reorder(payload):
    inverse = [ORDER.index(i) for i in range(8)]
    return obvious_unpack(payload).view(len(payload), -1, 8)[..., inverse].flatten(-2)


def turned(payload):
    return right_reorder(payload).t()


def signed(payload):
    return right_reorder(payload) - 8


def fails(payload):
    raise KeyError("qweight")


@pytest.mark.parametrize("name", PACKINGS)
def test_the_twin_conforms(name):
    form = conformance.NAMES[name]
    unpack = lambda payload: twin.unpack(payload.numpy(), *PACKINGS[name])  # noqa: E731
    pack = lambda codes: twin.pack(codes.numpy(), *PACKINGS[name])  # noqa: E731
    assert conformance.fault(unpack, form) is None
    assert conformance.fault(pack, form, packs=True) is None


def test_every_packing_has_a_name():
    assert list(conformance.NAMES) == list(PACKINGS)


FAULTS = {
    "without_the_order": "codes[0, 1] of shape (1, 8) is 1; got 2 (6 of 8 differ); that is how V1 has it",
    "with_its_inverse": "codes[0, 1] of shape (1, 8) is 1; got 4 (6 of 8 differ)",
    "turned": "a payload of shape (1, 1) expects codes of shape (1, 8); got (8, 1); they are transposed",
    "signed": "codes[0, 0] of shape (1, 8) is 0; got -8 (8 of 8 differ)",
    "fails": "it raises KeyError: 'qweight'",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named(name, capsys):
    assert cli.main(["conformance", f"{__name__}:{name}", "--packing", "v1_reorder"]) == 1
    assert capsys.readouterr().out == f"{__name__}:{name}: different: {FAULTS[name]}\n"


def test_what_is_right_passes(capsys):
    assert cli.main(["conformance", f"{__name__}:right_reorder", "--packing", "v1_reorder"]) == 0
    assert capsys.readouterr().out == f"{__name__}:right_reorder unpacks V1 reorder as it is: 10 cases\n"


def test_a_packer_that_forgets_the_order():
    found = conformance.fault(awqpack.pack, conformance.NAMES["v1_reorder"], packs=True)
    assert found == (
        "payload[0, 0] of shape (1, 1) is 0x75316420; got 0x76543210 (1 of 1 differ); that is how V1 has it"
    )


def test_a_code_of_a_numpy_unpacker_may_be_of_any_integer_dtype():
    form = conformance.NAMES["v2"]
    for dtype in (np.int8, np.int32, np.int64):

        def unpack(payload, dtype=dtype):
            return awqpack.unpack(payload.numpy(), form.packing).astype(dtype)

        assert conformance.fault(unpack, form) is None


@pytest.mark.parametrize("function", ["nowhere:f", f"{__name__}:nothing", f"{__name__}:ORDER", __name__, ":f"])
def test_no_such_function(function, capsys):
    assert cli.main(["conformance", function, "--packing", "v1"]) == 2
    assert "expects MODULE:FUNCTION" in capsys.readouterr().err

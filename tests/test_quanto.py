"""awqpack.quanto: awqpack's class and packers under optimum-quanto's own, and back."""

import importlib.metadata

import pytest
import torch
from conftest import torch_codes

import awqpack
import awqpack.quanto

packed = pytest.importorskip("optimum.quanto.tensor.weights.awq.packed", reason="optimum-quanto is not installed")
qbits = pytest.importorskip("optimum.quanto.tensor.weights.awq.qbits")

NAMES = ["AWQPackedTensor", "AWQPacking", "pack", "unpack", "pack_v2", "unpack_v2"]


@pytest.fixture(autouse=True)
def _restored():
    originals = [getattr(packed, name) for name in NAMES]
    yield
    awqpack.quanto.disable()
    assert [getattr(packed, name) for name in NAMES] == originals


def test_enable_and_disable():
    theirs = packed.AWQPackedTensor
    awqpack.quanto.enable()
    assert packed.AWQPackedTensor is qbits.AWQPackedTensor is awqpack.AWQPackedTensor
    assert qbits.AWQPacking is awqpack.AWQPacking
    awqpack.quanto.disable()
    assert packed.AWQPackedTensor is qbits.AWQPackedTensor is theirs
    awqpack.quanto.disable()


def test_context_manager_nests():
    theirs = packed.AWQPackedTensor
    with awqpack.quanto.enable():
        with awqpack.quanto.enable():
            pass
        assert packed.AWQPackedTensor is awqpack.AWQPackedTensor
    assert packed.AWQPackedTensor is theirs


def test_context_manager_restores_after_an_error():
    theirs = packed.AWQPackedTensor
    with pytest.raises(KeyError), awqpack.quanto.enable():
        raise KeyError
    assert packed.AWQPackedTensor is theirs


def test_unknown_versions_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    theirs = packed.AWQPackedTensor
    with pytest.raises(RuntimeError, match=r"knows optimum-quanto 0\.2\.7; 9\.9\.9 is installed"):
        awqpack.quanto.enable()
    assert packed.AWQPackedTensor is theirs


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="optimum-quanto"):
        awqpack.quanto.enable()


@pytest.mark.parametrize("reorder", [False, True])
def test_their_v1_packer_makes_our_bytes(reorder):
    codes = torch_codes()
    theirs = packed.pack(codes, reorder=reorder)
    with awqpack.quanto.enable():
        ours = packed.pack(codes, reorder=reorder)
        assert torch.equal(packed.unpack(ours, reorder=reorder), codes)
    assert torch.equal(ours, theirs)


def test_awq_weights_of_quanto(device):
    # Their AWQWeightQBitsTensor wants CUDA; the packing below it does not.
    codes = torch_codes().to(device)
    with awqpack.quanto.enable():
        tensor = qbits.AWQPackedTensor.pack(codes, packing=qbits.AWQPacking.V2)
        assert torch.equal(tensor.unpack(), codes)
        assert torch.equal(packed.unpack_v2(tensor._data), codes)
        assert torch.equal(packed.pack_v2(codes), tensor._data)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="optimum-quanto's AWQWeightQBitsTensor needs a CUDA GPU")
def test_quantized_weight_survives_the_exchange():
    qtypes = pytest.importorskip("optimum.quanto")
    shape, group = (256, 512), 128
    data = torch.randint(0, 16, shape, dtype=torch.uint8, device="cuda")
    scale = torch.rand(shape[0] * shape[1] // group, 1, device="cuda", dtype=torch.float16) + 0.1
    shift = torch.rand_like(scale)
    grouped = data.reshape(-1, group)

    def dequantized():
        weight = qbits.AWQWeightQBitsTensor(
            qtypes.qint4, 0, group, torch.Size(shape), (shape[1], 1), grouped, scale, shift
        )
        return type(weight._data), weight.dequantize()

    their_type, theirs = dequantized()
    with awqpack.quanto.enable():
        our_type, ours = dequantized()
    assert (their_type, our_type) == (packed.AWQPackedTensor, awqpack.AWQPackedTensor)
    assert torch.equal(ours, theirs)

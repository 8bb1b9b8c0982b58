"""awqpack.quanto: awqpack's class and packers under optimum-quanto's own, and back."""

import importlib
import importlib.metadata
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shared import torch_codes

import awqpack
import awqpack.quanto

NOT_INSTALLED = "optimum-quanto is not installed"
NAMES = ["AWQPackedTensor", "AWQPacking", "pack", "unpack", "pack_v2", "unpack_v2"]


@pytest.fixture(scope="module")
def quanto():
    """optimum-quanto's modules. Imported when a test here runs, not whenever tests are collected: it takes seconds."""
    folder = "optimum.quanto.tensor.weights.awq"
    return SimpleNamespace(
        packed=pytest.importorskip(f"{folder}.packed", reason=NOT_INSTALLED),
        qbits=pytest.importorskip(f"{folder}.qbits", reason=NOT_INSTALLED),
    )


@pytest.fixture(autouse=True)
def _restored(quanto):
    originals = [getattr(quanto.packed, name) for name in NAMES]
    yield
    awqpack.quanto.disable()
    assert [getattr(quanto.packed, name) for name in NAMES] == originals


def test_enable_and_disable(quanto):
    theirs = quanto.packed.AWQPackedTensor
    awqpack.quanto.enable()
    assert quanto.packed.AWQPackedTensor is quanto.qbits.AWQPackedTensor is awqpack.AWQPackedTensor
    assert quanto.qbits.AWQPacking is awqpack.AWQPacking
    awqpack.quanto.disable()
    assert quanto.packed.AWQPackedTensor is quanto.qbits.AWQPackedTensor is theirs
    awqpack.quanto.disable()


def test_context_manager_nests(quanto):
    theirs = quanto.packed.AWQPackedTensor
    with awqpack.quanto.enable():
        with awqpack.quanto.enable():
            pass
        assert quanto.packed.AWQPackedTensor is awqpack.AWQPackedTensor
    assert quanto.packed.AWQPackedTensor is theirs


def test_context_manager_restores_after_an_error(quanto):
    theirs = quanto.packed.AWQPackedTensor
    with pytest.raises(KeyError), awqpack.quanto.enable():
        raise KeyError
    assert quanto.packed.AWQPackedTensor is theirs


def test_unknown_versions_are_refused(monkeypatch, quanto):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    theirs = quanto.packed.AWQPackedTensor
    with pytest.raises(RuntimeError, match=r"knows optimum-quanto 0\.2\.7; 9\.9\.9 is installed"):
        awqpack.quanto.enable()
    assert quanto.packed.AWQPackedTensor is theirs


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="optimum-quanto"):
        awqpack.quanto.enable()


@pytest.mark.parametrize("reorder", [False, True])
def test_their_v1_packer_makes_our_bytes(reorder, quanto):
    codes = torch_codes()
    theirs = quanto.packed.pack(codes, reorder=reorder)
    with awqpack.quanto.enable():
        ours = quanto.packed.pack(codes, reorder=reorder)
        assert torch.equal(quanto.packed.unpack(ours, reorder=reorder), codes)
    assert torch.equal(ours, theirs)


def test_awq_weights_of_quanto(device, quanto):
    # Their AWQWeightQBitsTensor wants CUDA; the packing below it does not.
    codes = torch_codes().to(device)
    with awqpack.quanto.enable():
        tensor = quanto.qbits.AWQPackedTensor.pack(codes, packing=quanto.qbits.AWQPacking.V2)
        assert torch.equal(tensor.unpack(), codes)
        assert torch.equal(quanto.packed.unpack_v2(tensor._data), codes)
        assert torch.equal(quanto.packed.pack_v2(codes), tensor._data)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="optimum-quanto's AWQWeightQBitsTensor needs a CUDA GPU")
def test_quantized_weight_survives_the_exchange(quanto):
    qtypes = pytest.importorskip("optimum.quanto", reason=NOT_INSTALLED)
    shape, group = (256, 512), 128
    data = torch.randint(0, 16, shape, dtype=torch.uint8, device="cuda")
    scale = torch.rand(shape[0] * shape[1] // group, 1, device="cuda", dtype=torch.float16) + 0.1
    shift = torch.rand_like(scale)
    grouped = data.reshape(-1, group)

    def dequantized():
        weight = quanto.qbits.AWQWeightQBitsTensor(
            qtypes.qint4, 0, group, torch.Size(shape), (shape[1], 1), grouped, scale, shift
        )
        return type(weight._data), weight.dequantize()

    their_type, theirs = dequantized()
    with awqpack.quanto.enable():
        our_type, ours = dequantized()
    assert (their_type, our_type) == (quanto.packed.AWQPackedTensor, awqpack.AWQPackedTensor)
    assert torch.equal(ours, theirs)


# --- what optimum-quanto's own tests of its packed tensor ask for ---


def auto_awq(codes):
    """AutoAWQ's gemm packer: word j of a row holds eight columns, the even ones below the odd ones."""
    words = codes.view(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].int()
    return sum(words[..., i] << 4 * i for i in range(8))


def llm_awq(codes):
    """llm-awq's packer: four rows lie side by side in blocks of 64 columns, nibble a holds columns 8a to 8a + 7."""
    rows, cols = codes.shape
    parts = codes.view(rows // 4, 4, cols // 64, 2, 4, 8).int()
    halves = sum(parts[..., a, :] << 4 * a for a in range(4))  # (quad, row of four, block, half, column of eight)
    return halves.transpose(1, 2).reshape(rows // 4, cols).to(torch.int16)


PACKERS = {"AutoAWQ": (awqpack.AWQPacking.V1, True, auto_awq), "llm-awq": (awqpack.AWQPacking.V2, False, llm_awq)}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("in_features", [128, 256, 512, 1024])
@pytest.mark.parametrize("out_features", [128, 256, 512, 1024])
def test_data_is_what_other_packers_make(in_features, out_features, name, device, quanto):
    packing, reorder, packer = PACKERS[name]
    codes = torch_codes((out_features, in_features), device)
    with awqpack.quanto.enable():
        tensor = quanto.qbits.AWQPackedTensor.pack(codes, packing=packing, reorder=reorder)
    assert torch.equal(tensor._data, packer(codes))
    assert torch.equal(tensor.unpack(), codes)
    assert (tensor.shape, tensor.dtype, tensor._packing, tensor._reorder) == (
        codes.shape,
        codes.dtype,
        packing,
        reorder,
    )


@pytest.mark.parametrize("name", PACKERS)
def test_moves_of_the_packed_tensor(name, device, quanto):
    packing, reorder, packer = PACKERS[name]
    codes = torch_codes((256, 256))
    with awqpack.quanto.enable():
        moved = quanto.qbits.AWQPackedTensor.pack(codes, packing=packing, reorder=reorder).to(device)
    assert type(moved) is awqpack.AWQPackedTensor
    assert moved._data.device.type == device
    assert torch.equal(moved._data.cpu(), packer(codes))
    assert torch.equal(moved.cpu().add(0), codes)


# --- benchmarks/quanto.py ---


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    return importlib.import_module("benchmarks.quanto")


@pytest.mark.parametrize(
    ("available", "capability", "words"),
    [
        (False, None, "no CUDA GPU"),
        (True, (7, 5), r"from compute capability 8\.0 on; this GPU has 7\.5"),
        (True, (8, 0), None),
        (True, (9, 0), None),
    ],
)
def test_the_benchmark_says_why_it_does_not_run(bench, available, capability, words):
    reason = bench.reason_not_to_run(available, capability)
    assert (reason is None) if words is None else re.search(words, reason)


def test_the_benchmark_refuses_other_weights(bench):
    # On the CPU optimum-quanto makes a WeightQBitsTensor, which packs in a way of its own.
    model = bench.quantized(torch.nn.Linear(256, 128, bias=False, dtype=torch.float16))
    with pytest.raises(SystemExit, match="made a WeightQBitsTensor"):
        bench.inner_tensors(model)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="optimum-quanto's AWQWeightQBitsTensor needs a CUDA GPU")
def test_the_benchmark_compares_equal_weights(bench):
    rows = bench.timed(torch.nn.Linear(512, 256, bias=False, dtype=torch.float16, device="cuda"), turns=1)
    assert [(row.op, row.who, row.baseline) for row in rows] == [
        (step, "awqpack", "optimum-quanto") for step in ("quantize and freeze", "state_dict")
    ]

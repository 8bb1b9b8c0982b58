"""safetensors files with packed tensors: the round trip, what other readers see, and files that do not fit."""

import json

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as save_plain_file
from shared import PACKINGS, assert_same, packed_tensor, torch_codes

import awqpack
from awqpack import AWQPackedTensor


def read_header(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def write_header(path, change):
    """Rewrites the file with its awqpack metadata changed."""
    metadata, tensors = read_header(path)
    header = json.loads(metadata["awqpack"])
    header = change(header) or header
    save_plain_file(tensors, path, {"awqpack": header if isinstance(header, str) else json.dumps(header)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


SAVES = {
    "a file": lambda tensors, path: (awqpack.save_file(tensors, path, {"note": "1"}), awqpack.load_file(path))[1],
    "a file, read": lambda tensors, path: (awqpack.save_file(tensors, path), awqpack.load_file(path, backend="pread"))[
        1
    ],
    "bytes": lambda tensors, path: awqpack.load(awqpack.save(tensors, {"note": "1"})),
    "a file on meta": lambda tensors, path: (awqpack.save_file(tensors, path), awqpack.load_file(path, "meta"))[1],
}


@pytest.mark.parametrize("way", SAVES)
def test_every_way_of_saving_and_loading(packing, way, tmp_path):
    packed, plain = packed_tensor(packing), torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    tensors = {"w": packed, "tied": packed.detach(), "plain": plain, "number": torch.tensor(3)}
    loaded = SAVES[way](tensors, tmp_path / "tensors.safetensors")
    assert loaded.keys() == tensors.keys()
    assert loaded["w"].payload is loaded["tied"].payload
    for name, tensor in tensors.items():
        result = loaded[name]
        assert (type(result), result.dtype, result.shape) == (type(tensor), tensor.dtype, tensor.shape)
        if way == "a file on meta":
            assert result.is_meta
        else:
            assert_same(result, tensor)


def test_damaged_bytes_are_named(packing):
    data = awqpack.save({"w": packed_tensor(packing)})
    with pytest.raises(ValueError, match="these bytes"):
        awqpack.load(data.replace(b"version", b"varsion"))


def test_round_trip(path, packing):
    packed, plain = packed_tensor(packing), torch.rand(3, 5)
    awqpack.save_file({"w": packed, "b": plain}, path, metadata={"format": "pt"})
    loaded = awqpack.load_file(path)
    assert sorted(loaded) == ["b", "w"]
    weight = loaded["w"]
    assert type(weight) is AWQPackedTensor
    assert (weight.packing, weight.reorder) == (packed.packing, packed.reorder)
    assert torch.equal(weight.payload, packed.payload)
    assert torch.equal(weight.unpack(), packed.unpack())
    assert torch.equal(loaded["b"], plain)
    assert read_header(path)[0]["format"] == "pt"


def test_strides_are_kept(path):
    codes = torch_codes().t()
    awqpack.save_file({"w": AWQPackedTensor.pack(codes)}, path)
    weight = awqpack.load_file(path)["w"]
    assert weight.stride() == codes.stride()
    assert weight.unpack().stride() == codes.stride()
    assert torch.equal(weight.unpack(), codes)


@pytest.mark.parametrize(
    ("name", "suffix", "version"),
    [("v1", "awq_v1", 1), ("v1_reorder", "awq_v1_reorder", 1), ("v2", "awq_v2", 1), ("marlin", "awq_marlin", 2)],
)
def test_any_reader_sees_the_payload(path, name, suffix, version):
    packed = packed_tensor(PACKINGS[name])
    awqpack.save_file({"layer.weight": packed}, path)
    metadata, tensors = read_header(path)
    assert torch.equal(tensors[f"layer.weight.{suffix}"], packed.payload)
    assert json.loads(metadata["awqpack"])["version"] == version


def test_tied_weights_are_stored_once(path):
    packed = packed_tensor(PACKINGS["v1"])
    awqpack.save_file({"a": packed, "b": packed.detach()}, path)
    assert len(read_header(path)[1]) == 1
    loaded = awqpack.load_file(path)
    assert loaded["a"].payload.data_ptr() == loaded["b"].payload.data_ptr()


def test_tied_plain_tensors_are_stored_once(path):
    """Those that lie in the same memory in the same way; a view of a part is a tensor of its own."""
    embed, packed = torch.rand(8, 8), packed_tensor(PACKINGS["v1"])
    awqpack.save_file({"embed": embed, "w": packed, "head": embed.detach(), "other": embed.clone()}, path)
    metadata, tensors = read_header(path)
    assert sorted(tensors) == ["embed", "other", "w.awq_v1"]
    assert json.loads(metadata["awqpack"])["ties"] == {"head": "embed"}
    loaded = awqpack.load_file(path)
    assert loaded["head"].data_ptr() == loaded["embed"].data_ptr() != loaded["other"].data_ptr()
    assert torch.equal(loaded["head"], embed)


def test_a_model_with_tied_embeddings_goes_to_a_file_and_back(path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(packed_tensor(PACKINGS["v2"]), requires_grad=False)
            self.embed, self.head = torch.nn.Embedding(8, 8), torch.nn.Linear(8, 8, bias=False)
            self.head.weight = self.embed.weight

    model, other = Tied(), Tied()
    awqpack.save_file(model.state_dict(), path)
    other.load_state_dict(awqpack.load_file(path))
    assert torch.equal(other.head.weight, model.embed.weight)
    assert other.head.weight is other.embed.weight


def test_what_overlaps_otherwise_is_an_error(path):
    values = torch.rand(8, 8)
    with pytest.raises(RuntimeError, match="share memory"):
        awqpack.save_file({"all": values, "row": values[0]}, path)


def test_files_of_others_load_as_they_are(path):
    save_plain_file({"w": torch.arange(4)}, path)
    loaded = awqpack.load_file(path)
    assert type(loaded["w"]) is torch.Tensor
    assert torch.equal(loaded["w"], torch.arange(4))


def test_a_newer_format_is_refused(path):
    awqpack.save_file({"w": packed_tensor(PACKINGS["v1"])}, path)
    write_header(path, lambda header: header.update(version=3))
    with pytest.raises(ValueError, match=r"format 3; this awqpack reads up to 2"):
        awqpack.load_file(path)


DAMAGED = {
    "no json": lambda header: "{",
    "json of another kind": lambda header: "[1]",
    "no version": lambda header: header.pop("version") and None,
    "version of another kind": lambda header: header.update(version="x"),
    "tensors of another kind": lambda header: header.update(tensors=[1, 2]),
    "entry of another kind": lambda header: header["tensors"].update(w=3),
    "key of no tensor": lambda header: header["tensors"]["w"].update(key="other"),
    "packing 3": lambda header: header["tensors"]["w"].update(packing=3),
    "packing of another packing": lambda header: header["tensors"]["w"].update(packing=2),
    "reorder of another kind": lambda header: header["tensors"]["w"].update(reorder="no"),
    "size too large": lambda header: header["tensors"]["w"].update(size=[64, 136]),
    "size beyond 64 bits": lambda header: header["tensors"]["w"].update(size=[2**70, 128]),
    "size of strings": lambda header: header["tensors"]["w"].update(size=["64", "128"]),
    "negative size": lambda header: header["tensors"]["w"].update(size=[-64, 128]),
    "stride of a view": lambda header: header["tensors"]["w"].update(stride=[0, 1]),
    "no stride": lambda header: header["tensors"]["w"].pop("stride") and None,
    "ties of another kind": lambda header: header.update(ties=[]),
    "tie to a list": lambda header: header.update(ties={"b": []}),
    "tie to no tensor": lambda header: header.update(ties={"b": "a"}),
    "tie to a payload": lambda header: header.update(ties={"b": "w.awq_v1"}),
    "tie of a tensor": lambda header: header.update(ties={"w": "w.awq_v1"}),
    "code": lambda header: header["tensors"]["w"].update(size="__import__('os').abort()"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_metadata_is_an_error(path, damage):
    awqpack.save_file({"w": packed_tensor(PACKINGS["v1"])}, path)
    write_header(path, DAMAGED[damage])
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        awqpack.load_file(path)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_file_cut_short_is_an_error(path, length):
    awqpack.save_file({"w": packed_tensor(PACKINGS["v1"])}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SafetensorError):
        awqpack.load_file(path)


def test_the_metadata_key_is_ours(path):
    with pytest.raises(ValueError, match="awqpack"):
        awqpack.save_file({"w": packed_tensor(PACKINGS["v1"])}, path, metadata={"awqpack": "mine"})
    assert not path.exists()


def test_names_do_not_collide(path):
    packed = packed_tensor(PACKINGS["v1"])
    with pytest.raises(ValueError, match=r"w\.awq_v1"):
        awqpack.save_file({"w": packed, "w.awq_v1": torch.ones(2)}, path)

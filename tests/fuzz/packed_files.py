"""load and load_file give tensors or a clear error, whatever bytes they read, and never read past them.

The first byte says what the rest is: a whole file (0), or the header of one, to which values of zero are added that fit
what it says (else).
"""

from __future__ import annotations

import json
import os
import tempfile

import safetensors
import torch
from shared import PACKINGS, packed_tensor

import awqpack
from awqpack import AWQPackedTensor, checkpoint, serialization

_MOST = 1 << 16  # bytes of values


def seeds():
    tensors = {name: packed_tensor(packing, packing.fit((4, 64))) for name, packing in PACKINGS.items()}
    tied = {"a": tensors["v1"], "b": tensors["v1"], "plain": torch.arange(4), "tied": (t := torch.ones(2, 2)), "too": t}
    files = [awqpack.save({name: tensor}) for name, tensor in tensors.items()]
    files += [awqpack.save(tied), awqpack.save({"plain": torch.ones(2, 3)}, {"a": "b"}), awqpack.save({})]
    headers = [data[8 : 8 + int.from_bytes(data[:8], "little")] for data in files]
    return [b"\0" + data for data in files] + [b"\1" + data for data in headers]


def file_of(data):
    if data[:1] in (b"\0", b""):
        return data[1:]
    header = data[1:]
    end = 0
    try:
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                end = max(end, int(entry["data_offsets"][1]))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError):
        pass
    return len(header).to_bytes(8, "little") + header + bytes(min(max(end, 0), _MOST))


def check(data):
    data = file_of(data)
    whole = outcome(lambda: awqpack.load(data))
    with tempfile.NamedTemporaryFile(suffix=".safetensors", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as f:
        f.write(data)
        f.flush()
        loaded = outcome(lambda: awqpack.load_file(f.name))
        shapes = outcome(lambda: awqpack.load_file(f.name, "meta"))
        seen = outcome(lambda: checkpoint.inspect_packed(f.name), checkpoint.CheckpointError)
    assert (whole is None) == (loaded is None), "load and load_file do not agree"
    if loaded is None:
        return
    assert shapes is not None, "load_file on meta refuses what it reads"
    assert loaded.keys() == whole.keys() == shapes.keys()
    for name, tensor in loaded.items():
        assert type(tensor) is type(whole[name]) is type(shapes[name])
        assert tensor.shape == shapes[name].shape
        assert tensor.dtype == shapes[name].dtype
        if isinstance(tensor, AWQPackedTensor):
            assert tensor.unpack().shape == tensor.shape
            assert torch.equal(tensor.payload, whole[name].payload)
    assert seen is None or len(seen.tensors) == sum(isinstance(tensor, AWQPackedTensor) for tensor in loaded.values())
    again = outcome(lambda: serialization.load(awqpack.save(loaded)))
    assert again is None or {n: type(t) for n, t in again.items()} == {n: type(t) for n, t in loaded.items()}


def outcome(call, *errors):
    """What it returns; None for an error that says something."""
    try:
        return call()
    except (ValueError, safetensors.SafetensorError, *errors) as error:
        assert str(error), "an error without words"
        return None

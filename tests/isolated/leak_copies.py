"""Construction, copies, flatten and their error paths."""

import copy

import torch
from leaks import check, expect, packed_tensors

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

codes = torch.zeros(64, 128, dtype=torch.uint8)
column_major = torch.zeros(128, 64, dtype=torch.uint8).t()
bad = codes + 16


def work(p):
    AWQPackedTensor.pack(codes, p.packing, p.reorder)
    AWQPackedTensor.pack(column_major, p.packing, p.reorder).unpack()
    AWQPackedTensor(p.payload, p.packing, p.reorder, p.size(), (1, 64)).detach()
    names, metadata = p.__tensor_flatten__()
    inner = {name: getattr(p, name) for name in names}
    AWQPackedTensor.__tensor_unflatten__(inner, metadata, p.size(), p.stride())
    expect(ValueError, AWQPackedTensor.__tensor_unflatten__, inner, {}, p.size(), p.stride())
    copy.copy(p)
    copy.deepcopy(p)
    copy.deepcopy([p, p])
    torch.nn.Parameter(p, requires_grad=False).detach()
    expect(ValueError, AWQPackedTensor.pack, bad, p.packing)
    expect(TypeError, AWQPackedTensor.pack, None)
    expect(TypeError, AWQPackedTensor.pack, codes, "V1")
    expect(ValueError, AWQPackedTensor, codes, p.packing, False, (64, 128), (128, 1))
    expect(ValueError, AWQPackedTensor, p.payload, p.packing, False, (64, 129), (128, 1))
    expect(ValueError, AWQPackedTensor, p.payload, p.packing, False, (64, 128), (129, 1))
    expect(ValueError, AWQPackedTensor, p.payload, p.packing, False, (64, 128), (128, 1), True)
    expect(TypeError, AWQPackedTensor, p.payload, p.packing, False, None, None)
    expect(ValueError, awqpack.rebuild_packed_tensor, p.payload, 3, False, (64, 128), (128, 1), False)
    expect(ValueError, p.to, torch.float16)
    expect(RuntimeError, p.offload, "nope")
    expect(TypeError, p.numpy, 1)
    assert AWQPacking(p.packing.value) is p.packing


check(work, packed_tensors())

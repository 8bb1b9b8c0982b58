"""NumPy in and out, out= buffers, numpy(), tolist and every variant."""

import numpy as np
from leaks import check, expect, packed_tensors

import awqpack
from awqpack import _C

codes = np.zeros((64, 128), np.uint8)
bad = np.full((64, 128), 16, np.uint8)


def work(p):
    payload = awqpack.pack(codes, p.packing, p.reorder)
    awqpack.pack(codes, p.packing, p.reorder, out=payload)
    back = awqpack.unpack(payload, p.packing, p.reorder)
    awqpack.unpack(payload, p.packing, p.reorder, out=back)
    for variant in _C.variants():
        _C.pack_array(codes, p.packing.value, p.reorder, True, None, variant)
        _C.unpack_array(payload, p.packing.value, p.reorder, None, variant)
    p.numpy()
    np.asarray(p)
    p[:2, :8].tolist()
    expect(ValueError, awqpack.pack, bad, p.packing)
    expect(ValueError, awqpack.pack, codes.view(np.int8), p.packing)
    expect(ValueError, awqpack.pack, codes, p.packing, out=back)
    expect(ValueError, awqpack.unpack, codes, p.packing)
    expect(TypeError, awqpack.pack, None)
    expect(TypeError, awqpack.pack, codes, 1)
    expect(ValueError, _C.pack_array, codes, 1, False, True, None, "no such variant")
    awqpack.build_info()


check(work, packed_tensors())

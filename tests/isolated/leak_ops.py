"""Reads: detach, moves, ops with nested arguments, repr, unpack."""

import torch
from leaks import check, packed_tensors


def work(p):
    p.detach()
    p + 1
    torch.add(input=p, other=p)
    torch.cat([p, p])
    torch.stack((p, p))
    torch._foreach_add([p, p], 1)
    torch.where(p > 7, p, 0)
    p[3:5]
    p.unpack()
    p.to("cpu", copy=True)
    p.to(torch.uint8)
    p.offload()
    p.t()
    repr(p)
    assert p.payload is p._data


check(work, packed_tensors())

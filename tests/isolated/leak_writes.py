"""Writes that are kept and writes that are refused."""

import torch
from leaks import check, expect, packed_tensors

codes = torch.zeros(64, 128, dtype=torch.uint8)
other = packed_tensors()[0]
mask = codes == 1


def set_code(p, value):
    p[3, 4] = value


def work(p):
    p.zero_()
    p.fill_(3)
    p.copy_(codes)
    p.copy_(codes[:1])
    p.copy_(other)
    p.copy_(p)
    p.masked_fill_(mask, 2)
    torch.add(codes, 1, out=p)
    torch._foreach_add_([p, codes], 0)
    torch.sort(codes, out=(p, torch.empty(64, 128, dtype=torch.int64)))
    set_code(p, 5)
    expect(ValueError, set_code, p, 16)
    expect(ValueError, p.fill_, 200)
    expect(ValueError, torch._foreach_add_, [p], 100)
    expect(RuntimeError, p.copy_, codes[:3])
    expect(RuntimeError, p.resize_, 8, 64)
    expect(RuntimeError, p.t_)


check(work, packed_tensors())

"""Packed tensors, their payloads and the codes an op unpacked die at once, without the collector."""

import copy
import gc
import weakref

import torch
from leaks import PACKINGS, ROUNDS, packed_tensors

from awqpack import AWQPackedTensor

USES = [
    lambda p: p.detach(),
    lambda p: p + 1,
    lambda p: torch.cat([p, p]),
    lambda p: p.zero_(),
    lambda p: copy.deepcopy(p),
    lambda p: p.numpy(),
    lambda p: repr(p),
    lambda p: torch.nn.Parameter(p, requires_grad=False),
    lambda p: p.__tensor_flatten__(),
    lambda p: p.__reduce_ex__(2),
]


def live_tensors():
    return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())


def main():
    codes = torch.zeros(64, 128, dtype=torch.uint8)
    kept = packed_tensors()
    for use in USES:
        for p in kept:
            use(p)
    gc.collect()
    gc.disable()
    before = live_tensors()
    for number in range(ROUNDS):
        packed = AWQPackedTensor.pack(codes, *PACKINGS[number % 3])
        deaths = []
        weakref.finalize(packed, deaths.append, "packed")
        weakref.finalize(packed.payload, deaths.append, "payload")
        result = USES[number % len(USES)](packed)
        del packed, result
        assert sorted(deaths) == ["packed", "payload"], (number, deaths)
        assert number % 50 or live_tensors() == before, "tensors are left over"
    assert live_tensors() == before
    assert gc.collect() == 0
    print("every object died at once")


main()

"""What the leak scripts share: many rounds, then memory, counts and the collector must be where they were.

Each script runs alone: python tests/isolated/leak_ops.py [ROUNDS]; AWQPACK_LEAK_ROUNDS=1000000 for a long run.
"""

import ctypes
import gc
import os
import sys

import torch

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("AWQPACK_LEAK_ROUNDS", "100"))
# Python 3.12 and newer count no references to True, None and small ints, but modules of the older stable ABI, as ours,
# still do: such a count starts above this and drifts, which harms nothing. Older Pythons watch these objects too.
IMMORTAL = 1 << 30
ALLOWED_GROWTH = 1 << 19  # bytes: noise of the allocator; 100 rounds that each leak three payloads grow by 1.2 MB

PACKINGS = [(AWQPacking.V1, False), (AWQPacking.V1, True), (AWQPacking.V2, False)]

LIBC = ctypes.CDLL(None)
LIBC.mallopt(-8, 1)  # M_ARENA_MAX: one arena, and one thread ...
torch.set_num_threads(1)  # ... as a pool that starts up late would look like growing memory
HAS_ASAN = hasattr(LIBC, "__asan_init")  # it holds on to freed memory, so that growth says nothing


def packed_tensors(shape=(64, 128)):
    codes = torch.arange(shape[0] * shape[1]).reshape(shape).remainder(16).to(torch.uint8)
    return [AWQPackedTensor.pack(codes, *packing) for packing in PACKINGS]


def resident_bytes():
    LIBC.malloc_trim(0)  # free memory that is still mapped would hide a leak that reuses it
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(packed):
    """Objects whose counts a missing or a doubled decref would move."""
    objects = [
        True,
        False,
        None,
        1,
        2,
        AWQPacking,
        AWQPacking.V1,
        AWQPacking.V2,
        torch.uint8,
        torch.int32,
        torch.int16,
    ]
    objects += [AWQPackedTensor, torch.Tensor, awqpack.rebuild_packed_tensor, torch.ops.awqpack.pack.default]
    objects += [torch.ops.awqpack.unpack.default, torch.device("cpu"), torch.strided]
    for tensor in packed:
        objects += [tensor, tensor.__dict__, *tensor.__dict__.values()]
    return [value for value in objects if sys.getrefcount(value) < IMMORTAL]


def counts(objects):
    return [sys.getrefcount(value) for value in objects]


def check(work, packed, rounds_share=1, has_cycles=False):
    """Runs work(packed tensor) again and again, 1/rounds_share of ROUNDS; fails with a message when anything grew."""
    objects, rounds = watched(packed), ROUNDS // rounds_share
    for _ in range(20):  # caches of torch, of plans and of the allocator fill up here
        for tensor in packed:
            work(tensor)
    gc.collect()
    if not has_cycles:
        gc.disable()
    before_counts, before_objects = counts(objects), len(gc.get_objects())
    before = resident_bytes()
    for _ in range(rounds):
        for tensor in packed:
            work(tensor)
    after = resident_bytes()
    cycles = gc.collect()
    assert has_cycles or cycles == 0, f"gc.collect() found {cycles} objects in cycles"
    after_counts, after_objects = counts(objects), len(gc.get_objects())
    moved = [
        f"{value!r:.60}: {old} -> {new}"
        for value, old, new in zip(objects, before_counts, after_counts, strict=True)
        if abs(new - old) >= min(rounds, 200) // 2  # None and True waver a little; a leak moves them once a round
    ]
    assert not moved, "reference counts moved: " + "; ".join(moved)
    assert after_objects - before_objects < 100, f"{after_objects - before_objects} more objects are alive"
    grown = after - before
    assert HAS_ASAN or grown < ALLOWED_GROWTH, f"memory grew by {grown} bytes in {rounds} rounds"
    print(f"{rounds} rounds: {grown} bytes, {after_objects - before_objects} objects, {cycles} in cycles")


def expect(error, call, *args, **kwargs):
    """call(*args) must raise `error`: the error path is what is watched."""
    try:
        call(*args, **kwargs)
    except error:
        return
    raise AssertionError(f"{call} raised no {error}")

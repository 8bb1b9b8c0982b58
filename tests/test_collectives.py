"""Collectives that write into packed tensors, between two processes over gloo: what arrives is kept."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
import torch
import torch.distributed as dist
from shared import PACKINGS, torch_codes

from awqpack import AWQPackedTensor

RANKS = 2


def codes_of(rank):
    """Codes of 0..7, so that the sum over two ranks still fits."""
    return torch_codes(seed=rank) // 2


def pack(codes, packing):
    return AWQPackedTensor.pack(codes, *packing)


def zeros(packing):
    return pack(torch.zeros_like(codes_of(0)), packing)


def broadcast(rank, packing):
    packed = pack(codes_of(rank), packing)
    dist.broadcast(packed, 0)
    return [(packed, codes_of(0))]


def broadcast_async(rank, packing):
    packed = pack(codes_of(rank), packing)
    dist.broadcast(packed, 0, async_op=True).wait()
    return [(packed, codes_of(0))]


def all_reduce(rank, packing):
    packed = pack(codes_of(rank), packing)
    dist.all_reduce(packed)
    return [(packed, codes_of(0) + codes_of(1))]


def all_gather(rank, packing):
    outputs = [zeros(packing) for _ in range(RANKS)]
    dist.all_gather(outputs, pack(codes_of(rank), packing))
    return [(output, codes_of(i)) for i, output in enumerate(outputs)]


def send_recv(rank, packing):
    packed = pack(codes_of(rank), packing)
    if rank == 0:
        dist.send(packed, 1)  # as codes ...
        dist.send(packed.payload, 1)  # ... and as they are stored
        return [(packed, codes_of(0))]
    with pytest.raises(RuntimeError, match="cannot receive into an AWQPackedTensor"):
        dist.recv(packed, 0)
    assert torch.equal(packed.unpack(), codes_of(1))
    codes = torch.empty_like(codes_of(0))
    dist.recv(codes, 0)
    dist.recv(packed.payload, 0)
    return [(packed, codes_of(0)), (pack(codes, packing), codes_of(0))]


def scatter(rank, packing):
    packed = zeros(packing)
    dist.scatter(packed, [pack(codes_of(i), packing) for i in range(RANKS)] if rank == 0 else None, 0)
    return [(packed, codes_of(rank))]


def functional_all_reduce(rank, packing):
    packed = pack(codes_of(rank), packing)
    group = dist.group.WORLD.group_name
    torch.ops._c10d_functional.all_reduce_(packed, "sum", group)
    return [(packed, codes_of(0) + codes_of(1))]


COLLECTIVES = [functional_all_reduce, broadcast, broadcast_async, all_reduce, all_gather, send_recv, scatter]


def work(rank, folder):
    """One rank: every collective with every packing."""
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, store=store, timeout=datetime.timedelta(seconds=60))
    for collective in COLLECTIVES:
        for name, packing in PACKINGS.items():
            for packed, expected in collective(rank, packing):
                assert type(packed) is AWQPackedTensor, (collective.__name__, name)
                assert torch.equal(packed.unpack(), expected), (collective.__name__, name)
    too_large = pack(torch.full_like(codes_of(0), 15), PACKINGS["v1"])
    with pytest.raises(ValueError, match="is 30"):
        dist.all_reduce(too_large)
    assert torch.equal(too_large.unpack(), torch.full_like(codes_of(0), 15)), "a refused sum was stored"
    dist.destroy_process_group()


WORK = """
import sys
sys.path.insert(0, sys.argv[3])
import test_collectives
test_collectives.work(int(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_collectives_between_two_processes(tmp_path):
    with ThreadPoolExecutor(RANKS) as pool:
        ranks = list(pool.map(lambda rank: forked.run(WORK, rank, tmp_path, Path(__file__).parent), range(RANKS)))
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(rank.stderr for rank in ranks)

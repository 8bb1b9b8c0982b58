"""Collectives that write into packed tensors, between two processes over gloo: what arrives is kept."""

import multiprocessing
import os
import socket
import traceback

import pytest
import torch
import torch.distributed as dist
from conftest import LAYOUTS, torch_codes

from awqpack import AWQPackedTensor

RANKS = 2


def codes_of(rank):
    """Codes of 0..7, so that the sum over two ranks still fits."""
    return torch_codes(seed=rank) // 2


def pack(codes, layout):
    return AWQPackedTensor.pack(codes, layout.packing, layout.reorder)


def zeros(layout):
    return pack(torch.zeros_like(codes_of(0)), layout)


def broadcast(rank, layout):
    packed = pack(codes_of(rank), layout)
    dist.broadcast(packed, 0)
    return [(packed, codes_of(0))]


def broadcast_async(rank, layout):
    packed = pack(codes_of(rank), layout)
    dist.broadcast(packed, 0, async_op=True).wait()
    return [(packed, codes_of(0))]


def all_reduce(rank, layout):
    packed = pack(codes_of(rank), layout)
    dist.all_reduce(packed)
    return [(packed, codes_of(0) + codes_of(1))]


def all_gather(rank, layout):
    outputs = [zeros(layout) for _ in range(RANKS)]
    dist.all_gather(outputs, pack(codes_of(rank), layout))
    return [(output, codes_of(i)) for i, output in enumerate(outputs)]


def send_recv(rank, layout):
    packed = pack(codes_of(rank), layout)
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
    return [(packed, codes_of(0)), (pack(codes, layout), codes_of(0))]


def scatter(rank, layout):
    packed = zeros(layout)
    dist.scatter(packed, [pack(codes_of(i), layout) for i in range(RANKS)] if rank == 0 else None, 0)
    return [(packed, codes_of(rank))]


def functional_all_reduce(rank, layout):
    packed = pack(codes_of(rank), layout)
    group = dist.group.WORLD.group_name
    torch.ops._c10d_functional.all_reduce_(packed, "sum", group)
    return [(packed, codes_of(0) + codes_of(1))]


COLLECTIVES = [functional_all_reduce, broadcast, broadcast_async, all_reduce, all_gather, send_recv, scatter]


def work(rank, port, results):
    """One rank: every collective with every layout; what went wrong, or None, into the queue."""
    try:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=RANKS)
        for collective in COLLECTIVES:
            for name, layout in LAYOUTS.items():
                for packed, expected in collective(rank, layout):
                    assert type(packed) is AWQPackedTensor, (collective.__name__, name)
                    assert torch.equal(packed.unpack(), expected), (collective.__name__, name)
        too_large = pack(torch.full_like(codes_of(0), 15), LAYOUTS["v1"])
        with pytest.raises(ValueError, match="is 30"):
            dist.all_reduce(too_large)
        assert torch.equal(too_large.unpack(), torch.full_like(codes_of(0), 15)), "a refused sum was stored"
        dist.destroy_process_group()
        results.put(None)
    except BaseException:
        results.put(traceback.format_exc())


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_collectives_between_two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, port, results)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    try:
        errors = [error for error in (results.get(timeout=120) for _ in processes) if error is not None]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert not errors, "\n".join(errors)

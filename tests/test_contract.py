"""The contract of AWQPackedTensor, line by line: every row of design.md section 5 and what is promised beside it.

The tables in contract.py say what is done to a packed tensor, the tests here what must come of it. All run over every
packing, on the CPU and, with `pytest -m cuda`, on a GPU. What is deep or odd about a row is in test_packed_*.py.
"""

import gc
import weakref

import pytest
import torch
from contract import (
    ALIASES,
    INDEPENDENT,
    KINDS,
    MOVES,
    NOT_CALLED,
    PLAIN,
    REFUSED,
    SHARING,
    UNINITIALIZED,
    USES,
    arguments_on,
    assert_packed_like,
    saved,
    table,
    writing_ops,
)
from forked import write_and_report
from models import SHAPE, Codes
from shared import PACKINGS, assert_same, is_plain, packed_tensor, require_fake_tensors, torch_codes
from torch._subclasses.fake_tensor import FakeTensorMode

from awqpack import AWQPackedTensor

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own


# --- stays packed ---


@table(SHARING)
def test_stays_packed_and_shares_the_payload(row, packed, tmp_path):
    result = row(packed, tmp_path)
    assert_packed_like(result, packed)
    assert result.payload.data_ptr() == packed.payload.data_ptr()
    packed.fill_(3)
    assert bool((result == 3).all())


@table(ALIASES)
def test_an_alias_shares_storage_and_strides(row, packing, device, tmp_path):
    """By the storage torch tells what aliases what, compiled code for one."""
    for codes in (torch_codes(SHAPE, device), torch_codes((128, 64), device).t()):
        packed = AWQPackedTensor.pack(codes, *packing)
        result = row(packed, tmp_path)
        assert result.untyped_storage()._cdata == packed.untyped_storage()._cdata
        assert result.stride() == packed.stride()
        result.zero_()
        assert not packed.any()


@table(INDEPENDENT)
def test_stays_packed_with_a_payload_of_its_own(row, packed, tmp_path):
    result, before = row(packed, tmp_path), packed.unpack()
    assert_packed_like(result, packed)
    result.zero_()
    assert_same(packed.unpack(), before)


@table(UNINITIALIZED)
def test_stays_packed_of_any_codes(row, packing, device):
    for codes in (torch_codes(SHAPE, device), torch_codes((128, 64), device).t()):
        packed = AWQPackedTensor.pack(codes, *packing)
        result = row(packed)
        assert (type(result), result.packing, result.reorder) == (AWQPackedTensor, *packing)
        assert (result.shape, result.stride()) == (packed.shape, packed.stride())
        assert result.device == result.payload.device
        result.copy_(codes.to(result.device))
        assert result.is_meta or torch.equal(result.unpack().cpu(), codes.cpu())
        assert_same(packed.unpack(), codes)
        assert type(torch.empty_like(packed, dtype=torch.float16)) is torch.Tensor


@pytest.mark.parametrize("non_blocking", [False, True])
def test_offload_and_back(packed, device, non_blocking):
    rest = packed.offload(pin_memory=device == "cuda", non_blocking=non_blocking)
    back = rest.to(device, non_blocking=non_blocking)
    if device == "cuda":
        torch.cuda.synchronize()
        assert rest.is_pinned()
    assert_packed_like(rest, packed, "cpu")
    assert_packed_like(back, packed)


@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_map_location_moves_the_payload(packed, device, source):
    if source == "cuda" and device != "cuda":
        pytest.skip("a file from a GPU is the case of device=cuda")
    target = "cpu" if source == "cuda" else device
    given = packed if source == device else packed.offload()
    assert_packed_like(saved(given, map_location=target, weights_only=True), packed, target)


def fake_packed(packing, device, stride=(128, 1)):
    payload = torch.empty(packing.payload_shape(SHAPE), dtype=packing.payload_dtype, device=device)
    return AWQPackedTensor(payload, *packing, SHAPE, stride)


@pytest.mark.parametrize(("source", "target", "stays_packed"), MOVES)
@pytest.mark.parametrize("non_blocking", [False, True])
def test_where_moves_stay_packed(source, target, stays_packed, non_blocking, packing):
    require_fake_tensors(source, target)
    with FakeTensorMode():
        packed = fake_packed(packing, source, (1, 64))
        # What `to` becomes; `to` itself asks for a CUDA build of torch, even under the fake mode.
        to_copy = torch.ops.aten._to_copy.default
        moved = to_copy(packed, device=torch.device(target), non_blocking=non_blocking)
        assert isinstance(moved, AWQPackedTensor) is stays_packed
        assert (moved.device.type, moved.dtype) == (target, torch.uint8)
        assert (moved.shape, moved.stride()) == (SHAPE, (1, 64))
        if stays_packed:
            assert moved.payload.device.type == target
            assert (moved.packing, moved.reorder) == (packing.packing, packing.reorder)


@pytest.mark.parametrize("non_blocking", [False, True])
def test_to_the_cpu(packed, device, non_blocking):
    moved = packed.to("cpu", non_blocking=non_blocking, copy=True)
    if device == "cuda":
        torch.cuda.synchronize()
        assert is_plain(moved, packed.unpack().cpu())
        assert is_plain(packed.cpu(), packed.unpack().cpu())
    else:
        assert_packed_like(moved, packed)


# --- every other op: runs on the codes, nested arguments too, and gives a plain result ---


@table(PLAIN)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_every_other_op(row, packed, mode):
    codes = packed.unpack()
    with mode():
        result, expected = row(packed), row(codes)
    several = isinstance(expected, (tuple, list))
    for ours, theirs in zip(result, expected, strict=True) if several else [(result, expected)]:
        assert is_plain(ours, theirs)
    assert_same(packed.unpack(), codes)


# --- refused ---


@table(REFUSED)
def test_refused_and_nothing_changed(row, packed):
    call, error, words = row
    before, version = packed.payload.clone(), packed.payload._version
    with pytest.raises(error, match=words):
        call(packed)
    assert_same(packed.payload, before)
    assert (packed.shape, packed.payload._version) == (SHAPE, version)


# --- writes: every op of aten whose schema says that it writes ---


@pytest.mark.filterwarnings("ignore")
@table(KINDS, "kind")
def test_no_write_is_lost(kind, packing, device, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__repr__", object.__repr__)  # what refuses a call prints all its arguments
    is_one, call, at_least = kind
    written, lost = 0, []
    for op in writing_ops(is_one):
        if any(word in op.name() for word in NOT_CALLED):
            continue
        for rest in arguments_on(device):
            codes = torch.full(SHAPE, 2, dtype=torch.uint8, device=device)
            packed = AWQPackedTensor.pack(codes, *packing)
            try:
                call(op, codes, rest)
            except (TypeError, RuntimeError, ValueError, IndexError):
                continue
            try:
                call(op, packed, rest)
            except (ValueError, RuntimeError, IndexError):  # it does not fit: then nothing has changed
                codes = torch.full(SHAPE, 2, dtype=torch.uint8, device=device)
            else:
                written += 1
            if not torch.equal(packed.unpack(), codes):
                lost.append((op.name(), rest))
    assert lost == []
    assert written >= at_least


# --- other processes ---


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(method, device):
    if (method, device) == ("fork", "cuda"):
        pytest.skip("CUDA does not work in a forked process")
    context = torch.multiprocessing.get_context(method)
    packed_in, report_out = context.Queue(), context.Queue()
    child = context.Process(target=write_and_report, args=(packed_in, report_out))
    child.start()
    try:
        for packing in PACKINGS.values():
            packed = packed_tensor(packing, SHAPE, device)
            total = packed.sum().item()
            packed_in.put(packed)
            assert report_out.get(timeout=120) == ("AWQPackedTensor", packing.packing.name, packing.reorder, total)
            assert bool((packed == 9).all())
        packed_in.put(None)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader_workers(workers, packing, device):
    loader = torch.utils.data.DataLoader(
        Codes(packing),
        batch_size=None,
        num_workers=workers,
        pin_memory=device == "cuda",
        multiprocessing_context="fork" if workers else None,
    )
    for index, (packed, kept) in enumerate(loader):
        assert_packed_like(packed.to(device, non_blocking=True), packed_tensor(packing, SHAPE, device, index))
        assert_packed_like(kept.to(device), packed_tensor(packing, SHAPE, device, 99))
    batches = torch.utils.data.DataLoader(Codes(packing), batch_size=2)
    assert is_plain(next(iter(batches))[0], torch.stack([torch_codes(seed=0), torch_codes(seed=1)]))


# --- memory: an op's unpacked copy goes when the op ends, and so does a tensor that is dropped ---


def allocated(device):
    """Bytes of the allocator on a GPU; on the CPU the tensors that Python knows."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())


def tensors_in_cycles():
    """Tensors that only the collector would have freed."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return sum(issubclass(type(value), torch.Tensor) for value in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@table(USES)
def test_memory_is_freed_at_once(row, packed, device):
    row(packed)  # what torch keeps from a first call
    gc.collect()
    gc.freeze()  # nobody looks again at what was there before, torch itself for one: a collection takes no time then
    gc.disable()
    try:
        before = allocated(device)
        for _ in range(3):
            row(packed)
            assert allocated(device) == before
        for _ in range(100):
            row(packed)
        assert tensors_in_cycles() == 0
        watched = weakref.ref(packed.detach()), weakref.ref(packed.payload.clone())
        assert [reference() for reference in watched] == [None, None]
    finally:
        gc.enable()

"""The contract of AWQPackedTensor, line by line: every row of design.md section 5 and what is promised beside it.

The tables in contract.py say what is done to a packed tensor, the tests here what must come of it. All run over every
packing, on the CPU and, with `pytest -m cuda`, on a GPU. What is deep or odd about a row is in test_packed_*.py.
"""

import copy
import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from contract import (
    ALIASES,
    COLLECTIVES,
    COMPILED_WRITES,
    INDEPENDENT,
    KINDS,
    MODULES,
    MOVES,
    NOT_CALLED,
    PLAIN,
    READS,
    REFUSED,
    SHARING,
    STAYS_PACKED_IN_DTENSOR,
    UNINITIALIZED,
    USES,
    arguments_on,
    local,
    saved,
    writing_ops,
)
from forked import write_and_report
from models import SHAPE, Codes, Dequantize, PackedLinear, Scaled
from shared import HAS_CUDA, PACKINGS, assert_same, is_plain, packed_tensor, require_fake_tensors, torch_codes
from torch._subclasses.fake_tensor import FakeTensorMode

from awqpack import AWQPackedTensor

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own


def table(rows, name="row"):
    """Parametrizes by the rows of a table, whose keys are the words of the contract."""
    return pytest.mark.parametrize(name, rows.values(), ids=rows.keys())


@pytest.fixture
def packed(packing, device):
    return packed_tensor(packing, SHAPE, device)


def assert_packed_like(result, packed, device=None):
    """Packed as `packed` is, with an equal payload, on its device or the one named."""
    assert isinstance(result, AWQPackedTensor)
    assert (result.packing, result.reorder, result.shape) == (packed.packing, packed.reorder, packed.shape)
    assert result.device.type == result.payload.device.type == (device or packed.device.type)
    assert_same(result.unpack().cpu(), packed.unpack().cpu())


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


# --- collectives write into the payload; the group is this process alone ---


@pytest.fixture(scope="module")
def group():
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    backend = "cpu:gloo,cuda:nccl" if HAS_CUDA else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor:FutureWarning")
@table(COLLECTIVES)
def test_collectives_write_into_the_payload(row, group, packed):
    expected, payload = packed.unpack(), packed.payload
    row(expected)
    row(packed)
    assert_same(packed.unpack(), expected)
    assert packed.payload is payload


def test_a_collective_sends_the_codes(group, packed):
    received = torch.zeros(SHAPE, dtype=torch.uint8, device=packed.device)
    group.all_gather([received], packed)
    assert_same(received, packed.unpack())


# --- wrappers of others: DTensor, and a subclass that holds a packed tensor ---


@pytest.fixture
def dtensor(group, packed, device):
    """What distribute_tensor makes of a replicated weight: a DTensor whose local tensor is packed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(packed, init_device_mesh(device, (1,)), [Replicate()])


@table(STAYS_PACKED_IN_DTENSOR)
def test_dtensor_keeps_it_packed(row, dtensor, packed):
    result = row(dtensor)
    assert type(result) is type(dtensor)
    assert_packed_like(local(result), packed)


@pytest.mark.usefixtures("fresh_dynamo")
def test_dtensor_gives_it_packed(dtensor, packed):
    # DTensor gives its local tensor as a view of the whole.
    for result in (dtensor.to_local(), dtensor.full_tensor()):
        assert_packed_like(result, packed)
        assert result.payload.data_ptr() == local(dtensor).payload.data_ptr()
    assert is_plain(local(dtensor + 0), packed.unpack())
    compiled = torch.compile(lambda d: d + 1, fullgraph=True, backend="aot_eager")
    assert is_plain(local(compiled(dtensor)), packed.unpack() + 1)


def test_dtensor_writes_and_shards(dtensor, packed):
    from torch.distributed.tensor import Shard

    assert_same(dtensor.redistribute(placements=[Shard(0)]).full_tensor() + 0, packed.unpack())
    payload = local(dtensor).payload
    for value, write in enumerate((dtensor.fill_, dtensor.to_local().fill_, dtensor.full_tensor().fill_)):
        write(value)
        assert local(dtensor).payload is payload
        assert_same(dtensor.full_tensor().unpack(), torch.full(SHAPE, value, dtype=torch.uint8, device=packed.device))


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_wrapper_around_a_packed_tensor(packed):
    scaled = Scaled(packed, torch.full((64, 1), 0.5, device=packed.device))
    expected = packed.unpack() * 0.5
    compiled_detach = torch.compile(Scaled.detach, fullgraph=True, backend="aot_eager")
    for result in (scaled.detach(), scaled.to(scaled.device, copy=True), compiled_detach(scaled)):
        assert_packed_like(result.codes, packed)
        assert_same(result + 1, expected + 1)
    names, metadata = scaled.__tensor_flatten__()
    inner = {name: getattr(scaled, name) for name in names}
    assert_same(Scaled.__tensor_unflatten__(inner, metadata, scaled.size(), scaled.stride()) * 2, expected * 2)
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(lambda t: t + 1, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(scaled), expected + 1)


# --- modules: a way of handling one -> a module with the same packed weights on the same device ---


def assert_packed_as(module, expected, device):
    for name in ("weight", "zeros"):
        assert_packed_like(getattr(module, name), getattr(expected, name), device)
    assert isinstance(module.weight, torch.nn.Parameter)
    assert not module.weight.requires_grad
    x = torch.ones(2, 128, device=device, dtype=module.scale.dtype)
    torch.testing.assert_close(module(x).float().cpu(), expected(x.float()).cpu(), rtol=0.02, atol=1)


@table(MODULES)
def test_modules(row, packing, device):
    module = PackedLinear(packing, device)
    expected = copy.deepcopy(module)
    assert_packed_as(row(module), expected, device)


def test_a_module_goes_to_the_cpu_and_back(packing, device):
    module = PackedLinear(packing, device)
    expected = copy.deepcopy(module)
    assert_same(module.cpu().weight.unpack(), expected.weight.unpack().cpu())
    assert isinstance(module.weight, AWQPackedTensor)
    module.zeros = expected.zeros.offload("cpu")  # a buffer has no data to assign: it becomes plain on its way down
    assert_packed_as(module.to(device), expected, device)


def test_parametrize(packing, device):
    module = PackedLinear(packing, device)
    expected = module.weight.unpack().float() * 2
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Dequantize(), unsafe=True)
    assert_same(module.weight, expected)
    assert isinstance(module.parametrizations.weight.original, AWQPackedTensor)
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    assert_packed_like(module.weight, PackedLinear(packing, device).weight)


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


# --- torch.compile(fullgraph=True): reads give what they give in eager, writes leave the same codes ---

# Compiling takes a tenth of a second: each packing once, static and dynamic shapes both, not every combination.
once = pytest.mark.parametrize(
    ("packing", "dynamic"), [(PACKINGS["v1_reorder"], False), (PACKINGS["v2"], True)], ids=["v1_reorder", "v2-dynamic"]
)
INDUCTOR = ["+1", "pack", "packed and plain", "two writes"]
HOW = [("aot_eager", name) for name in [*READS, *COMPILED_WRITES]] + [("inductor", name) for name in INDUCTOR]


def compiled(function, **how):
    return torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **how})


def assert_all_same(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]:
        assert_same(ours, theirs)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("backend", "name"), HOW)
@once
def test_compiled(backend, name, packing, dynamic, device):
    function = {**READS, **COMPILED_WRITES}[name]
    packed, expected = (packed_tensor(packing, SHAPE, device) for _ in range(2))
    payload = packed.payload
    result = compiled(function, backend=backend, dynamic=dynamic)(packed)
    assert_all_same(result, function(expected))
    assert_same(packed, expected)
    assert packed.payload is payload


def write_one_and_read_the_other(one, other):
    one.fill_(3)
    return other + 1


@pytest.mark.usefixtures("fresh_dynamo")
@table(ALIASES)
def test_a_compiled_write_is_seen_through_an_alias_or_refused(row, device, tmp_path):
    """torch refuses such arguments of any wrapper subclass; a stale value would be wrong."""
    packed = packed_tensor(PACKINGS["v1"], SHAPE, device)
    before, alias = packed.unpack(), row(packed, tmp_path)
    try:
        result = compiled(write_one_and_read_the_other)(packed, alias)
    except torch._dynamo.exc.BackendCompilerFailed:
        assert_same(alias.unpack(), before)
    else:
        assert bool((result == 4).all())


PAYLOAD_SHARERS = {
    "around the payload": lambda p: AWQPackedTensor.from_payload(p.payload, p.packing),
    "around a part of it": lambda p: AWQPackedTensor.from_payload(p.payload[:32], p.packing),
    "the payload": lambda p: p.payload,
    "a view of it": lambda p: p.payload.view(-1),
}


@pytest.mark.usefixtures("fresh_dynamo")
@table(PAYLOAD_SHARERS)
def test_a_compiled_write_is_refused_beside_what_shares_the_payload(row, device):
    packed = packed_tensor(PACKINGS["v1"], SHAPE, device)
    before, sharer = packed.unpack(), row(packed)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"set the storage|aliased|different dtypes"):
        compiled(write_one_and_read_the_other)(packed, sharer)
    assert_same(packed.unpack(), before)


@pytest.mark.usefixtures("fresh_dynamo")
@table(
    {**{name: lambda p, row=row: row(p, None) for name, row in ALIASES.items() if "detach" in name}, **PAYLOAD_SHARERS}
)
def test_a_compiled_read_takes_what_shares_the_payload(row, device):
    packed = packed_tensor(PACKINGS["v1"], SHAPE, device)
    sharer = row(packed)
    assert_all_same(compiled(lambda a, b: (a + 1, b + 1))(packed, sharer), (packed + 1, sharer + 1))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_module(packing, backend, device):
    module, other = PackedLinear(packing, device), PackedLinear(packing, device, seed=4)
    x = torch.ones(3, 128, device=device)
    torch.testing.assert_close(compiled(module, backend=backend)(x), module(x))
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}

    def call(tensors, x):
        return torch.func.functional_call(module, tensors, (x,))

    torch.testing.assert_close(call(tensors, x), other(x))
    torch.testing.assert_close(compiled(call, backend=backend)(tensors, x), other(x))


def test_export(packing, device):
    module, x = PackedLinear(packing, device), torch.ones(3, 128, device=device)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [False, True])
@table({name: {**READS, **COMPILED_WRITES}[name] for name in ("+1", "unpack", "detach", "zero_")})
def test_new_values_do_not_recompile(row, dynamic, device):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    run = compiled(row, backend=counter, dynamic=dynamic)
    for seed in range(3):
        packed = packed_tensor(PACKINGS["v2"], SHAPE, device, seed)
        expected = row(copy.deepcopy(packed))
        assert_same(run(packed), expected)
    assert counter.frame_count == 1


def test_fake_tensors(packed, packing, device):
    mode = FakeTensorMode()
    fake = mode.from_tensor(packed)
    assert isinstance(fake, AWQPackedTensor)
    assert (fake.shape, fake.stride(), fake.packing, fake.reorder) == (SHAPE, (128, 1), packed.packing, packed.reorder)
    with mode:
        assert (fake + 1).shape == fake.unpack().shape == SHAPE
        assert isinstance(fake.detach(), AWQPackedTensor)
        fake.zero_()
        made = AWQPackedTensor.pack(torch.empty(SHAPE, dtype=torch.uint8, device=device), *packing)
        assert made.payload.shape == packing.payload_shape(SHAPE)


def test_opcheck(packed, packing):
    how = (packing.number, packing.reorder)
    torch.library.opcheck(torch.ops.awqpack.pack.default, (packed.unpack(), *how))
    torch.library.opcheck(torch.ops.awqpack.unpack.default, (packed.payload, *how))


def test_stable_hash_for_caching(device):
    hashes = [
        packed_tensor(x, SHAPE, device, seed)._stable_hash_for_caching() for x in PACKINGS.values() for seed in (0, 1)
    ]
    assert len(set(hashes)) == len(PACKINGS)
    assert hashes[::2] == hashes[1::2]


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

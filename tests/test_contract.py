"""The contract of AWQPackedTensor, line by line: every row of design.md section 5 and what is promised beside it.

Each table says what is done to a packed tensor, the test below it what must come of that; all run over every layout, on
the CPU and, with `pytest -m cuda`, on a GPU. What is deep or odd about a row is in the test_packed_* module named so.
"""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from conftest import HAS_CUDA, LAYOUTS, assert_same, is_plain, packed_tensor, require_fake_tensors, torch_codes
from models import SHAPE, Codes, Dequantize, PackedLinear, Scaled, emptied_at_registration, write_and_report
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack
from awqpack import AWQPackedTensor, AWQPacking

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own


def table(rows, name="row"):
    """Parametrizes by the rows of a table, whose keys are the words of the contract."""
    return pytest.mark.parametrize(name, rows.values(), ids=rows.keys())


@pytest.fixture
def packed(layout, device):
    return packed_tensor(layout, SHAPE, device)


def assert_packed_like(result, packed, device=None):
    """Packed as `packed` is, with an equal payload, on its device or the one named."""
    assert isinstance(result, AWQPackedTensor)
    assert (result.packing, result.reorder, result.shape) == (packed.packing, packed.reorder, packed.shape)
    assert result.device.type == result.payload.device.type == (device or packed.device.type)
    assert_same(result.unpack().cpu(), packed.unpack().cpu())


# --- stays packed: call -> (result, does it share the payload) ---


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **how)


def through_a_file(packed, folder, load):
    torch.save(packed, folder / "packed.pt")
    return load(folder / "packed.pt")


def through_safetensors(packed, folder):
    awqpack.save_file({"w": packed}, folder / "w.safetensors")
    return awqpack.load_file(folder / "w.safetensors", packed.device)["w"]


def reflattened(packed):
    names, metadata = packed.__tensor_flatten__()
    assert metadata == pickle.loads(pickle.dumps(metadata))
    assert {type(value) for value in metadata.values()} <= {int, bool, str}
    inner = {name: getattr(packed, name) for name in names}
    return AWQPackedTensor.__tensor_unflatten__(inner, metadata, packed.size(), packed.stride())


SHARING = {
    "detach": lambda p, _: p.detach(),
    "data": lambda p, _: p.data,
    "to its device": lambda p, _: p.to(p.device),
    "to uint8": lambda p, _: p.to(torch.uint8),
    "offload to where it is": lambda p, _: p.offload(p.device),
    "nn.Parameter": lambda p, _: torch.nn.Parameter(p, requires_grad=False),
    "flatten and unflatten": lambda p, _: reflattened(p),
    "share_memory_": lambda p, _: p.share_memory_() if p.is_cuda else p,
}
INDEPENDENT = {
    "to its device, copied": lambda p, _: p.to(p.device, copy=True),
    "_to_copy with kwargs": lambda p, _: torch.ops.aten._to_copy.default(p, device=p.device, non_blocking=True),
    "deepcopy": lambda p, _: copy.deepcopy(p),
    "copy.copy": lambda p, _: copy.copy(p),
    "pickle": lambda p, _: pickle.loads(pickle.dumps(p)),
    "torch.save, torch.load": lambda p, _: saved(p),
    "torch.load(weights_only=True)": lambda p, _: saved(p, weights_only=True),
    "torch.load(weights_only=False)": lambda p, _: saved(p, weights_only=False),
    "torch.load(map_location)": lambda p, _: saved(p.offload(), map_location=p.device.type),
    "torch.load(mmap=True)": lambda p, d: through_a_file(
        p, d, lambda f: torch.load(f, mmap=True, map_location=p.device)
    ),
    "safetensors": through_safetensors,
}


@table(SHARING)
def test_stays_packed_and_shares_the_payload(row, packed, tmp_path):
    result = row(packed, tmp_path)
    assert_packed_like(result, packed)
    assert result.payload.data_ptr() == packed.payload.data_ptr()
    packed.fill_(3)
    assert bool((result == 3).all())


@table(INDEPENDENT)
def test_stays_packed_with_a_payload_of_its_own(row, packed, tmp_path):
    result, before = row(packed, tmp_path), packed.unpack()
    assert_packed_like(result, packed)
    result.zero_()
    assert_same(packed.unpack(), before)


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


# from, to, is the result packed: on devices this machine may not have, fake payloads stand in
MOVES = [
    ("cpu", "cuda", True),
    ("cpu", "xpu", True),
    ("cuda", "xpu", True),
    ("xpu", "cuda", True),
    ("cuda", "cuda", True),
    ("cuda", "cpu", False),
    ("xpu", "cpu", False),
    ("cpu", "cpu", True),
    ("cpu", "meta", False),
    ("cuda", "meta", False),
]


def fake_packed(layout, device, stride=(128, 1)):
    payload = torch.empty(layout.payload_shape(SHAPE), dtype=layout.payload_dtype, device=device)
    return AWQPackedTensor(payload, layout.packing, layout.reorder, SHAPE, stride)


@pytest.mark.parametrize(("source", "target", "stays_packed"), MOVES)
@pytest.mark.parametrize("non_blocking", [False, True])
def test_where_moves_stay_packed(source, target, stays_packed, non_blocking, layout):
    require_fake_tensors(source, target)
    with FakeTensorMode():
        packed = fake_packed(layout, source, (1, 64))
        # What `to` becomes; `to` itself asks for a CUDA build of torch, even under the fake mode.
        to_copy = torch.ops.aten._to_copy.default
        moved = to_copy(packed, device=torch.device(target), non_blocking=non_blocking)
        assert isinstance(moved, AWQPackedTensor) is stays_packed
        assert (moved.device.type, moved.dtype) == (target, torch.uint8)
        assert (moved.shape, moved.stride()) == (SHAPE, (1, 64))
        if stays_packed:
            assert moved.payload.device.type == target
            assert (moved.packing, moved.reorder) == (layout.packing, layout.reorder)


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

PLAIN = {
    "+ 1": lambda t: t + 1,
    "an op of two": lambda t: torch.bitwise_xor(t, t),
    "list": lambda t: torch.cat([t, t]),
    "tuple": lambda t: torch.stack((t, t)),
    "kwargs": lambda t: torch.add(input=t, other=t, alpha=2),
    "list in kwargs": lambda t: torch.cat(tensors=[t, t], dim=1),
    "lists of two arguments": lambda t: torch._foreach_mul([t, t], [t, t]),
    "optional tensors in a list": lambda t: torch.ones(SHAPE, device=t.device)[None, t[0].long() % 64],
    "out= of a plain tensor": lambda t: torch.add(t, 1, out=torch.empty(SHAPE, dtype=torch.uint8, device=t.device)),
    "a slice": lambda t: t[3:9, ::2],
    "a view": lambda t: t.view(-1),
    "t()": lambda t: t.t(),
    "clone": lambda t: t.clone(),
    "several results": lambda t: torch.sort(t),
    "a reduction": lambda t: t.sum(),
    "matmul": lambda t: torch.ones(3, 128, device=t.device) @ (t - 8.0).t(),
    "functional": lambda t: torch.nn.functional.pad(t, (1, 2)),
    "into a plain tensor": lambda t: torch.zeros(SHAPE, dtype=torch.uint8, device=t.device).copy_(t),
}


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

REFUSED = {
    "another dtype": (lambda p: p.to(torch.float16), ValueError, r"torch\.uint8 .*torch\.float16"),
    "half()": (lambda p: p.half(), ValueError, r"torch\.uint8 .*torch\.float16"),
    "a dtype and a device": (lambda p: p.to(p.device, torch.int32), ValueError, r"torch\.uint8 .*torch\.int32"),
    "requires_grad=True": (lambda p: rebuilt(p, requires_grad=True), ValueError, "requires_grad=False"),
    "requires_grad_()": (lambda p: p.requires_grad_(), RuntimeError, "floating point"),
    "a payload of another dtype": (lambda p: rebuilt(p, data=p.payload.long()), ValueError, "int64"),
    "a size that does not fit": (lambda p: rebuilt(p, size=(64, 129)), ValueError, r"\(64, 129\)"),
    "strides that do not fit": (lambda p: rebuilt(p, stride=(129, 1)), ValueError, r"\(129, 1\)"),
    "codes over 15": (lambda p: AWQPackedTensor.pack(p.unpack() | 16), ValueError, r"codes\[0, 0\] is"),
    "a write over 15": (lambda p: p.fill_(16), ValueError, r"codes\[0, 0\] is 16"),
    "a foreach write over 15": (lambda p: torch._foreach_add_([p.detach(), p], 16), ValueError, r"codes\[0, 0\] is"),
    "a write of another dtype": (lambda p: p.add_(0.5), RuntimeError, "can't be cast"),
    "a write of another shape": (lambda p: p.copy_(p.unpack()[:3]), RuntimeError, "size"),
    "resize_": (lambda p: p.resize_(8, 64), RuntimeError, "size, strides or storage"),
    "t_": (lambda p: p.t_(), RuntimeError, "size, strides or storage"),
    "unsqueeze_": (lambda p: p.unsqueeze_(0), RuntimeError, "size, strides or storage"),
    "set_": (lambda p: p.set_(p.unpack()), RuntimeError, "size, strides or storage"),
}


def rebuilt(packed, **changes):
    arguments = {
        "data": packed.payload,
        "packing": packed.packing,
        "reorder": packed.reorder,
        "size": packed.size(),
        "stride": packed.stride(),
    }
    return AWQPackedTensor(**{**arguments, **changes})


@table(REFUSED)
def test_refused_and_nothing_changed(row, packed):
    call, error, words = row
    before, version = packed.payload.clone(), packed.payload._version
    with pytest.raises(error, match=words):
        call(packed)
    assert_same(packed.payload, before)
    assert (packed.shape, packed.payload._version) == (SHAPE, version)


# --- writes: every op of aten whose schema says that it writes ---


def writing_ops(is_one):
    """Overloads of aten whose schema writes and is one of a kind."""
    for schema in torch._C._jit_get_all_schemas():
        written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        name = schema.name.removeprefix("aten::")
        if written and schema.name.startswith("aten::") and is_one(name, written):
            packet = getattr(torch.ops.aten, name, None)
            overload = schema.overload_name or "default"
            if packet is not None and overload in packet.overloads():
                yield getattr(packet, overload)


def is_in_place(name, written):
    return name[0] != "_" and name[-1] == "_" and written[0].name == "self" and str(written[0].type) == "Tensor"


def is_out(name, written):
    return name[0] != "_" and [a.name for a in written] == ["out"] and str(written[0].type) == "Tensor"


def is_foreach(name, written):
    return name.startswith("_foreach_") and name.endswith("_")


def call_in_place(op, t, rest):
    name = op._schema.name.removeprefix("aten::")
    return getattr(t, name)(*rest) if hasattr(t, name) else op(t, *rest)


def call_out(op, t, rest):
    return op(copy.deepcopy(t), *rest, out=t)


def call_foreach(op, t, rest):
    other = torch.full(SHAPE, 2, dtype=torch.uint8, device=t.device)
    return op([t, other], *[[r, r] if isinstance(r, torch.Tensor) else r for r in rest])


def arguments_on(device):
    ones = torch.ones(SHAPE, dtype=torch.uint8, device=device)
    return [
        (),
        (1,),
        (ones,),
        (ones, 1),
        (0, 1),
        (ones, ones),
        (ones > 0, 1),
        (0, ones.long(), ones),
        (1, ones[0, :1].long(), 1),
    ]


KINDS = {
    "in place": (is_in_place, call_in_place, 100),
    "out=": (is_out, call_out, 100),
    "foreach": (is_foreach, call_foreach, 25),
}
# Random results cannot be compared, and size and storage are refused above.
NOT_CALLED = ("rand", "bernoulli", "normal", "uniform", "exponential", "geometric", "cauchy", "poisson", "multinomial")
NOT_CALLED += ("dropout", "rrelu", "empty", "resize", "set_")


@pytest.mark.filterwarnings("ignore")
@table(KINDS, "kind")
def test_no_write_is_lost(kind, layout, device):
    is_one, call, at_least = kind
    written, lost = 0, []
    for op in writing_ops(is_one):
        if any(word in op.name() for word in NOT_CALLED):
            continue
        for rest in arguments_on(device):
            codes = torch.full(SHAPE, 2, dtype=torch.uint8, device=device)
            packed = AWQPackedTensor.pack(codes, layout.packing, layout.reorder)
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


def other_codes(t):
    return torch_codes(SHAPE, t.device, seed=5)


COLLECTIVES = {
    "broadcast": lambda t: dist.broadcast(t, 0),
    "broadcast, async": lambda t: dist.broadcast(t, 0, async_op=True).wait(),
    "all_reduce": lambda t: dist.all_reduce(t),
    "reduce": lambda t: dist.reduce(t, 0),
    "all_gather": lambda t: dist.all_gather([t], other_codes(t)),
    "all_gather, async": lambda t: dist.all_gather([t], other_codes(t), async_op=True).wait(),
    "all_gather_into_tensor": lambda t: dist.all_gather_into_tensor(t, other_codes(t)),
    "scatter": lambda t: dist.scatter(t, [other_codes(t)], 0),
}


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


def local(dtensor):
    return dtensor._local_tensor


STAYS_PACKED_IN_DTENSOR = {
    "distribute_tensor": lambda d: d,
    "detach": lambda d: d.detach(),
    "copy": lambda d: d.to(d.device, copy=True),
    "deepcopy": lambda d: copy.deepcopy(d),
    "nn.Parameter": lambda d: torch.nn.Parameter(d, requires_grad=False),
}


@table(STAYS_PACKED_IN_DTENSOR)
def test_dtensor_keeps_it_packed(row, dtensor, packed):
    result = row(dtensor)
    assert type(result) is type(dtensor)
    assert_packed_like(local(result), packed)


@pytest.mark.usefixtures("fresh_dynamo")
def test_dtensor_gives_the_codes(dtensor, packed):
    # DTensor takes and gives its local tensor as a view, and a view of a packed tensor is a copy of its codes.
    codes = packed.unpack()
    taken = type(dtensor).from_local(packed, dtensor.device_mesh, dtensor.placements)
    for result in (dtensor.to_local(), dtensor.full_tensor(), local(dtensor + 0), local(taken)):
        assert is_plain(result, codes)
    compiled = torch.compile(lambda d: d + 1, fullgraph=True, backend="aot_eager")
    assert is_plain(local(compiled(dtensor)), codes + 1)


def test_dtensor_writes_and_shards(dtensor, packed):
    from torch.distributed.tensor import Shard

    assert_same(dtensor.redistribute(placements=[Shard(0)]).full_tensor(), packed.unpack())
    payload = local(dtensor).payload
    dtensor.fill_(7)
    assert local(dtensor).payload is payload
    assert_same(dtensor.full_tensor(), torch.full(SHAPE, 7, dtype=torch.uint8, device=packed.device))


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_wrapper_around_a_packed_tensor(packed):
    scaled = Scaled(packed, torch.full((64, 1), 0.5, device=packed.device))
    expected = packed.unpack() * 0.5
    for result in (
        scaled.detach(),
        scaled.to(scaled.device, copy=True),
        torch.compile(Scaled.detach, fullgraph=True)(scaled),
    ):
        assert_packed_like(result.codes, packed)
        assert_same(result + 1, expected + 1)
    names, metadata = scaled.__tensor_flatten__()
    inner = {name: getattr(scaled, name) for name in names}
    assert_same(Scaled.__tensor_unflatten__(inner, metadata, scaled.size(), scaled.stride()) * 2, expected * 2)
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(lambda t: t + 1, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(scaled), expected + 1)


# --- modules: a way of handling one -> a module with the same packed weights on the same device ---


def device_of(module):
    return module.scale.device


def fresh(module, device=None):
    how = module.weight.packing, module.weight.reorder
    return PackedLinear(
        next(layout for layout in LAYOUTS.values() if layout == how), device or device_of(module), seed=5
    )


def loaded(module, state, **how):
    result = module.load_state_dict(state, **how)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    return module


def on_meta(module):
    empty = fresh(module, "meta")
    assert isinstance(empty.weight, AWQPackedTensor)
    assert empty.weight.payload.is_meta
    return empty


def emptied(module):
    empty = emptied_at_registration(lambda: fresh(module))
    assert empty.weight.is_meta
    return empty


def offloaded_and_back(module):
    device = device_of(module)
    weight, zeros = module.weight.detach().offload("cpu"), module.zeros.offload("cpu")
    module.weight = torch.nn.Parameter(module.weight.detach().offload("meta"), requires_grad=False)
    module.zeros = module.zeros.offload("meta")
    module.weight = torch.nn.Parameter(weight.to(device), requires_grad=False)
    module.zeros = zeros.to(device)
    return module


def assigned_data(module):
    module.weight.data, module.zeros.data = (x.detach().to(x.device, copy=True) for x in (module.weight, module.zeros))
    return module


def assigned_codes(module):
    module.weight.data = module.weight.unpack()
    return module


MODULES = {
    "to": lambda m: m.to(device_of(m)),
    "half": lambda m: m.half(),
    "to a device and a dtype": lambda m: m.to(device_of(m), torch.float64),
    "data assigned": assigned_data,
    "codes assigned as data": assigned_codes,
    "offloaded and back": offloaded_and_back,
    "deepcopy": lambda m: copy.deepcopy(m),
    "load_state_dict": lambda m: loaded(fresh(m), m.state_dict()),
    "load_state_dict(strict=False)": lambda m: loaded(fresh(m), m.state_dict(), strict=False),
    "load_state_dict(assign=True)": lambda m: loaded(fresh(m), m.state_dict(), assign=True),
    "state_dict through a file": lambda m: loaded(fresh(m), saved(m.state_dict(), weights_only=True)),
    "the module through a file": lambda m: saved(m, weights_only=False),
    "built on meta, then assigned": lambda m: loaded(on_meta(m), m.state_dict(), assign=True),
    "init_empty_weights, then assigned": lambda m: loaded(emptied(m), m.state_dict(), assign=True),
}


def assert_packed_as(module, expected, device):
    for name in ("weight", "zeros"):
        assert_packed_like(getattr(module, name), getattr(expected, name), device)
    assert isinstance(module.weight, torch.nn.Parameter)
    assert not module.weight.requires_grad
    x = torch.ones(2, 128, device=device, dtype=module.scale.dtype)
    torch.testing.assert_close(module(x).float().cpu(), expected(x.float()).cpu(), rtol=0.02, atol=1)


@table(MODULES)
def test_modules(row, layout, device):
    module = PackedLinear(layout, device)
    expected = copy.deepcopy(module)
    assert_packed_as(row(module), expected, device)


def test_a_module_goes_to_the_cpu_and_back(layout, device):
    module = PackedLinear(layout, device)
    expected = copy.deepcopy(module)
    assert_same(module.cpu().weight.unpack(), expected.weight.unpack().cpu())
    assert isinstance(module.weight, AWQPackedTensor)
    module.zeros = expected.zeros.offload("cpu")  # a buffer has no data to assign: it becomes plain on its way down
    assert_packed_as(module.to(device), expected, device)


def test_parametrize(layout, device):
    module = PackedLinear(layout, device)
    expected = module.weight.unpack().float() * 2
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Dequantize(), unsafe=True)
    assert_same(module.weight, expected)
    assert isinstance(module.parametrizations.weight.original, AWQPackedTensor)
    torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    assert_packed_like(module.weight, PackedLinear(layout, device).weight)


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
        for layout in LAYOUTS.values():
            packed = packed_tensor(layout, SHAPE, device)
            total = packed.sum().item()
            packed_in.put(packed)
            assert report_out.get(timeout=120) == ("AWQPackedTensor", layout.packing.name, layout.reorder, total)
            assert bool((packed == 9).all())
        packed_in.put(None)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader_workers(workers, layout, device):
    loader = torch.utils.data.DataLoader(
        Codes(layout),
        batch_size=None,
        num_workers=workers,
        pin_memory=device == "cuda",
        multiprocessing_context="fork" if workers else None,
    )
    for index, (packed, kept) in enumerate(loader):
        assert_packed_like(packed.to(device, non_blocking=True), packed_tensor(layout, SHAPE, device, index))
        assert_packed_like(kept.to(device), packed_tensor(layout, SHAPE, device, 99))
    batches = torch.utils.data.DataLoader(Codes(layout), batch_size=2)
    assert is_plain(next(iter(batches))[0], torch.stack([torch_codes(seed=0), torch_codes(seed=1)]))


# --- torch.compile(fullgraph=True): reads give what they give in eager, writes leave the same codes ---

READS = {
    "+1": lambda p: p + 1,
    "unpack": lambda p: p.unpack(),
    "unpack and use": lambda p: (p.unpack().float() - 8).sum(dim=1),
    "matmul": lambda p: torch.ones(3, p.shape[1], device=p.device) @ p.unpack().float().t(),
    "cat": lambda p: torch.cat([p, p]),
    "index": lambda p: p[3:7, ::2],
    "where": lambda p: torch.where(p > 7, p, 0),
    "two": lambda p: (p + p, p.sum()),
    "detach": lambda p: p.detach(),
    "detach and unpack": lambda p: p.detach().unpack() + 1,
    "to": lambda p: p.to(p.device),
    "to, copied": lambda p: p.to(p.device, copy=True),
    "to dtype": lambda p: p.to(torch.uint8) + 1,
    "attributes": lambda p: p.unpack() + p.shape[0] + p.dim() + int(p.packing is AWQPacking.V2) + int(p.reorder),
    "payload": lambda p: p.payload + 1,
    "packed and plain": lambda p: (p.detach(), p + 1),
    "pack": lambda p: AWQPackedTensor.pack(p.unpack(), AWQPacking.V2),
}
COMPILED_WRITES = {
    "zero_": lambda p: p.zero_(),
    "fill_": lambda p: p.fill_(7),
    "copy_": lambda p: p.copy_(torch.full_like(p.unpack(), 9)),
    "masked_fill_": lambda p: p.masked_fill_(torch.arange(p.shape[1], device=p.device) % 2 == 0, 3),
    "bitwise_and_": lambda p: p.bitwise_and_(6),
    "two writes": lambda p: p.bitwise_and_(3).add_(4),
    "write and read": lambda p: (p.fill_(2), p + 1)[1],
}
# Compiling takes a tenth of a second: each layout once, static and dynamic shapes both, not every combination.
once = pytest.mark.parametrize(
    ("layout", "dynamic"), [(LAYOUTS["v1_reorder"], False), (LAYOUTS["v2"], True)], ids=["v1_reorder", "v2-dynamic"]
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
def test_compiled(backend, name, layout, dynamic, device):
    function = {**READS, **COMPILED_WRITES}[name]
    packed, expected = (packed_tensor(layout, SHAPE, device) for _ in range(2))
    payload = packed.payload
    result = compiled(function, backend=backend, dynamic=dynamic)(packed)
    assert_all_same(result, function(expected))
    assert_same(packed, expected)
    assert packed.payload is payload


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_module(layout, backend, device):
    module, other = PackedLinear(layout, device), PackedLinear(layout, device, seed=4)
    x = torch.ones(3, 128, device=device)
    torch.testing.assert_close(compiled(module, backend=backend)(x), module(x))
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}

    def call(tensors, x):
        return torch.func.functional_call(module, tensors, (x,))

    torch.testing.assert_close(call(tensors, x), other(x))
    torch.testing.assert_close(compiled(call, backend=backend)(tensors, x), other(x))


def test_export(layout, device):
    module, x = PackedLinear(layout, device), torch.ones(3, 128, device=device)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [False, True])
@table({name: {**READS, **COMPILED_WRITES}[name] for name in ("+1", "unpack", "detach", "zero_")})
def test_new_values_do_not_recompile(row, dynamic, device):
    counter = CompileCounterWithBackend("aot_eager")
    run = compiled(row, backend=counter, dynamic=dynamic)
    for seed in range(3):
        packed = packed_tensor(LAYOUTS["v2"], SHAPE, device, seed)
        expected = row(copy.deepcopy(packed))
        assert_same(run(packed), expected)
    assert counter.frame_count == 1


def test_fake_tensors(packed, layout, device):
    mode = FakeTensorMode()
    fake = mode.from_tensor(packed)
    assert isinstance(fake, AWQPackedTensor)
    assert (fake.shape, fake.stride(), fake.packing, fake.reorder) == (SHAPE, (128, 1), packed.packing, packed.reorder)
    with mode:
        assert (fake + 1).shape == fake.unpack().shape == SHAPE
        assert isinstance(fake.detach(), AWQPackedTensor)
        fake.zero_()
        made = AWQPackedTensor.pack(torch.empty(SHAPE, dtype=torch.uint8, device=device), *layout)
        assert made.payload.shape == layout.payload_shape(SHAPE)


def test_opcheck(packed, layout):
    how = (layout.number, layout.reorder)
    torch.library.opcheck(torch.ops.awqpack.pack.default, (packed.unpack(), *how))
    torch.library.opcheck(torch.ops.awqpack.unpack.default, (packed.payload, *how))


def test_stable_hash_for_caching(device):
    hashes = [
        packed_tensor(x, SHAPE, device, seed)._stable_hash_for_caching() for x in LAYOUTS.values() for seed in (0, 1)
    ]
    assert len(set(hashes)) == 3
    assert hashes[::2] == hashes[1::2]


# --- memory: an op's unpacked copy goes when the op ends, and so does a tensor that is dropped ---

USES = {
    "a read": lambda p: p + 1,
    "a nested read": lambda p: torch.cat([p, p]),
    "a write": lambda p: p.fill_(3),
    "a refused write": lambda p: pytest.raises(ValueError, p.fill_, 16),
    "a move": lambda p: p.to(p.device, copy=True),
    "a copy": lambda p: copy.deepcopy(p),
    "numpy": lambda p: p.numpy(),
}


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
    for _ in range(3):  # what earlier tests left, and what that kept alive
        gc.collect()
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

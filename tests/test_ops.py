"""torch.ops.awqpack: schemas, fake kernels, torch.compile, out=, threads."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch
from shared import COMPILED, PACKINGS, VARIANTS, Memory, assert_same, random_codes, random_payload, torch_codes
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack
from awqpack import AWQPacking

SHAPE = (8, 128)
SCHEMAS = {
    "pack": "awqpack::pack(Tensor codes, int packing, bool reorder, bool validate=True) -> Tensor",
    "unpack": "awqpack::unpack(Tensor payload, int packing, bool reorder, int[]? stride_order=None) -> Tensor",
    "pack_out": "awqpack::pack_out(Tensor codes, int packing, bool reorder, bool validate=True, "
    "*, Tensor(a!) out) -> ()",
    "unpack_out": "awqpack::unpack_out(Tensor payload, int packing, bool reorder, *, Tensor(a!) out) -> ()",
}


def torch_payload(packing, shape=SHAPE, device="cpu"):
    return torch.from_numpy(random_payload(shape, packing)).to(device)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name):
    assert str(getattr(torch.ops.awqpack, name).default._schema) == SCHEMAS[name]


def test_build_info():
    info = awqpack.build_info()
    assert info["version"] == awqpack.__version__
    assert info["torch"].split(".")[0] == "2"
    assert info["cpu_variants"] == VARIANTS
    assert info["cpu_active"] in VARIANTS
    assert "scalar" in VARIANTS
    assert isinstance(info["cuda_archs"], list)


# --- opcheck, fake kernels, compile ---

CODES_OF = {
    "plain": lambda shape: torch_codes(shape),
    "column-major": lambda shape: torch_codes(shape[::-1]).t(),
    "strided": lambda shape: torch_codes((shape[0], shape[1] + 9))[:, 4 : shape[1] + 4],
    "batch": lambda shape: torch_codes((2, *shape)),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("plain", "v1"), ("plain", "v2"), ("column-major", "v1_reorder"), ("strided", "v1"), ("batch", "v2")],
)
def test_opcheck(kind, name):
    packing = PACKINGS[name]
    ops, arguments = torch.ops.awqpack, (packing.number, packing.reorder)
    codes = CODES_OF[kind](SHAPE)
    payload = ops.pack(codes, *arguments)
    torch.library.opcheck(ops.pack.default, (codes, *arguments), {"validate": False})
    torch.library.opcheck(ops.unpack.default, (payload, *arguments))
    torch.library.opcheck(ops.unpack.default, (payload, *arguments, tuple(reversed(range(codes.dim())))))
    torch.library.opcheck(ops.pack_out.default, (codes, *arguments), {"out": torch.empty_like(payload)})
    torch.library.opcheck(ops.unpack_out.default, (payload, *arguments), {"out": torch.empty_like(codes)})


# shape, stride order of the unpacked codes, their strides
STRIDE_ORDERS = [
    (SHAPE, None, (128, 1)),
    (SHAPE, (0, 1), (128, 1)),
    (SHAPE, (1, 0), (1, 8)),
    ((3, 8, 64), (0, 2, 1), (512, 1, 8)),
    ((3, 8, 64), (2, 0, 1), (8, 1, 24)),
    ((2, 3, 4, 64), (3, 2, 1, 0), (1, 2, 6, 24)),
    ((0, 4, 64), (2, 1, 0), (1, 1, 4)),
]


@pytest.mark.parametrize(("shape", "order", "strides"), STRIDE_ORDERS)
def test_stride_order(shape, order, strides, packing, device):
    if packing.fit(shape) != shape:
        shape = packing.fit(shape)
        outer_first = order or range(len(shape))
        strides = torch.empty([shape[d] for d in outer_first]).permute(np.argsort(outer_first).tolist()).stride()
    payload = torch_payload(packing, shape, device)
    arguments = (packing.number, packing.reorder)
    expected = torch.ops.awqpack.unpack(payload, *arguments)
    assert expected.is_contiguous()
    codes = torch.ops.awqpack.unpack(payload, *arguments, order)
    assert codes.stride() == strides
    assert_same(codes, expected)
    portable = awqpack.ops.portable.unpack(payload, *arguments, order)
    assert portable.stride() == strides
    assert_same(portable, expected)
    meta = torch.ops.awqpack.unpack(payload.to("meta"), *arguments, order)
    assert (meta.shape, meta.stride(), meta.dtype) == (expected.shape, strides, torch.uint8)


@pytest.mark.parametrize("order", [(0,), (0, 0), (1, 2), (-1, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_stride_order_that_is_none(order, where):
    payload = torch.zeros(8, 8, dtype=torch.int32, device=where)
    with pytest.raises(ValueError, match="stride_order expects"):
        torch.ops.awqpack.unpack.default(payload, 1, False, order)


@pytest.mark.parametrize("shape", [(8, 128), (0, 64), (3, 2, 4, 64)])
@pytest.mark.parametrize("fake", ["meta", "fake"])
def test_fake_kernels_know_shapes(shape, fake, packing):
    ops, arguments, shape = torch.ops.awqpack, (packing.number, packing.reorder), packing.fit(shape)
    mode, device = (FakeTensorMode(), "cpu") if fake == "fake" else (torch.no_grad(), "meta")
    with mode:
        codes = torch.empty(shape, dtype=torch.uint8, device=device)
        payload = ops.pack(codes, *arguments)
        assert (payload.shape, payload.dtype) == (packing.payload_shape(shape), packing.payload_dtype)
        assert payload.is_contiguous()
        assert payload.device.type == device
        assert ops.unpack(payload, *arguments).shape == shape
        assert ops.pack_out(codes, *arguments, out=payload) is None
        with pytest.raises(ValueError, match="out expects shape"):
            ops.pack_out(codes, *arguments, out=payload.new_empty((1, 1)))
        with pytest.raises(ValueError, match="out expects dtype"):
            ops.unpack_out(payload, *arguments, out=codes.int())


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("packing", "dynamic"), COMPILED)
def test_compile_the_ops(packing, dynamic, device):
    def round_trip(codes, payload, out):
        packed = torch.ops.awqpack.pack(codes, packing.number, packing.reorder)
        torch.ops.awqpack.unpack_out(payload, packing.number, packing.reorder, out=out)
        return packed, torch.ops.awqpack.unpack(packed, packing.number, packing.reorder) + 1

    compiled = torch.compile(round_trip, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in map(packing.fit, (SHAPE, (12, 192))):
        codes, payload = torch_codes(shape, device), torch_payload(packing, shape, device)
        out = torch.zeros_like(codes)
        packed, unpacked = compiled(codes, payload, out)
        assert_same(packed, awqpack.pack(codes, *packing))
        assert_same(unpacked, codes + 1)
        assert_same(out, awqpack.unpack(payload, *packing))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("with_out", [False, True])
def test_compile_the_functions(with_out):
    def round_trip(codes, out):
        payload = awqpack.pack(codes, AWQPacking.V1, True)
        return awqpack.unpack(payload, AWQPacking.V1, True, out=out if with_out else None)

    codes, out = torch_codes(), torch.zeros_like(torch_codes())
    result = torch.compile(round_trip, fullgraph=True, backend="aot_eager")(codes, out)
    assert_same(result, codes)
    if with_out:
        assert_same(out, codes)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_pack_still_checks(packing):
    compiled = torch.compile(
        lambda t: torch.ops.awqpack.pack(t, packing.number, packing.reorder),
        fullgraph=True,
        backend="aot_eager",
    )
    codes = torch_codes(packing.fit(SHAPE))
    assert_same(compiled(codes), awqpack.pack(codes, *packing))
    codes[3, 4] = 99
    with pytest.raises(ValueError, match=r"codes\[3, 4\] is 99"):
        compiled(codes)


@pytest.mark.parametrize("symbolic", [False, True])
def test_make_fx_traces_the_ops(packing, symbolic):
    from torch.fx.experimental.proxy_tensor import make_fx

    def pack(codes):
        return torch.ops.awqpack.pack(codes, packing.number, packing.reorder)

    codes = torch_codes(packing.fit(SHAPE))
    graph = make_fx(pack, tracing_mode="symbolic" if symbolic else "real")(codes)
    assert "awqpack.pack.default" in graph.code
    assert_same(graph(codes), pack(codes))


# --- out= ---


@pytest.mark.parametrize("memory", [m for m in Memory if m.is_for_torch and m is not Memory.UNALIGNED])
@pytest.mark.parametrize("shape", [(12, 192), (2, 3, 8, 64)])
def test_out_of_any_strides(memory, shape, packing):
    shape = packing.fit(shape)
    codes = torch_codes(shape)
    payload = awqpack.pack(codes, *packing)
    _, out = memory.empty(tuple(payload.shape), payload.numpy().dtype)
    out = torch.from_numpy(out)
    assert awqpack.pack(codes, *packing, out=out) is out
    assert_same(out, payload)
    _, back = memory.empty(shape, np.uint8)
    back = torch.from_numpy(back)
    assert awqpack.unpack(out, *packing, out=back) is back
    assert_same(back, codes)


def test_out_moves_the_version(packing):
    codes = torch_codes(packing.fit(SHAPE))
    out = torch.zeros(packing.payload_shape(codes.shape), dtype=packing.payload_dtype)
    version = out._version
    awqpack.pack(codes, *packing, out=out)
    assert out._version > version
    version = codes._version
    awqpack.unpack(out, *packing, out=codes)
    assert codes._version > version


def torch_allocations(call):
    """Sizes of what torch allocates on the CPU while call() runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_out_allocates_nothing(packing, order):
    codes = torch.from_numpy(np.asarray(random_codes((256, 512)), order=order))
    payload = awqpack.pack(codes, *packing)
    back = torch.empty_like(codes)
    assert torch_allocations(lambda: awqpack.pack(codes, *packing)) == [256 * 512 // 2]
    assert torch_allocations(lambda: awqpack.pack(codes, *packing, out=payload)) == []
    assert torch_allocations(lambda: awqpack.unpack(payload, *packing, out=back)) == []


def test_array_out_allocates_nothing(packing):
    codes = random_codes((256, 512))
    payload, back = awqpack.pack(codes, *packing), np.empty_like(codes)

    def peak(call):
        tracemalloc.start()
        call()
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(lambda: awqpack.pack(codes, *packing)) >= 256 * 512 // 2
    assert peak(lambda: awqpack.pack(codes, *packing, out=payload)) < 4096
    assert peak(lambda: awqpack.unpack(payload, *packing, out=back)) < 4096


# --- threads ---


@pytest.fixture
def restore_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("memory", [Memory.CONTIGUOUS, Memory.COLUMN_MAJOR, Memory.COLUMN_STEP])
@pytest.mark.usefixtures("restore_threads")
def test_thread_counts_give_the_same_result(packing, memory):
    codes = torch.from_numpy(memory.copy(random_codes(packing.fit((2, 516, 832)))))
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        payload = awqpack.pack(codes, *packing)
        results.append(payload)
        assert_same(awqpack.unpack(payload, *packing), codes.contiguous())
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.usefixtures("restore_threads")
def test_many_threads_at_once(packing):
    codes = [random_codes((64, 512), seed) for seed in range(8)]
    expected = [awqpack.pack(c, *packing) for c in codes]
    wrong = []

    def work(index):
        for _ in range(20):
            payload = awqpack.pack(torch.from_numpy(codes[index]), *packing).numpy()
            if not np.array_equal(payload, expected[index]) or not np.array_equal(
                awqpack.unpack(payload, *packing), codes[index]
            ):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(codes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_the_gil_is_released(kind):
    # A slow walk (steps both ways), so that each call lasts long enough to see another thread run meanwhile.
    codes = np.zeros((4096, 12288), np.uint8)[::2, ::3]
    codes = codes if kind == "array" else torch.from_numpy(codes)
    out = awqpack.pack(codes)
    calls, ticks = [], []

    def work():
        for _ in range(5):
            begin = time.perf_counter()
            awqpack.pack(codes, out=out)
            calls.append((begin, time.perf_counter()))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
    assert sum(begin < tick < end for tick in ticks for begin, end in calls) > 100


# --- more than 2^31 codes ---

MANY = 2**31 + 4096


def check_spots(payload, codes, packing, spots):
    """Words around each (row, column) hold what packing their neighbourhood alone gives."""
    for row, col in spots:
        row, col = row - row % 4, col - col % 64
        height, width = min(4, codes.shape[0] - row), min(64, codes.shape[1] - col)
        expected = awqpack.pack(codes[row : row + height, col : col + width].contiguous(), *packing)
        rows, cols = expected.shape
        if packing.packing is AWQPacking.V1:
            actual = payload[row : row + rows, col // 8 : col // 8 + cols]
        else:
            actual = payload[row // 4 : row // 4 + rows, col : col + cols]
        assert_same(actual.contiguous(), expected)


@pytest.mark.large
@pytest.mark.parametrize(("name", "shape"), [("v1", (1, MANY)), ("v1_reorder", (MANY // 8, 8)), ("v2", (4, MANY // 4))])
def test_more_than_2_31_codes(name, shape):
    packing = PACKINGS[name]
    codes = torch.zeros(shape, dtype=torch.uint8)
    spots = [(0, 0), (shape[0] // 2, shape[1] // 2), (shape[0] - 1, shape[1] - 1)]
    for row, col in spots:
        codes[row, max(0, col - 20) : col + 20] = 11
        codes[row, col] = 5
    payload = awqpack.pack(codes, *packing)
    check_spots(payload, codes, packing, spots)
    total = np.count_nonzero(codes.numpy())
    awqpack.unpack(payload, *packing, out=codes)
    assert np.count_nonzero(codes.numpy()) == total
    check_spots(payload, codes, packing, spots)
    codes[-1, -1] = 200
    with pytest.raises(ValueError, match=rf"codes\[{shape[0] - 1}, {shape[1] - 1}\] is 200"):
        awqpack.pack(codes, *packing, out=payload)


@pytest.mark.large
@pytest.mark.parametrize(
    ("name", "shape"), [("v1", (2**28 + 64, 8)), ("v1_reorder", (2**28 + 64, 8)), ("v2", (2**25 + 64, 64))]
)
def test_more_than_2_28_rows_that_share_memory(name, shape):
    packing = PACKINGS[name]
    row = torch_codes((1, shape[1]))
    payload = awqpack.pack(row.expand(shape), *packing)
    one = awqpack.pack(row.expand(4, shape[1]), *packing)
    assert_same(payload[-one.shape[0] :], one)
    assert bool((payload == one[:1]).all())


@pytest.mark.large
def test_column_major_codes_beyond_2_31():
    packing = PACKINGS["v1"]
    codes = torch.zeros(64, MANY // 64, dtype=torch.uint8).t()
    spots = [(0, 0), (codes.shape[0] // 2, 32), (codes.shape[0] - 1, 63)]
    for row, col in spots:
        codes[row, col] = 13
    payload = awqpack.pack(codes, *packing)
    check_spots(payload, codes, packing, spots)
    assert awqpack.unpack(payload, *packing, out=codes) is codes
    assert [int(codes[spot]) for spot in spots] == [13, 13, 13]
    assert np.count_nonzero(codes.numpy()) == 3

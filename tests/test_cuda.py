"""What only a GPU shows: which kernel ran, streams, graphs, devices, checks on the device, moves between memories."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from shared import HAS_CUDA, PACKINGS, assert_same, pack_array, packed_tensor, torch_codes

import awqpack
from awqpack import _C, AWQPackedTensor, AWQPacking

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not HAS_CUDA, reason="needs an NVIDIA GPU and a build with CUDA kernels"),
]

SHAPE = (256, 512)


def expected_payload(codes, packing):
    return torch.from_numpy(pack_array(codes.cpu().numpy(), packing))


def kernels_of(call):
    """Names of the kernels that call() launches."""
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


@pytest.fixture
def _portable():
    """CUDA tensors go to the portable kernels for the length of a test."""
    _C.unregister_cuda()
    yield
    assert _C.register_cuda()


def test_our_kernels_run(packing):
    codes = torch_codes(SHAPE, "cuda")
    payload = awqpack.pack(codes, *packing)
    for call in (
        lambda: awqpack.pack(codes, *packing),  # a check adds no memset and no copy
        lambda: awqpack.pack(codes, *packing, validate=False),
        lambda: awqpack.unpack(payload, *packing),
    ):
        names = kernels_of(call)
        assert len(names) == 1, names
        assert "awq_cuda" in names[0]
        assert "generic" not in names[0]


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("name", ["v1", "v1_reorder"])
def test_a_payload_viewed_transposed_has_kernels_of_its_own(name, order):
    packing = PACKINGS[name]
    codes = torch_codes(SHAPE, "cuda")
    given = codes if order == "row" else codes.t().contiguous().t()
    expected = awqpack.pack(codes, *packing)
    payload = torch.zeros_like(expected.t().contiguous()).t()
    unpacked = torch.zeros_like(given)
    (pack_name,) = kernels_of(lambda: awqpack.pack(given, *packing, out=payload))
    (unpack_name,) = kernels_of(lambda: awqpack.unpack(payload, *packing, out=unpacked))
    assert "turned" in pack_name
    assert "turned" in unpack_name
    assert_same(payload.contiguous(), expected)
    assert_same(unpacked.contiguous(), codes)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("target", PACKINGS)
def test_relayout_is_one_kernel(packing, target, transpose):
    to = PACKINGS[target]
    codes = torch_codes(SHAPE, "cuda")
    payload = awqpack.pack(codes, *packing)
    pairs = (packing.packing, packing.reorder), (to.packing, to.reorder)
    (name,) = kernels_of(lambda: awqpack.relayout(payload, *pairs, transpose=transpose))
    assert "awq_cuda" in name
    is_marlin = to.packing is AWQPacking.MARLIN
    has_kernels = is_marlin != (packing.packing is AWQPacking.MARLIN) and AWQPacking.V1 in (packing.packing, to.packing)
    assert ("marlin" in name) == has_kernels
    expected = awqpack.pack(codes.t() if transpose else codes, to.packing, to.reorder)
    assert_same(awqpack.relayout(payload, *pairs, transpose=transpose), expected)


def test_gptq_to_marlin_has_a_kernel_of_its_own():
    codes = torch_codes(SHAPE, "cuda")
    qweight = awqpack.pack(codes).t().contiguous()
    (name,) = kernels_of(lambda: awqpack.relayout(qweight.t(), AWQPacking.V1, AWQPacking.MARLIN))
    assert "marlin" in name
    expected = awqpack.pack(codes, AWQPacking.MARLIN)
    assert_same(awqpack.relayout(qweight.t(), AWQPacking.V1, AWQPacking.MARLIN), expected)


@pytest.mark.usefixtures("_portable")
def test_portable_kernels_agree(packing):
    codes = torch_codes(SHAPE, "cuda")
    payload = awqpack.pack(codes, *packing)
    assert_same(payload.cpu(), expected_payload(codes, packing))
    assert_same(awqpack.unpack(payload, *packing), codes)
    assert not any("awq_cuda" in name for name in kernels_of(lambda: awqpack.pack(codes, packing.packing)))


@pytest.mark.parametrize("index", range(2))
def test_the_device_of_the_tensor_is_used(packing, index):
    if index >= torch.cuda.device_count():
        pytest.skip(f"needs {index + 1} GPUs; this machine has {torch.cuda.device_count()}")
    before = torch.cuda.current_device()
    codes = torch_codes(SHAPE, f"cuda:{index}")
    payload = awqpack.pack(codes, *packing)
    assert payload.device == codes.device
    assert_same(payload.cpu(), expected_payload(codes, packing))
    assert_same(awqpack.unpack(payload, *packing), codes)
    assert torch.cuda.current_device() == before
    assert torch.ones(1, device="cuda").device.index == before


def test_the_current_stream_is_used(packing):
    # The side stream is busy when the codes are made there: another stream would pack what is not there yet.
    codes = torch_codes(SHAPE, "cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        made = torch.zeros_like(codes)
        torch.cuda._sleep(50_000_000)
        made.copy_(codes)
        payload = awqpack.pack(made, *packing, validate=False)
    stream.synchronize()
    assert_same(payload.cpu(), expected_payload(codes, packing))


def test_record_stream_reaches_the_payload():
    packed = packed_tensor(PACKINGS["v1"], device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    expected = packed.unpack().cpu()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = packed.unpack()
        packed.record_stream(stream)
    pointer = packed.payload.data_ptr()
    del packed
    reused = torch.full((64, 16), -1, dtype=torch.int32, device="cuda")
    assert reused.data_ptr() != pointer, "the allocator gave memory away that the side stream still reads"
    stream.synchronize()
    assert_same(late.cpu(), expected)


def copy_of(packed):
    return packed.to(packed.device, copy=True)


@pytest.mark.parametrize("index", range(2))
def test_a_copy_stays_on_its_device(packing, index):
    if index >= torch.cuda.device_count():
        pytest.skip(f"needs {index + 1} GPUs; this machine has {torch.cuda.device_count()}")
    before = torch.cuda.current_device()
    packed = packed_tensor(packing, SHAPE, f"cuda:{index}")
    copied = copy_of(packed)
    assert copied.device == copied.payload.device == packed.device
    assert copied.payload.data_ptr() != packed.payload.data_ptr()
    assert_same(copied, packed)
    assert torch.cuda.current_device() == before


def test_a_copy_is_made_on_the_current_stream(packing):
    packed = packed_tensor(packing, SHAPE, "cuda")
    expected = packed.unpack()
    late = packed.to("cuda", copy=True)
    late.fill_(0)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.payload.copy_(packed.payload)
        copied = copy_of(late)  # another stream would copy the zeros
    stream.synchronize()
    assert_same(copied.unpack(), expected)


def test_a_captured_copy_is_made_again(packing):
    packed = packed_tensor(packing, SHAPE, "cuda")
    other = packed_tensor(packing, SHAPE, "cuda", seed=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copied = copy_of(packed)
    packed.payload.copy_(other.payload)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(copied, other)


@pytest.mark.usefixtures("_portable")
def test_a_copy_without_our_kernels(packing):
    packed = packed_tensor(packing, SHAPE, "cuda")
    assert_same(copy_of(packed), packed)


def test_a_copy_waits_for_nothing():
    packed = packed_tensor(PACKINGS["v1"], SHAPE, "cuda")
    copy_of(packed)  # memory for the next one
    torch.cuda.synchronize()
    torch.cuda._sleep(50_000_000)
    copied = copy_of(packed)
    assert not torch.cuda.current_stream().query()
    assert_same(copied, packed)


@pytest.mark.parametrize(("shape", "kernel"), [(SHAPE, "copy_small"), ((2048, 2048), "Memcpy DtoD")], ids=str)
def test_a_copy_is_one_copy(shape, kernel):
    packed = packed_tensor(PACKINGS["v1"], shape, "cuda")
    (name,) = kernels_of(lambda: copy_of(packed))
    assert kernel in name


def test_graph_capture(packing):
    codes = torch_codes(SHAPE, "cuda")
    out = torch.zeros_like(awqpack.pack(codes, *packing))
    unpacked = torch.zeros_like(codes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # validate=True must not synchronise here
        awqpack.pack(codes, *packing, out=out)
        awqpack.unpack(out, *packing, out=unpacked)
    codes.copy_(15 - codes)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(out.cpu(), expected_payload(codes, packing))
    assert_same(unpacked, codes)


def test_capture_masks_what_it_cannot_check(packing):
    codes = torch_codes(SHAPE, "cuda")
    out = torch.zeros_like(awqpack.pack(codes, *packing))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        awqpack.pack(codes, *packing, out=out)
    expected = expected_payload(codes, packing)
    codes |= 0xF0
    graph.replay()
    torch.cuda.synchronize()
    assert_same(out.cpu(), expected)


@pytest.mark.parametrize("order", ["row", "column", "strided"])
def test_the_first_invalid_code_is_named(packing, order):
    codes = torch_codes(SHAPE, "cuda")
    codes[200, 5], codes[17, 300], codes[17, 301] = 255, 16, 200
    given = {
        "row": codes,
        "column": codes.t().contiguous().t(),
        "strided": torch.stack([codes, codes], -1)[..., 0],
    }[order]
    with pytest.raises(ValueError, match=r"codes\[17, 300\] is 16"):
        awqpack.pack(given, *packing)
    masked = awqpack.pack(given, *packing, validate=False)
    assert_same(masked.cpu(), expected_payload(codes & 15, packing))


def pack_with_a_fault(packing, at):
    """What the error says of the one invalid code, packed on a stream of this thread."""
    codes = torch_codes(SHAPE, "cuda")
    codes[at] = 16
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), pytest.raises(ValueError, match=r"codes\[") as caught:
        awqpack.pack(codes, *packing)
    return str(caught.value)


def test_threads_are_told_of_their_own_faults(packing):
    places = [(7 * i % SHAPE[0], 11 * i % SHAPE[1]) for i in range(200)]
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda at: pack_with_a_fault(packing, at), places))
    assert [f"codes[{row}, {col}] is 16" for row, col in places] == [text.split("; ")[1] for text in texts]


def test_a_check_waits_for_what_comes_before_it(packing):
    codes = torch_codes(SHAPE, "cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        codes[3, 5] = 77  # long after the host began to wait
        with pytest.raises(ValueError, match=r"codes\[3, 5\] is 77"):
            awqpack.pack(codes, *packing)


FORKED = """
import os
import torch, awqpack
codes = torch.ones(64, 128, dtype=torch.uint8, device="cuda")
payload = awqpack.pack(codes)
child = os.fork()
if child == 0:
    try:
        awqpack.pack(codes, out=payload)
    except RuntimeError as error:
        os._exit(0 if "CUDA error in awqpack" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
awqpack.pack(codes)
"""


def test_a_forked_process_is_refused():
    # A child cannot use its parent's GPU: it gets CUDA's error, and neither a crash nor a wait without end.
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


def test_a_copy_out_of_memory_raises_as_torch_does(packing):
    packed = packed_tensor(packing, (8192, 8192), "cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            copy_of(packed)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(copy_of(packed), packed)


def test_out_of_memory_changes_nothing():
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    cols = 1 << 16
    payload = torch.zeros(1, cols // 8, dtype=torch.int32, device="cuda")
    huge = torch.as_strided(payload, (2 * free // cols, cols // 8), (0, 1))  # its codes take twice what is free
    before = torch.cuda.memory_allocated()
    with pytest.raises(MemoryError, match="could not allocate"):
        awqpack.unpack(huge)
    assert torch.cuda.memory_allocated() == before
    codes = torch_codes(SHAPE, "cuda")
    assert_same(awqpack.unpack(awqpack.pack(codes)), codes)


def test_more_than_two_to_the_31_codes():
    rows, cols = (1 << 18) + 8, 1 << 13
    codes = torch.zeros(rows, cols, dtype=torch.uint8, device="cuda")
    codes[-1, -8:] = torch.arange(8, dtype=torch.uint8, device="cuda")
    payload = awqpack.pack(codes)
    assert int(payload[-1, -1]) == 0x76543210
    assert int(payload.ne(0).sum()) == 1
    assert torch.equal(awqpack.unpack(payload), codes)


def test_pin_memory_stays_packed():
    pinned = packed_tensor(PACKINGS["v1"]).pin_memory()
    assert type(pinned) is AWQPackedTensor
    assert pinned.payload.is_pinned()

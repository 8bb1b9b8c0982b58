"""Every CPU variant gives scalar's result on the same inputs, whatever the shapes, strides and offsets."""

import functools
import threading

import forked
import hypothesis
import numpy as np
import pytest
import torch
import twin
from hypothesis import strategies
from shared import (
    PACKINGS,
    VARIANTS,
    Memory,
    assert_guards_untouched,
    assert_same,
    pack_array,
    random_codes,
    random_payload,
    unpack_array,
)

import awqpack
from awqpack import AWQPacking

# Around every edge of the kernels: one word, one block, one tile of 64 x 64, long runs, and tails of each.
V1_SHAPES = [
    (1, 8),
    (1, 56),
    (3, 64),
    (7, 72),
    (64, 64),
    (65, 136),
    (70, 200),
    (1, 4104),
    (130, 520),
    (33, 32776),
]
MARLIN_SHAPES = [(64, 16), (64, 272), (128, 48), (192, 144), (320, 80), (64, 8208)]
V2_SHAPES = [(4, 64), (8, 128), (12, 192), (64, 64), (68, 320), (132, 576), (4, 33024), (260, 128)]
BATCHES = [(5, 3, 64), (2, 3, 4, 64), (1, 1, 8, 64), (3, 1, 2, 4, 128), (2, 2, 2, 4, 64)]


@functools.cache
def samples(shape, packing):
    """(codes, their payload, another payload, its codes), the results by scalar; none of them to be written."""
    codes, payload = random_codes(shape), random_payload(shape, packing)
    packed = pack_array(codes, packing, variant="scalar")
    return codes, packed, payload, unpack_array(payload, packing, variant="scalar")


def shapes_of(packing):
    batches = [s for s in BATCHES if packing.fit(s) == s] or [packing.fit(s) for s in BATCHES[1:]]
    return {AWQPacking.V1: V1_SHAPES, AWQPacking.V2: V2_SHAPES, AWQPacking.MARLIN: MARLIN_SHAPES}[
        packing.packing
    ] + batches


@pytest.fixture(params=list(Memory), ids=lambda memory: memory.value)
def memory(request):
    return request.param


def test_scalar_is_the_twin(packing):
    for shape in shapes_of(packing):
        if np.prod(shape) <= 20000:
            codes, payload = random_codes(shape), random_payload(shape, packing)
            assert_same(pack_array(codes, packing, variant="scalar"), twin.pack(codes, *packing))
            assert_same(unpack_array(payload, packing, variant="scalar"), twin.unpack(payload, *packing))


def test_the_memory_kinds_are_what_they_say():
    array = random_codes((2, 3, 8, 64))
    strides = {memory: memory.copy(array).strides for memory in Memory}
    assert strides[Memory.CONTIGUOUS] == strides[Memory.UNALIGNED] == (1536, 512, 64, 1)
    assert strides[Memory.COLUMN_MAJOR][-2:] == (1, 8)
    assert strides[Memory.COLUMN_MAJOR_STRIDED][-2:] == (1, 11)
    assert strides[Memory.COLUMN_STEP][-1] == 3
    assert strides[Memory.NEGATIVE_ROWS][-2:] == (-64, 1)
    assert strides[Memory.NEGATIVE_COLUMNS][-1] == -1
    assert strides[Memory.BATCH_INNERMOST] == (3, 1, 384, 6)
    assert strides[Memory.UNMERGEABLE_BATCH] == (2048, 512, 64, 1)
    for memory in Memory:
        assert_same(memory.copy(array), array)


def test_input_of_any_memory(packing, variant, memory):
    for shape in shapes_of(packing):
        codes, packed, payload, unpacked = samples(shape, packing)
        assert_same(pack_array(memory.copy(codes), packing, variant=variant), packed)
        assert_same(unpack_array(memory.copy(payload), packing, variant=variant), unpacked)


def test_output_of_any_memory(packing, variant, memory):
    for shape in shapes_of(packing):
        codes, packed, payload, unpacked = samples(shape, packing)
        buffer, out = memory.empty(payload.shape, payload.dtype)
        assert pack_array(codes, packing, out=out, variant=variant) is out
        assert_same(out, packed)
        assert_guards_untouched(buffer, out)
        buffer, out = memory.empty(shape, np.uint8)
        assert unpack_array(payload, packing, out=out, variant=variant) is out
        assert_same(out, unpacked)
        assert_guards_untouched(buffer, out)


def test_inputs_are_not_written(packing, variant, memory):
    for shape in shapes_of(packing)[:6]:
        for make, run in ((random_codes(shape), pack_array), (random_payload(shape, packing), unpack_array)):
            view = memory.copy(make)
            view.flags.writeable = False
            run(view, packing, variant=variant)
            assert_same(view, make)


@pytest.mark.parametrize("offset", range(1, 17))
def test_every_alignment(offset, packing, variant):
    shape = packing.fit((8, 192))
    codes, payload = random_codes(shape), random_payload(shape, packing)

    def shifted(array):
        memory = np.zeros(array.nbytes + offset, np.uint8)
        view = memory[offset:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view

    assert_same(pack_array(shifted(codes), packing, out=shifted(payload), variant=variant), pack_array(codes, packing))
    assert_same(
        unpack_array(shifted(payload), packing, out=shifted(codes), variant=variant),
        unpack_array(payload, packing),
    )


@functools.cache
def streamed(packing, order):
    """Codes whose payload is just over 8 MiB, and that payload by scalar."""
    codes = np.asarray(random_codes((4096, 4160)), order=order)
    return codes, pack_array(codes, packing, variant="scalar")


# From 8 MiB on the kernels write past the cache: other code, same bits, at any alignment.
@pytest.mark.parametrize(("order", "offset"), [("C", 0), ("C", 20), ("F", 20)])
def test_outputs_large_enough_to_stream(packing, variant, order, offset):
    codes, expected = streamed(packing, order)
    out = np.empty(expected.nbytes + offset, np.uint8)[offset:].view(expected.dtype).reshape(expected.shape)
    assert np.array_equal(pack_array(codes, packing, out=out, variant=variant), expected)
    back = np.empty(codes.size + offset, np.uint8)[offset:].reshape(codes.shape, order=order)
    assert np.array_equal(unpack_array(expected, packing, out=back, variant=variant), codes)


# As GPTQ's is V1's. The large one is streamed, both ways.
@pytest.mark.parametrize("shape", [(64, 128), (128, 192), (77, 328), (3, 64, 128), (2048, 2112)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_payload_viewed_transposed(packing, variant, shape, order):
    codes, packed, _, _ = samples(packing.fit(shape), packing)
    source = codes if order == "C" else Memory.COLUMN_MAJOR.copy(codes)
    payload_buffer, payload = Memory.COLUMN_MAJOR.empty(packed.shape, packed.dtype)
    assert_same(pack_array(source, packing, out=payload, variant=variant), packed)
    buffer, back = (Memory.CONTIGUOUS if order == "C" else Memory.COLUMN_MAJOR).empty(codes.shape, np.uint8)
    assert_same(unpack_array(payload, packing, out=back, variant=variant), codes)
    assert_guards_untouched(payload_buffer, payload)
    assert_guards_untouched(buffer, back)


def test_rows_longer_than_scratch_holds(packing, variant):
    """Marlin's rows are read whole, as far as a panel's scratch goes."""
    codes = random_codes((64, 65600))
    expected = pack_array(codes, packing, variant="scalar")
    assert np.array_equal(pack_array(codes, packing, variant=variant), expected)


def test_expanded_input(packing, variant):
    row, column = random_codes((1, 64)), random_codes((64, 1))
    for codes in (
        np.broadcast_to(row, packing.fit((72, 64))),
        np.broadcast_to(column, (64, 128)),
        np.broadcast_to(row[:, :1], packing.fit((68, 64))),
    ):
        expected = pack_array(np.ascontiguousarray(codes), packing, variant="scalar")
        assert_same(pack_array(codes, packing, variant=variant), expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_without_the_check_only_the_low_nibble_is_packed(packing, variant, order):
    for shape in shapes_of(packing):
        codes = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        expected = pack_array(codes & 15, packing, variant="scalar")
        unchecked = pack_array(np.asarray(codes, order=order), packing, validate=False, variant=variant)
        assert_same(unchecked, expected)


def test_without_the_check_a_large_code_changes_its_own_nibble_alone(packing, variant):
    for column in range(64):
        codes = np.full(packing.fit((4, 64)), 5, np.uint8)
        codes[2, column] = 0xF9
        back = unpack_array(pack_array(codes, packing, validate=False, variant=variant), packing, variant=variant)
        codes[2, column] = 9
        assert_same(back, codes)


# --- any shape, any strides ---


@strategies.composite
def views(draw, shape, dtype):
    """A writable view of `shape` with permuted dimensions, gaps, steps and negative strides, and its guarded buffer."""
    order = draw(strategies.permutations(range(len(shape))))
    steps = [draw(strategies.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in shape]
    pads = [draw(strategies.sampled_from([0, 0, 0, 1, 5])) for _ in shape]
    offset = draw(strategies.integers(0, 40))
    sizes = [shape[d] * abs(steps[d]) + pads[d] for d in order]
    count = int(np.prod(sizes)) * np.dtype(dtype).itemsize
    buffer = np.full(count + 64 + offset, 0xA5, np.uint8)
    base = buffer[offset : offset + count].view(dtype).reshape(sizes)
    view = base.transpose(np.argsort(order))
    return buffer, view[tuple(slice(None, shape[d] * abs(steps[d]), abs(steps[d])) for d in range(len(shape)))][
        tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)
    ]


@strategies.composite
def cases(draw):
    packing = PACKINGS[draw(strategies.sampled_from(sorted(PACKINGS)))]
    rows = draw(strategies.integers(0, max(70 // packing.block[0], 3))) * packing.block[0]
    cols = draw(strategies.integers(0, 320 // packing.block[1])) * packing.block[1]
    batch = draw(strategies.lists(strategies.integers(1, 3), max_size=3))
    shape = (*batch, rows, cols)
    payload_dtype = np.int16 if packing.packing is AWQPacking.V2 else np.int32
    return (
        packing,
        shape,
        draw(views(shape, np.uint8)),
        draw(views(packing.payload_shape(shape), payload_dtype)),
        draw(strategies.sampled_from(VARIANTS)),
        draw(strategies.integers(0, 2**32 - 1)),
    )


@hypothesis.given(cases())
def test_any_shape_and_strides(case):
    packing, shape, (codes_buffer, codes), (payload_buffer, payload), variant, seed = case
    codes[...] = random_codes(shape, seed)
    expected = pack_array(np.ascontiguousarray(codes), packing, variant="scalar")
    assert pack_array(codes, packing, out=payload, variant=variant) is payload
    assert_same(payload, expected)
    codes[...] = 0
    assert unpack_array(payload, packing, out=codes, variant=variant) is codes
    assert_same(codes, random_codes(shape, seed))
    assert_guards_untouched(codes_buffer, codes)
    assert_guards_untouched(payload_buffer, payload)


@pytest.mark.parametrize("cols", [64, 192, 320])
@pytest.mark.parametrize("is_turned", [False, True])
def test_codes_that_overlap_each_other(is_turned, cols, packing, variant):
    """Rows and columns both one byte apart, as those of a sliding window: both strides look like the contiguous one."""
    shape = packing.fit((64, cols))
    line = random_codes((1, sum(shape) - 1))[0]
    codes = np.lib.stride_tricks.sliding_window_view(line, shape[1])
    assert codes.strides == (1, 1)
    rows, items = packing.payload_shape(shape)
    dtype = packing.payload_dtype
    buffer = np.full((rows * items + 4096,), 7, str(dtype).removeprefix("torch."))
    payload = (
        buffer[: rows * items].reshape((items, rows)).T if is_turned else buffer[: rows * items].reshape(rows, items)
    )
    pack_array(codes, packing, out=payload, variant=variant)
    assert_same(np.ascontiguousarray(payload), pack_array(np.ascontiguousarray(codes), packing, variant="scalar"))
    assert (buffer[rows * items :] == 7).all()


@hypothesis.given(
    strategies.sampled_from(sorted(PACKINGS)),
    strategies.integers(1, 20),
    strategies.integers(1, 3),
    strategies.data(),
)
def test_an_invalid_code_is_found_in_any_view(name, quads, blocks, data):
    packing = PACKINGS[name]
    shape = packing.fit((4 * quads, 64 * blocks))
    _, codes = data.draw(views(shape, np.uint8))
    codes[...] = random_codes(shape)
    index = tuple(data.draw(strategies.integers(0, size - 1)) for size in shape)
    codes[index] = data.draw(strategies.integers(16, 255))
    with pytest.raises(ValueError, match=rf"codes\[{index[0]}, {index[1]}\] is {codes[index]}$"):
        pack_array(codes, packing, variant=data.draw(strategies.sampled_from(VARIANTS)))


@hypothesis.given(cases())
def test_torch_agrees_with_numpy(case):
    packing, shape, (_, codes), _, _, seed = case
    codes[...] = random_codes(shape, seed)
    hypothesis.assume(min(codes.strides) >= 0)
    payload = awqpack.pack(torch.from_numpy(codes), *packing)
    assert_same(payload.numpy(), pack_array(codes, packing))
    assert_same(awqpack.unpack(payload, *packing).numpy(), np.ascontiguousarray(codes))
    packed = awqpack.AWQPackedTensor.pack(torch.from_numpy(codes), *packing)
    assert packed.stride() == packed.unpack().stride()
    assert_same(packed.unpack(), torch.from_numpy(codes))
    assert_same(packed.numpy(), np.ascontiguousarray(codes))


# --- the choice at import ---

IMPORTED = """
import torch, awqpack
codes = torch.arange(4096, dtype=torch.uint8).reshape(8, 512) % 16
assert (awqpack.unpack(awqpack.pack(codes)) == codes).all()
print(awqpack.build_info()["cpu_active"])
"""
UNSUPPORTED = next(name for name in ("neon", "avx512") if name not in VARIANTS)
NOT_VARIANTS = ["sse9", UNSUPPORTED, "AVX2", "scalar "]


@pytest.mark.parametrize("variant", [*VARIANTS, ""])
def test_a_variant_can_be_forced(variant):
    done = forked.run(IMPORTED, AWQPACK_CPU=variant)
    assert (done.returncode, done.stdout) == (0, f"{variant or VARIANTS[-1]}\n"), done.stderr


@pytest.mark.parametrize("name", NOT_VARIANTS)
def test_another_variant_is_an_error_at_import(name):
    done = forked.run(IMPORTED, AWQPACK_CPU=name)
    variants = ", ".join(VARIANTS)
    expected = f'AWQPACK_CPU expects one of the variants this CPU has ({variants}); got "{name}"'
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"ValueError: {expected}")


@pytest.mark.parametrize("name", ["sse9", UNSUPPORTED])
def test_another_variant_is_an_error_in_a_call(name):
    with pytest.raises(ValueError, match=f'{VARIANTS[0]}.*got "{name}"'):
        pack_array(random_codes((8, 64)), PACKINGS["v1"], variant=name)


def test_columns_are_packed_on_a_small_stack(packing, variant):
    """Scratch of panels is no thread's stack: 128 KiB of it are enough."""
    codes = random_codes((128, 1024)).T
    expected = pack_array(np.ascontiguousarray(codes), packing, variant="scalar")
    results = []

    def work():
        payload = pack_array(codes, packing, variant=variant)
        results.extend([payload, unpack_array(payload, packing, out=np.empty_like(codes), variant=variant)])

    before = threading.stack_size(128 << 10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert_same(results[0], expected)
    assert_same(results[1], codes)

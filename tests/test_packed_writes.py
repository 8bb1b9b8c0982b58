"""Writes into a packed tensor are kept, in its own payload, or refused before anything changed."""

import time

import pytest
import torch
from shared import PACKINGS, assert_same, packed_tensor, torch_codes

from awqpack import AWQPackedTensor, AWQPacking

SHAPE = (64, 128)


@pytest.fixture
def packed(packing, device):
    return packed_tensor(packing, SHAPE, device)


def mask(t):
    return torch.arange(t.numel(), device=t.device).view(SHAPE) % 3 == 0


def rows(t):
    return torch.tensor([3, 60, 3], device=t.device)


def codes_on(t, shape=SHAPE):
    return torch_codes(shape, t.device, seed=5)


def set_item(t, key, value):
    t[key] = value


# Each runs on the packed tensor and on its codes, and must leave the same codes behind.
WRITES = {
    "copy_ uint8": lambda t: t.copy_(codes_on(t)),
    "copy_ int64": lambda t: t.copy_(codes_on(t).long()),
    "copy_ float": lambda t: t.copy_(codes_on(t).float() + 0.5 - 0.25),
    "copy_ bool": lambda t: t.copy_(codes_on(t) > 7),
    "copy_ row": lambda t: t.copy_(codes_on(t, (1, 128))),
    "copy_ vector": lambda t: t.copy_(codes_on(t, (128,))),
    "copy_ column": lambda t: t.copy_(codes_on(t, (64, 1))),
    "copy_ scalar": lambda t: t.copy_(torch.tensor(9)),
    "copy_ transposed": lambda t: t.copy_(codes_on(t, (128, 64)).t()),
    "copy_ non_blocking": lambda t: t.copy_(codes_on(t), non_blocking=True),
    "copy_ itself": lambda t: t.copy_(t),
    "copy_ number": lambda t: torch.ops.aten.copy_.default(t, 7),
    "fill_": lambda t: t.fill_(7),
    "fill_ tensor": lambda t: t.fill_(torch.tensor(7, dtype=torch.uint8)),
    "zero_": lambda t: t.zero_(),
    "nn.init": lambda t: torch.nn.init.constant_(t, 4),
    "add_": lambda t: t.zero_().add_(3),
    "+=": lambda t: t.zero_().__iadd__(codes_on(t)),
    "add_ itself": lambda t: t.bitwise_and_(7).add_(t),
    "sub_ 0": lambda t: t.sub_(0),
    "mul_ bool": lambda t: t.mul_(codes_on(t) > 7),
    "bitwise_and_": lambda t: t.bitwise_and_(6),
    "&=": lambda t: t.__iand__(codes_on(t)),
    "bitwise_or_": lambda t: t.bitwise_or_(9),
    "bitwise_xor_": lambda t: t.bitwise_xor_(15),
    "clamp_": lambda t: t.clamp_(2, 11),
    "floor_divide_": lambda t: t.floor_divide_(2),
    "masked_fill_": lambda t: t.masked_fill_(mask(t), 5),
    "masked_scatter_": lambda t: t.masked_scatter_(mask(t), codes_on(t)),
    "index_put_": lambda t: t.index_put_((rows(t),), codes_on(t, (128,))),
    "index_fill_": lambda t: t.index_fill_(0, rows(t), 1),
    "index_copy_": lambda t: t.index_copy_(0, rows(t)[:2], codes_on(t, (2, 128))),
    "scatter_": lambda t: t.scatter_(0, rows(t)[:, None], 8),
    "flip, triu_": lambda t: t.triu_(),
    "set row": lambda t: set_item(t, 5, codes_on(t, (128,))),
    "set slice": lambda t: set_item(t, (slice(None), slice(3, 40, 5)), 12),
    "set mask": lambda t: set_item(t, mask(t), 0),
    "set code": lambda t: set_item(t, (2, 3), 13),
    "set ellipsis": lambda t: set_item(t, ..., codes_on(t)),
    "out=": lambda t: torch.add(codes_on(t), 0, out=t),
    "out= cat": lambda t: torch.cat([codes_on(t, (32, 128))] * 2, out=t),
    "out= itself": lambda t: torch.bitwise_and(t, 3, out=t),
    "out= pair": lambda t: torch.sort(codes_on(t), out=(t, torch.empty(SHAPE, dtype=torch.int64, device=t.device))),
    "foreach zero_": lambda t: torch._foreach_zero_([t]),
    "foreach copy_": lambda t: torch._foreach_copy_([t], [codes_on(t)]),
    "foreach mixed": lambda t: torch._foreach_mul_([t, codes_on(t)], 0),
    "foreach twice": lambda t: torch._foreach_clamp_max_([t, t], 9),
    "data": lambda t: t.data.fill_(2),
    "detach": lambda t: t.detach().zero_(),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_are_kept(packed, name):
    expected = packed.unpack()
    payload, address = packed.payload, packed.payload.data_ptr()
    version = packed._version
    WRITES[name](expected)
    WRITES[name](packed)
    assert_same(packed.unpack(), expected)
    assert packed.payload is payload
    assert payload.data_ptr() == address
    if name != "data":  # .data has a version counter of its own, in torch too
        assert packed._version > version
    assert_same(packed, AWQPackedTensor.pack(expected, packed.packing, packed.reorder))


@pytest.mark.parametrize("name", ["copy_ uint8", "copy_ itself", "zero_", "set slice", "out=", "foreach copy_"])
def test_the_version_of_the_payload_moves_too(packed, name):
    # A kernel may have saved the payload itself for backward.
    version = packed.payload._version
    WRITES[name](packed)
    assert packed.payload._version > version


@pytest.mark.parametrize("name", ["copy_ uint8", "zero_", "masked_fill_", "index_put_", "bitwise_and_", "add_"])
def test_in_place_methods_return_the_packed_tensor(packed, name):
    assert WRITES[name](packed) is packed


def test_out_returns_the_packed_tensor(packed):
    assert torch.add(codes_on(packed), 0, out=packed) is packed
    values, indices = torch.sort(
        codes_on(packed), out=(packed, torch.empty(SHAPE, dtype=torch.int64, device=packed.device))
    )
    assert values is packed
    assert type(indices) is torch.Tensor


@pytest.mark.parametrize("name", ["copy_ uint8", "fill_", "masked_fill_", "set slice", "out=", "foreach copy_"])
def test_writes_into_column_major_codes(packing, device, name):
    codes = torch_codes((128, 64), device).t()
    packed = AWQPackedTensor.pack(codes, *packing)
    expected = codes.clone()
    write = WRITES[name]
    for t in (packed, expected):
        # 64 x 128 as every other write here
        write(t)
    assert_same(packed.unpack(), expected)
    assert packed.unpack().stride() == (1, 64)


@pytest.mark.parametrize("source", PACKINGS.values(), ids=PACKINGS.keys())
@pytest.mark.parametrize("transposed", [False, True])
def test_copy_from_a_packed_tensor(packed, source, transposed):
    codes = codes_on(packed, (128, 64)).t() if transposed else codes_on(packed)
    payload = packed.payload
    assert packed.copy_(AWQPackedTensor.pack(codes, source.packing, source.reorder)) is packed
    assert packed.payload is payload
    assert packed.stride() == packed.unpack().stride() == (128, 1)
    assert_same(packed.unpack(), codes.contiguous())


def test_copy_broadcasts_a_packed_row(packed, packing):
    codes = torch_codes(packing.fit((1, 4, 128)), packed.device)
    target = packed_tensor(packing, packing.fit((3, 4, 128)), packed.device, seed=3)
    target.copy_(AWQPackedTensor.pack(codes, *packing))
    assert_same(target.unpack(), codes.expand(target.shape))


def test_writes_into_a_plain_tensor_read_the_codes(packed):
    plain = torch.zeros(SHAPE, dtype=torch.uint8, device=packed.device)
    assert plain.copy_(packed) is plain
    assert_same(plain, packed.unpack())
    plain[:32] = packed[32:]
    plain.bitwise_and_(packed)
    assert torch.add(packed, packed, out=plain) is plain
    assert_same(plain, packed.unpack() * 2)


def test_writes_into_a_batch(packing, device):
    shape = packing.fit((8, 64))
    packed = packed_tensor(packing, (3, *shape), device)
    expected = packed.unpack()
    for t in (packed, expected):
        t[1] = torch_codes(shape, device, seed=9)
        t[:, 2, 5] = 1
    assert_same(packed.unpack(), expected)


def test_a_slice_is_a_copy(packed):
    before = packed.payload.clone()
    packed[3].zero_()
    packed.view(-1).fill_(1)
    packed.t().zero_()
    assert_same(packed.payload, before)


def test_a_parameter_is_written(packing):
    parameter = torch.nn.Parameter(packed_tensor(packing), requires_grad=False)
    parameter.copy_(torch_codes(seed=6))
    assert_same(parameter.unpack(), torch_codes(seed=6))


def test_detached_tensors_share_the_write(packed):
    detached = packed.detach()
    packed.fill_(3)
    assert bool((detached == 3).all())


def test_backward_notices_a_write():
    # Saved for backward and then written: autograd must refuse, as it does for plain tensors.
    packed = packed_tensor(PACKINGS["v1"])
    x = torch.ones(64, 16, requires_grad=True)
    product = x * packed.payload
    packed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


# --- refused ---

TOO_LARGE = {
    "copy_": lambda t: t.copy_(torch.full(SHAPE, 16, dtype=torch.uint8)),
    "copy_ last": lambda t: t.copy_(set_last(codes_on(t))),
    "copy_ int64": lambda t: t.copy_(torch.full(SHAPE, 31)),
    "copy_ row": lambda t: t.copy_(torch.full((1, 128), 99)),
    "copy_ negative": lambda t: t.copy_(torch.full(SHAPE, -1)),
    "fill_": lambda t: t.fill_(16),
    "add_": lambda t: t.add_(1),
    "add_ 200": lambda t: t.add_(200),
    "sub_": lambda t: t.sub_(1),
    "mul_": lambda t: t.mul_(3),
    "bitwise_not_": lambda t: t.bitwise_not_(),
    "masked_fill_": lambda t: t.masked_fill_(mask(t), 77),
    "index_put_": lambda t: t.index_put_((rows(t),), torch.full((128,), 16, dtype=torch.uint8)),
    "setitem": lambda t: set_item(t, (63, 127), 16),
    "out=": lambda t: torch.add(codes_on(t), 16, out=t),
    "foreach": lambda t: torch._foreach_add_([t], 1),
}


def set_last(codes):
    codes[-1, -1] = 16
    return codes


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_result_over_15_is_refused(packing, name):
    packed = packed_tensor(packing)
    before, version = packed.payload.clone(), packed.payload._version
    with pytest.raises(ValueError, match=r"0\.\.15; codes\[\d+, \d+\] is \d+"):
        TOO_LARGE[name](packed)
    assert_same(packed.payload, before)
    assert packed.payload._version == version


def seconds_of_a_list(count):
    packed, plain = packed_tensor(PACKINGS["v1"]), [torch.zeros(1) for _ in range(2 * count)]
    begin = time.process_time()
    torch._foreach_copy_([*plain[:count], torch.zeros(64, 128, dtype=torch.uint8)], [*plain[count:], packed])
    return time.process_time() - begin


def test_a_long_list_takes_time_by_its_length():
    few, many = (min(seconds_of_a_list(count) for _ in range(3)) for count in (1_000, 8_000))
    assert many < 25 * few  # where each tensor was looked for among all others it was 50


def test_a_list_is_written_whole_or_not_at_all(packing):
    small, plain = packed_tensor(packing).zero_(), torch.zeros(SHAPE, dtype=torch.uint8)
    large = packed_tensor(packing)
    before = large.payload.clone()
    with pytest.raises(ValueError, match=r"0\.\.15"):
        torch._foreach_add_([plain, small, large], 1)
    assert not plain.any()
    assert not small.payload.any()
    assert_same(large.payload, before)


def test_two_outputs_are_written_both_or_not_at_all(packing):
    packed = packed_tensor(packing)
    before = packed.payload.clone()
    indices = torch.full(SHAPE, -1)
    with pytest.raises(ValueError, match=r"0\.\.15"):
        torch.sort(torch.full(SHAPE, 20, dtype=torch.uint8), out=(packed, indices))
    assert_same(packed.payload, before)
    assert bool((indices == -1).all())


METADATA_OPS = {
    "resize_": lambda t: t.resize_(8, 64),
    "resize_as_": lambda t: t.resize_as_(torch.zeros(8, 64)),
    "t_": lambda t: t.t_(),
    "transpose_": lambda t: t.transpose_(0, 1),
    "swapaxes_": lambda t: t.swapaxes_(0, 1),
    "unsqueeze_": lambda t: t.unsqueeze_(0),
    "squeeze_": lambda t: t.squeeze_(),
    "as_strided_": lambda t: t.as_strided_((8, 64), (64, 1)),
    "set_": lambda t: t.set_(torch.zeros(SHAPE, dtype=torch.uint8)),
    "set_ to nothing": lambda t: t.set_(),
}


@pytest.mark.parametrize("name", METADATA_OPS)
def test_metadata_cannot_change_in_place(packing, name):
    packed = packed_tensor(packing)
    before = packed.payload.clone()
    with pytest.raises(RuntimeError, match="size, strides or storage of an AWQPackedTensor"):
        METADATA_OPS[name](packed)
    assert (packed.shape, packed.stride()) == (SHAPE, (128, 1))
    assert_same(packed.payload, before)


WRONG_KIND = {
    "out= of another shape": lambda t: torch.add(torch.zeros(8, 64, dtype=torch.uint8), 1, out=t),
    "out= of another dtype": lambda t: torch.add(torch.zeros(SHAPE), 1.5, out=t),
    "copy_ of another shape": lambda t: t.copy_(torch.zeros(3, 128, dtype=torch.uint8)),
    "copy_ of more dimensions": lambda t: t.copy_(torch.zeros(2, 64, 128, dtype=torch.uint8)),
    "add_ of another shape": lambda t: t.add_(torch.zeros(2, 64, 128, dtype=torch.uint8)),
    "add_ of float": lambda t: t.add_(0.5),
    "data of another kind": lambda t: setattr(t, "data", torch.zeros(SHAPE)),
    "data that is no tensor": lambda t: setattr(t, "data", [[0]]),
    "data of codes too large": lambda t: setattr(t, "data", torch.full(SHAPE, 16, dtype=torch.uint8)),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("name", WRONG_KIND)
def test_a_result_of_another_kind_is_refused(packing, name):
    packed = packed_tensor(packing)
    before = packed.payload.clone()
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        WRONG_KIND[name](packed)
    assert (packed.shape, packed.dtype) == (SHAPE, torch.uint8)
    assert_same(packed.payload, before)


def test_a_write_into_a_read_only_copy_is_not_lost_under_inference_mode(packing):
    packed = packed_tensor(packing)
    with torch.inference_mode():
        packed.fill_(3)
        packed.masked_fill_(mask(packed), 4)
        made = AWQPackedTensor.pack(torch_codes(), *packing)
        made.zero_()
        assert not made.payload.any()
    expected = torch.full(SHAPE, 3, dtype=torch.uint8).masked_fill_(mask(packed), 4)
    assert_same(packed.unpack(), expected)


# --- collectives ---


def test_packing_is_an_enum():
    assert [(member.name, member.value) for member in AWQPacking] == [("V1", 1), ("V2", 2), ("MARLIN", 3)]

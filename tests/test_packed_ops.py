"""Every op that only reads: it runs on the unpacked codes and gives a plain result (design.md section 5)."""

import copy
import gc
import sys
import weakref

import pytest
import torch
from shared import PACKINGS, SHAPE, assert_same, is_plain, packed_tensor, torch_codes

from awqpack import AWQPackedTensor

# --- every other op ---

OTHER_OPS = {
    "add": lambda p: p + 1,
    "radd": lambda p: 1 + p,
    "sub float": lambda p: p - 0.5,
    "packed + packed": lambda p: p + p,
    "cat": lambda p: torch.cat([p, p]),
    "cat mixed": lambda p: torch.cat((p, p.new_zeros(1, 128)), dim=0),
    "stack": lambda p: torch.stack([p, p], dim=1),
    "where": lambda p: torch.where(p > 7, p, torch.zeros_like(p)),
    "index": lambda p: p[torch.tensor([1, 2], device=p.device)],
    "mask": lambda p: p[p > 7],
    "foreach": lambda p: torch._foreach_add([p, p], 1),
    "foreach pairs": lambda p: torch._foreach_mul([p, p], [p, p]),
    "kwargs": lambda p: torch.add(input=p, other=p, alpha=2),
    "kwargs lists": lambda p: torch.cat(tensors=[p, p], dim=1),
    "sum": lambda p: p.sum(dtype=torch.int64),
    "view": lambda p: p.view(-1),
    "reshape": lambda p: p.reshape(32, 256),
    "t": lambda p: p.t(),
    "transpose": lambda p: p.transpose(0, 1),
    "permute": lambda p: p.permute(1, 0),
    "unsqueeze": lambda p: p.unsqueeze(0),
    "split": lambda p: p.split(16),
    "chunk": lambda p: p.chunk(2, dim=1),
    "unbind": lambda p: p.unbind(),
    "clone": lambda p: p.clone(),
    "contiguous": lambda p: p.t().contiguous(),
    "sort": lambda p: torch.sort(p),
    "zeros_like": torch.zeros_like,
    "full_like": lambda p: torch.full_like(p, 3),
    "new_ones": lambda p: p.new_ones(3),
    "isin": lambda p: torch.isin(p, p),
    "bitwise": lambda p: (p & 3) | (p << 1),
    "equal": lambda p: torch.equal(p, p),
    "allclose": lambda p: torch.allclose(p, p),
    "out of a plain tensor": lambda p: torch.add(p, 1, out=torch.empty(SHAPE, dtype=torch.uint8, device=p.device)),
}


def plain_results(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("name", OTHER_OPS)
def test_other_ops_run_on_the_codes(packed, name):
    op = OTHER_OPS[name]
    before = packed.payload.clone()
    result, expected = op(packed), op(packed.unpack())
    if isinstance(expected, bool):
        assert result is expected
    else:
        assert len(plain_results(result)) == len(plain_results(expected))
        for ours, theirs in zip(plain_results(result), plain_results(expected), strict=True):
            assert is_plain(ours, theirs)
    assert_same(packed.payload, before)


def test_other_ops_on_column_major_codes(packing):
    codes = torch_codes((128, 64)).t()
    packed = AWQPackedTensor.pack(codes, *packing)
    for op in (lambda t: t + 1, lambda t: t.t(), lambda t: torch.cat([t, t]), torch.zeros_like):
        assert op(packed).stride() == op(codes).stride()
        assert is_plain(op(packed), op(codes))


def test_mixed_with_another_packing():
    packed = [packed_tensor(packing) for packing in PACKINGS.values()]
    assert is_plain(torch.cat(packed), torch.cat([torch_codes()] * len(PACKINGS)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_under_inference_mode(packed, mode):
    codes = packed.unpack()
    with mode():
        assert is_plain(packed + 1, codes + 1)
        assert_same(packed.detach(), packed)
        assert packed.to(packed.device) is packed
        assert isinstance(packed.to(packed.device, copy=True), AWQPackedTensor)
        made = AWQPackedTensor.pack(codes, packed.packing, packed.reorder)
        assert_same(made, packed)
        assert is_plain(made.unpack(), codes)
        with pytest.raises(ValueError, match=r"torch\.uint8.*torch\.float32"):
            packed.to(torch.float32)


def test_dispatch_with_kwargs_none(packed):
    dispatch = AWQPackedTensor.__torch_dispatch__
    add = torch.ops.aten.add.Tensor
    assert is_plain(dispatch(add, (), (packed, 1), None), packed.unpack() + 1)
    assert is_plain(dispatch(add, (), (packed, 1)), packed.unpack() + 1)
    assert_same(dispatch(torch.ops.aten.detach.default, (), (packed,), None), packed)
    assert_same(dispatch(torch.ops.aten._to_copy.default, (), (packed,), None), packed)


def test_errors_of_the_op_come_through():
    with pytest.raises(IndexError):
        packed_tensor(PACKINGS["v1"])[64]
    with pytest.raises(RuntimeError, match="size"):
        packed_tensor(PACKINGS["v1"]) + torch.zeros(3)


def test_grad_is_refused(packed):
    with pytest.raises(RuntimeError):
        packed.requires_grad_()
    assert not packed.requires_grad


# --- lifetime ---


def test_it_dies_at_once(packing):
    packed = packed_tensor(packing)
    watched, watched_payload = weakref.ref(packed), weakref.ref(packed.payload)
    packed.detach(), packed + 1, copy.deepcopy(packed), repr(packed), packed.numpy()
    gc.disable()
    try:
        del packed
        assert watched() is None
        assert watched_payload() is None
    finally:
        gc.enable()


def test_ops_keep_no_reference(packing):
    packed = packed_tensor(packing)
    counts = sys.getrefcount(packed), sys.getrefcount(packed.payload)
    for _ in range(100):
        packed + 1, packed.detach(), packed.unpack(), packed.numpy(), packed.to("cpu", copy=True)
    assert (sys.getrefcount(packed), sys.getrefcount(packed.payload)) == counts

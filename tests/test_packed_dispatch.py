"""`__torch_dispatch__` called by hand, with what torch would not pass: an error or the right result, never a crash."""

import pytest
import torch
from shared import PACKINGS, SHAPE, assert_same, packed_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from awqpack import AWQPackedTensor

aten = torch.ops.aten


def dispatch(op, *args, **kwargs):
    return AWQPackedTensor.__torch_dispatch__(op, (), args, kwargs)


def in_itself(packed):
    items = [packed]
    items.append(items)
    return items


def deep(packed, depth=200_000):
    items = [packed]
    for _ in range(depth):
        items = [items]
    return items


@pytest.mark.parametrize("nested", [in_itself, deep])
@pytest.mark.parametrize("op", [aten.cat.default, aten._foreach_zero_.default, aten._foreach_copy_.default])
def test_recursion_is_bounded(nested, op, packing):
    packed = packed_tensor(packing)
    before, items = packed.payload.clone(), nested(packed)
    with pytest.raises(RecursionError):
        dispatch(op, items, items)
    assert_same(packed.payload, before)
    while isinstance(items, list) and items:  # one by one: how Python deallocates it is not what is tested
        items = items.pop()


class Emptying(TorchDispatchMode):
    """Empties a list while an op on its tensors runs."""

    def __init__(self, items):
        super().__init__()
        self.items = items

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.items.clear()
        return func(*args, **(kwargs or {}))


def test_a_list_emptied_while_it_is_read(packing):
    items = [packed_tensor(packing, seed=seed) for seed in range(3)]
    expected = torch.cat([packed.unpack() for packed in items])
    with Emptying(items):
        result = dispatch(aten.cat.default, items)
    assert items == []
    assert_same(result, expected)


def test_a_list_emptied_while_it_is_written(packing):
    items = [packed_tensor(packing, seed=seed) for seed in range(3)]
    written = list(items)
    with Emptying(items):
        dispatch(aten._foreach_zero_.default, items)
    assert not any(packed.payload.any() for packed in written)


@pytest.mark.parametrize("device", [torch.ones(2), "cpu", 0, object()], ids=["tensor", "text", "int", "object"])
def test_a_device_that_is_none(device, packing):
    with pytest.raises(TypeError, match=r"device expects a torch\.device"):
        dispatch(aten._to_copy.default, packed_tensor(packing), device=device)


def test_kwargs_of_a_class_of_their_own(packing):
    class Arguments(dict):
        pass

    packed = packed_tensor(packing)
    kwargs = Arguments(other=packed)
    assert_same(AWQPackedTensor.__torch_dispatch__(aten.add.Tensor, (), (packed,), kwargs), packed.unpack() * 2)


@pytest.mark.parametrize("plain", [torch.zeros(SHAPE, dtype=torch.uint8), torch.zeros(3)])
def test_no_tensor_is_a_shallow_copy_of_another_kind(plain):
    packed = packed_tensor(PACKINGS["v1"])
    for pair in [(packed, plain), (plain, packed)]:
        assert dispatch(aten._has_compatible_shallow_copy_type.default, *pair) is False

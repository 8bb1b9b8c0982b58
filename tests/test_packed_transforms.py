"""Under vmap, grad and the like a packed tensor holds what plain codes would: reads, in-place ops, assignment."""

import pytest
import torch
from shared import assert_same, packed_tensor

from awqpack import AWQPackedTensor

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*torch.jit:DeprecationWarning")

CUBE = (3, 64, 128)


def assign(key, value=3):
    def write(r):
        r[key] = value
        return r.sum()

    return write


def assign_to_a_view_of_a_view(r):
    r[1:][:2].t()[0] = 2
    return r.sum()


def read_after_write(r):
    first = r[0:4]
    r[2] = 9
    return first.sum() + r.sum()


def copy_between(r):
    r[0:2] = r[2:4]
    return r.clone()


def write_a_view_with_itself(r):
    r[0:2].bitwise_xor_(r[1:3])
    return r.sum()


# What is done to a matrix, or to a slice of a cube.
WRITES = {
    "fill_": lambda r: r.fill_(3).sum(),
    "zero_": lambda r: r.zero_().sum(),
    "copy_": lambda r: r.copy_(torch.full_like(r, 3)).sum(),
    "clamp_": lambda r: r.clamp_(2, 9).sum(),
    "bitwise_and_": lambda r: r.bitwise_and_(6).sum(),
    "masked_fill_": lambda r: r.masked_fill_(r > 7, 1).sum(),
    "index_fill_": lambda r: r.index_fill_(0, torch.tensor([1, 3]), 2).sum(),
    "&=": lambda r: r.__iand__(3).sum(),
    "t[i] = code": assign(1),
    "t[i:j] = code": assign(slice(0, 4)),
    "t[i:j:k] = codes": assign((slice(0, 12, 4), slice(8)), torch.arange(8, dtype=torch.uint8)),
    "t[i, j] = code": assign((1, 5)),
    "t[...] = code": assign(...),
    "t[:, j] = code": assign((slice(None), 7)),
    "t[list] = code": assign([0, 2, 5]),
    "select().fill_": lambda r: r.select(0, 3).fill_(1).sum(),
    "narrow().zero_": lambda r: r.narrow(1, 3, 9).zero_().sum(),
    "unbind()": lambda r: r.unbind(0)[2].fill_(4).sum(),
    "view().copy_": lambda r: r.view(-1)[:64].copy_(torch.arange(64, dtype=torch.uint8) % 16).sum(),
    "a view of a view": assign_to_a_view_of_a_view,
    "read after write": read_after_write,
    "copy between": copy_between,
    "a view with itself": write_a_view_with_itself,
}
TRANSFORMS = {
    "vmap": lambda f, t: torch.vmap(f)(t),
    "vmap in_dims=1": lambda f, t: torch.vmap(f, in_dims=1)(t),
    "vmap in_dims=-1": lambda f, t: torch.vmap(f, in_dims=-1)(t),
    "chunked vmap": lambda f, t: torch.vmap(f, chunk_size=1)(t),
    "grad": lambda f, t: torch.func.grad(lambda x: (x * f(t[0]).sum()).sum())(torch.ones(2)),
    "grad of an argument": lambda f, t: torch.func.grad(lambda x, r: (x * f(r[0]).sum()).sum())(torch.ones(2), t),
    "vjp": lambda f, t: torch.func.vjp(lambda x: x * f(t[0]).sum(), torch.ones(2))[0],
    "jvp": lambda f, t: torch.func.jvp(lambda x: x * f(t[1]).sum(), (torch.ones(2),), (torch.ones(2),))[1],
    "vmap of grad": lambda f, t: torch.vmap(lambda r, x: torch.func.grad(lambda x: (x * f(r).sum()).sum())(x))(
        t, torch.ones(3, 2)
    ),
    "functionalize": lambda f, t: torch.func.functionalize(lambda r: f(r.select(0, 1)))(t),
}


def outcome(call, *arguments):
    try:
        return call(*arguments), None
    except Exception as error:
        return None, error


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_write_under_a_transform(write, transform, packing):
    packed = packed_tensor(packing, CUBE)
    codes = packed.unpack()
    expected, error = outcome(transform, write, codes)
    result, our_error = outcome(transform, write, packed)
    if error is None:
        assert our_error is None
        assert_same(result, expected)
        assert_same(packed.unpack(), codes)
    else:  # vmap has no rule for it, for plain codes neither
        assert our_error is not None


@pytest.mark.parametrize("write", [assign(0), assign(slice(3, 9)), lambda r: r.t()[2].fill_(3)])
def test_vmap_of_vmap(write, packing):
    packed = packed_tensor(packing, CUBE)
    codes = packed.unpack()
    for in_dims in [(0, 0), (1, 0), (0, 1), (2, 0)]:
        nested = torch.vmap(torch.vmap(lambda r: r[0:4].add_(0).fill_(3).sum(), in_dims=in_dims[1]), in_dims=in_dims[0])
        assert_same(nested(packed), nested(codes))
        assert_same(packed.unpack(), codes)
        torch.vmap(write)(packed)
        torch.vmap(write)(codes)
        assert_same(packed.unpack(), codes)


@pytest.mark.parametrize("write", [assign(0, 16), assign(slice(2, 5), 200), lambda r: r.t().add_(15)])
def test_a_code_too_large_is_refused_there_too(write, packing):
    packed = packed_tensor(packing, CUBE).clamp_(1, 15)
    before = packed.payload.clone()
    with pytest.raises(ValueError, match=r"0\.\.15"):
        torch.vmap(write)(packed)
    assert_same(packed.payload, before)


@pytest.mark.parametrize("how", [lambda r: r[0:4].t_(), lambda r: r[0].unsqueeze_(0)])
def test_a_view_keeps_its_shape(how, packing):
    packed = packed_tensor(packing, CUBE)
    before = packed.payload.clone()
    outcome(torch.vmap(how), packed)
    assert_same(packed.payload, before)


READS = {
    "a slice": lambda r: r[0:4],
    "columns": lambda r: r.t()[3:9],
    "arithmetic": lambda r: (r[0:2] + 0).float() * 2,
    "matmul": lambda r: (r + 0).float() @ torch.ones(128),
    "several": lambda r: r.split(16)[1],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_read_under_vmap(read, packing):
    packed = packed_tensor(packing, CUBE)
    codes = packed.unpack()
    result, expected = torch.vmap(read)(packed), torch.vmap(read)(codes)
    assert_same(result + 0, expected)
    assert not isinstance(result, AWQPackedTensor)
    assert (result.numpy() == expected.numpy()).all()  # which a view that comes out has, too
    assert_same(result.clone(), expected)


def test_what_comes_out_as_a_view_is_saved_as_codes(packing, tmp_path):
    packed = packed_tensor(packing, CUBE)
    torch.save(torch.vmap(lambda r: r[0:4])(packed), tmp_path / "view.pt")
    assert_same(torch.load(tmp_path / "view.pt", weights_only=True), packed.unpack()[:, 0:4])


ADVICE = {
    "a dtype": (lambda p: p.float(), lambda p: (p + 0).float()),
    "a change of strides": (lambda p: p.t_(), lambda p: (p + 0).t()),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_can_be_followed_there(name, packing):
    refused, advised = ADVICE[name]
    packed = packed_tensor(packing, CUBE)
    with pytest.raises((ValueError, RuntimeError), match=r"p \+ 0"):
        torch.vmap(refused)(packed)
    assert_same(torch.vmap(advised)(packed), torch.vmap(advised)(packed.unpack()))

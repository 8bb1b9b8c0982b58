"""What is done to a packed tensor: the tables of the contract, whose keys are its words; test_contract*.py run them."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from models import SHAPE, PackedLinear, emptied_at_registration
from shared import PACKINGS, assert_same, torch_codes

import awqpack
from awqpack import AWQPackedTensor, AWQPacking


def table(rows, name="row"):
    """Parametrizes by the rows of a table, whose keys are the words of the contract."""
    return pytest.mark.parametrize(name, rows.values(), ids=rows.keys())


def assert_packed_like(result, packed, device=None):
    """Packed as `packed` is, with an equal payload, on its device or the one named."""
    assert isinstance(result, AWQPackedTensor)
    assert (result.packing, result.reorder, result.shape) == (packed.packing, packed.reorder, packed.shape)
    assert result.device.type == result.payload.device.type == (device or packed.device.type)
    assert_same(result.unpack().cpu(), packed.unpack().cpu())


# --- stays packed: (packed tensor, a folder) -> what must be packed as it is ---


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **how)


def through_a_file(packed, folder, **how):
    torch.save(packed, folder / "packed.pt")
    return torch.load(folder / "packed.pt", map_location=packed.device, **how)


def through_safetensors(packed, folder):
    awqpack.save_file({"w": packed}, folder / "w.safetensors")
    return awqpack.load_file(folder / "w.safetensors", packed.device)["w"]


def reflattened(packed):
    names, metadata = packed.__tensor_flatten__()
    assert metadata == pickle.loads(pickle.dumps(metadata))
    assert {type(value) for value in metadata.values()} <= {int, bool, str}
    inner = {name: getattr(packed, name) for name in names}
    return AWQPackedTensor.__tensor_unflatten__(inner, metadata, packed.size(), packed.stride())


def as_parameter(packed):
    return torch.nn.Parameter(packed, requires_grad=False)


def with_default_device(function, packed):
    with packed.device:
        return function(packed)


def in_inference_mode(function, packed):
    with torch.inference_mode():
        return function(packed)


# All of it again, as torch's own tensors give it: an alias, which shares the storage too.
ALIASES = {
    "detach": lambda p, _: p.detach(),
    "detach where a default device is set": lambda p, _: with_default_device(torch.Tensor.detach, p),
    "detach in inference mode": lambda p, _: in_inference_mode(torch.Tensor.detach, p),
    "aten.detach": lambda p, _: torch.ops.aten.detach.default(p),
    "data": lambda p, _: p.data,
    "data in inference mode": lambda p, _: in_inference_mode(lambda p: p.data, p),
    "nn.Parameter": lambda p, _: as_parameter(p),
    "nn.Parameter where a default device is set": lambda p, _: with_default_device(as_parameter, p),
    "t[...]": lambda p, _: p[...],
    "t[...] in inference mode": lambda p, _: in_inference_mode(lambda p: p[...], p),
    "t[:]": lambda p, _: p[:],
    "alias": lambda p, _: torch.ops.aten.alias.default(p),
    "view": lambda p, _: p.view(SHAPE),
    "view as uint8": lambda p, _: p.view(torch.uint8),
    "view_as": lambda p, _: p.view_as(p),
    "reshape": lambda p, _: p.reshape(64, -1),
    "as_strided": lambda p, _: p.as_strided(p.shape, p.stride()),
    "expand": lambda p, _: p.expand(-1, -1),
    "narrow": lambda p, _: p.narrow(0, 0, 64),
    "permute": lambda p, _: p.permute(0, 1),
    "squeeze": lambda p, _: p.squeeze(),
    "the only chunk": lambda p, _: p.chunk(1)[0],
    "a part that is all": lambda p, _: p.split([64, 0])[0],
    "copy.copy": lambda p, _: copy.copy(p),
    "+t": lambda p, _: +p,
}
SHARING = {
    **ALIASES,
    "to its device": lambda p, _: p.to(p.device),
    "to uint8": lambda p, _: p.to(torch.uint8),
    "offload to where it is": lambda p, _: p.offload(p.device),
    "from_payload": lambda p, _: AWQPackedTensor.from_payload(p.payload, p.packing, p.reorder),
    "flatten and unflatten": lambda p, _: reflattened(p),
    "share_memory_": lambda p, _: p.share_memory_(),
}
INDEPENDENT = {
    "to its device, copied": lambda p, _: p.to(p.device, copy=True),
    "_to_copy with kwargs": lambda p, _: torch.ops.aten._to_copy.default(p, device=p.device, non_blocking=True),
    "deepcopy": lambda p, _: copy.deepcopy(p),
    "pickle": lambda p, _: pickle.loads(pickle.dumps(p)),
    "torch.save, torch.load": lambda p, _: saved(p),
    "torch.load(weights_only=True)": lambda p, _: saved(p, weights_only=True),
    "torch.load(weights_only=False)": lambda p, _: saved(p, weights_only=False),
    "torch.load(map_location)": lambda p, _: saved(p.offload(), map_location=p.device.type),
    "torch.load(mmap=True)": lambda p, folder: through_a_file(p, folder, mmap=True),
    "safetensors": through_safetensors,
}
# Packed as they are, of codes that nobody asked for.
UNINITIALIZED = {
    "empty_like": torch.empty_like,
    "empty_like of uint8": lambda p: torch.empty_like(p, dtype=torch.uint8, memory_format=torch.preserve_format),
    "empty_like on meta": lambda p: torch.empty_like(p, device="meta"),
    "empty_like of one on meta": lambda p: torch.empty_like(p.offload("meta"), device=p.device),
    "empty_like on the CPU": lambda p: torch.empty_like(p, device="cpu"),
}
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
    ("cpu", "meta", True),
    ("cuda", "meta", True),
]


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
    "a view of other strides": lambda t: t.as_strided(SHAPE, (1, 64)),
    "a view of another dtype": lambda t: t.view(torch.int8),
    "a view of other values": lambda t: torch._neg_view(t).resolve_neg(),
    "t()": lambda t: t.t(),
    "clone": lambda t: t.clone(),
    "several results": lambda t: torch.sort(t),
    "a reduction": lambda t: t.sum(),
    "matmul": lambda t: torch.ones(3, 128, device=t.device) @ (t - 8.0).t(),
    "functional": lambda t: torch.nn.functional.pad(t, (1, 2)),
    "zeros_like": torch.zeros_like,
    "into a plain tensor": lambda t: torch.zeros(SHAPE, dtype=torch.uint8, device=t.device).copy_(t),
}


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
    positional = [a for a in op._schema.arguments if not a.kwarg_only]
    required = sum(not a.has_default_value() for a in positional)
    if not required <= 1 + len(rest) <= len(positional):
        raise TypeError  # as torch would, which takes its time to say why
    other = copy.deepcopy(t) if isinstance(t, AWQPackedTensor) else t.clone()
    return op(other, *rest, out=t)


def call_foreach(op, t, rest):
    other = torch.full(SHAPE, 2, dtype=torch.uint8, device=t.device)
    return op([t, other], *[[r, r] if isinstance(r, torch.Tensor) else r for r in rest])


def arguments_on(device):
    ones = torch.ones(SHAPE, dtype=torch.uint8, device=device)
    numbers = [(), (1,), (0, 1), (ones,), (ones, 1), (ones, ones)]
    return [*numbers, (ones > 0, 1), (0, ones.long(), ones), (1, ones[0, :1].long(), 1)]


KINDS = {
    "in place": (is_in_place, call_in_place, 100),
    "out=": (is_out, call_out, 100),
    "foreach": (is_foreach, call_foreach, 25),
}
# Random and undefined results cannot be compared; size and storage are refused above.
NOT_CALLED = ("rand", "bernoulli", "normal", "uniform", "exponential", "geometric", "cauchy", "poisson", "multinomial")
NOT_CALLED += ("dropout", "rrelu", "empty", "resize", "set_")


# --- collectives write into the payload; the group is this process alone ---


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


# --- wrappers of others: DTensor, and a subclass that holds a packed tensor ---


def local(dtensor):
    return dtensor._local_tensor


STAYS_PACKED_IN_DTENSOR = {
    "distribute_tensor": lambda d: d,
    "detach": lambda d: d.detach(),
    "copy": lambda d: d.to(d.device, copy=True),
    "deepcopy": lambda d: copy.deepcopy(d),
    "nn.Parameter": lambda d: torch.nn.Parameter(d, requires_grad=False),
    "from_local": lambda d: type(d).from_local(local(d), d.device_mesh, d.placements),
}


# --- modules: a way of handling one -> a module with the same packed weights on the same device ---


def device_of(module):
    return module.scale.device


def fresh(module, device=None):
    how = module.weight.packing, module.weight.reorder
    packing = next(packing for packing in PACKINGS.values() if packing == how)
    return PackedLinear(packing, device or device_of(module), seed=5)


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
    "to_empty, then loaded": lambda m: loaded(fresh(m).to_empty(device=device_of(m)), m.state_dict()),
    "built on meta, to_empty, then loaded": lambda m: loaded(on_meta(m).to_empty(device=device_of(m)), m.state_dict()),
    "built on meta, then assigned": lambda m: loaded(on_meta(m), m.state_dict(), assign=True),
    "init_empty_weights, then assigned": lambda m: loaded(emptied(m), m.state_dict(), assign=True),
}


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
    "t[...]": lambda p: p[...],
    "slices": lambda p: (p[:], p[1:], p.view(p.shape), p.view(-1)),
    "to": lambda p: p.to(p.device),
    "to, copied": lambda p: p.to(p.device, copy=True),
    "to dtype": lambda p: p.to(torch.uint8) + 1,
    "attributes": lambda p: p.unpack() + p.shape[0] + p.dim() + int(p.packing is AWQPacking.V2) + int(p.reorder),
    "payload": lambda p: p.payload + 1,
    "packed and plain": lambda p: (p.detach(), p + 1),
    "pack": lambda p: AWQPackedTensor.pack(p.unpack(), AWQPacking.V2),
    "from_payload": lambda p: AWQPackedTensor.from_payload(p.payload + 1, p.packing, p.reorder),
    "empty_like": lambda p: torch.empty_like(p).copy_(p),
}
COMPILED_WRITES = {
    "zero_": lambda p: p.zero_(),
    "fill_": lambda p: p.fill_(7),
    "copy_": lambda p: p.copy_(torch.full_like(p.unpack(), 9)),
    "masked_fill_": lambda p: p.masked_fill_(torch.arange(p.shape[1], device=p.device) % 2 == 0, 3),
    "bitwise_and_": lambda p: p.bitwise_and_(6),
    "two writes": lambda p: p.bitwise_and_(3).add_(4),
    "write and read": lambda p: (p.fill_(2), p + 1)[1],
    "write through t[...]": lambda p: (p[...].fill_(2), p + 1)[1],
}


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

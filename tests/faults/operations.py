"""What failing_calls.py tries: each operation is a function of a World; its name says what it is."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import awqpack
from awqpack import _C, AWQPackedTensor

SHAPE = (64, 64)


class World:
    """The tensors that an operation finds; each call of one has its own."""

    def __init__(self, packing, reorder):
        self.codes = torch.arange(64 * 64, dtype=torch.int32).remainder(13).to(torch.uint8).view(SHAPE)
        self.plain = self.codes.flip(0)
        self.packing, self.reorder = packing, reorder
        self.packed = AWQPackedTensor.pack(self.codes, packing, reorder)
        self.other = AWQPackedTensor.pack(self.plain, packing, reorder)
        self.payload = self.packed.payload

    def contents(self):
        """The bytes of all that an operation may write into."""
        return [t.numpy().tobytes() for t in (self.packed, self.other, self.plain)]


def _set(w, key, value):
    w.packed[key] = value


def _data(w, value):
    w.packed.data = value


def _saved(w):
    file = io.BytesIO()
    torch.save({"w": w.packed, "again": w.packed}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _module(w):
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(w.packed, requires_grad=False)
    return module


def _loaded(w, assign):
    module, other = _module(w), torch.nn.Module()
    other.w = torch.nn.Parameter(w.other, requires_grad=False)
    module.load_state_dict(other.state_dict(), assign=assign)
    return module.w


def _flattened(w, packed=None):
    packed = w.packed if packed is None else packed
    names, metadata = packed.__tensor_flatten__()
    inner = {name: getattr(packed, name) for name in names}
    return AWQPackedTensor.__tensor_unflatten__(inner, metadata, packed.size(), packed.stride())


def _fake(w):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = mode.from_tensor(w.packed)
    with mode:
        fake.detach()
        fake.fill_(3)
        return (fake + 1).shape


def _inference(w):
    with torch.inference_mode():
        return w.packed.to("cpu", copy=True), w.packed.view_as(w.packed), w.packed.clone()


def _scales(w):
    return torch.full((64, 4), 0.5, dtype=torch.float16)


def _float(w):
    return w.codes.to(torch.float16) - 8


def _meta(w):
    return AWQPackedTensor(w.payload.to("meta"), w.packing, w.reorder, SHAPE, (64, 1))


def _out(w):
    return torch.empty(SHAPE, dtype=torch.uint8)


READS = {
    "construct": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, SHAPE, (64, 1)),
    "construct_turned": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, SHAPE, (1, 64)),
    "construct_by_name": lambda w: AWQPackedTensor(
        data=w.payload, packing=w.packing, reorder=w.reorder, size=list(SHAPE), stride=[64, 1], requires_grad=False
    ),
    "construct_around_a_parameter": lambda w: AWQPackedTensor(
        torch.nn.Parameter(w.payload, requires_grad=False), w.packing, w.reorder, SHAPE, (64, 1)
    ),
    "construct_of_wrong_size": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, (64, 128), (128, 1)),
    "construct_of_wrong_stride": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, SHAPE, (65, 1)),
    "construct_of_wrong_dtype": lambda w: AWQPackedTensor(w.codes, w.packing, w.reorder, SHAPE, (64, 1)),
    "construct_with_a_gradient": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, SHAPE, (64, 1), True),
    "construct_on_meta": lambda w: _meta(w).detach().shape,
    "construct_again": lambda w: AWQPackedTensor(w.packed, requires_grad=False),
    "construct_again_with_attributes": lambda w: AWQPackedTensor(w.packed, requires_grad=False, mark=1),
    "rebuild": lambda w: awqpack.rebuild_packed_tensor(w.payload, w.packing.value, w.reorder, SHAPE, (64, 1), False),
    "from_payload": lambda w: AWQPackedTensor.from_payload(w.payload, w.packing, w.reorder),
    "pack": lambda w: AWQPackedTensor.pack(w.codes, w.packing, w.reorder),
    "pack_turned": lambda w: AWQPackedTensor.pack(w.codes.t(), w.packing, w.reorder),
    "pack_an_array": lambda w: AWQPackedTensor.pack(w.codes.numpy(), w.packing, w.reorder),
    "pack_bad_codes": lambda w: AWQPackedTensor.pack(w.codes + 8, w.packing, w.reorder),
    "pack_none": lambda w: AWQPackedTensor.pack(None, w.packing, w.reorder),
    "unpack": lambda w: w.packed.unpack(),
    "unpack_turned": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, SHAPE, (1, 64)).unpack(),
    "unpack_into": lambda w: w.packed.unpack(out=_out(w)),
    "unpack_with_a_wrong_argument": lambda w: w.packed.unpack(1),
    "numpy": lambda w: w.packed.numpy(),
    "numpy_turned": lambda w: AWQPackedTensor(w.payload, w.packing, w.reorder, SHAPE, (1, 64)).numpy(),
    "asarray": lambda w: np.asarray(w.packed),
    "tolist": lambda w: w.packed.tolist(),
    "repr": lambda w: repr(w.packed),
    "repr_of_a_parameter": lambda w: repr(torch.nn.Parameter(w.packed, requires_grad=False)),
    "fields": lambda w: (w.packed.payload, w.packed.packing, w.packed.reorder, w.packed._packing, w.packed._reorder),
    "attributes": lambda w: (w.packed.shape, w.packed.device.type, w.packed.dtype, w.packed.data, w.packed.is_shared()),
    "data_ptr": lambda w: w.packed.data_ptr() == w.payload.data_ptr(),
    "detach": lambda w: w.packed.detach(),
    "detach_op": lambda w: torch.ops.aten.detach.default(w.packed),
    "to_the_same_device": lambda w: w.packed.to("cpu"),
    "to_a_copy": lambda w: w.packed.to("cpu", copy=True),
    "to_a_device_by_name": lambda w: w.packed.to(device=torch.device("cpu"), copy=True),
    "to_another_dtype": lambda w: w.packed.to(torch.float16),
    "to_meta": lambda w: w.packed.to("meta").shape,
    "to_copy_op": lambda w: torch.ops.aten._to_copy.default(w.packed),
    "offload": lambda w: w.packed.offload(),
    "offload_to_meta": lambda w: w.packed.offload("meta").shape,
    "clone": lambda w: w.packed.clone(),
    "deepcopy": lambda w: copy.deepcopy([w.packed, w.packed]),
    "shallow_copy": lambda w: copy.copy(w.packed),
    "pickle": lambda w: pickle.loads(pickle.dumps(w.packed)),
    "save_and_load": _saved,
    "parameter": lambda w: torch.nn.Parameter(w.packed, requires_grad=False),
    "module_to": lambda w: _module(w).to("cpu").w,
    "module_to_empty": lambda w: _module(w).to_empty(device="cpu").w.shape,
    "load_state_dict": lambda w: _loaded(w, True),
    "flatten_and_unflatten": _flattened,
    "flatten_and_unflatten_columns": lambda w: _flattened(w, AWQPackedTensor.pack(w.codes.t(), w.packing, w.reorder)),
    "unflatten_nonsense": lambda w: AWQPackedTensor.__tensor_unflatten__({"_data": w.payload}, {}, SHAPE, (64, 1)),
    "empty_like": lambda w: torch.empty_like(w.packed).shape,
    "add": lambda w: w.packed + 1,
    "compare": lambda w: torch.equal(w.packed, w.other),
    "concatenate": lambda w: torch.cat([w.packed, w.codes, w.other]),
    "index_with_tensors": lambda w: w.codes[[torch.tensor([1, 2]), torch.tensor([3, 4])]] + w.packed[1:3, 1:2],
    "whole_views": lambda w: (
        w.packed[...],
        w.packed.view_as(w.packed),
        w.packed.expand(SHAPE),
        w.packed.narrow(0, 0, 64),
    ),
    "view_of_the_whole": lambda w: w.packed[...],
    "part_views": lambda w: (w.packed[1], w.packed.t(), w.packed[:3, 4], w.packed.diagonal()),
    "list_of_views": lambda w: (w.packed.split(64), w.packed.chunk(2), w.packed.unbind()[0]),
    "vmap": lambda w: torch.func.vmap(lambda row: row * 2)(w.packed),
    "pinned": lambda w: w.packed.is_pinned(),
    "pin_memory": lambda w: w.packed.pin_memory(),
    "dequantize_method": lambda w: w.packed.dequantize(),
    "fake": _fake,
    "inference": _inference,
    "array_pack": lambda w: awqpack.pack(w.codes.numpy(), w.packing, w.reorder),
    "array_pack_turned": lambda w: awqpack.pack(w.codes.numpy().T, w.packing, w.reorder),
    "array_pack_bad_codes": lambda w: awqpack.pack(w.codes.numpy() + 8, w.packing, w.reorder),
    "array_pack_of_a_list": lambda w: _C.pack_array([1], w.packing.value, w.reorder, True, None, None),
    "array_pack_another_dtype": lambda w: awqpack.pack(w.codes.numpy().astype(np.int16), w.packing, w.reorder),
    "array_unpack": lambda w: awqpack.unpack(w.payload.numpy(), w.packing, w.reorder),
    "array_unpack_into": lambda w: awqpack.unpack(w.payload.numpy(), w.packing, w.reorder, out=_out(w).numpy()),
    "pack_op": lambda w: awqpack.pack(w.codes, w.packing, w.reorder),
    "pack_op_bad_codes": lambda w: awqpack.pack(w.codes + 8, w.packing, w.reorder),
    "unpack_op": lambda w: awqpack.unpack(w.payload, w.packing, w.reorder),
    "relayout_op": lambda w: awqpack.relayout(w.payload, (w.packing, w.reorder), awqpack.AWQPacking.V1),
    "quantize_op": lambda w: awqpack.quantize(_float(w), _scales(w), None, w.packing, w.reorder),
    "dequantize_op": lambda w: awqpack.dequantize(w.payload, _scales(w), None, w.packing, w.reorder),
    "min_max_scales_op": lambda w: awqpack.min_max_scales(_float(w), 16),
    "build_info": lambda w: awqpack.build_info(),
    "probe_cuda": lambda w: _C.probe_cuda(0),
}

WRITES = {
    "fill": lambda w: w.packed.fill_(3),
    "fill_with_too_much": lambda w: w.packed.fill_(200),
    "zero": lambda w: w.packed.zero_(),
    "add_in_place": lambda w: w.packed.add_(1),
    "copy_codes": lambda w: w.packed.copy_(w.plain),
    "copy_a_row": lambda w: w.packed.copy_(w.plain[:1]),
    "copy_packed": lambda w: w.packed.copy_(w.other),
    "copy_of_wrong_shape": lambda w: w.packed.copy_(w.plain[:3]),
    "copy_in_inference_mode": lambda w: torch.inference_mode()(lambda: w.packed.copy_(w.other).shape)(),
    "copy_under_a_mode": lambda w: _under_a_mode(lambda: w.packed.copy_(w.plain)),
    "out": lambda w: torch.add(w.plain, 1, out=w.packed),
    "out_of_wrong_shape": lambda w: torch.add(w.plain[:3], 1, out=w.packed),
    "several_outs": lambda w: torch.sort(w.plain, out=(w.packed, torch.empty(SHAPE, dtype=torch.int64))),
    "masked_fill": lambda w: w.packed.masked_fill_(w.plain == 3, 2),
    "set_item": lambda w: _set(w, (3, 4), 5),
    "set_slice": lambda w: _set(w, slice(1, 9), w.plain[:8]),
    "set_too_much": lambda w: _set(w, (3, 4), 16),
    "foreach_add": lambda w: torch._foreach_add_([w.packed, w.plain, w.other], 1),
    "foreach_copy": lambda w: torch._foreach_copy_([w.packed, w.other], [w.plain, w.codes]),
    "foreach_too_much": lambda w: torch._foreach_add_([w.plain, w.packed, w.other], 5),
    "foreach_twins": lambda w: torch._foreach_add_([w.packed, w.packed.detach(), w.other], 1),
    "foreach_entangled": lambda w: torch._foreach_add_([w.packed, w.payload], 1),
    "foreach_plain_that_reads_packed": lambda w: torch._foreach_copy_([w.plain], [w.packed]),
    "set_data": lambda w: _data(w, w.other),
    "set_data_to_codes": lambda w: _data(w, w.plain),
    "set_data_to_a_number": lambda w: _data(w, 3),
    "transpose_in_place": lambda w: w.packed.t_(),
    "resize": lambda w: w.packed.resize_(8, 64),
    "load_state_dict_in_place": lambda w: _loaded(w, False),
    "swap": lambda w: torch.utils.swap_tensors(w.packed, w.other),
    "edit_codes": lambda w: _C.edit_codes(w.packed, lambda codes: codes.fill_(2)),
    "fill_diagonal": lambda w: w.packed.fill_diagonal_(1),
    "relayout_into": lambda w: awqpack.relayout(
        w.payload, (w.packing, w.reorder), (w.packing, w.reorder), out=w.other.payload
    ),
    "pack_into": lambda w: awqpack.pack(w.plain, w.packing, w.reorder, out=w.payload),
    "write_a_view_under_vmap": lambda w: torch.func.vmap(lambda row: row[:2].add_(1))(w.packed),
    "share_memory": lambda w: w.packed.share_memory_(),
}
# What `--quick` and the default tests try.
QUICK = ["construct", "numpy", "to_a_copy", "deepcopy", "add", "view_of_the_whole", "fill", "set_item", "foreach_copy"]

# What an operation may give instead: a repr shows what it can.
LESSER = {
    "repr": lambda w: repr(w.packed).partition(", codes=")[0] + ")",
    "repr_of_a_parameter": lambda w: "Parameter containing:\n" + repr(w.packed).partition(", codes=")[0] + ")",
}


def _under_a_mode(call):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Passing():
        return call()

"""What the contract is tried on: a layer, a wrapper of another kind, a data set."""

import torch
from shared import packed_tensor
from torch.utils._pytree import tree_map_only

SHAPE = (64, 128)


class PackedLinear(torch.nn.Module):
    """A layer as users write it: a packed parameter, a packed buffer, and a scale that learns."""

    def __init__(self, packing, device="cpu", seed=0):
        super().__init__()
        self.weight = torch.nn.Parameter(packed_tensor(packing, SHAPE, device, seed), requires_grad=False)
        self.register_buffer("zeros", packed_tensor(packing, SHAPE, device, seed + 100))
        self.scale = torch.nn.Parameter(torch.full((SHAPE[0], 1), 0.5, device=device))

    def forward(self, x):
        return x @ ((self.weight.unpack().to(x.dtype) - self.zeros.unpack()) * self.scale).t()


class Dequantize(torch.nn.Module):
    """A parametrization that reads the packed tensor below it."""

    def forward(self, weight):
        return weight.unpack().float() * 2


class Scaled(torch.Tensor):
    """A wrapper subclass of others' kind: floats that are codes times a scale, with a packed tensor inside."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(
            cls, codes.size(), strides=codes.stride(), dtype=scale.dtype, device=codes.device
        )

    def __init__(self, codes, scale):
        self.codes = codes
        self.scale = scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner, metadata, size, stride):
        return Scaled(inner["codes"], inner["scale"])

    def __repr__(self):  # torch <= 2.11 calls it while compiling, when there are no values to show
        return f"Scaled(shape={tuple(self.shape)})"

    def dequantize(self):
        return (self.codes + 0) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten.detach.default, torch.ops.aten._to_copy.default):
            how = {key: value for key, value in kwargs.items() if key != "dtype"}  # it is that of the scale
            return cls(func(args[0].codes, **how), func(args[0].scale, **kwargs))
        args, kwargs = tree_map_only(cls, cls.dequantize, (args, kwargs))
        return func(*args, **kwargs)


def emptied_at_registration(make):
    """make() with every parameter moved to meta when its module registers it, as init_empty_weights does."""
    register = torch.nn.Module.register_parameter

    def register_empty(module, name, parameter):
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    torch.nn.Module.register_parameter = register_empty
    try:
        return make()
    finally:
        torch.nn.Module.register_parameter = register


class Codes(torch.utils.data.Dataset):
    """A data set whose items are packed where they are asked for, in a worker."""

    def __init__(self, packing):
        self.packing = packing
        self.kept = packed_tensor(packing, SHAPE, seed=99)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return packed_tensor(self.packing, SHAPE, seed=index), self.kept

"""What libraries that rebuild parameters ask of a class: ``type(p)(packed)`` and, where ``p`` rests on the meta device,
``type(p)(codes)``.

accelerate keeps a weight on a disk as its codes, and on meta a parameter of which it asks nothing but its class when
the codes come back. So the class of a packed parameter that was rebuilt on meta knows the packing.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch

from .packing import AWQPacking
from .tensor import AWQPackedTensor


@functools.cache
def _class_of(packing: AWQPacking, reorder: bool) -> type[AWQPackedTensor]:
    """A subclass whose constructor packs codes; of anything else it makes what AWQPackedTensor makes."""

    def new(cls: type, data: Any, *args: Any, **kwargs: Any) -> AWQPackedTensor:
        is_codes = isinstance(data, torch.Tensor) and not isinstance(data, AWQPackedTensor) and not args
        if is_codes and "packing" not in kwargs:
            data = AWQPackedTensor.pack(data, packing, reorder)
        return AWQPackedTensor(data, *args, **kwargs)

    names = {"__module__": "awqpack", "__slots__": (), "__new__": staticmethod(new), "_is_of_meta": True}
    return types.new_class("AWQPackedTensor", (AWQPackedTensor,), exec_body=lambda body: body.update(names))


def again(cls: type[AWQPackedTensor], packed: AWQPackedTensor, /, **attributes: Any) -> AWQPackedTensor:
    """What the constructor makes of a packed tensor alone, as nn.Parameter does: another one around its payload.

    Args:
        cls: the class that was called.
        attributes: nothing that is new here: ``requires_grad=False``, by which a caller means a parameter, or all of a
            parameter's ``__dict__``, whose entries become attributes.
    """
    for name in () if "_is_param" in attributes else attributes:
        if name != "requires_grad":
            raise TypeError(f"AWQPackedTensor of a packed tensor expects no argument but requires_grad; got {name!r}")
    result = packed.detach()
    if not isinstance(result, cls):
        result.__class__ = cls
    if "requires_grad" in attributes:
        del attributes["requires_grad"]
        attributes["_is_param"] = True
    vars(result).update(attributes)
    # A class that packs codes as these were packed, for who rebuilds what is on meta; a user's subclass is left alone.
    if result.is_meta and type(result) is AWQPackedTensor:
        result.__class__ = _class_of(result.packing, result.reorder)
    return result

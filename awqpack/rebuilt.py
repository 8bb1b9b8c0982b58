"""What libraries that rebuild parameters ask of a class: ``type(p)(codes)`` where ``p`` rests on the meta device.

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


def remember_packing(parameter: AWQPackedTensor) -> None:
    """Gives a packed parameter on meta the class that packs codes as it was packed; a user's subclass is left alone."""
    if type(parameter) is AWQPackedTensor:
        parameter.__class__ = _class_of(parameter.packing, parameter.reorder)

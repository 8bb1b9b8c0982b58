"""Modules whose state_dict holds payloads: plain tensors under the names of awqpack's files, for every writer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

import torch

from .formats import FORMATS, Format, format_of
from .tensor import AWQPackedTensor

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def store_as_payloads(module: ModuleT) -> ModuleT:
    """Makes ``module.state_dict()`` hold the payload of each packed tensor, ``weight.awq_v2`` where ``weight`` was.

    Writers that know no packed tensor then save the module: safetensors, transformers' ``save_pretrained`` and Trainer,
    accelerate, torch.distributed.checkpoint. ``load_state_dict`` takes payloads back, strict or not, with ``assign`` or
    without, into packed parameters and buffers, and still takes packed tensors. On a transformers model it is to be
    called in ``__init__``, so that ``from_pretrained`` finds it done.

    A payload says its packing by its name, and the size of its codes by its shape. Strides, and a ``reorder`` that does
    not matter, are those of the tensor that it is loaded into, else contiguous and False.

    Args:
        module: it and all modules in it are changed in place; calling again changes nothing.

    Returns:
        module.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"store_as_payloads expects a torch.nn.Module; got {type(module)}")
    for part in module.modules():
        if _save not in part._state_dict_hooks.values():
            part.register_state_dict_post_hook(_save)  # type: ignore[no-untyped-call]
            part.register_load_state_dict_pre_hook(_load)  # type: ignore[no-untyped-call]
    module.get_submodule = partial(_get_submodule, module)  # type: ignore[method-assign]
    return module


def _stored(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The module's own tensors that its state_dict has."""
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield name, tensor


def _form_of(tensor: AWQPackedTensor) -> Format:
    return format_of(tensor.packing.value, tensor.reorder)


def _key(name: str, tensor: AWQPackedTensor) -> str:
    return f"{name}.{_form_of(tensor).suffix}"


def _save(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """Hook of state_dict."""
    for name, _ in _stored(module):
        tensor = state_dict.get(prefix + name)
        if isinstance(tensor, AWQPackedTensor):
            del state_dict[prefix + name]
            state_dict[_key(prefix + name, tensor)] = tensor.payload


def _load(
    module: torch.nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Hook of load_state_dict, which gets a copy of the caller's dict."""
    is_assigned = bool(local_metadata.get("assign_to_params_buffers", False))
    for name, target in list(_stored(module)):
        given = [(form, key) for form in FORMATS if (key := f"{prefix}{name}.{form.suffix}") in state_dict]
        if len(given) + (prefix + name in state_dict) > 1:
            names = [key for _, key in given]
            error_msgs.append(f"{prefix}{name} is given more than once: {', '.join(names)}.")
        for form, key in given:
            try:
                state_dict[prefix + name] = _wrap(state_dict.pop(key), form, target, is_assigned)
            except (TypeError, ValueError) as error:
                error_msgs.append(f"While loading the payload {key}: {error}.")
                state_dict[prefix + name] = target
        if not given and isinstance(target, AWQPackedTensor) and prefix + name not in state_dict:
            missing_keys.append(_key(prefix + name, target))
            state_dict[prefix + name] = target


def _wrap(payload: torch.Tensor, form: Format, target: torch.Tensor, is_assigned: bool) -> AWQPackedTensor:
    """The packed tensor of a payload that is to replace target, or to be copied into it."""
    if not isinstance(payload, torch.Tensor):
        raise TypeError(f"a payload is expected as a torch.Tensor; got {type(payload)}")
    if payload.dim() < 2:
        raise ValueError(f"a payload of at least 2 dimensions is expected; got shape {tuple(payload.shape)}")
    if target.dtype != torch.uint8 and not is_assigned:
        raise ValueError(
            f"a tensor of codes, packed or uint8, is expected in its place; the module has {target.dtype} "
            "(load with assign=True, or pack it first)"
        )
    size = (*payload.shape[:-2], *form.codes_shape(payload.shape[-2], payload.shape[-1]))
    if isinstance(target, AWQPackedTensor) and target.shape == size and _form_of(target) is form:
        return AWQPackedTensor(payload, form.packing, target.reorder, size, target.stride())
    return AWQPackedTensor(payload, form.packing, form.reorder, size, torch.empty(size, device="meta").stride())


class _PayloadPlace:
    """Stands for a module where transformers looks for one: ``fc.weight`` in the name ``fc.weight.awq_v2``."""

    def __init__(self, module: torch.nn.Module, name: str, tensor: AWQPackedTensor) -> None:
        vars(self).update(
            _module=module, _name=name, _buffers={_form_of(tensor).suffix: tensor.payload}, _parameters={}
        )

    def __getattr__(self, suffix: str) -> torch.Tensor:
        buffers: dict[str, torch.Tensor] = vars(self)["_buffers"]
        if suffix not in buffers:
            raise AttributeError(f"{vars(self)['_name']} holds no payload {suffix}")
        return buffers[suffix]

    def __setattr__(self, suffix: str, payload: torch.Tensor) -> None:
        """What is set replaces the module's tensor, and keeps the attributes that transformers gave it."""
        module, name = vars(self)["_module"], vars(self)["_name"]
        form = next(form for form in FORMATS if form.suffix == suffix)
        target = getattr(module, name)
        packed: torch.Tensor = _wrap(payload.detach(), form, target, is_assigned=True)
        if isinstance(target, torch.nn.Parameter):
            packed = torch.nn.Parameter(packed, requires_grad=False)
        vars(packed).update({key: value for key, value in vars(payload).items() if key != "_is_param"})
        setattr(module, name, packed)


def _get_submodule(module: torch.nn.Module, target: str) -> Any:
    """module.get_submodule, which finds the packed tensors that names of payloads go through."""
    get_submodule = partial(type(module).get_submodule, module)
    path, _, name = target.rpartition(".")
    owner = get_submodule(path)
    tensor = owner._parameters.get(name, owner._buffers.get(name))
    return _PayloadPlace(owner, name, tensor) if isinstance(tensor, AWQPackedTensor) else get_submodule(target)


def _payload_named(form: Format) -> property:
    """``weight.awq_v2``: torch.distributed.checkpoint follows the names of a state_dict from object to object."""

    def get(self: AWQPackedTensor) -> torch.Tensor:
        if _form_of(self) is not form:
            raise AttributeError(f"this AWQPackedTensor holds no payload {form.suffix}; it is packed as {self.packing}")
        return self.payload

    return property(get)


for _form in FORMATS:
    setattr(AWQPackedTensor, _form.suffix, _payload_named(_form))

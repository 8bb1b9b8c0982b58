"""Views of a packed tensor's codes that pass writes on to it, where a caller cannot be told that a slice is a copy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_iter, tree_map

from . import _C

Step = Callable[[torch.Tensor], torch.Tensor]


class CodesView(torch.Tensor):
    """A view of the codes of a packed tensor: a read gives what that holds by then, a write ends in its payload.

    torch.func's transforms (vmap, grad, jvp) hand a function tensors of their own. Item assignment, and an in-place op
    on a dimension that vmap moved, reach a packed tensor as a view op and then a write into what that gave. So view ops
    give one of these there. Its own memory holds the codes as they were when it was made or last written through it.
    """

    packed: Any
    steps: tuple[Step, ...]
    codes: torch.Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, codes: torch.Tensor, packed: Any, steps: tuple[Step, ...]) -> CodesView:
        """``codes`` is what ``steps`` give of those of ``packed``."""
        self: CodesView = torch.Tensor._make_subclass(cls, codes)
        self.codes, self.packed, self.steps = codes, packed, steps
        return self

    def of(self, codes: torch.Tensor) -> torch.Tensor:
        """The same view of ``codes``."""
        for step in self.steps:
            codes = step(codes)
        return codes

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = _written_views(func, args, kwargs)
        if not written:
            result = func(*tree_map(_now, args), **tree_map(_now, kwargs))
            view = args[0] if args and _gives_views(func) else None
            return _views_of(result, view.packed, view.steps, func, args, kwargs) if isinstance(view, cls) else result
        if len(written) > 1 or torch.Tag.inplace_view in func.tags:
            raise RuntimeError(
                f"{func} writes into views of an AWQPackedTensor in a way that its payload cannot follow; write into "
                "one view in a call, or work on its codes (p + 0) and pack the result"
            )
        return _write(func, written[0], args, kwargs)

    def numpy(self, *, force: bool = False) -> Any:
        return self.of(self.packed.unpack()).numpy(force=force)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.codes.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def view(func: Any, packed: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    """What a view op gives of a packed tensor, its first argument, as a CodesView or a list of them."""
    kwargs = kwargs or {}
    result = func(packed.unpack(), *args[1:], **kwargs)
    return _views_of(result, packed, (), func, args, kwargs)


def transforms() -> tuple[Any, ...]:
    """The code of the functions that are on the stack while a transform runs: torch has put it aside inside dispatch,
    and nothing else tells of it."""
    from torch._functorch import eager_transforms, vmap

    functions = [
        *(getattr(vmap, name, None) for name in ("_flat_vmap", "restore_vmap", "_get_chunked_inputs")),
        *(
            getattr(eager_transforms, name, None)
            for name in ("grad_and_value_impl", "_vjp_with_argnums", "_jvp_with_argnums")
        ),
    ]
    return tuple(inspect.unwrap(function).__code__ for function in functions if function is not None)


def _now(value: Any) -> Any:
    return value.of(value.packed.unpack()) if isinstance(value, CodesView) else value


def _gives_views(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _written_views(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[CodesView]:
    written = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            written += [value for value in tree_iter(given) if isinstance(value, CodesView)]
    return written


def _views_of(
    result: Any, packed: Any, steps: tuple[Step, ...], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    def again(codes: torch.Tensor) -> Any:
        return func(codes, *args[1:], **kwargs)

    if isinstance(result, torch.Tensor):
        return CodesView(result, packed, (*steps, again))

    def one(index: int) -> Step:
        return lambda codes: again(codes)[index]

    return [CodesView(codes, packed, (*steps, one(index))) for index, codes in enumerate(result)]


def _write(func: Any, view: CodesView, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result: Any = None

    def change(codes: torch.Tensor) -> None:
        nonlocal result
        target = view.of(codes)

        def stand_in(value: Any) -> Any:
            return target if value is view else view_of_others(value)

        def view_of_others(value: Any) -> Any:
            is_twin = isinstance(value, CodesView) and value.packed.payload is view.packed.payload
            return value.of(codes) if is_twin else _now(value)

        result = func(*tree_map(stand_in, args), **tree_map(stand_in, kwargs))
        result = tree_map(lambda value: view if value is target else value, result)

    _C.edit_codes(view.packed, change)
    view.codes.copy_(_now(view))
    return result

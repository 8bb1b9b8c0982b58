"""Keeps the type of the ops' errors: torch 2.15 and newer make RuntimeError of every error that a C++ op raises."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .. import _C


def register(ops: Iterable[str]) -> None:
    """Lets our overloads (torch.ops.awqpack.pack.default), which all of awqpack calls and compiled code too, raise
    ValueError under every torch. The packets (torch.ops.awqpack.pack) stay as torch makes them."""
    if torch.__version__ < "2.15.0a0":
        return
    for name in ops:
        overload = getattr(torch.ops.awqpack, name).default
        if hasattr(overload, "_op"):
            overload._op = _C.keep_value_errors(overload._op)

"""Registers what Python adds to an op, once: an import that was interrupted begins again with what it left in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

_KEY = "CompositeExplicitAutograd"


def impl(name: str, kernel: Callable[..., object]) -> None:
    """Sends every backend without a kernel of its own to this one, unless they go to one already."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"awqpack::{name}", _KEY):
        torch.library.impl(f"awqpack::{name}", _KEY, kernel)


def fake(name: str, kernel: Callable[..., object]) -> None:
    """What the op gives for meta and fake tensors; torch 2.10 takes it a second time only where that is allowed."""
    torch.library.register_fake(f"awqpack::{name}", kernel, allow_override=True)

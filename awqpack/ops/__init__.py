"""What torch.ops.awqpack needs beside its kernels in C and CUDA."""

from __future__ import annotations

from . import cuda, fake, floats, portable, relayout, value_errors

OPS = ("pack", "unpack", "pack_out", "unpack_out", "relayout", "relayout_out", *floats.OPS)


def register() -> None:
    """Registers it all; awqpack does so once, when it is imported."""
    value_errors.register(OPS)
    portable.register()
    fake.register()
    relayout.register()
    floats.register()
    cuda.register()

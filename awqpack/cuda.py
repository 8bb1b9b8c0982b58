"""Which kernels CUDA tensors go to: ours where they run, the portable ones everywhere else."""

from __future__ import annotations

import warnings

import torch

from . import _C


def _check_devices() -> None:
    """Falls back to the portable kernels when some visible GPU is one we have no code for."""
    for index in range(torch.cuda.device_count()):
        reason = _C.probe_cuda(index)
        if reason is not None:
            name = torch.cuda.get_device_name(index)
            warnings.warn(
                f"awqpack's CUDA kernels do not run on cuda:{index} ({name}): {reason}. "
                "CUDA tensors use the slower portable kernels.",
                stacklevel=2,
            )
            _C.unregister_cuda()
            return


def register() -> None:
    """Registers the CUDA kernels if this build has them and this torch is a CUDA build.

    The check of the devices waits until the program itself starts CUDA: importing awqpack never does.
    """
    if torch.version.cuda is not None and _C.register_cuda():
        torch.cuda._lazy_call(_check_devices)  # type: ignore[no-untyped-call]

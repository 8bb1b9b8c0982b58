"""Which kernels CUDA tensors go to: ours where they run, the portable ones everywhere else."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from .. import _C


def has_code_for(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    """Whether kernels for these architectures (sm_90: machine code, compute_90: PTX) run on a GPU of that capability.

    Asked of torch rather than tried: trying would make a CUDA context on every GPU that the process sees.
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        major, minor = int(number[:-1]), int(number[-1])
        if kind == "sm" and capability[0] == major and capability[1] >= minor:
            return True
        if kind == "compute" and capability >= (major, minor):
            return True
    return False


def _check_devices() -> None:
    """Falls back to the portable kernels when some visible GPU is one we have no code for."""
    archs = _C.build_info()["cuda_archs"]
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not has_code_for(capability, archs):
            warnings.warn(
                f"awqpack has no CUDA kernels for cuda:{index} ({torch.cuda.get_device_name(index)}, "
                f"sm_{capability[0]}{capability[1]}), only for {', '.join(archs)}. "
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

"""4-bit weights for PyTorch (AWQ, GPTQ and others): packed and converted at about the speed of a memory copy."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec
from typing import Any

from ._interpreter import is_main as _is_main

if not _is_main():
    raise ImportError("awqpack works in a process's main interpreter alone, as torch does")

import torch  # noqa: F401  (loads libtorch, which the extension is linked against)

if _find_spec(f"{__name__}._C") is None:
    raise ImportError(
        f"{__path__[0]} is awqpack's source, whose C module is not built. An awqpack that is installed is found from "
        "any other folder: cd elsewhere. To use this one, run `pip install --no-build-isolation --editable .` in the "
        "folder above"
    )

from . import _C, ops, serialization
from .floats import dequantize, min_max_scales, quantize
from .functional import pack, relayout, unpack
from .ops.decompositions import decompositions
from .packing import AWQPacking
from .payloads import store_as_payloads
from .peers import disable, enable
from .serialization import load, load_file, save, save_file
from .tensor import AWQPackedTensor, rebuild_packed_tensor

ops.register()
serialization.register()

__version__ = _version("awqpack")

__all__ = [
    "AWQPackedTensor",
    "AWQPacking",
    "__version__",
    "build_info",
    "decompositions",
    "dequantize",
    "disable",
    "enable",
    "load",
    "load_file",
    "min_max_scales",
    "pack",
    "quantize",
    "rebuild_packed_tensor",
    "relayout",
    "save",
    "save_file",
    "store_as_payloads",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """The modules that most programs do without, when they are first named."""
    if name in ("checkpoint", "layouts", "quanto"):
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_info() -> dict[str, Any]:
    """What this build is: its version, the torch it was built with, its CPU variants and the active one, and the
    CUDA architectures it holds kernels for."""
    return {"version": __version__, **_C.build_info()}

"""Puts awqpack under optimum-quanto's AWQ weights: its AWQWeightQBitsTensor then packs and moves through this class.

    import awqpack.quanto
    awqpack.quanto.enable()

or, for a while only, ``with awqpack.quanto.enable(): ...``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import TracebackType
from typing import Any

import torch

from .functional import pack, unpack
from .packing import AWQPacking
from .tensor import AWQPackedTensor

KNOWN_VERSIONS = ("0.2.7",)
_PACKED = "optimum.quanto.tensor.weights.awq.packed"


def _pack_v1(unpacked: torch.Tensor, reorder: bool = False) -> torch.Tensor:
    return pack(unpacked, AWQPacking.V1, reorder)


def _unpack_v1(packed: torch.Tensor, reorder: bool = False) -> torch.Tensor:
    return unpack(packed, AWQPacking.V1, reorder)


def _pack_v2(unpacked: torch.Tensor) -> torch.Tensor:
    return pack(unpacked, AWQPacking.V2)


def _unpack_v2(packed: torch.Tensor) -> torch.Tensor:
    return unpack(packed, AWQPacking.V2)


_REPLACEMENTS: dict[str, Any] = {
    "AWQPackedTensor": AWQPackedTensor,
    "AWQPacking": AWQPacking,
    "pack": _pack_v1,
    "unpack": _unpack_v1,
    "pack_v2": _pack_v2,
    "unpack_v2": _unpack_v2,
}

# What was where before enable(): (module, name, original).
_replaced: list[tuple[Any, str, Any]] = []


def _require_known_version() -> None:
    try:
        version = importlib.metadata.version("optimum-quanto")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("awqpack.quanto expects optimum-quanto to be installed; it is not") from error
    if version not in KNOWN_VERSIONS:
        raise RuntimeError(
            f"awqpack.quanto knows optimum-quanto {', '.join(KNOWN_VERSIONS)}; {version} is installed. "
            "Nothing was changed."
        )


class _Enabled:
    """What enable() returns: leaving it as a context manager disables again, unless awqpack was enabled before."""

    def __init__(self, was_enabled: bool) -> None:
        self._was_enabled = was_enabled

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._was_enabled:
            disable()


def enable() -> _Enabled:
    """Makes optimum-quanto use awqpack's class and packers, in every module of it that names them.

    Returns:
        A context manager that undoes it; it need not be used.

    Raises:
        ImportError: optimum-quanto is not installed.
        RuntimeError: its version is not one this module knows; nothing is changed then.
    """
    if _replaced:
        return _Enabled(was_enabled=True)
    _require_known_version()
    packed = importlib.import_module(_PACKED)
    originals = {name: getattr(packed, name) for name in _REPLACEMENTS}
    modules = [m for name, m in sys.modules.items() if name.startswith("optimum.quanto") and m is not None]
    for module in modules:
        for name, original in originals.items():
            if vars(module).get(name) is original:
                _replaced.append((module, name, original))
                setattr(module, name, _REPLACEMENTS[name])
    return _Enabled(was_enabled=False)


def disable() -> None:
    """Gives optimum-quanto its own class and packers back; without effect when awqpack is not enabled."""
    while _replaced:
        module, name, original = _replaced.pop()
        setattr(module, name, original)

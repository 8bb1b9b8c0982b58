"""Makes optimum-quanto's AWQ weights use awqpack: its AWQWeightQBitsTensor then packs and moves through this class.

    import awqpack.quanto
    awqpack.quanto.enable()

or, for a while only, ``with awqpack.quanto.enable(): ...``. ``awqpack.enable("optimum-quanto")`` does the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from .functional import pack, unpack
from .packing import AWQPacking
from .peers.exchange import Exchange, Replacement
from .tensor import AWQPackedTensor

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


def _replacements() -> Iterator[Replacement]:
    packed = importlib.import_module(_PACKED)
    return (Replacement(packed, name, ours) for name, ours in _REPLACEMENTS.items())


EXCHANGE = Exchange("optimum-quanto", ("0.2.7",), "optimum.quanto", _replacements)
enable = EXCHANGE.enable
disable = EXCHANGE.disable

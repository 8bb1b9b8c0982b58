"""The packers of others, which the benchmarks put beside ours."""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from awqpack.ops import portable

Call = Callable[[], object]


class Layout(NamedTuple):
    """One way to pack, as the ops number it."""

    name: str
    packing: int
    reorder: bool
    payload_dtype: torch.dtype


LAYOUTS = (
    Layout("V1", 1, False, torch.int32),
    Layout("V1 reorder", 1, True, torch.int32),
    Layout("V2", 2, False, torch.int16),
)


class _WithoutAsserts(importlib.abc.SourceLoader):
    """Loads a module with its asserts left out, as python -O does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self.path.read_bytes()

    def get_code(self, fullname: str) -> types.CodeType:
        code: types.CodeType = compile(self.path.read_bytes(), str(self.path), "exec", optimize=1)
        return code


def load_quanto() -> Any:
    """optimum-quanto's AWQ packing functions, or None where it is not installed.

    Only the two modules that hold them are loaded: the package wants half a dozen others. Asserts are left
    out, as they refuse the CPU, on which the functions work.
    """
    try:
        files = metadata.distribution("optimum-quanto").files or []
    except metadata.PackageNotFoundError:
        return None
    paths = {file.as_posix(): Path(str(file.locate())) for file in files}
    module = None
    for name in ("optimum.quanto.tensor.weights.packing", "optimum.quanto.tensor.weights.awq.packed"):
        for parent in itertools.accumulate(name.split(".")[:-1], "{}.{}".format):
            if parent not in sys.modules:
                package = types.ModuleType(parent)
                package.__path__ = []  # makes it a package, an empty one
                sys.modules[parent] = package
        spec = importlib.util.spec_from_loader(name, _WithoutAsserts(paths[name.replace(".", "/") + ".py"]))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]


def torch_pack(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """What one writes without a packer; V2 has no one-liner, so that awqpack's portable kernels stand in."""
    if layout.packing == 2:
        return portable.pack(codes, 2, False, False)
    words = codes.view(len(codes), -1, 8)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=codes.device)
    return ((words[..., _PLACES] if layout.reorder else words).int() << shifts).sum(-1, dtype=torch.int32)


def torch_unpack(payload: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The way back."""
    if layout.packing == 2:
        return portable.unpack(payload, 2, False)
    places = torch.tensor(_PLACES).argsort() if layout.reorder else torch.arange(8)
    shifts = (4 * places).to(payload.device, torch.int32)
    return (payload.unsqueeze(-1) >> shifts & 15).byte().flatten(-2)


def quanto_calls(quanto: Any, layout: Layout, codes: torch.Tensor, payload: torch.Tensor) -> dict[str, Call]:
    """optimum-quanto's packing and unpacking of one matrix."""
    if quanto is None:
        return {}
    if layout.packing == 2:
        return {"pack": lambda: quanto.pack_v2(codes), "unpack": lambda: quanto.unpack_v2(payload)}
    return {
        "pack": lambda: quanto.pack(codes, reorder=layout.reorder),
        "unpack": lambda: quanto.unpack(payload, reorder=layout.reorder),
    }

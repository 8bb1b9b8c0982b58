"""How others pack, round and gather, which the benchmarks put beside ours."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from awqpack import AWQPacking
from awqpack.formats import FORMATS, Format, format_of

Functions = dict[str, Callable[[torch.Tensor], Any]]  # by op: of codes, of a payload


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


@functools.cache
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


def torch_functions(form: Format) -> Functions:
    """V1 as one writes it without a packer: shifts and a sum."""
    places = [form.place(i)[1] for i in range(8)]
    back = sorted(range(8), key=places.__getitem__)

    def pack(codes: torch.Tensor) -> torch.Tensor:
        words = codes.view(len(codes), -1, 8)
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=codes.device)
        return ((words[..., places] if form.reorder else words).int() << shifts).sum(-1, dtype=torch.int32)

    def unpack(payload: torch.Tensor) -> torch.Tensor:
        shifts = 4 * torch.tensor(back, dtype=torch.int32, device=payload.device)
        return (payload.unsqueeze(-1) >> shifts & 15).byte().flatten(-2)

    return {"pack": pack, "unpack": unpack}


def gather_to_marlin(source: Format, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """From V1 of W.t() to Marlin as engines' own helpers go: all codes, each block gathered through an index, a sum."""
    marlin = format_of(AWQPacking.MARLIN.value)
    places = [marlin.place(i) for i in range(64 * 16)]
    index = torch.tensor([col * 64 + row for row, col in places], device=device)
    source_shifts = torch.tensor(
        [4 * i for i in sorted(range(8), key=lambda i: source.place(i)[1])], device=device
    ).int()
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=device)

    def gather(payload: torch.Tensor) -> torch.Tensor:
        lines, blocks = payload.shape[-2] // 16, payload.shape[-1] // 8
        codes = (payload.unsqueeze(-1) >> source_shifts & 15).view(*payload.shape[:-2], lines, 16, blocks, 64)
        gathered = codes.transpose(-3, -2).flatten(-2)[..., index]
        words = gathered.view(*gathered.shape[:-1], 128, 8) << shifts
        return words.sum(-1, dtype=torch.int32).flatten(-2)

    return gather


def _rounded(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Codes, as one writes it."""
    groups = weight.view(len(weight), scales.shape[1], -1)
    quotient = groups.float() / scales.float().unsqueeze(-1) + zeros.unsqueeze(-1)
    return quotient.round().clamp(0, 15).to(torch.uint8).flatten(1)


def _scaled(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The weight of codes, as one writes it."""
    groups = codes.view(len(codes), scales.shape[1], -1).float()
    weight = (groups - zeros.unsqueeze(-1)) * scales.float().unsqueeze(-1)
    return weight.to(scales.dtype).flatten(1)


def torch_float_functions() -> dict[str, Callable[..., torch.Tensor]]:
    """quantize of a weight and dequantize of a V1 payload, with scales and zeros: round, shift and sum; shift, mask and
    multiply."""
    packer = torch_functions(FORMATS[0])

    def quantize(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        return packer["pack"](_rounded(weight, scales, zeros))  # type: ignore[no-any-return]

    def dequantize(payload: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        return _scaled(packer["unpack"](payload), scales, zeros)

    return {"quantize": quantize, "dequantize": dequantize}

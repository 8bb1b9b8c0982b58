"""The packers of others, which the benchmarks put beside ours."""

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
from awqpack.formats import Format, format_of
from awqpack.ops import portable

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


def quanto_functions(form: Format) -> Functions | str:
    """optimum-quanto's packing and unpacking of one matrix."""
    quanto = load_quanto()
    if quanto is None:
        return "not installed (pip install --no-deps optimum-quanto==0.2.7)"
    if form.packing is AWQPacking.V2:
        return {"pack": quanto.pack_v2, "unpack": quanto.unpack_v2}
    if form.packing is not AWQPacking.V1:
        return f"packs no {form.title}"
    return {
        "pack": functools.partial(quanto.pack, reorder=form.reorder),
        "unpack": functools.partial(quanto.unpack, reorder=form.reorder),
    }


def compressed_tensors_functions(form: Format) -> Functions | str:
    """compressed-tensors' pack_to_int32 and unpack_from_int32, which take signed codes."""
    try:
        helpers = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
    except ImportError:
        return "not installed (pip install compressed-tensors==0.17.1)"
    if form.packing is not AWQPacking.V1 or form.reorder:
        return f"packs no {form.title}"

    def pack(codes: torch.Tensor) -> Any:
        return helpers.pack_to_int32(codes.to(torch.int8) - 8, 4)

    def unpack(payload: torch.Tensor) -> Any:
        shape = torch.Size([payload.shape[0], payload.shape[1] * 8])
        return (helpers.unpack_from_int32(payload, 4, shape) + 8).to(torch.uint8)

    return {"pack": pack, "unpack": unpack}


def torch_functions(form: Format) -> Functions | str:
    """What one writes without a packer: shifts and a sum. Without a one-liner, awqpack's portable kernels stand in."""
    if form.packing is not AWQPacking.V1:
        number, reorder = form.packing.value, form.reorder
        return {
            "pack": lambda codes: portable.pack(codes, number, reorder, False),
            "unpack": lambda payload: portable.unpack(payload, number, reorder),
        }
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


def compiled_functions(form: Format) -> Functions | str:
    """torch_functions under torch.compile."""
    plain = torch_functions(form)
    assert isinstance(plain, dict)
    return {op: torch.compile(function, dynamic=False) for op, function in plain.items()}


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


# Who packs codes beside us; each gives its functions for a packing, or says why it has none.
PEERS: dict[str, Callable[[Format], Functions | str]] = {
    "torch ops": torch_functions,
    "torch.compile": compiled_functions,
    "optimum-quanto": quanto_functions,
    "compressed-tensors": compressed_tensors_functions,
}


def peer_functions(form: Format) -> tuple[dict[str, Functions], dict[str, str]]:
    """The functions of every peer that packs this way, and the reasons of those that do not."""
    found, missing = {}, {}
    for name, functions_of in PEERS.items():
        functions = functions_of(form)
        if isinstance(functions, str):
            missing[name] = functions
        else:
            found[name] = functions
    return found, missing

"""Times what others pack, unpack, quantize and dequantize, each beside awqpack doing the same, on one weight.

The packages are those of `make bench`, at the versions that are named; what cannot run is listed with the reason. Every
result is compared with ours before it is timed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import torch

import awqpack
from awqpack import AWQPacking

from .adoption import GROUP, Layer, compressed_tensors_layer
from .float_peers import torch_calls
from .harness import Call, Row, compare, print_table
from .peers import load_quanto, torch_functions
from .progress import steps

GEMM = (AWQPacking.V1, True)
OPS = ("pack", "unpack", "quantize", "dequantize")


class Pair(NamedTuple):
    """The same work by others and by us, and the tensors of it that must be equal."""

    theirs: Call
    ours: Call
    compared: Callable[[], tuple[torch.Tensor, torch.Tensor]] | None = None


Pairs = dict[str, Pair]  # by op


def _same(theirs: Callable[[], torch.Tensor], ours: Callable[[], torch.Tensor]) -> Pair:
    return Pair(theirs, ours, lambda: (theirs(), ours()))


def _ours(layer: Layer) -> dict[str, Callable[[], torch.Tensor]]:
    """Our ops in the plain layout, V1 of the weight as it is."""
    payload = awqpack.pack(layer.codes)
    return {
        "pack": lambda: awqpack.pack(layer.codes),
        "unpack": lambda: awqpack.unpack(payload),
        "quantize": lambda: awqpack.quantize(layer.weight, layer.scales, layer.zeros),
        "dequantize": lambda: awqpack.dequantize(payload, layer.scales, layer.zeros),
    }


class Gemm:
    """A weight as AWQ's gemm holds it, turned; and our ops on it."""

    def __init__(self, layer: Layer) -> None:
        self.scales, self.zeros = layer.scales.t().contiguous(), layer.zeros.t().contiguous()
        self.codes = layer.codes.t().contiguous()
        self.qweight, self.qzeros = awqpack.pack(self.codes, *GEMM), awqpack.pack(self.zeros, *GEMM)
        self.weight = layer.weight

    def quantize(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All of a packed linear's words."""
        weight = awqpack.quantize(self.weight.t(), self.scales, self.zeros, *GEMM)
        return weight, awqpack.pack(self.zeros, *GEMM)

    def dequantize(self) -> torch.Tensor:
        """The weight (K, N), of a checkpoint's tensors."""
        zeros = awqpack.unpack(self.qzeros, *GEMM)
        return awqpack.dequantize(self.qweight, self.scales, zeros, *GEMM)

    def of_linear(self, theirs: Callable[[], Any]) -> Pair:
        """What others make of a float linear, beside ours."""
        return Pair(theirs, self.quantize, lambda: (theirs().qweight, self.quantize()[0]))


def torch_pairs(layer: Layer, is_compiled: bool) -> Pairs:
    """What one writes without a packer, vectorised."""
    ours = _ours(layer)
    packer = torch_functions(awqpack.formats.FORMATS[0])
    assert isinstance(packer, dict)
    wrap: Any = (lambda function: torch.compile(function, dynamic=False)) if is_compiled else lambda function: function
    functions = {op: wrap(function) for op, function in packer.items()}
    payload = awqpack.pack(layer.codes)
    pairs = {
        "pack": _same(lambda: functions["pack"](layer.codes), ours["pack"]),
        "unpack": _same(lambda: functions["unpack"](payload), ours["unpack"]),
    }
    calls = torch_calls(layer.weight, layer.scales, layer.zeros, is_compiled)
    return pairs | {op: _same(call, ours[op]) for op, call in calls.items()}


def quanto_pairs(layer: Layer) -> Pairs:
    """optimum-quanto's AWQ packing, with its asserts left out: they refuse the CPU."""
    quanto, ours = load_quanto(), _ours(layer)
    if quanto is None:
        raise ImportError
    payload = awqpack.pack(layer.codes)
    return {
        "pack": _same(lambda: quanto.pack(layer.codes, reorder=False), ours["pack"]),
        "unpack": _same(lambda: quanto.unpack(payload, reorder=False), ours["unpack"]),
    }


def compressed_tensors_pairs(layer: Layer) -> Pairs:
    """Its helpers on signed codes, and its compressor on a layer."""
    helpers = importlib.import_module("compressed_tensors.compressors.pack_quantized.helpers")
    ours, runs = _ours(layer), compressed_tensors_layer(layer)
    compress, decompress = runs.values()
    signed, payload = layer.codes.view(torch.int8) - 8, awqpack.pack(layer.codes)
    packed_zeros = awqpack.pack(layer.zeros.t()).t().contiguous()

    def quantize() -> torch.Tensor:
        awqpack.pack(layer.zeros.t()).t().contiguous()
        return ours["quantize"]()

    def dequantize() -> torch.Tensor:
        zeros = awqpack.unpack(packed_zeros.t()).t()
        return awqpack.dequantize(payload, layer.scales, zeros)

    return {
        "pack": _same(lambda: helpers.pack_to_int32(signed, 4), ours["pack"]),
        "unpack": Pair(lambda: helpers.unpack_from_int32(payload, 4, layer.codes.shape), ours["unpack"]),
        "quantize": Pair(compress, quantize, lambda: (compress()["weight_packed"], quantize())),
        "dequantize": Pair(decompress, dequantize, lambda: (decompress()["weight"], dequantize())),
    }


def auto_round_pairs(layer: Layer) -> Pairs:
    """Its AWQ linear."""
    utils = importlib.import_module("auto_round.export.export_to_awq.utils")
    gemm = Gemm(layer)
    zeros = gemm.zeros.float()

    def quantize() -> Any:
        return utils.WQLinear_GEMM.from_linear(layer.linear, 4, GROUP, scales=gemm.scales, zeros=zeros, device="cpu")

    return {
        "quantize": gemm.of_linear(quantize),
        "dequantize": _same(
            lambda: utils.dequantize_gemm(gemm.qweight, gemm.qzeros, gemm.scales, 4, GROUP), gemm.dequantize
        ),
    }


def gptqmodel_pairs(layer: Layer) -> Pairs:
    """Its AWQ linear, and the functions below it."""
    module = importlib.import_module("gptqmodel.nn_modules.qlinear.torch_awq")
    packing = importlib.import_module("gptqmodel.quantization.awq.utils.packing_utils")
    gemm, codes = Gemm(layer), layer.codes.t().contiguous().int()
    zeros, (rows, cols) = layer.zeros.to(layer.scales.dtype), layer.weight.shape
    no_zeros = torch.zeros(1, 8, dtype=torch.int32)

    def quantize() -> Any:
        made = module.AwqTorchLinear(
            bits=4, group_size=GROUP, sym=False, desc_act=False, in_features=cols, out_features=rows,
            register_buffers=False,
        )  # fmt: skip
        made.pack(layer.linear, layer.scales, zeros)
        return made

    return {
        "pack": _same(lambda: packing.pack_awq(codes, no_zeros, 4)[0], lambda: awqpack.pack(gemm.codes, *GEMM)),
        "quantize": gemm.of_linear(quantize),
        "dequantize": _same(
            lambda: packing.dequantize_gemm(gemm.qweight, gemm.qzeros, gemm.scales, 4, GROUP), gemm.dequantize
        ),
    }


def autoawq_pairs(layer: Layer) -> Pairs:
    """Its gemm linear."""
    linear = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    packing = importlib.import_module("awq.utils.packing_utils")
    gemm = Gemm(layer)
    zeros = gemm.zeros.to(layer.scales.dtype)
    return {
        "quantize": Pair(
            lambda: linear.from_linear(layer.linear, 4, GROUP, scales=gemm.scales, zeros=zeros), gemm.quantize
        ),
        "dequantize": _same(
            lambda: packing.dequantize_gemm(gemm.qweight, gemm.qzeros, gemm.scales, 4, GROUP), gemm.dequantize
        ),
    }


def modelopt_pairs(layer: Layer) -> Pairs:
    """Its exporter's words, symmetric: the ops are ours through the layout."""
    quant_utils = importlib.import_module("modelopt.torch.export.quant_utils")
    layouts = importlib.import_module("awqpack.layouts")
    scales, _ = awqpack.min_max_scales(layer.weight, GROUP, symmetric=True)

    def theirs() -> torch.Tensor:
        return quant_utils.pack_int4_in_uint8(layer.weight, scales, GROUP)  # type: ignore[no-any-return]

    def ours() -> torch.Tensor:
        made = layouts.LAYOUTS["modelopt"].encode_float(layer.weight, scales)
        return made["weight"]  # type: ignore[no-any-return]

    return {"quantize": _same(theirs, ours)}


# Package, the version that make bench installs, what it does.
PEERS: dict[str, tuple[str | None, Callable[[Layer], Pairs]]] = {
    "torch ops": (None, lambda layer: torch_pairs(layer, is_compiled=False)),
    "torch.compile": (None, lambda layer: torch_pairs(layer, is_compiled=True)),
    "optimum-quanto": ("0.2.7", quanto_pairs),
    "compressed-tensors": ("0.17.1", compressed_tensors_pairs),
    "auto-round": ("0.16.1", auto_round_pairs),
    "gptqmodel": ("7.7.0", gptqmodel_pairs),
    "nvidia-modelopt": ("0.47.0", modelopt_pairs),
    "autoawq": ("0.2.9", autoawq_pairs),
}
SLOW = {("autoawq", "quantize")}  # half a minute: timed once, and not compared before (the suite adoption does)


def reason_not_to_run(peer: str) -> str | None:
    """Why a peer cannot be timed here; None when it can."""
    pinned, _ = PEERS[peer]
    if pinned is None:
        return None
    try:
        version = metadata.version(peer)
    except metadata.PackageNotFoundError:
        return f"not installed (make bench installs {pinned})"
    return None if version == pinned else f"{version} is installed; {pinned} is compared"


def timed(peer: str, layer: Layer, turns: int) -> Iterator[Row]:
    """Every op of a peer beside ours, in turns."""
    pinned, pairs_of = PEERS[peer]
    what: dict[str, object] = {
        "size": "x".join(map(str, layer.weight.shape)),
        "dtype": "float16",
        "version": pinned or torch.__version__,
    }
    for op, pair in pairs_of(layer).items():
        is_slow = (peer, op) in SLOW
        if pair.compared and not is_slow:
            theirs, ours = pair.compared()
            different = int((theirs.reshape(ours.shape) != ours).sum())
            # compressed-tensors and ModelOpt round before they add the zero, torch's ops after.
            what = {**what, "different": different}
        if is_slow:
            pair.ours()
        calls, baselines = {"awqpack": pair.ours}, {peer: pair.theirs}
        yield from compare("beside", op, calls, baselines, 1 if is_slow else turns, what=what, is_warm=is_slow)


def plan(size: int, turns: int, missing: dict[str, str]) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """A step for each peer; those that cannot run are noted with the reason."""
    layer = Layer(size)

    def step(peer: str) -> list[Row]:
        try:
            return list(timed(peer, layer, turns))
        except ImportError as error:
            missing[peer] = str(error)
            return []

    for peer in PEERS:
        reason = reason_not_to_run(peer)
        if reason is not None:
            missing[peer] = reason
        else:
            yield peer, lambda peer=peer: step(peer)  # type: ignore[misc]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--size", type=int, default=4096, help="side of the weight (4096)")
    parser.add_argument("--turns", type=int, default=2, help="timed turns of each call (2)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    os.environ.setdefault("DISABLE_TQDM", "1")
    missing: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = steps("beside others", list(plan(options.size, options.turns, missing)))
    size = f"{options.size}x{options.size} in float16, {torch.get_num_threads()} threads"
    down = ("baseline", "version")
    print_table(f"Milliseconds of awqpack, {size}", rows, down, ("op",), "ms")
    print_table(f"Milliseconds of others, {size}", rows, down, ("op",), "baseline_ms")
    print_table("How many times as fast as others awqpack is", rows, down, ("op",))
    for peer, reason in missing.items():
        print(f"left out: {peer}: {reason}")
    return rows

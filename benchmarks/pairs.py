"""What other packages do with one weight, each piece of work beside ours on the same device."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import awqpack
from awqpack import AWQPacking
from awqpack.formats import FORMATS, format_of

from .adoption import GROUP, Layer, compressed_tensors_layer
from .harness import Call
from .peers import gather_to_marlin, load_quanto, torch_float_functions, torch_functions

GEMM = (AWQPacking.V1, True)


class CannotRun(Exception):
    """Why a peer has nothing to time here."""


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

    def to_marlin(self) -> torch.Tensor:
        """The payload that Marlin kernels read."""
        return awqpack.relayout(self.qweight, GEMM, AWQPacking.MARLIN, transpose=True)

    def of_linear(self, theirs: Callable[[], Any]) -> Pair:
        """What others make of a float linear, beside ours."""
        return Pair(theirs, self.quantize, lambda: (theirs().qweight, self.quantize()[0]))


def torch_pairs(layer: Layer, is_compiled: bool) -> Pairs:
    """What one writes without a packer, vectorised; and the gather that engines write for Marlin."""
    ours, gemm = _ours(layer), Gemm(layer)
    given: dict[str, tuple[torch.Tensor, ...]] = {
        "pack": (layer.codes,),
        "unpack": (awqpack.pack(layer.codes),),
        "quantize": (layer.weight, layer.scales, layer.zeros),
        "dequantize": (awqpack.pack(layer.codes), layer.scales, layer.zeros),
        "gemm to Marlin": (gemm.qweight,),
    }
    ours["gemm to Marlin"] = gemm.to_marlin
    functions: dict[str, Any] = {**torch_functions(FORMATS[0]), **torch_float_functions()}
    functions["gemm to Marlin"] = gather_to_marlin(format_of(GEMM[0].value, GEMM[1]), layer.weight.device)

    def pair(op: str) -> Pair:
        function = torch.compile(functions[op], dynamic=False) if is_compiled else functions[op]
        return _same(lambda: function(*given[op]), ours[op])

    return {op: pair(op) for op in functions}


def quanto_pairs(layer: Layer) -> Pairs:
    """optimum-quanto's AWQ packing, with its asserts left out: they refuse the CPU."""
    quanto, ours = load_quanto(), _ours(layer)
    if quanto is None:
        raise CannotRun("holds no AWQ packing")
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
    zeros, device = gemm.zeros.float(), layer.weight.device.type

    def quantize() -> Any:
        return utils.WQLinear_GEMM.from_linear(layer.linear, 4, GROUP, scales=gemm.scales, zeros=zeros, device=device)

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
    no_zeros = torch.zeros(1, 8, dtype=torch.int32, device=codes.device)

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
    """Its exporter's words, symmetric."""
    quant_utils = importlib.import_module("modelopt.torch.export.quant_utils")
    layouts = importlib.import_module("awqpack.layouts")
    scales, _ = awqpack.min_max_scales(layer.weight, GROUP, symmetric=True)

    def theirs() -> torch.Tensor:
        return quant_utils.pack_int4_in_uint8(layer.weight, scales, GROUP)  # type: ignore[no-any-return]

    def ours() -> torch.Tensor:
        made = layouts.LAYOUTS["modelopt"].encode_float(layer.weight, scales)
        return made["weight"]  # type: ignore[no-any-return]

    return {"quantize": _same(theirs, ours)}


def triton_pairs(layer: Layer) -> Pairs:
    """A dequantizing kernel as projects write it in Triton: a program for each row and run of words."""
    if not layer.weight.is_cuda:
        raise CannotRun("needs a GPU")
    kernels = importlib.import_module(".triton_kernels", __package__)
    payload = awqpack.pack(layer.codes)
    theirs = lambda: kernels.dequantize(payload, layer.scales, layer.zeros)  # noqa: E731
    return {"dequantize": _same(theirs, _ours(layer)["dequantize"])}


# Package, the version that make bench installs or None where torch brings it, what it does.
PEERS: dict[str, tuple[str | None, Callable[[Layer], Pairs]]] = {
    "torch ops": (None, lambda layer: torch_pairs(layer, is_compiled=False)),
    "torch.compile": (None, lambda layer: torch_pairs(layer, is_compiled=True)),
    "a Triton kernel": (None, triton_pairs),
    "optimum-quanto": ("0.2.7", quanto_pairs),
    "compressed-tensors": ("0.17.1", compressed_tensors_pairs),
    "auto-round": ("0.16.1", auto_round_pairs),
    "gptqmodel": ("7.7.0", gptqmodel_pairs),
    "nvidia-modelopt": ("0.47.0", modelopt_pairs),
    "autoawq": ("0.2.9", autoawq_pairs),
}
SLOW = {("autoawq", "quantize")}  # half a minute: timed once, and not compared before (the suite adoption does)

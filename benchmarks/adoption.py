"""Times other packages packing and saving, as they are and with awqpack enabled in them, and compares every byte."""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import awqpack

from .harness import Row, medians, print_table
from .progress import steps

GROUP = 128
SAVE_TURNS = 3  # the first of which counts, too
SLOW_SIZE = 1024  # of the layer of a package that packs a column at a time
# Two decoder layers of the shape of TinyLlama-1.1B.
MODEL = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}

Run = Callable[[], Mapping[str, Any]]  # what was packed: tensors, or digests of files


class Layer:
    """A linear layer whose weight codes, scales and zeros stand for, as a quantizer leaves it."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float16, device: str = "cpu") -> None:
        weight = (torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 0.02).to(device)
        self.scales, self.zeros = awqpack.min_max_scales(weight.to(dtype), GROUP)
        self.codes = awqpack.unpack(awqpack.quantize(weight.to(dtype), self.scales, self.zeros))
        payload = awqpack.pack(self.codes)
        self.weight = awqpack.dequantize(payload, self.scales, self.zeros)
        self.linear = torch.nn.Linear(size, size, bias=False, device="meta")
        self.linear.weight = torch.nn.Parameter(self.weight, requires_grad=False)


def tiny_model() -> Any:
    """Two layers of a Llama in bfloat16, random weights."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(**MODEL, num_hidden_layers=2, vocab_size=2048)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def linears_of(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers that are quantized: all but the head."""
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


def digests(folder: str) -> dict[str, str]:
    """What the folder's weight files hold."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A packed linear's tensors."""
    return dict(module.named_buffers())


# --- compressed-tensors ---


def _scheme(symmetric: bool) -> Any:
    quantization = importlib.import_module("compressed_tensors.quantization")
    weights = quantization.QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=GROUP)
    return quantization.QuantizationScheme(targets=["Linear"], weights=weights)


def compressed_tensors_layer(layer: Layer) -> dict[str, Run]:
    """One weight compressed, and decompressed again."""
    base = importlib.import_module("compressed_tensors.compressors.pack_quantized.base")
    compressor, scheme = base.PackedQuantizationCompressor, _scheme(False)
    state = {
        "weight": layer.weight,
        "weight_scale": layer.scales,
        "weight_zero_point": layer.zeros.view(torch.int8) - 8,
    }
    compressed = compressor.compress(state, scheme)
    return {
        "compress a layer": lambda: compressor.compress(state, scheme),
        "decompress a layer": lambda: compressor.decompress(compressed, scheme),
    }


def compressed_tensors_model(model: Any) -> Run:
    """compress_model and save_pretrained, as llm-compressor saves."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    compressors = importlib.import_module("compressed_tensors.compressors")
    config = quantization.QuantizationConfig(config_groups={"group_0": _scheme(True)}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, config)
    for linear in linears_of(model).values():
        scales, _ = awqpack.min_max_scales(linear.weight.detach(), GROUP, symmetric=True)
        linear.weight_scale.data = scales

    def run() -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            given = copy.deepcopy(model)
            compressors.ModelCompressor.from_pretrained_model(given).compress_model(given)
            given.save_pretrained(folder)
            return digests(folder)

    return run


# --- auto-round ---


def auto_round_layer(layer: Layer) -> dict[str, Run]:
    """One weight packed as AWQ's gemm, and as GPTQ."""
    awq = importlib.import_module("auto_round.export.export_to_awq.utils")
    gptq = importlib.import_module("auto_round_extension.torch.qlinear_torch_zp")
    scales, zeros = layer.scales.t().contiguous(), layer.zeros.t().contiguous().float()
    rows, cols = layer.weight.shape

    def pack_gptq() -> dict[str, torch.Tensor]:
        made = gptq.QuantLinear(4, GROUP, cols, rows, False)
        made.pack(layer.linear, layer.scales, layer.zeros.float(), None, "cpu")
        return buffers(made)

    return {
        "WQLinear_GEMM.from_linear": lambda: buffers(
            awq.WQLinear_GEMM.from_linear(layer.linear, 4, GROUP, scales=scales, zeros=zeros, device="cpu")
        ),
        "QuantLinear.pack (GPTQ)": pack_gptq,
    }


def auto_round_model(model: Any) -> Run:
    """save_quantized_as_autoawq of a model whose layers have their scales and zeros."""
    export = importlib.import_module("auto_round.export.export_to_awq.export")
    for linear in linears_of(model).values():
        scales, zeros = awqpack.min_max_scales(linear.weight.detach(), GROUP, dtype=torch.float16)
        settings = {"bits": 4, "group_size": GROUP, "sym": False, "scale": scales, "zp": zeros.float()}
        for name, value in settings.items():
            setattr(linear, name, value)
    layers = {name: {"bits": 4, "group_size": GROUP, "sym": False} for name in linears_of(model)}

    def run() -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            how = {"bits": 4, "group_size": GROUP, "sym": False, "to_quant_block_names": None}
            export.save_quantized_as_autoawq(
                folder, copy.deepcopy(model), layer_config=layers, device="cpu", serialization_dict=how
            )
            return digests(folder)

    return run


# --- GPTQModel ---


def _gptq_linear(linear: torch.nn.Linear) -> Any:
    module = importlib.import_module("gptqmodel.nn_modules.qlinear.torch")
    shape = {"in_features": linear.in_features, "out_features": linear.out_features}
    return module.TorchLinear(bits=4, group_size=GROUP, sym=False, desc_act=False, **shape, register_buffers=False)


def _groups(cols: int) -> torch.Tensor:
    return torch.arange(cols, dtype=torch.int32) // GROUP


def gptqmodel_layer(layer: Layer) -> dict[str, Run]:
    """One weight packed as AWQ's gemm, and as GPTQ."""
    awq = importlib.import_module("gptqmodel.nn_modules.qlinear.torch_awq")
    rows, cols = layer.weight.shape

    def pack_awq() -> dict[str, torch.Tensor]:
        made = awq.AwqTorchLinear(
            bits=4, group_size=GROUP, sym=False, desc_act=False, in_features=cols, out_features=rows,
            register_buffers=False,
        )  # fmt: skip
        made.pack(layer.linear, layer.scales, layer.zeros.to(layer.scales.dtype))
        return buffers(made)

    def pack_gptq() -> dict[str, torch.Tensor]:
        made = _gptq_linear(layer.linear)
        made.pack_original(layer.linear, layer.scales, layer.zeros.float(), _groups(cols))
        return buffers(made)

    return {"AwqTorchLinear.pack": pack_awq, "TorchLinear.pack_original (GPTQ)": pack_gptq}


def gptqmodel_model(model: Any) -> Run:
    """Every linear packed as GPTQ, and saved."""
    safetensors = importlib.import_module("safetensors.torch")
    scales_of = {n: awqpack.min_max_scales(m.weight.detach(), GROUP) for n, m in linears_of(model).items()}

    def run() -> dict[str, str]:
        saved: dict[str, torch.Tensor] = {}
        for name, linear in linears_of(model).items():
            made, (scales, zeros) = _gptq_linear(linear), scales_of[name]
            made.pack_original(linear, scales.float(), zeros.float(), _groups(linear.in_features))
            saved |= {f"{name}.{key}": tensor.contiguous() for key, tensor in buffers(made).items()}
        with tempfile.TemporaryDirectory() as folder:
            safetensors.save_file(saved, Path(folder) / "model.safetensors")
            return digests(folder)

    return run


# --- AutoAWQ ---


def autoawq_layer(layer: Layer) -> dict[str, Run]:
    """One weight packed in each of its layouts."""
    gemm = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    fast = importlib.import_module("awq.modules.linear.gemv_fast").WQLinear_GEMVFast
    zeros = layer.zeros.to(layer.scales.dtype)
    turned = {"scales": layer.scales.t().contiguous(), "zeros": zeros.t().contiguous()}
    return {
        "WQLinear_GEMM.from_linear": lambda: buffers(gemm.from_linear(layer.linear, 4, GROUP, **turned)),
        "WQLinear_GEMVFast.from_linear": lambda: buffers(
            fast.from_linear(layer.linear, 4, GROUP, scales=layer.scales, zeros=zeros)
        ),
    }


# --- all of them ---

LAYERS: dict[str, Callable[[Layer], dict[str, Run]]] = {
    "compressed-tensors": compressed_tensors_layer,
    "auto-round": auto_round_layer,
    "gptqmodel": gptqmodel_layer,
    "autoawq": autoawq_layer,
}
SAVES: dict[str, tuple[str, Callable[[Any], Run]]] = {
    "compressed-tensors": ("save a model: compress_model, save_pretrained", compressed_tensors_model),
    "auto-round": ("save a model: save_quantized_as_autoawq", auto_round_model),
    "gptqmodel": ("save a model: pack_original, save_file", gptqmodel_model),
}


def reason_not_to_run(package: str) -> str | None:
    """Why a package cannot be timed here; None when it can."""
    known = awqpack.peers.exchange_of(package).versions
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"{package} is not installed (make bench installs {known[-1]})"
    return None if version in known else f"{package} {version} is installed, and {', '.join(known)} are known"


def require_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    """Ends the run unless both packed the same."""
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        if not same:
            raise SystemExit(f"{what}: {name} differs once awqpack is enabled")
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{what}: {sorted(ours)} is packed once awqpack is enabled, not {sorted(theirs)}")


def timed(package: str, op: str, run: Run, turns: int, case: str, is_warm: bool) -> Row:
    """Both ways, in turns; the results of the last turn are compared."""
    results: dict[str, Mapping[str, Any]] = {}

    def theirs() -> None:
        results["theirs"] = run()

    def ours() -> None:
        with awqpack.enable(package):
            results["ours"] = run()

    seconds = medians({"theirs": theirs, "ours": ours}, turns, is_warm=is_warm)
    require_equal(results["ours"], results["theirs"], f"{package}, {op}")
    what: dict[str, object] = {"version": metadata.version(package), "case": case, "same_bytes": "yes"}
    return Row("adoption", op, f"{package} with awqpack", seconds["ours"], what, None, package, seconds["theirs"])


def plan(size: int, turns: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Each package's steps, named."""

    def layers(package: str) -> list[Row]:
        side = min(size, SLOW_SIZE) if package == "autoawq" else size
        runs = LAYERS[package](Layer(side))
        return [timed(package, op, run, turns, f"{side}x{side}", is_warm=False) for op, run in runs.items()]

    def save(package: str) -> list[Row]:
        op, prepare = SAVES[package]
        return [timed(package, op, prepare(tiny_model()), SAVE_TURNS, "2 layers of TinyLlama-1.1B", is_warm=True)]

    for package in LAYERS:
        if reason_not_to_run(package) is None:
            yield f"{package}: a layer", lambda package=package: layers(package)  # type: ignore[misc]
            if package in SAVES:
                yield f"{package}: a save", lambda package=package: save(package)  # type: ignore[misc]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--size", type=int, default=4096, help="side of a layer's weight (4096; AutoAWQ's is 1024)")
    parser.add_argument("--turns", type=int, default=2, help="timed turns of a layer (2)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    # What packages say of themselves when they are imported, and of torch without a GPU.
    os.environ.setdefault("DISABLE_TQDM", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = steps("adoption", list(plan(options.size, options.turns)))
    down = ("baseline", "version", "op", "case", "baseline_ms", "ms", "same_bytes")
    print_table("Milliseconds as it is and with awqpack.enable, and how many times as fast", rows, down, ("table",))
    for package in LAYERS:
        if (reason := reason_not_to_run(package)) is not None:
            print(f"left out: {reason}")
    return rows

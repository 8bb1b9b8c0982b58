"""Times optimum-quanto quantizing and freezing one large linear layer: as it is, and with awqpack under its weights.

Both take turns in one process and must give equal weights.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

import awqpack.quanto

from .harness import Call, Row, compare, print_table, synchronized

# Whose packers run: what is entered around every call.
WHO: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "optimum-quanto": contextlib.nullcontext,
    "awqpack": awqpack.quanto.enable,
}


def reason_not_to_run(available: bool, capability: tuple[int, int] | None) -> str | None:
    """Why optimum-quanto would make no AWQ weights here; None when it does."""
    if not available or capability is None:
        return "torch sees no CUDA GPU, and on other devices optimum-quanto makes no AWQ weights"
    if capability < (8, 0):
        has = ".".join(map(str, capability))
        return f"optimum-quanto makes AWQ weights from compute capability 8.0 on; this GPU has {has}"
    return None


def quantized(linear: torch.nn.Linear) -> torch.nn.Module:
    """A model of one quantized and frozen layer of these weights: qint4 in groups of 128."""
    quanto = importlib.import_module("optimum.quanto")
    layer = torch.nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    layer.weight = linear.weight  # quantize() takes the weight out of the layer that it is given
    model = torch.nn.Sequential(layer)
    quanto.quantize(model, weights=quanto.qint4)
    quanto.freeze(model)
    return model


def inner_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What the frozen weight consists of, its payload as a plain tensor."""
    weight: Any = model[0].weight  # type: ignore[index]
    kind = type(weight).__name__
    if kind != "AWQWeightQBitsTensor":
        raise SystemExit(f"optimum-quanto made a {kind} of the weight, not an AWQWeightQBitsTensor: nothing to compare")
    return {"payload": weight._data._data, "scale": weight._scale, "shift": weight._shift}


def timed(linear: torch.nn.Linear, turns: int) -> list[Row]:
    """Each step by each of WHO, in turns."""
    models: dict[str, torch.nn.Module] = {}
    for who, enabled in WHO.items():
        with enabled():
            models[who] = quantized(linear)
    ours, theirs = inner_tensors(models["awqpack"]), inner_tensors(models["optimum-quanto"])
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    if different:
        raise SystemExit(f"the weights differ in {', '.join(different)}")
    if type(models["awqpack"][0].weight._data) is not awqpack.AWQPackedTensor:  # type: ignore[index]
        raise SystemExit("awqpack was enabled, and yet its class is not in the weight")

    steps: dict[str, Callable[[torch.nn.Module], object]] = {
        "quantize and freeze": lambda _: quantized(linear),
        "state_dict": lambda model: model.state_dict(),
    }

    what = {"shape": "x".join(map(str, linear.weight.shape))}
    rows: list[Row] = []
    for op, step in steps.items():
        calls: dict[str, Call] = {who: Entered(WHO[who], functools.partial(step, models[who])) for who in WHO}
        baseline = {"optimum-quanto": calls.pop("optimum-quanto")}
        rows += compare("quanto", op, calls, baseline, turns, inside, what=what)
    return rows


@dataclass(frozen=True)
class Entered:
    """A step, and what it runs under; entering that is not timed."""

    enabled: Callable[[], Any]
    step: Call

    def __call__(self) -> object:
        return self.step()


def inside(call: Call) -> float:
    """Seconds of a step, once awqpack is enabled or is not."""
    assert isinstance(call, Entered)
    with call.enabled():
        return synchronized(call)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--out-features", type=int, default=14336)
    parser.add_argument("--in-features", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=20, help="turns of each step (default 20)")


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    available = torch.cuda.is_available()
    reason = reason_not_to_run(available, torch.cuda.get_device_capability() if available else None)
    if reason is not None:
        raise SystemExit(f"the quanto suite cannot run: {reason}")
    torch.manual_seed(0)
    linear = torch.nn.Linear(options.in_features, options.out_features, bias=False, dtype=torch.float16, device="cuda")
    rows = timed(linear, options.turns)
    print_table("optimum-quanto's time / that with awqpack", rows, ("op", "shape", "baseline_ms", "ms"), ("who",))
    return rows

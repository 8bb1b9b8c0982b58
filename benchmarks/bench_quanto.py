"""Times optimum-quanto quantizing and freezing one large linear layer: as it is, and with awqpack under its weights.

Both take turns in one process and must give equal weights. Prints a table, writes results/quanto-<machine>-<date>.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from common import environment, write_csv

import awqpack.quanto

Row = dict[str, object]

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


def seconds_of(step: Callable[[torch.nn.Module], object], model: torch.nn.Module) -> float:
    """Wall time of one call, from an idle device to an idle device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(model)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def timed(linear: torch.nn.Linear, repetitions: int) -> list[Row]:
    """Each step by each of WHO, in turns; milliseconds."""
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
    rows: list[Row] = []
    print(f"{'step':<22}{'optimum-quanto ms':>18}{'awqpack ms':>12}{'ratio':>8}")
    for name, step in steps.items():
        times: dict[str, list[float]] = {who: [] for who in WHO}
        for turn in range(repetitions + 1):  # the first does not count
            for who, enabled in WHO.items():
                with enabled():
                    seconds = seconds_of(step, models[who])
                if turn > 0:
                    times[who].append(seconds)
        medians = {who: statistics.median(values) for who, values in times.items()}
        before, after = medians["optimum-quanto"], medians["awqpack"]
        print(f"{name:<22}{before * 1e3:>18.3f}{after * 1e3:>12.3f}{before / after:>8.2f}")
        shape = "x".join(map(str, linear.weight.shape))
        rows += [
            {"step": name, "shape": shape, "who": who, "ms": f"{value * 1e3:.4f}"} for who, value in medians.items()
        ]
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out-features", type=int, default=14336)
    parser.add_argument("--in-features", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=20, help="turns of each step (default 20)")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    options = parser.parse_args()
    available = torch.cuda.is_available()
    reason = reason_not_to_run(available, torch.cuda.get_device_capability() if available else None)
    if reason is not None:
        raise SystemExit(f"bench_quanto: {reason}")
    torch.manual_seed(0)
    linear = torch.nn.Linear(options.in_features, options.out_features, bias=False, dtype=torch.float16, device="cuda")
    where = environment() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda or ""}
    print(", ".join(f"{key} {where[key]}" for key in ("gpu", "cuda", "torch", "awqpack", "commit")))
    rows = timed(linear, options.repetitions)
    if not options.no_csv:
        print(f"wrote {write_csv('quanto', where, rows)}")


if __name__ == "__main__":
    main()

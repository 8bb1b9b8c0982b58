"""Times what a packed tensor costs the host per call, beside optimum-quanto's class and a plain tensor.

The tensors are small, so that dispatch is all there is. Prints a table and writes results/host-<machine>-<date>.csv;
README.md beside this file says how to read it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from common import environment, write_csv
from peers import load_quanto

from awqpack import AWQPackedTensor, AWQPacking

Call = Callable[[], object]

CALLS: dict[str, Callable[[torch.Tensor], object]] = {
    "detach": lambda t: t.detach(),
    "aten.detach": torch.ops.aten.detach.default,
    "to(same device, copy)": lambda t: t.to(t.device, copy=True),
    "aten._to_copy": torch.ops.aten._to_copy.default,
    "+ 1": lambda t: t + 1,
    "cat of 20 times one": lambda t: torch.cat([t] * 20),
}

# What a wrapper subclass cannot go below in __torch_dispatch__ is timed beside these.
FLOORS = ("detach", "aten.detach", "to(same device, copy)", "aten._to_copy")


class Bare(torch.Tensor):
    """The least a wrapper subclass can do: torch's trip to __torch_dispatch__, and the op on the payload alone."""

    payload: torch.Tensor

    @staticmethod
    def __new__(cls, payload: torch.Tensor, size: Sequence[int]) -> Bare:
        """A wrapper that has the size of the codes."""
        self: Bare = torch.Tensor._make_wrapper_subclass(cls, size, dtype=torch.uint8, device=payload.device)
        self.payload = payload
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """func on the payload of its first argument."""
        return func(args[0].payload)


def microseconds(calls: Mapping[str, Call], number: int, repetitions: int) -> dict[str, float]:
    """Median over repetitions of the mean microseconds of `number` calls; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repetitions + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(number):
                call()
            seconds = time.perf_counter() - start
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:
                times[name].append(seconds / number * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def contestants(device: str, size: int) -> dict[str, torch.Tensor]:
    """The same codes plain, packed by us and, where it is installed, packed by optimum-quanto."""
    codes = torch.randint(0, 16, (size, size), dtype=torch.uint8, device=device)
    tensors: dict[str, torch.Tensor] = {"plain": codes, "awqpack": AWQPackedTensor.pack(codes, AWQPacking.V1)}
    quanto = load_quanto()
    if quanto is None:
        print("optimum-quanto is not installed: left out (pip install --no-deps optimum-quanto==0.2.7)")
    else:
        tensors["optimum-quanto"] = quanto.AWQPackedTensor.pack(codes, quanto.AWQPacking.V1)
    return tensors


def constructions(tensors: dict[str, torch.Tensor]) -> dict[str, Call]:
    """The wrapper torch makes for any subclass, and each class around a payload that is there."""
    ours = tensors["awqpack"]
    assert isinstance(ours, AWQPackedTensor)
    size, stride, device = tuple(ours.shape), ours.stride(), ours.device
    make = torch.Tensor._make_wrapper_subclass
    calls: dict[str, Call] = {
        "_make_wrapper_subclass": lambda: make(AWQPackedTensor, size, strides=stride, dtype=torch.uint8, device=device),
        "awqpack": lambda: AWQPackedTensor(ours.payload, AWQPacking.V1, False, size, stride),
    }
    theirs = tensors.get("optimum-quanto")
    if theirs is not None:
        cls, packing = type(theirs), theirs._packing  # type: ignore[attr-defined]
        calls["optimum-quanto"] = lambda: cls(ours.payload, packing, False, size, stride)
    return calls


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64, help="side of the matrix (default 64)")
    parser.add_argument("--number", type=int, default=500, help="calls in one timing (default 500)")
    parser.add_argument("--repetitions", type=int, default=9, help="timings of each call (default 9)")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    options = parser.parse_args()
    tensors = contestants(options.device, options.size)
    measured = {"construction": microseconds(constructions(tensors), options.number, options.repetitions)}
    ours = tensors["awqpack"]
    assert isinstance(ours, AWQPackedTensor)
    bare = Bare(ours.payload, ours.shape)
    for name, call in CALLS.items():
        bound = {who: functools.partial(call, t) for who, t in tensors.items()}
        if name in FLOORS:
            bound["floor"] = functools.partial(call, bare)
        measured[name] = microseconds(bound, options.number, options.repetitions)
    distinct = {who: [t.detach() for _ in range(20)] for who, t in tensors.items()}
    cat = {who: functools.partial(torch.cat, list_) for who, list_ in distinct.items()}
    measured["cat of 20"] = microseconds(cat, options.number, options.repetitions)
    wrapper = measured["construction"]["_make_wrapper_subclass"]
    rows: list[dict[str, object]] = []
    print(f"microseconds a call, {options.size}x{options.size} codes on {options.device}")
    heads = "".join(f"{head:>10}" for head in ("plain", "awqpack", "quanto", "floor", "wrapper"))
    print(f"{'call':<24}{heads}{'quanto/awqpack':>17}{'added: quanto/awqpack':>24}")
    for name, times in measured.items():
        plain, packed, theirs = times.get("plain"), times["awqpack"], times.get("optimum-quanto")
        added = (theirs - plain) / (packed - plain) if theirs is not None and plain is not None else None
        cells = [plain, packed, theirs, times.get("floor"), wrapper]
        text = "".join(f"{'' if cell is None else f'{cell:.2f}':>10}" for cell in cells)
        ratio = "" if theirs is None else f"{theirs / packed:.2f}"
        print(f"{name:<24}{text}{ratio:>17}{'' if added is None else f'{added:.2f}':>24}")
        rows += [
            {"call": name, "who": who, "device": options.device, "microseconds": f"{value:.3f}"}
            for who, value in times.items()
        ]
    print(f"detach costs {measured['detach']['awqpack'] / wrapper:.2f} of _make_wrapper_subclass")
    if not options.no_csv:
        print(f"wrote {write_csv('host', environment(), rows)}")


if __name__ == "__main__":
    main()

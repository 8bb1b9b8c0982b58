"""Times what a packed tensor costs the host per call, beside optimum-quanto's class and a plain tensor.

The tensors are small, so that dispatch is all there is.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from awqpack import AWQPackedTensor, AWQPacking

from .harness import Call, Row, batch, medians, print_table
from .peers import load_quanto

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


def contestants(device: str, size: int) -> dict[str, torch.Tensor]:
    """The same codes plain, packed by us and, where it is installed, packed by optimum-quanto."""
    codes = torch.randint(0, 16, (size, size), dtype=torch.uint8, device=device)
    tensors: dict[str, torch.Tensor] = {"plain": codes, "awqpack": AWQPackedTensor.pack(codes, AWQPacking.V1)}
    quanto = load_quanto()
    if quanto is None:
        print("left out: optimum-quanto (pip install --no-deps optimum-quanto==0.2.7)", file=sys.stderr)
    else:
        tensors["optimum-quanto"] = quanto.AWQPackedTensor.pack(codes, quanto.AWQPacking.V1)
    return tensors


def constructions(tensors: Mapping[str, torch.Tensor]) -> dict[str, Call]:
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """What this suite can be told."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64, help="side of the matrix (default 64)")
    parser.add_argument("--number", type=int, default=500, help="calls in one timing (default 500)")
    parser.add_argument("--turns", type=int, default=9, help="timings of each call (default 9)")


def cases(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Call]]:
    """Each call, by whose tensor it is made on."""
    ours = tensors["awqpack"]
    assert isinstance(ours, AWQPackedTensor)
    bare = Bare(ours.payload, ours.shape)
    result = {"construction": constructions(tensors)}
    for name, call in CALLS.items():
        result[name] = {who: functools.partial(call, t) for who, t in tensors.items()}
        if name in FLOORS:
            result[name]["floor"] = functools.partial(call, bare)
    distinct = {who: [t.detach() for _ in range(20)] for who, t in tensors.items()}
    result["cat of 20"] = {who: functools.partial(torch.cat, several) for who, several in distinct.items()}
    return result


def run(options: argparse.Namespace) -> list[Row]:
    """Measures and prints."""
    tensors = contestants(options.device, options.size)
    what = {"device": options.device, "size": options.size}
    rows: list[Row] = []
    for op, calls in cases(tensors).items():
        measured = medians(calls, options.turns, batch(options.number))
        rows += [Row("host", op, who, seconds, what) for who, seconds in measured.items()]
        ours = next(row for row in rows if row.op == op and row.who == "awqpack")
        ours.baseline, ours.baseline_seconds = "optimum-quanto", measured.get("optimum-quanto")
    size = f"{options.size}x{options.size} codes on {options.device}"
    print_table(f"Microseconds a call, {size}", rows, ("op",), ("who",), "us")
    beside = [row for row in rows if row.ratio is not None] + added(rows)
    print_table(
        "optimum-quanto's time / ours, and of what a call adds to that on a plain tensor", beside, ("op",), ("table",)
    )
    return rows


def added(rows: Sequence[Row]) -> list[Row]:
    """For the ops that a plain tensor has too: what each class adds, beside what ours adds."""
    times = {(row.op, row.who): row.seconds for row in rows}
    result = []
    for op, who in times:
        if who == "optimum-quanto" and (op, "plain") in times:
            plain = times[op, "plain"]
            result.append(
                Row("added", op, "awqpack", times[op, "awqpack"] - plain, baseline_seconds=times[op, who] - plain)
            )
    return result

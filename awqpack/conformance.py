"""Whether somebody's function unpacks, or packs, a packing as it is: `awqpack conformance MODULE:FUNCTION`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import torch

from .formats import FORMATS, Format
from .functional import pack, unpack

NAMES = {form.key: form for form in FORMATS}
# Blocks of codes, down and right: the least, more of either, and enough for groups and tiles to repeat.
_BLOCKS = [(1, 1), (2, 1), (1, 3), (3, 2), (4, 8)]
Function = Callable[[torch.Tensor], Any]


def function_of(text: str) -> Function:
    """The function that MODULE:FUNCTION names; modules of the working directory count. Raises click.UsageError."""
    module, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.UsageError(f"expects MODULE:FUNCTION; {text!r} is none ({error})") from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise click.UsageError(f"expects MODULE:FUNCTION; {text!r} is no function")
    function: Function = found
    return function


def _cases(form: Format) -> list[torch.Tensor]:
    """Codes: for each size random ones, and ones in which neighbours differ."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(down * form.rows, right * form.cols) for down, right in _BLOCKS]
    random = [torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator) for shape in shapes]
    ramps = [(torch.arange(n * k) % 16).to(torch.uint8).view(n, k) for n, k in shapes]
    return ramps + random


def _resembles(form: Format, result: torch.Tensor, given: torch.Tensor, packs: bool) -> str:
    """ "; that is how V1 reorder has it", where another packing would give what came."""
    others = [other for other in FORMATS if other is not form and other.dtype == form.dtype]
    for other in others:
        try:
            same = (pack if packs else unpack)(given, other.packing, other.reorder)
        except ValueError:  # it has no such sizes
            continue
        if same.shape == result.shape and torch.equal(same.long(), result):
            return f"; that is how {other.title} has it"
    return ""


def fault(function: Function, form: Format, *, packs: bool = False) -> str | None:
    """What the function does that the packing does not, in a sentence; None where they agree.

    Args:
        function: from a payload of this packing to its codes ``(N, K)``, of any integer dtype, a tensor or what makes
            one; with ``packs``, from codes, uint8 ``(N, K)``, to the payload.
        form: a row of ``NAMES``.
    """
    what = "payload" if packs else "codes"
    mask = (1 << 8 * form.dtype.itemsize) - 1
    for codes in _cases(form):
        payload = pack(codes, form.packing, form.reorder)
        given, expected = (codes, payload) if packs else (payload, codes)
        result = torch.as_tensor(function(given.clone())).cpu().long()
        if result.shape != expected.shape:
            is_turned = result.ndim == 2 and torch.equal(result.t(), expected.long())
            return (
                f"{'codes' if packs else 'a payload'} of shape {tuple(given.shape)} expects {what} of shape "
                f"{tuple(expected.shape)}; got {tuple(result.shape)}{'; they are transposed' if is_turned else ''}"
            )
        wrong = (result != expected.long()).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            values = [int(expected[place]), int(result[place])]
            right, got = (f"{value & mask:#x}" if packs else str(value) for value in values)
            return (
                f"{what}[{', '.join(map(str, place))}] of shape {tuple(expected.shape)} is {right}; got {got} "
                f"({len(wrong)} of {expected.numel()} differ){_resembles(form, result, given, packs)}"
            )
    return None


def run(text: str, name: str, packs: bool) -> int:
    """What `awqpack conformance` does: prints a verdict; returns the exit status."""
    form = NAMES[name]
    what = "packs" if packs else "unpacks"
    function = function_of(text)
    try:
        found = fault(function, form, packs=packs)
    except Exception as error:
        found = f"it raises {type(error).__name__}: {error}".split("\n")[0]
    if found is None:
        click.echo(f"{text} {what} {form.title} as it is: {2 * len(_BLOCKS)} cases")
        return 0
    click.echo(f"{text}: {click.style('different:', fg='red')} {found}")
    return 1

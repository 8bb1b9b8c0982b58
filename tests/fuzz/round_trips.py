"""Codes of any shape, in memory of any kind, of any packing, become the payload that the twin makes, and back again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import twin
from hypothesis import strategies as st
from shared import (
    PACKINGS,
    VARIANTS,
    Memory,
    assert_guards_untouched,
    assert_same,
    pack_array,
    random_codes,
    unpack_array,
)

import awqpack
from awqpack import AWQPackedTensor

BATCHES = [(), (), (1,), (2,), (3,), (0,), (2, 1), (2, 2), (1, 1, 2)]


class Case(NamedTuple):
    packing: str
    target: str  # of a relayout
    batch: tuple
    blocks: tuple
    memory: Memory
    out_memory: Memory
    variant: str
    seed: int
    bad: tuple | None  # where a code is too large, as a part of the whole, and by how much


CASES = st.builds(
    Case,
    st.sampled_from(sorted(PACKINGS)),
    st.sampled_from(sorted(PACKINGS)),
    st.sampled_from(BATCHES),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.sampled_from(Memory),
    st.sampled_from(Memory),
    st.sampled_from(VARIANTS),
    st.integers(0, 999),
    st.none() | st.tuples(st.floats(0, 1, exclude_max=True), st.integers(16, 255)),
)


def shape_of(case, packing):
    """Few blocks where they are large."""
    rows, cols = (
        size if size < 64 or number < 2 else 2 * size for size, number in zip(packing.block, case.blocks, strict=True)
    )
    down = case.blocks[0] if packing.block[0] < 64 else min(case.blocks[0], 1)
    right = case.blocks[1] if packing.block[1] < 64 else min(case.blocks[1], 1)
    return (*case.batch, rows * down, cols * right)


def check(case):
    packing = PACKINGS[case.packing]
    shape = shape_of(case, packing)
    codes = random_codes(shape, case.seed)
    if case.bad is not None and codes.size:
        check_bad(case, packing, codes)
        return
    expected = twin.pack(codes, *packing)
    given = case.memory.copy(codes)
    buffer, out = case.out_memory.empty(expected.shape, expected.dtype)
    pack_array(given, packing, out=out, variant=case.variant)
    assert_same(np.ascontiguousarray(out), expected)
    assert_guards_untouched(buffer, out)
    buffer, back = case.out_memory.empty(codes.shape, codes.dtype)
    unpack_array(case.memory.copy(expected), packing, out=back, variant=case.variant)
    assert_same(np.ascontiguousarray(back), codes)
    assert_guards_untouched(buffer, back)
    check_tensors(case, packing, codes, expected)


def check_tensors(case, packing, codes, expected):
    """The same of tensors, of the class, and from one packing to another."""
    memory = case.memory if case.memory.is_for_torch and case.memory is not Memory.UNALIGNED else Memory.CONTIGUOUS
    given = torch.from_numpy(memory.copy(codes))
    packed = AWQPackedTensor.pack(given, packing.packing, packing.reorder)
    assert_same(packed.payload.numpy(), expected)
    assert torch.equal(packed.unpack(), given)
    assert packed.unpack().stride() == packed.stride()
    target = PACKINGS[case.target]
    for transpose in (False, True):
        wanted = codes.swapaxes(-1, -2) if transpose else codes
        if target.fit(wanted.shape) == wanted.shape:
            turned = awqpack.relayout(
                torch.from_numpy(memory.copy(expected)), tuple(packing), tuple(target), transpose=transpose
            )
            assert_same(turned.numpy(), twin.pack(np.ascontiguousarray(wanted), *target))


def check_bad(case, packing, codes):
    """The first code that is too large is named, by its value and its place."""
    part, value = case.bad
    place = np.unravel_index(int(part * codes.size), codes.shape)
    codes[place] = value
    try:
        pack_array(case.memory.copy(codes), packing, variant=case.variant)
    except ValueError as error:
        where = ", ".join(str(int(index)) for index in place)
        assert f"codes[{where}] is {value}" in str(error), error
    else:
        raise AssertionError(f"a code of {value} was packed")

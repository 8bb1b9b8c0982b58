"""The packings as slow, obvious loops over rows, columns and nibbles, by their formulas."""

from functools import cache
from itertools import product

import numpy as np

from awqpack import AWQPacking

V1_COLUMNS = {False: (0, 1, 2, 3, 4, 5, 6, 7), True: (0, 2, 4, 6, 1, 3, 5, 7)}


def places(rows, cols, packing, reorder):
    """Yields (n, k, payload row, payload column, nibble) for every code W[n, k]."""
    if packing is AWQPacking.V1:
        for n in range(rows):
            for j in range(cols // 8):
                for i in range(8):
                    yield n, 8 * j + V1_COLUMNS[reorder][i], n, j, i
        return
    if packing is AWQPacking.MARLIN:
        for n64, k16, lane, j, b in product(range(rows // 64), range(cols // 16), range(32), range(4), range(8)):
            n = 64 * n64 + 16 * j + lane // 4 + 8 * (b // 2 % 2)
            yield n, 16 * k16 + 2 * (lane % 4) + 8 * (b % 2) + b // 4, k16, 128 * n64 + 4 * lane + j, b
        return
    for n in range(rows):
        for block in range(cols // 64):
            for h in range(2):
                for m in range(8):
                    for a in range(4):
                        column = 64 * block + 16 * (n % 4) + 8 * h + m
                        yield n, 64 * block + 32 * h + 8 * a + m, n // 4, column, a


@cache
def table(rows, cols, packing, reorder):
    """The same as five arrays: as long as the loops take, they run once for each shape."""
    found = list(places(rows, cols, packing, bool(reorder)))
    return tuple(np.array(found, np.int64).reshape(-1, 5).T)


def pack(codes, packing, reorder):
    """The payload of codes (..., N, K): only their low nibbles, as with validate=False."""
    *batch, rows, cols = codes.shape
    shapes = {
        AWQPacking.V1: (rows, cols // 8),
        AWQPacking.V2: (rows // 4, cols),
        AWQPacking.MARLIN: (cols // 16, 2 * rows),
    }
    payload = np.zeros((*batch, *shapes[packing]), np.int64)
    n, k, row, column, nibble = table(rows, cols, packing, reorder)
    for index in np.ndindex(*batch):
        np.bitwise_or.at(payload[index], (row, column), (codes[index][n, k].astype(np.int64) & 15) << (4 * nibble))
    is_v2 = packing is AWQPacking.V2
    return payload.astype(np.uint16).view(np.int16) if is_v2 else payload.astype(np.uint32).view(np.int32)


def unpack(payload, packing, reorder):
    """The codes of a payload: every nibble back at the place it came from."""
    *batch, lines, items = payload.shape
    shapes = {
        AWQPacking.V1: (lines, items * 8),
        AWQPacking.V2: (lines * 4, items),
        AWQPacking.MARLIN: (items // 2, lines * 16),
    }
    rows, cols = shapes[packing]
    codes = np.zeros((*batch, rows, cols), np.uint8)
    n, k, row, column, nibble = table(rows, cols, packing, reorder)
    for index in np.ndindex(*batch):
        codes[index][n, k] = payload[index][row, column].astype(np.int64) >> (4 * nibble) & 15
    return codes

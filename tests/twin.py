"""The layouts of csrc/include/awqpack/layout.h as slow, obvious loops over rows, columns and nibbles."""

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
    for n in range(rows):
        for block in range(cols // 64):
            for h in range(2):
                for m in range(8):
                    for a in range(4):
                        column = 64 * block + 16 * (n % 4) + 8 * h + m
                        yield n, 64 * block + 32 * h + 8 * a + m, n // 4, column, a


def pack(codes, packing, reorder):
    """The payload of codes (..., N, K): only their low nibbles, as with validate=False."""
    *batch, rows, cols = codes.shape
    is_v1 = packing is AWQPacking.V1
    payload = np.zeros((*batch, rows, cols // 8) if is_v1 else (*batch, rows // 4, cols), np.int64)
    for index in np.ndindex(*batch):
        matrix = codes[index].tolist()
        words = payload[index].tolist()
        for n, k, row, column, nibble in places(rows, cols, packing, reorder):
            words[row][column] |= (matrix[n][k] & 15) << (4 * nibble)
        payload[index] = np.array(words, np.int64).reshape(payload.shape[len(batch) :])
    return payload.astype(np.uint32).view(np.int32) if is_v1 else payload.astype(np.uint16).view(np.int16)


def unpack(payload, packing, reorder):
    """The codes of a payload: every nibble back at the place it came from."""
    *batch, rows, cols = payload.shape
    rows, cols = (rows, cols * 8) if packing is AWQPacking.V1 else (rows * 4, cols)
    codes = np.zeros((*batch, rows, cols), np.uint8)
    for index in np.ndindex(*batch):
        words = payload[index].tolist()
        for n, k, row, column, nibble in places(rows, cols, packing, reorder):
            codes[(*index, n, k)] = words[row][column] >> (4 * nibble) & 15
    return codes

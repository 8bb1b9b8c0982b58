/* The table of kernels that each instruction set fills in; the drivers in job.c call nothing else. */
#ifndef AWQPACK_KERNELS_H
#define AWQPACK_KERNELS_H

#include "awqpack/packing.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    AWQ_PANEL_STEP = 64,  /* a column-major panel has a multiple of this many rows and columns ... */
    AWQ_PANEL_COLS = 512, /* ... and at most so many columns where it is unpacked: the page tables' caches hold their pages */
};

/*
 * Contract of every kernel:
 *  - packing keeps only the low nibble of each code and returns the bitwise OR of all codes it read, so that
 *    (result > AWQ_CODE_MAX) says that one was invalid; the payload is then unspecified;
 *  - any alignment; reads and writes nothing outside the ranges named; never allocates, prints or aborts;
 *  - `stream` asks for stores that bypass the cache where the destination's alignment allows them;
 *    the kernel ends with the fence that such stores need;
 *  - strides are in bytes and may be negative.
 */
typedef struct awq_kernels {
    const char *name;

    /* Row-major V1: `words` payload words from 8 * words contiguous codes of one row. */
    uint8_t (*pack_v1)(const uint8_t *restrict codes, uint8_t *restrict payload, int64_t words, bool reorder,
                       bool stream);
    void (*unpack_v1)(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t words, bool reorder,
                      bool stream);

    /* Row-major V2: `blocks` blocks of each of four rows, `row_stride` bytes apart; the payload is contiguous. */
    uint8_t (*pack_v2)(const uint8_t *restrict codes, int64_t row_stride, uint8_t *restrict payload, int64_t blocks,
                       bool stream);
    void (*unpack_v2)(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t row_stride, int64_t blocks,
                      bool stream);

    /*
     * Column-major: a panel of `rows` by `cols`. The code of row r, column c is codes[c * col_stride + r]; payload rows
     * (V2: of four rows) are `payload_stride` bytes apart, each one contiguous as in the row-major kernels.
     * The larger the panel, the faster it is packed: its columns are read in longer runs.
     * Takes up to 600 KiB of stack.
     */
    uint8_t (*pack_panel)(awq_packing packing, const uint8_t *restrict codes, int64_t col_stride,
                          uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream);
    void (*unpack_panel)(awq_packing packing, const uint8_t *restrict payload, int64_t payload_stride,
                         uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream);
} awq_kernels;

/* Where a panel's blocks lie: block b of row r at awq_panel_row(r) + b * block. */
typedef struct awq_panel_walk {
    int64_t row, quad, block; /* bytes between the rows of a four, between fours of rows, between blocks of a row */
} awq_panel_walk;

static inline awq_panel_walk awq_panel_walk_of(awq_packing packing, int64_t payload_stride)
{
    if (packing == AWQ_PACKING_V2) {
        return (awq_panel_walk){AWQ_BLOCK_BYTES, payload_stride, AWQ_QUAD_BLOCK_BYTES};
    }
    return (awq_panel_walk){payload_stride, AWQ_QUAD_ROWS * payload_stride, AWQ_BLOCK_BYTES};
}

static inline int64_t awq_panel_row(const awq_panel_walk *walk, int64_t row)
{
    return row / AWQ_QUAD_ROWS * walk->quad + row % AWQ_QUAD_ROWS * walk->row;
}

extern const awq_kernels awq_kernels_scalar;
extern const awq_kernels awq_kernels_avx2;   /* x86-64 only */
extern const awq_kernels awq_kernels_avx512; /* x86-64 only: F, BW, VL and VBMI */
extern const awq_kernels awq_kernels_neon;   /* aarch64 only */

#ifdef __cplusplus
}
#endif

#endif

/* The table of kernels that each instruction set fills in; the drivers in job.c call nothing else. */
#ifndef AWQPACK_KERNELS_H
#define AWQPACK_KERNELS_H

#include "awqpack/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    AWQ_TILE_ROWS = 64,  /* a column-major tile: one cache line of codes of each column ... */
    AWQ_TILE_COLS = 128, /* ... by the columns that fill one cache line of each V1 payload row */
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
     * Column-major: a tile of AWQ_TILE_ROWS rows by 64 * blocks columns, blocks being 1 or 2. The code of row r, column c
     * is codes[c * col_stride + r]. The 32 bytes of block b of row r lie at
     * payload + (r / 4) * quad_stride + (r % 4) * row_stride + b * block_stride
     * (V1: row_stride = bytes of a payload row, quad_stride = 4 * row_stride, block_stride = 32;
     *  V2: row_stride = 32, quad_stride = bytes of a payload row, block_stride = 128).
     */
    uint8_t (*pack_tile)(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                         uint8_t *restrict payload, int64_t row_stride, int64_t quad_stride, int64_t block_stride,
                         int blocks, bool stream);
    void (*unpack_tile)(awq_layout layout, const uint8_t *restrict payload, int64_t row_stride, int64_t quad_stride,
                        int64_t block_stride, uint8_t *restrict codes, int64_t col_stride, int blocks, bool stream);
} awq_kernels;

extern const awq_kernels awq_kernels_scalar;
extern const awq_kernels awq_kernels_avx2;   /* x86-64 only */
extern const awq_kernels awq_kernels_avx512; /* x86-64 only: F, BW, VL and VBMI */
extern const awq_kernels awq_kernels_neon;   /* aarch64 only */

#ifdef __cplusplus
}
#endif

#endif

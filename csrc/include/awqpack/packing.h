/* What the payload bytes of each AWQ packing mean: the one description that csrc/kernels and cuda both implement. */
#ifndef AWQPACK_PACKING_H
#define AWQPACK_PACKING_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * W[n, k] are codes 0..15 of a linear weight, n = output feature (row), k = input feature (column).
 *
 * Every packing stores a block of 64 codes of one row in 32 payload bytes, two codes a byte (low nibble first);
 * the packings differ in which codes share a byte and in where the 32 bytes of a block lie.
 *
 *   V1          int32 (N, K/8): word j of a row holds columns 8j..8j+7, nibble i = column 8j + i.
 *   V1_REORDER  as V1, with nibble i = column 8j + {0,2,4,6,1,3,5,7}[i].                  (AutoAWQ gemm)
 *   V2          int16 (N/4, K): rows are interleaved by four; the block B of row n lies at byte offset
 *               128*B + 32*(n%4) of payload row n/4, and nibble a of its int16 number 8*h + m is
 *               column 64*B + 32*h + 8*a + m.                                    (llm-awq, gemv_fast)
 *
 * V1 needs K % 8 == 0; V2 needs N % 4 == 0 and K % 64 == 0.
 */
typedef enum awq_packing {
    AWQ_PACKING_V1 = 0,
    AWQ_PACKING_V1_REORDER = 1,
    AWQ_PACKING_V2 = 2,
    AWQ_PACKING_COUNT = 3
} awq_packing;

enum {
    AWQ_CODE_MAX = 15,      /* largest 4-bit code */
    AWQ_WORD_CODES = 8,     /* codes in a V1 int32 word */
    AWQ_WORD_BYTES = 4,
    AWQ_BLOCK_CODES = 64,   /* codes of one row that every packing keeps together ... */
    AWQ_BLOCK_BYTES = 32,   /* ... and the payload bytes they take */
    AWQ_QUAD_ROWS = 4,      /* rows that V2 interleaves in one payload row */
    AWQ_QUAD_BLOCK_BYTES = AWQ_QUAD_ROWS * AWQ_BLOCK_BYTES,
    AWQ_MAX_DIMS = 64       /* dimensions a tensor may have, batch included */
};

/* Column of a block whose code sits in the low / the high nibble of byte 0..31 of that block. */
static inline int awq_low_column(awq_packing packing, int byte)
{
    static const unsigned char reordered[4] = {0, 4, 1, 5};
    switch (packing) {
    case AWQ_PACKING_V1_REORDER:
        return 8 * (byte / 4) + reordered[byte % 4];
    case AWQ_PACKING_V2: /* byte = 16*h + 2*m + pair, nibbles a = 2*pair and 2*pair + 1 */
        return 32 * (byte / 16) + 16 * (byte % 2) + (byte % 16) / 2;
    default:
        return 2 * byte;
    }
}

static inline int awq_high_column(awq_packing packing, int byte)
{
    static const int step[AWQ_PACKING_COUNT] = {1, 2, 8};
    return awq_low_column(packing, byte) + step[packing];
}

/*
 * A batch of matrices of codes beside a batch of payloads, as strides in elements (codes: bytes, payload: int32 or int16).
 * Made by awq_geometry_init, which merges every dimension that can be merged, so that a contiguous tensor is one long row.
 */
typedef struct awq_geometry {
    awq_packing packing;
    int32_t batch_dims;                /* leading dimensions that could not be merged */
    int64_t rows;                      /* N; a multiple of 4 for V2 */
    int64_t cols;                      /* K; a multiple of 8 (V1) or 64 (V2) */
    int64_t codes_row_stride;
    int64_t codes_col_stride;
    int64_t payload_row_stride;        /* V2: between payload rows, that is between quads of rows */
    int64_t payload_col_stride;
    int64_t batch_sizes[AWQ_MAX_DIMS];
    int64_t codes_batch_strides[AWQ_MAX_DIMS];
    int64_t payload_batch_strides[AWQ_MAX_DIMS];
} awq_geometry;

#ifdef __cplusplus
}
#endif

#endif

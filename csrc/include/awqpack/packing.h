/* What the payload bytes of each packing mean: rows of data from which csrc/kernels, cuda, checks and error texts
   follow. */
#ifndef AWQPACK_PACKING_H
#define AWQPACK_PACKING_H

#include <stdbool.h>
#include <stdint.h>

/* Data and small functions that C, C++ and CUDA share; constants and device code in the latter two. */
#if defined(__CUDACC__)
#define AWQ_CONSTANT static constexpr
#define AWQ_FUNCTION inline __host__ __device__ constexpr
#elif defined(__cplusplus)
#define AWQ_CONSTANT static constexpr
#define AWQ_FUNCTION inline constexpr
#else
#define AWQ_CONSTANT static const
#define AWQ_FUNCTION static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The dtypes that views may have; payloads have an integer one. */
typedef enum awq_dtype {
    AWQ_DTYPE_OTHER = 0,
    AWQ_DTYPE_UINT8,
    AWQ_DTYPE_INT16,
    AWQ_DTYPE_INT32,
    AWQ_DTYPE_FLOAT16,
    AWQ_DTYPE_BFLOAT16,
    AWQ_DTYPE_FLOAT32
} awq_dtype;

/* W[n, k] are codes 0..15 of a linear weight, n = output feature (row), k = input feature (column). */
typedef enum awq_packing {
    AWQ_PACKING_V1 = 0,         /* AutoAWQ gemv, compressed-tensors; GPTQ's, transposed */
    AWQ_PACKING_V1_REORDER = 1, /* AutoAWQ gemm */
    AWQ_PACKING_V2 = 2,         /* llm-awq, gemv_fast */
    AWQ_PACKING_MARLIN = 3,     /* what inference engines turn the others into as they load them */
    AWQ_PACKING_COUNT = 4
} awq_packing;

enum {
    AWQ_CODE_MAX = 15,  /* largest 4-bit code */
    AWQ_WORD_CODES = 8, /* codes in a V1 int32 word */
    AWQ_WORD_BYTES = 4,
    AWQ_BLOCK_CODES = 64, /* codes of one row that V1 and V2 keep together ... */
    AWQ_BLOCK_BYTES = 32, /* ... and the payload bytes they take */
    AWQ_QUAD_ROWS = 4,    /* rows that V2 interleaves in one payload row */
    AWQ_QUAD_BLOCK_BYTES = AWQ_QUAD_ROWS * AWQ_BLOCK_BYTES,
    AWQ_PLACE_BITS = 10, /* of the number of a nibble in the largest block */
    AWQ_MAX_DIMS = 64    /* dimensions a tensor may have, batch included */
};

/* A row and a column of codes, counted from the first of a block. */
typedef struct awq_place {
    int row, col;
} awq_place;

/*
 * A packing: a block of codes and a permutation. A block is block_rows x block_cols codes in contiguous items of one
 * row of the payload; nibble i of it, bits 4 * (i % 2).. of byte i / 2, holds the code at the sum of step[b] over the
 * bits b that i has.
 *
 *   blocks side by side     the payload is (N / block_rows, K / block_cols * the items of a block)
 *   blocks run down         the payload is (K / block_cols, N / block_rows * the items of a block)
 */
typedef struct awq_packing_traits {
    const char *name; /* as AWQPacking spells it, ... */
    int number;       /* ... and its value there */
    bool has_order;   /* `reorder` makes a difference: there is a row for each of its values ... */
    bool reorder;     /* ... and this one is for this; a row without has_order is for both */
    awq_dtype dtype;  /* of the payload's items, ... */
    int item_bytes;   /* ... and their size */
    int block_rows, block_cols;
    bool runs_down; /* what follows a block in its row of the payload is the block below, not the one beside */
    awq_place step[AWQ_PLACE_BITS]; /* powers of two, each bit of a row or column once */
} awq_packing_traits;

/* A line or two a row. */
/* clang-format off */
AWQ_CONSTANT awq_packing_traits awq_packings[AWQ_PACKING_COUNT] = {
    {"V1", 1, true, false, AWQ_DTYPE_INT32, 4, 1, 8, false, {{0, 1}, {0, 2}, {0, 4}}},
    {"V1", 1, true, true, AWQ_DTYPE_INT32, 4, 1, 8, false, {{0, 2}, {0, 4}, {0, 1}}}, /* 0, 2, 4, 6, 1, 3, 5, 7 */
    {"V2", 2, false, false, AWQ_DTYPE_INT16, 2, 4, 64, false,
     {{0, 8}, {0, 16}, {0, 1}, {0, 2}, {0, 4}, {0, 32}, {1, 0}, {2, 0}}},
    {"MARLIN", 3, false, false, AWQ_DTYPE_INT32, 4, 64, 16, true,
     {{0, 8}, {8, 0}, {0, 1}, {16, 0}, {32, 0}, {0, 2}, {0, 4}, {1, 0}, {2, 0}, {4, 0}}},
};
/* clang-format on */

/* Of a block, in a payload. */
AWQ_FUNCTION int awq_block_bytes(const awq_packing_traits *traits)
{
    return traits->block_rows * traits->block_cols / 2;
}

AWQ_FUNCTION int awq_block_items(const awq_packing_traits *traits)
{
    return awq_block_bytes(traits) / traits->item_bytes;
}

/* Where in its block the code of a nibble is; bits past those of a block name no place and are dropped. */
AWQ_FUNCTION awq_place awq_place_of(const awq_packing_traits *traits, int nibble)
{
    awq_place place = {0, 0};
    for (int bit = 0; bit < AWQ_PLACE_BITS; bit++) {
        place.row += (nibble >> bit & 1) * traits->step[bit].row;
        place.col += (nibble >> bit & 1) * traits->step[bit].col;
    }
    return place;
}

/*
 * A batch of matrices of codes beside a batch of payloads, as strides in elements (codes: bytes, payload: its items).
 * Made by awq_geometry_init, which merges every dimension that can be merged, so that a contiguous tensor is one long
 * row.
 */
typedef struct awq_geometry {
    awq_packing packing;
    int32_t batch_dims; /* leading dimensions that could not be merged */
    int64_t rows, cols; /* N and K; multiples of a block's */
    int64_t codes_row_stride;
    int64_t codes_col_stride;
    int64_t payload_row_stride; /* between rows of the payload: see awq_packing_traits */
    int64_t payload_col_stride; /* between its items */
    int64_t batch_sizes[AWQ_MAX_DIMS];
    int64_t codes_batch_strides[AWQ_MAX_DIMS];
    int64_t payload_batch_strides[AWQ_MAX_DIMS];
} awq_geometry;

/* Items from the payload's first to the block that holds the code (row, col), the first of one. */
AWQ_FUNCTION int64_t awq_block_offset(const awq_packing_traits *traits, int64_t payload_row_stride,
                                      int64_t payload_col_stride, int64_t row, int64_t col)
{
    const int64_t down = row / traits->block_rows, right = col / traits->block_cols;
    const int64_t line = traits->runs_down ? right : down, along = traits->runs_down ? down : right;
    return line * payload_row_stride + along * awq_block_items(traits) * payload_col_stride;
}

#ifdef __cplusplus
}
#endif

#endif

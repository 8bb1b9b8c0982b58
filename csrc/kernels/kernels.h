/* The table of kernels that each instruction set fills in; the drivers in job.c call nothing else. */
#ifndef AWQPACK_KERNELS_H
#define AWQPACK_KERNELS_H

#include <stddef.h>

#include "awqpack/packing.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    AWQ_PANEL_STEP = 64, /* a column-major panel has a multiple of this many rows and columns ... */
    /* ... and at most so many columns where it is unpacked: the page tables' caches hold their pages */
    AWQ_PANEL_COLS = 512,
    AWQ_TURNED_COLS = 128,
    AWQ_CROSSED_CODES = 128, /* of words that cross: a line of the cache, either way */
    /* where blocks run down, columns of more codes are best read whole; what is in the cache is not */
    AWQ_TALL_ROWS = 2048,
    AWQ_SCRATCH_ALIGNMENT = 64,
};

/*
 * A rectangle of whole blocks, codes beside their payload. A line is a row of the payload, contiguous, with the blocks
 * of line_rows rows of codes side by side. Where blocks run down, the rows and columns here are therefore those of
 * W.t(). Strides are in bytes and may be negative.
 */
typedef struct awq_panel {
    awq_packing packing;
    bool stream;              /* asks for stores that bypass the cache where the destination's alignment allows them */
    uint8_t *codes, *payload; /* one of them is only read */
    int64_t rows, cols;
    int64_t row_stride, col_stride; /* between codes */
    int64_t line_stride;            /* between lines, ... */
    int64_t item_stride;            /* ... and between the items of one */
    uint8_t *scratch;               /* scratch_bytes of the table, aligned to AWQ_SCRATCH_ALIGNMENT; of panels alone */
} awq_panel;

/* Rows of codes in a line, and columns of codes in a block. */
static inline int awq_line_rows(const awq_panel *panel)
{
    const awq_packing_traits *traits = &awq_packings[panel->packing];
    return traits->runs_down ? traits->block_cols : traits->block_rows;
}

static inline int awq_step_cols(const awq_panel *panel)
{
    const awq_packing_traits *traits = &awq_packings[panel->packing];
    return traits->runs_down ? traits->block_rows : traits->block_cols;
}

/* Where the block starts whose first code is (row, col). */
static inline int64_t awq_panel_offset(const awq_panel *panel, int64_t row, int64_t col)
{
    const int64_t items = awq_block_items(&awq_packings[panel->packing]);
    return row / awq_line_rows(panel) * panel->line_stride + col / awq_step_cols(panel) * items * panel->item_stride;
}

/*
 * Contract of every kernel:
 *  - packing keeps only the low nibble of each code and returns the bitwise OR of all codes it read, so that
 *    (result > AWQ_CODE_MAX) says that one was invalid; the payload is then unspecified. Unpacking returns 0;
 *  - any alignment; reads and writes nothing outside the panel; never allocates, prints or aborts, and takes no more
 *    than 32 KiB of stack;
 *  - after stores that bypass the cache awq_stream_fence is the caller's: one for each line takes as long as the line.
 */
typedef uint8_t awq_kernel(const awq_panel *panel);

/* Orders stores that bypassed the cache before all that follow. */
static inline void awq_stream_fence(void)
{
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

/* The kernels of one packing, each of which may be missing: then awq_pack_blocks or awq_unpack_blocks stands for it. */
typedef struct awq_walks {
    /* One line of row-major codes: col_stride is 1, rows is awq_line_rows. */
    awq_kernel *pack_rows, *unpack_rows;
    /* Column-major codes: row_stride is 1; rows and columns as AWQ_PANEL_STEP and AWQ_PANEL_COLS say.
       The larger the panel, the faster it is packed: its columns are read in longer runs. */
    awq_kernel *pack_panel, *unpack_panel;
    /* A payload viewed transposed, as GPTQ's is V1's: line_stride is the size of an item, and row_stride or col_stride is
       1. Rows as AWQ_PANEL_STEP says, a multiple of AWQ_TURNED_COLS columns. */
    awq_kernel *pack_turned, *unpack_turned;
    bool has_lines; /* pack_rows and unpack_rows take any number of lines */
} awq_walks;

/*
 * V1 beside V1 of the transpose, the words of both side by side: words of eight lines of one are words of eight lines of
 * the other. Rows are the source's; rows and cols are multiples of AWQ_CROSSED_CODES. Strides are in bytes.
 */
typedef struct awq_crossing {
    awq_packing source, target; /* V1 in either order */
    bool stream;                /* as a panel's */
    const uint8_t *from;
    uint8_t *to;
    int64_t rows, cols;
    int64_t source_stride, target_stride; /* between lines */
} awq_crossing;

typedef void awq_cross_kernel(const awq_crossing *crossing);

typedef struct awq_kernels {
    const char *name;
    size_t scratch_bytes;                   /* what a panel may ask for */
    const awq_walks *of[AWQ_PACKING_COUNT]; /* NULL: all of them are missing */
    awq_cross_kernel *cross_v1;             /* NULL: by way of codes */
    const struct awq_float_kernels *floats; /* see float_kernels.h; NULL: the scalar ones */
} awq_kernels;

/* Any packing and any strides, block by block: the meaning of the rows in packing.h, and what every kernel is compared
   with. */
uint8_t awq_pack_blocks(const awq_panel *panel);
uint8_t awq_unpack_blocks(const awq_panel *panel);

extern const awq_kernels awq_kernels_scalar;
extern const awq_kernels awq_kernels_avx2;   /* x86-64 only */
extern const awq_kernels awq_kernels_avx512; /* x86-64 only: F, BW, VL and VBMI */
extern const awq_kernels awq_kernels_neon;   /* aarch64 only */

#ifdef __cplusplus
}
#endif

#endif

/* What the column-major kernels of V1 and V2 share: where in a panel's lines the bytes of a row lie. */
#ifndef AWQPACK_WALK_H
#define AWQPACK_WALK_H

#include "kernels.h"

/* Where the bytes of 64 columns of a row lie, in V1 and V2: those of columns 64 * b.. of row r at awq_panel_row(r) + b
   * block. */
typedef struct awq_panel_walk {
    int64_t row, quad, block; /* bytes between the rows of a four, between fours of rows, between blocks of a row */
} awq_panel_walk;

static inline awq_panel_walk awq_panel_walk_of(awq_packing packing, int64_t line_stride)
{
    const int line_rows = awq_packings[packing].block_rows;
    return (awq_panel_walk){line_rows == 1 ? line_stride : AWQ_BLOCK_BYTES, AWQ_QUAD_ROWS / line_rows * line_stride,
                            line_rows * AWQ_BLOCK_BYTES};
}

static inline int64_t awq_panel_row(const awq_panel_walk *walk, int64_t row)
{
    return row / AWQ_QUAD_ROWS * walk->quad + row % AWQ_QUAD_ROWS * walk->row;
}

#endif

/* What the column-major kernels of V1 and V2 share: where in a panel the bytes and the columns of a row lie. */
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

/* Bytes from the first column to that of each of the first `count` nibbles of a row, and on to a power of two of them. */
static inline void awq_find_columns(const awq_panel *panel, int64_t count, int64_t *columns)
{
    const awq_packing_traits *traits = &awq_packings[panel->packing];
    columns[0] = 0;
    for (int bit = 0; INT64_C(1) << bit < count; bit++) {
        const int64_t known = INT64_C(1) << bit, step = known < traits->block_cols ? traits->step[bit].col : known;
        for (int64_t i = 0; i < known; i++) {
            columns[known + i] = columns[i] + step * panel->col_stride;
        }
    }
}

#endif

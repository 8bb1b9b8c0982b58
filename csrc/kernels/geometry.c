/* Turns two strided views into the fewest dimensions that describe them. */
#include "awqpack/view.h"

typedef struct leading_dim {
    int64_t size, codes_stride, payload_stride;
} leading_dim;

/* True when stepping `outer` once is the same as stepping `inner` through its whole size. */
static bool can_merge(leading_dim outer, leading_dim inner, int64_t payload_size)
{
    return outer.codes_stride == inner.codes_stride * inner.size &&
           outer.payload_stride == inner.payload_stride * payload_size;
}

void awq_geometry_init(awq_geometry *geometry, awq_packing packing, const awq_view *codes, const awq_view *payload)
{
    const int64_t last = codes->ndim - 1;
    const awq_packing_traits *traits = &awq_packings[packing];
    const bool has_lines = traits->block_rows == 1 && !traits->runs_down; /* a row of codes is one of the payload */
    leading_dim dims[AWQ_MAX_DIMS];
    int64_t count = 0;
    bool is_empty = codes->sizes[last] == 0;
    for (int64_t d = 0; d < last; d++) {
        const leading_dim dim = {codes->sizes[d], codes->strides[d], payload->strides[d]};
        is_empty = is_empty || dim.size == 0;
        /* The row dimension stays even when it has one element: kernels always have a row. */
        if (dim.size == 1 && d < last - 1) {
            continue;
        }
        if (count > 0 && d < last - 1 && can_merge(dims[count - 1], dim, dim.size)) {
            dims[count - 1].size *= dim.size;
            dims[count - 1].codes_stride = dim.codes_stride;
            dims[count - 1].payload_stride = dim.payload_stride;
        } else {
            dims[count++] = dim;
        }
    }
    leading_dim rows = dims[--count];
    if (rows.size == 1 && count > 0 && has_lines) {
        rows = dims[--count];
    }
    while (count > 0 && !traits->runs_down && can_merge(dims[count - 1], rows, rows.size / traits->block_rows)) {
        rows.size *= dims[--count].size;
    }
    *geometry = (awq_geometry){
        .packing = packing,
        .batch_dims = (int32_t)count,
        .rows = is_empty ? 0 : rows.size,
        .cols = codes->sizes[last],
        .codes_row_stride = rows.codes_stride,
        .codes_col_stride = codes->strides[last],
        .payload_row_stride = rows.payload_stride,
        .payload_col_stride = payload->strides[last],
    };
    for (int64_t d = 0; d < count; d++) {
        geometry->batch_sizes[d] = dims[d].size;
        geometry->codes_batch_strides[d] = dims[d].codes_stride;
        geometry->payload_batch_strides[d] = dims[d].payload_stride;
    }
    const leading_dim columns = {geometry->cols, geometry->codes_col_stride, geometry->payload_col_stride};
    if (has_lines && count == 0 && !is_empty && can_merge(rows, columns, payload->sizes[last])) {
        geometry->cols *= rows.size;
        geometry->rows = 1;
    }
}

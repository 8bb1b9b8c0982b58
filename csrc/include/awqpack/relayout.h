/* From one payload to another of the same codes, or of the transposed ones. */
#ifndef AWQPACK_RELAYOUT_H
#define AWQPACK_RELAYOUT_H

#include "awqpack/view.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Strides are in the items of each payload. */
typedef struct awq_relayout {
    awq_packing source, target;
    bool transpose; /* the source holds the target's codes transposed */
    int32_t batch_dims;
    int64_t rows, cols; /* of the target's codes */
    int64_t source_row_stride, source_col_stride;
    int64_t target_row_stride, target_col_stride;
    int64_t batch_sizes[AWQ_MAX_DIMS];
    int64_t source_batch_strides[AWQ_MAX_DIMS];
    int64_t target_batch_strides[AWQ_MAX_DIMS];
} awq_relayout;

/* True when `payload`, of packing `source`, has a payload in `target`; then target_sizes[0..ndim) are its sizes. */
bool awq_check_relayout(const awq_view *payload, awq_packing source, awq_packing target, bool transpose,
                        int64_t *target_sizes, awq_error *error);

/* Describes two payloads whose shapes are already checked. */
void awq_relayout_init(awq_relayout *relayout, awq_packing source, awq_packing target, bool transpose,
                       const awq_view *from, const awq_view *to);

#ifdef __cplusplus
}
#endif

#endif

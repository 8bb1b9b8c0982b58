/* A borrowed description of somebody's strided memory (a torch tensor or a NumPy array), and the checks that precede
   every job. */
#ifndef AWQPACK_VIEW_H
#define AWQPACK_VIEW_H

#include <stddef.h>

#include "awqpack/error.h"
#include "awqpack/packing.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct awq_view {
    void *data;
    const int64_t *sizes;
    const int64_t *strides; /* in elements */
    int64_t ndim;
    awq_dtype dtype;
    const char *dtype_name; /* as the user knows it, for error texts */
} awq_view;

/* The packing that AWQPacking numbers so. False when none is. */
bool awq_packing_from_number(int64_t number, bool reorder, awq_packing *packing, awq_error *error);

/* Writes "AWQPacking.V1 or AWQPacking.V2" into text. */
void awq_packing_names(char *text, size_t length);

/* The payload's dtype. */
awq_dtype awq_payload_dtype(awq_packing packing);

/* True when `codes` can be packed; then payload_sizes[0..ndim) are the payload's. */
bool awq_check_codes(const awq_view *codes, awq_packing packing, int64_t *payload_sizes, awq_error *error);

/* True when `payload` can be unpacked; then codes_sizes[0..ndim) are those of the codes. */
bool awq_check_payload(const awq_view *payload, awq_packing packing, int64_t *codes_sizes, awq_error *error);

/* True when `out` has the dtype and sizes asked for, no two of its elements share memory, and `input` shares none. */
bool awq_check_out(const awq_view *out, awq_dtype dtype, const int64_t *sizes, const awq_view *input, awq_error *error);

/* Strides of a dense tensor of these sizes whose dimensions lie in memory in `order`, outermost first; false when
   `order` is no permutation. A NULL order is 0, 1, 2, ...: contiguous. */
bool awq_dense_strides(int64_t ndim, const int64_t *sizes, const int64_t *order, int64_t *strides, awq_error *error);

/* Fills `error` with the first code above 15 in row-major order and its index; returns false. */
bool awq_fail_invalid_code(const awq_view *codes, awq_error *error);

/* The same for a code that was found elsewhere, by its row-major linear index. */
bool awq_fail_code_at(const int64_t *sizes, int64_t ndim, int64_t linear, int code, awq_error *error);

/* Bytes of an element. */
int64_t awq_dtype_bytes(awq_dtype dtype);

/* As torch and NumPy name it. */
const char *awq_dtype_name(awq_dtype dtype);

/* A part of a sentence. */
typedef struct awq_text {
    char chars[160];
} awq_text;

/* "(a, b, c)" */
awq_text awq_shape_text(const int64_t *sizes, int64_t ndim);

/* "[a, b, c]" of the element of that number in row-major order. */
awq_text awq_index_text(const int64_t *sizes, int64_t ndim, int64_t number);

/* Describes codes and payload, whose shapes are already checked, with every mergeable dimension merged. */
void awq_geometry_init(awq_geometry *geometry, awq_packing packing, const awq_view *codes, const awq_view *payload);

#ifdef __cplusplus
}
#endif

#endif

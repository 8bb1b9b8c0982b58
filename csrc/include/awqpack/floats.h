/* Floats beside codes: what scales and zeros are, a weight beside its payload, and the checks that precede both
   ways. */
#ifndef AWQPACK_FLOATS_H
#define AWQPACK_FLOATS_H

#include "awqpack/view.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * The arithmetic, the same bit for bit wherever it runs. float32 throughout, each operation rounded once, half to even:
 *
 *   dequantize   (code - zero) * scale, rounded once more to the weight's dtype.
 *   quantize     q = weight / scale; code = clamp(rint(q + zero), 0, 15). A scale of 0 gives the zero.
 *                Not validated: infinite weights give 0 or 15, NaN gives the zero.
 *   min_max      see awq_scale_mode. The scale is rounded to its dtype before a zero is derived from it.
 *
 * A scale and a zero serve a rectangle of group_rows x group_cols codes: scales (..., R', C') beside codes (..., R, C).
 */
typedef enum awq_scale_mode {
    /* (max - min) / 15, zero = clamp(rint(-min / scale), 0, 15); of a scale of 0: min < 0 ? 15 : 0 */
    AWQ_SCALES_ASYMMETRIC,
    AWQ_SCALES_WITH_ZERO,  /* the same with 0 among the weights: no group of one sign is cut off */
    AWQ_SCALES_ABSMAX_7,   /* max|w| / 7, zero 8 */
    AWQ_SCALES_ABSMAX_7_5, /* max|w| / 7.5, zero 8 */
    AWQ_SCALES_ABSMAX_8,   /* max|w| / 8, zero 8 */
    AWQ_SCALES_MODE_COUNT
} awq_scale_mode;

enum { AWQ_SYMMETRIC_ZERO = 8 /* where a weight comes without zeros */ };

/* Where the matrices of a batch lie; strides in elements. */
typedef struct awq_plane {
    void *data; /* of element (0, ..., 0) */
    int64_t row_stride, col_stride;
    int64_t batch_strides[AWQ_MAX_DIMS];
} awq_plane;

/*
 * A batch of weights beside payload, scales and zeros. Rows and columns are never merged, as scales need them apart;
 * leading dimensions are, where all four tensors allow it.
 */
typedef struct awq_float_geometry {
    awq_packing packing;
    awq_dtype weight_dtype, scale_dtype; /* float16, bfloat16 or float32 */
    int32_t batch_dims;
    int64_t batch_sizes[AWQ_MAX_DIMS];
    int64_t rows, cols;             /* of the codes; 0 when any dimension is */
    int64_t group_rows, group_cols; /* codes of a rectangle; at least 1 */
    awq_plane weight;
    awq_plane payload; /* strides in its items; between its rows and items, as in awq_geometry. No data for min_max */
    awq_plane scales;
    awq_plane zeros; /* uint8; no data: AWQ_SYMMETRIC_ZERO everywhere */
} awq_float_geometry;

/* Float tensors of one call. zeros NULL: AWQ_SYMMETRIC_ZERO everywhere; payload NULL: min_max. */
typedef struct awq_float_views {
    const awq_view *weight, *payload, *scales, *zeros;
} awq_float_views;

bool awq_dtype_is_float(awq_dtype dtype);

/* The mode of that name, such as "absmax/7". */
bool awq_scale_mode_from_name(const char *name, awq_scale_mode *mode, awq_error *error);

/* True when `weight` can be quantized with these; then payload_sizes[0..ndim) are the payload's. Values are not looked
   at. */
bool awq_check_quantize(const awq_view *weight, const awq_view *scales, const awq_view *zeros, awq_packing packing,
                        int64_t *payload_sizes, awq_error *error);

/* True when `payload` can be dequantized with these to `dtype`; then weight_sizes[0..ndim) are the weight's. */
bool awq_check_dequantize(const awq_view *payload, const awq_view *scales, const awq_view *zeros, awq_packing packing,
                          awq_dtype dtype, int64_t *weight_sizes, awq_error *error);

/* True when scales of `dtype` can be taken of `weight`; then scale_sizes[0..ndim) are those of scales and zeros. */
bool awq_check_min_max(const awq_view *weight, int64_t group_rows, int64_t group_cols, awq_dtype dtype,
                       int64_t *scale_sizes, awq_error *error);

/* Describes views whose shapes are checked. For min_max, the scales' sizes say the groups. */
void awq_float_geometry_init(awq_float_geometry *geometry, awq_packing packing, const awq_float_views *views);

/* Looks at the values, which lie on the host: scales finite and not negative, zeros 0..15. The first that is not is
   named. */
bool awq_check_scale_values(const awq_view *scales, const awq_view *zeros, awq_error *error);

/* Fills `error` with a value that was found, by its row-major linear index in `view`; each returns false. */
bool awq_fail_weight_at(const char *op, const awq_view *weight, int64_t linear, float value, awq_error *error);
bool awq_fail_scale_at(const awq_view *scales, int64_t linear, float value, awq_error *error);
bool awq_fail_zero_at(const awq_view *zeros, int64_t linear, int value, awq_error *error);

/* The range of a group of weights is beyond the dtype of the scales. */
bool awq_fail_range_at(const awq_view *scales, int64_t linear, awq_error *error);

/* Names the first weight that is not finite, which a kernel has come upon; returns false. Reads host memory. */
bool awq_fail_not_finite(const char *op, const awq_view *weight, awq_error *error);

/* Names the first scale that is infinite, which min_max came upon; returns false. Reads host memory. */
bool awq_fail_range(const awq_view *scales, awq_error *error);

#ifdef __cplusplus
}
#endif

#endif

/* Checks of weights, scales and zeros, and the sentences that say what was expected and what came. */
#include "awqpack/floats.h"

#include <stdio.h>
#include <string.h>

#include "float_bits.h"

bool awq_dtype_is_float(awq_dtype dtype)
{
    return dtype == AWQ_DTYPE_FLOAT16 || dtype == AWQ_DTYPE_BFLOAT16 || dtype == AWQ_DTYPE_FLOAT32;
}

bool awq_scale_mode_from_name(const char *name, awq_scale_mode *mode, awq_error *error)
{
    static const char *const names[AWQ_SCALES_MODE_COUNT] = {"asymmetric", "asymmetric/zero", "absmax/7", "absmax/7.5",
                                                             "absmax/8"};
    for (int i = 0; i < AWQ_SCALES_MODE_COUNT; i++) {
        if (strcmp(name, names[i]) == 0) {
            *mode = (awq_scale_mode)i;
            return true;
        }
    }
    return awq_fail(error, AWQ_ERROR_VALUE,
                    "formula expects asymmetric, asymmetric/zero, absmax/7, absmax/7.5 or absmax/8; got %.60s", name);
}

static bool check_float(const char *op, const char *what, const awq_view *view, awq_error *error)
{
    return awq_dtype_is_float(view->dtype) ||
           awq_fail(error, AWQ_ERROR_VALUE, "%s expects %s of float16, bfloat16 or float32; got dtype %s", op, what,
                    view->dtype_name);
}

static bool check_weight(const char *op, const awq_view *weight, awq_error *error)
{
    if (!check_float(op, "a weight", weight, error)) {
        return false;
    }
    return (weight->ndim >= 2 && weight->ndim <= AWQ_MAX_DIMS) ||
           awq_fail(error, AWQ_ERROR_VALUE,
                    "%s expects a weight of 2 to %d dimensions (..., out_features, in_features); got shape %s", op,
                    AWQ_MAX_DIMS, awq_shape_text(weight->sizes, weight->ndim).chars);
}

static bool check_target(const char *op, awq_dtype dtype, awq_error *error)
{
    return awq_dtype_is_float(dtype) ||
           awq_fail(error, AWQ_ERROR_VALUE, "%s expects dtype float16, bfloat16 or float32; got %s", op,
                    awq_dtype_name(dtype));
}

/* Whether `parts` equal parts make `size`; nothing is any number of parts. */
static bool divides(int64_t parts, int64_t size)
{
    return parts > 0 ? size % parts == 0 : size == 0;
}

static bool check_scales(const char *op, const int64_t *sizes, int64_t ndim, const awq_view *scales,
                         const awq_view *zeros, awq_error *error)
{
    if (!check_float(op, "scales", scales, error)) {
        return false;
    }
    if (scales->ndim != ndim || !divides(scales->sizes[ndim - 2], sizes[ndim - 2]) ||
        !divides(scales->sizes[ndim - 1], sizes[ndim - 1]) ||
        memcmp(scales->sizes, sizes, (size_t)(ndim - 2) * sizeof *sizes) != 0) {
        return awq_fail(
            error, AWQ_ERROR_VALUE,
            "%s expects scales (..., R, C) whose last two sizes divide those of the weight, %s, and whose others "
            "equal them; got shape %s",
            op, awq_shape_text(sizes, ndim).chars, awq_shape_text(scales->sizes, scales->ndim).chars);
    }
    if (zeros == NULL) {
        return true;
    }
    if (zeros->dtype != AWQ_DTYPE_UINT8) {
        return awq_fail(error, AWQ_ERROR_VALUE, "%s expects uint8 zeros in 0..15; got dtype %s", op, zeros->dtype_name);
    }
    return (zeros->ndim == ndim && memcmp(zeros->sizes, scales->sizes, (size_t)ndim * sizeof *sizes) == 0) ||
           awq_fail(error, AWQ_ERROR_VALUE, "%s expects zeros of the shape of the scales, %s; got shape %s", op,
                    awq_shape_text(scales->sizes, scales->ndim).chars, awq_shape_text(zeros->sizes, zeros->ndim).chars);
}

/* The rules of shapes are those of pack and unpack, and so are the sentences but for the name they start with. */
static bool retell(const char *from, const char *to, awq_error *error)
{
    const size_t length = strlen(from);
    if (strncmp(error->text, from, length) == 0) {
        char rest[384];
        snprintf(rest, sizeof rest, "%s", error->text + length);
        snprintf(error->text, sizeof error->text, "%s%s", to, rest);
    }
    return false;
}

bool awq_check_quantize(const awq_view *weight, const awq_view *scales, const awq_view *zeros, awq_packing packing,
                        int64_t *payload_sizes, awq_error *error)
{
    if (!check_weight("quantize", weight, error)) {
        return false;
    }
    awq_view codes = *weight;
    codes.dtype = AWQ_DTYPE_UINT8;
    if (!awq_check_codes(&codes, packing, payload_sizes, error)) {
        return retell("pack", "quantize", error);
    }
    return check_scales("quantize", weight->sizes, weight->ndim, scales, zeros, error);
}

bool awq_check_dequantize(const awq_view *payload, const awq_view *scales, const awq_view *zeros, awq_packing packing,
                          awq_dtype dtype, int64_t *weight_sizes, awq_error *error)
{
    if (!awq_check_payload(payload, packing, weight_sizes, error)) {
        return retell("unpack", "dequantize", error);
    }
    return check_target("dequantize", dtype, error) &&
           check_scales("dequantize", weight_sizes, payload->ndim, scales, zeros, error);
}

bool awq_check_min_max(const awq_view *weight, int64_t group_rows, int64_t group_cols, awq_dtype dtype,
                       int64_t *scale_sizes, awq_error *error)
{
    if (!check_weight("min_max_scales", weight, error) || !check_target("min_max_scales", dtype, error)) {
        return false;
    }
    const int64_t last = weight->ndim - 1;
    if (group_rows < 1 || group_cols < 1 || weight->sizes[last - 1] % group_rows != 0 ||
        weight->sizes[last] % group_cols != 0) {
        return awq_fail(
            error, AWQ_ERROR_VALUE,
            "min_max_scales expects groups (rows, columns) that divide the weight's last two dimensions; got "
            "groups of (%lld, %lld) for shape %s",
            (long long)group_rows, (long long)group_cols, awq_shape_text(weight->sizes, weight->ndim).chars);
    }
    memcpy(scale_sizes, weight->sizes, (size_t)(last - 1) * sizeof *scale_sizes);
    scale_sizes[last - 1] = weight->sizes[last - 1] / group_rows;
    scale_sizes[last] = weight->sizes[last] / group_cols;
    return true;
}

/* --- values --- */

bool awq_fail_weight_at(const char *op, const awq_view *weight, int64_t linear, float value, awq_error *error)
{
    return awq_fail(error, AWQ_ERROR_VALUE, "%s expects a finite weight; weight%s is %s", op,
                    awq_index_text(weight->sizes, weight->ndim, linear).chars,
                    value != value ? "nan"
                    : value > 0    ? "inf"
                                   : "-inf");
}

bool awq_fail_scale_at(const awq_view *scales, int64_t linear, float value, awq_error *error)
{
    char number[32];
    snprintf(number, sizeof number, "%.9g", (double)value);
    return awq_fail(error, AWQ_ERROR_VALUE, "scales are expected to be finite and not negative; scales%s is %s",
                    awq_index_text(scales->sizes, scales->ndim, linear).chars, value != value ? "nan" : number);
}

bool awq_fail_zero_at(const awq_view *zeros, int64_t linear, int value, awq_error *error)
{
    return awq_fail(error, AWQ_ERROR_VALUE, "zeros are expected in 0..15; zeros%s is %d",
                    awq_index_text(zeros->sizes, zeros->ndim, linear).chars, value);
}

bool awq_fail_range_at(const awq_view *scales, int64_t linear, awq_error *error)
{
    return awq_fail(error, AWQ_ERROR_VALUE,
                    "min_max_scales expects weights whose range %s holds; scales%s would be infinite",
                    awq_dtype_name(scales->dtype), awq_index_text(scales->sizes, scales->ndim, linear).chars);
}

/* --- geometry --- */

static bool can_merge(const awq_view *view, int64_t outer, int64_t inner)
{
    return view == NULL || view->strides[outer] == view->strides[inner] * view->sizes[inner];
}

void awq_float_geometry_init(awq_float_geometry *geometry, awq_packing packing, const awq_float_views *views)
{
    const awq_view *weight = views->weight, *scales = views->scales;
    const int64_t last = weight->ndim - 1;
    bool is_empty = false;
    for (int64_t d = 0; d <= last; d++) {
        is_empty = is_empty || weight->sizes[d] == 0;
    }
    *geometry = (awq_float_geometry){
        .packing = packing,
        .weight_dtype = weight->dtype,
        .scale_dtype = scales->dtype,
        .rows = is_empty ? 0 : weight->sizes[last - 1],
        .cols = is_empty ? 0 : weight->sizes[last],
        .group_rows = is_empty ? 1 : weight->sizes[last - 1] / scales->sizes[last - 1],
        .group_cols = is_empty ? 1 : weight->sizes[last] / scales->sizes[last],
    };
    const awq_view *const all[] = {weight, views->payload, scales, views->zeros};
    awq_plane *const planes[] = {&geometry->weight, &geometry->payload, &geometry->scales, &geometry->zeros};
    int64_t previous = -1;
    for (int64_t d = 0; d < last - 1; d++) {
        if (weight->sizes[d] == 1) {
            continue;
        }
        bool is_merged = previous >= 0;
        for (int i = 0; i < 4; i++) {
            is_merged = is_merged && can_merge(all[i], previous, d);
        }
        const int32_t at = geometry->batch_dims - is_merged;
        geometry->batch_sizes[at] = weight->sizes[d] * (is_merged ? geometry->batch_sizes[at] : 1);
        geometry->batch_dims = at + 1;
        for (int i = 0; i < 4; i++) {
            planes[i]->batch_strides[at] = all[i] == NULL ? 0 : all[i]->strides[d];
        }
        previous = d;
    }
    for (int i = 0; i < 4; i++) {
        if (all[i] != NULL) {
            planes[i]->data = all[i]->data;
            planes[i]->row_stride = all[i]->strides[last - 1];
            planes[i]->col_stride = all[i]->strides[last];
        }
    }
}

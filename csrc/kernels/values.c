/* The values of scales and zeros before they are used, on as many threads as there are; which of these, of codes and of
   weights was wrong, once something was. */
#include "values.h"

#include <stddef.h>

#include "float_bits.h"

enum {
    UNIT = 1 << 13,     /* elements of a unit */
    UNITS_PER_TASK = 4, /* fewer are not worth a thread */
};

/* What an element must be. */
typedef enum demand { FINITE, SCALE, NIBBLE } demand;

static bool is_met(demand what, awq_dtype dtype, const void *address)
{
    if (what == NIBBLE) {
        return *(const uint8_t *)address <= AWQ_CODE_MAX;
    }
    const float value = awq_float_load(dtype, address);
    return awq_is_finite(value) && (what == FINITE || value >= 0);
}

/* Whether a contiguous row of scales or zeros is all as it must be: by the bits, as compilers make vectors of that. A
   scale is below infinity, or -0. */
static bool is_met_by_row(demand what, awq_dtype dtype, const void *row, int64_t count)
{
    unsigned bad = 0;
    if (what == NIBBLE) {
        for (int64_t i = 0; i < count; i++) {
            bad |= ((const uint8_t *)row)[i];
        }
        return bad <= AWQ_CODE_MAX;
    }
    if (dtype == AWQ_DTYPE_FLOAT32) {
        for (int64_t i = 0; i < count; i++) {
            const uint32_t bits = ((const uint32_t *)row)[i];
            bad |= (bits >= 0x7f800000u) & (bits != 0x80000000u);
        }
        return bad == 0;
    }
    const uint16_t infinity = dtype == AWQ_DTYPE_FLOAT16 ? 0x7c00 : 0x7f80;
    uint16_t wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t bits = ((const uint16_t *)row)[i];
        wrong |= (uint16_t)((bits >= infinity) & (bits != 0x8000));
    }
    return wrong == 0;
}

/* The address of the first element in row-major order that is not as it must be, and its linear index; NULL when all
   are. */
static const void *first_not(demand what, const awq_view *view, int64_t *linear)
{
    int64_t index[AWQ_MAX_DIMS] = {0};
    const int64_t last = view->ndim - 1, item = awq_dtype_bytes(view->dtype);
    for (int64_t d = 0; d <= last; d++) {
        if (view->sizes[d] == 0) {
            return NULL;
        }
    }
    const uint8_t *row = view->data;
    for (*linear = 0;; *linear += view->sizes[last]) {
        const bool has_row = what != FINITE && view->strides[last] == 1 && (uintptr_t)row % (uintptr_t)item == 0;
        const int64_t count =
            has_row && is_met_by_row(what, view->dtype, row, view->sizes[last]) ? 0 : view->sizes[last];
        for (int64_t i = 0; i < count; i++) {
            const void *address = row + i * view->strides[last] * item;
            if (!is_met(what, view->dtype, address)) {
                *linear += i;
                return address;
            }
        }
        int64_t d = last - 1;
        for (; d >= 0; d--) {
            row += view->strides[d] * item;
            if (++index[d] < view->sizes[d]) {
                break;
            }
            row -= view->sizes[d] * view->strides[d] * item;
            index[d] = 0;
        }
        if (d < 0) {
            return NULL;
        }
    }
}

/* Whether all are as they must be. The order does not matter: a transposed matrix is taken by its own rows. */
static bool is_met_by_all(demand what, const awq_view *view)
{
    int64_t linear, sizes[2], strides[2];
    const int64_t last = view->ndim - 1;
    if (view->ndim != 2 || view->strides[0] != 1 || view->strides[1] == 1) {
        return first_not(what, view, &linear) == NULL;
    }
    for (int64_t d = 0; d <= last; d++) {
        sizes[d] = view->sizes[last - d];
        strides[d] = view->strides[last - d];
    }
    awq_view turned = *view;
    turned.sizes = sizes;
    turned.strides = strides;
    return first_not(what, &turned, &linear) == NULL;
}

/* Bytes from a view's data on that hold all its elements, and nothing else where no stride is 0: what is found amiss in
 * them is looked for again by element. 0 where the elements do not lie so. */
static int64_t dense_bytes(const awq_view *view)
{
    const int64_t item = awq_dtype_bytes(view->dtype);
    int64_t total = 1, span = 1;
    for (int64_t d = 0; d < view->ndim; d++) {
        total *= view->sizes[d];
        span += (view->sizes[d] - 1) * view->strides[d];
        if (view->strides[d] < 0) {
            return 0;
        }
    }
    return span == total && (uintptr_t)view->data % (uintptr_t)item == 0 ? total * item : 0;
}

void awq_scale_check_init(awq_scale_check *check, const awq_view *scales, const awq_view *zeros)
{
    const int64_t total = dense_bytes(scales) / awq_dtype_bytes(scales->dtype);
    const bool is_dense = total > 0 && (zeros == NULL || dense_bytes(zeros) == total);
    *check = (awq_scale_check){
        .scales = scales,
        .zeros = zeros,
        .total = is_dense ? total : 0,
        .units = is_dense ? (total + UNIT - 1) / UNIT : 1,
        .units_per_task = UNITS_PER_TASK,
    };
}

unsigned awq_scale_check_run(const awq_scale_check *check, int64_t begin, int64_t end, void *scratch)
{
    (void)scratch;
    const awq_view *scales = check->scales, *zeros = check->zeros;
    if (check->total == 0) {
        return !is_met_by_all(SCALE, scales) || (zeros != NULL && !is_met_by_all(NIBBLE, zeros));
    }
    bool is_met = true;
    for (int64_t first = begin * UNIT; first < end * UNIT && first < check->total; first += UNIT) {
        const int64_t count = first + UNIT < check->total ? UNIT : check->total - first;
        const uint8_t *scale = (const uint8_t *)scales->data + first * awq_dtype_bytes(scales->dtype);
        is_met &= is_met_by_row(SCALE, scales->dtype, scale, count);
        is_met &= zeros == NULL || is_met_by_row(NIBBLE, AWQ_DTYPE_UINT8, (const uint8_t *)zeros->data + first, count);
    }
    return !is_met;
}

bool awq_check_scale_values(const awq_view *scales, const awq_view *zeros, awq_error *error)
{
    int64_t linear;
    const void *scale = first_not(SCALE, scales, &linear);
    if (scale != NULL) {
        return awq_fail_scale_at(scales, linear, awq_float_load(scales->dtype, scale), error);
    }
    const uint8_t *zero = zeros == NULL ? NULL : first_not(NIBBLE, zeros, &linear);
    return zero == NULL || awq_fail_zero_at(zeros, linear, *zero, error);
}

bool awq_fail_invalid_code(const awq_view *codes, awq_error *error)
{
    int64_t linear;
    const uint8_t *found = first_not(NIBBLE, codes, &linear);
    if (found == NULL) {
        return awq_fail(
            error, AWQ_ERROR_VALUE,
            "pack expects uint8 codes in 0..15; some were larger while they were packed, and have changed since");
    }
    return awq_fail_code_at(codes->sizes, codes->ndim, linear, *found, error);
}

bool awq_fail_not_finite(const char *op, const awq_view *weight, awq_error *error)
{
    int64_t linear;
    const void *found = first_not(FINITE, weight, &linear);
    if (found == NULL) {
        return awq_fail(error, AWQ_ERROR_VALUE, "%s expects a finite weight; some were not, and have changed since",
                        op);
    }
    return awq_fail_weight_at(op, weight, linear, awq_float_load(weight->dtype, found), error);
}

bool awq_fail_range(const awq_view *scales, awq_error *error)
{
    int64_t linear;
    const void *found = first_not(FINITE, scales, &linear);
    return awq_fail_range_at(scales, found == NULL ? 0 : linear, error);
}

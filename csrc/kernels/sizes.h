/* What walks over tensors count with. */
#ifndef AWQPACK_SIZES_H
#define AWQPACK_SIZES_H

#include <stdint.h>

static inline int64_t awq_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t awq_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t awq_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* The least multiple of `step` that is no less. */
static inline int64_t awq_round_up(int64_t a, int64_t step)
{
    return awq_ceil_div(a, step) * step;
}

/* Elements of a tensor of these sizes. */
static inline int64_t awq_count(const int64_t *sizes, int64_t dims)
{
    int64_t count = 1;
    for (int64_t d = 0; d < dims; d++) {
        count *= sizes[d];
    }
    return count;
}

/* Where the element of that number is, in row-major order. */
static inline int64_t awq_offset_of(int64_t number, const int64_t *sizes, const int64_t *strides, int64_t dims)
{
    int64_t offset = 0;
    for (int64_t d = dims - 1; d >= 0; d--) {
        offset += number % sizes[d] * strides[d];
        number /= sizes[d];
    }
    return offset;
}

#endif

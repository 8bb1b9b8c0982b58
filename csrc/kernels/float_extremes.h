/* The least and the greatest of groups of floats, in lanes of float32: for instruction sets that have nothing better.
   Included below the primitives of float_lines.h, of greater, which is max, and of bits_of, which is a vector of floats
   as it lies in memory. */
#ifndef AWQPACK_FLOAT_EXTREMES_H
#define AWQPACK_FLOAT_EXTREMES_H

#include "float_bits.h"
#include "float_lines.h"

/* The least and the greatest of what came before and of `count` elements, a group each from `low` on or all of one. */
ALWAYS_INLINE vector widen_extremes(awq_dtype dtype, const uint8_t *restrict from, int64_t count, bool is_each,
                                    float *restrict low, float *restrict high, vector most)
{
    const int64_t item = item_of(dtype);
    floats least = all_of(*low), greatest = all_of(*high);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const floats w = load_floats(dtype, from + i * item);
        most = raise_magnitude(AWQ_DTYPE_FLOAT32, most, bits_of(w));
        if (is_each) {
            put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)(low + i), lesser(w, load_line(low + i)), LANES);
            put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)(high + i), greater(w, load_line(high + i)), LANES);
        } else {
            least = lesser(w, least);
            greatest = greater(w, greatest);
        }
    }
    if (!is_each && i > 0) {
        float lows[LANES], highs[LANES];
        put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)lows, least, LANES);
        put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)highs, greatest, LANES);
        for (int k = 0; k < LANES; k++) {
            *low = lows[k] < *low ? lows[k] : *low;
            *high = highs[k] > *high ? highs[k] : *high;
        }
    }
    for (; i < count; i++) {
        const int64_t at = is_each ? i : 0;
        const float w = awq_float_load(dtype, from + i * item);
        most = raise_magnitude(AWQ_DTYPE_FLOAT32, most, bits_of(all_of(w)));
        low[at] = w < low[at] ? w : low[at];
        high[at] = w > high[at] ? w : high[at];
    }
    return most;
}

ALWAYS_INLINE bool min_max_as(awq_dtype dtype, const uint8_t *restrict from, int64_t count, int64_t group,
                              int64_t taken, float *restrict low, float *restrict high)
{
    vector most = no_codes();
    if (group == 1) {
        return count == 0 ||
               is_all_finite(AWQ_DTYPE_FLOAT32, widen_extremes(dtype, from, count, true, low, high, most));
    }
    int64_t left = group - taken;
    for (int64_t i = 0; i < count; i += left, left = group, low++, high++) {
        most = widen_extremes(dtype, from + i * item_of(dtype), awq_min(left, count - i), false, low, high, most);
    }
    return is_all_finite(AWQ_DTYPE_FLOAT32, most);
}

static bool min_max(awq_dtype dtype, const void *restrict weight, int64_t count, int64_t group, int64_t taken,
                    float *restrict low, float *restrict high)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16: return min_max_as(AWQ_DTYPE_FLOAT16, weight, count, group, taken, low, high);
    case AWQ_DTYPE_BFLOAT16: return min_max_as(AWQ_DTYPE_BFLOAT16, weight, count, group, taken, low, high);
    default: return min_max_as(AWQ_DTYPE_FLOAT32, weight, count, group, taken, low, high);
    }
}

#endif

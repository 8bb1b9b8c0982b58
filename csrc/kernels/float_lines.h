/*
 * One line of floats beside its codes, as all instruction sets walk it. Included below their primitives:
 *
 *   floats, ints, vector     LANES float32; LANES int32; VECTOR bytes, which are STEP codes or 2 * LANES halves
 *   load_floats, load_some   float32 of LANES elements, of fewer (and then 0) at the end of a line
 *   load_codes, load_some_codes   the same of codes
 *   put_pair, put_some       2 * LANES floats rounded to a dtype, fewer than LANES + 1
 *   is_apart, load_step      whether STEP weights of a dtype come faster in another order than they lie in, and these
 *                            weights, four times LANES of them, in that order or, with is_apart false, as they lie
 *   put_codes, put_some_codes     STEP codes of what load_step gave, fewer than LANES + 1, cut off as `is_short` asks for
 *   all_of, lesser, greater, multiply_add, subtract_product, nearest   a float everywhere; min; max; a * b + c; c - a * b;
 *                            rint
 *   bits_of                  floats as they lie in memory
 *   raise_magnitude, raise_some, is_all_below   of what lies in memory; below awq_float_beyond
 *   scan_group               lowers *low and raises *high to what the weights of a group are; returns raise_magnitude of
 *                            them in float32, or anything else that is finite where they are
 *   look_up                  codes of one scale, of which there are 16: how many it has done, the rest is multiplied
 */
#ifndef AWQPACK_FLOAT_LINES_H
#define AWQPACK_FLOAT_LINES_H

#include "float_kernels.h"

ALWAYS_INLINE floats load_line(const float *from)
{
    return load_floats(AWQ_DTYPE_FLOAT32, (const uint8_t *)from);
}

ALWAYS_INLINE floats load_line_end(const float *from, int64_t n)
{
    return load_some(AWQ_DTYPE_FLOAT32, (const uint8_t *)from, n);
}

/* --- dequantize --- */

/* Codes of one scale, or of a scale each. */
ALWAYS_INLINE void multiply(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                            const float *scales, const float *zeros, bool is_each, bool stream)
{
    const int64_t item = awq_float_bytes(dtype);
    floats scale = all_of(*scales), zero = all_of(*zeros);
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        floats v[2];
        for (int k = 0; k < 2; k++) {
            const int64_t at = i + k * LANES;
            if (is_each) {
                scale = load_line(scales + at);
                zero = load_line(zeros + at);
            }
            v[k] = (load_codes(codes + at) - zero) * scale;
        }
        put_pair(dtype, to + i * item, v, stream);
    }
    for (; i < count; i += LANES) {
        const int64_t n = awq_min(count - i, LANES);
        if (is_each) {
            scale = load_line_end(scales + i, n);
            zero = load_line_end(zeros + i, n);
        }
        put_some(dtype, to + i * item, (load_some_codes(codes + i, n) - zero) * scale, n);
    }
}

ALWAYS_INLINE void dequantize_group(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                                    const float *scale, const float *zero, bool stream)
{
    const int64_t done = look_up(dtype, codes, to, count, *scale, *zero, stream);
    if (done < count) {
        multiply(dtype, codes + done, to + done * awq_float_bytes(dtype), count - done, scale, zero, false, false);
    }
}

ALWAYS_INLINE void dequantize_as(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to,
                                 const awq_float_line *line, bool stream)
{
    const int64_t item = awq_float_bytes(dtype);
    if (line->group == 1) {
        if (stream && (uintptr_t)to % VECTOR == 0) {
            multiply(dtype, codes, to, line->count, line->scales, line->zeros, true, true);
        } else {
            multiply(dtype, codes, to, line->count, line->scales, line->zeros, true, false);
        }
        return;
    }
    int64_t left = line->group - line->taken;
    for (int64_t i = 0, entry = 0; i < line->count; i += left, left = line->group, entry++) {
        const int64_t count = awq_min(left, line->count - i);
        if (stream && (uintptr_t)(to + i * item) % VECTOR == 0) {
            dequantize_group(dtype, codes + i, to + i * item, count, line->scales + entry, line->zeros + entry, true);
        } else {
            dequantize_group(dtype, codes + i, to + i * item, count, line->scales + entry, line->zeros + entry, false);
        }
    }
}

static void dequantize(awq_dtype dtype, const uint8_t *restrict codes, void *restrict weight,
                       const awq_float_line *line, bool stream)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16: dequantize_as(AWQ_DTYPE_FLOAT16, codes, weight, line, stream); break;
    case AWQ_DTYPE_BFLOAT16: dequantize_as(AWQ_DTYPE_BFLOAT16, codes, weight, line, stream); break;
    default: dequantize_as(AWQ_DTYPE_FLOAT32, codes, weight, line, stream);
    }
}

/* --- quantize --- */

/* What weights are divided by: of one group, or of each lane. */
typedef struct divisor {
    floats scale, reciprocal, zero, cut;
} divisor;

ALWAYS_INLINE divisor divisor_of(floats scale, floats reciprocal, floats zero, bool is_short)
{
    if (is_short) {
        zero = zero + all_of(AWQ_FLOAT_BASE);
    }
    return (divisor){scale, reciprocal, zero, scale * all_of(AWQ_FLOAT_CUT)};
}

/* Codes as integers that put_codes cuts off: see float_kernels.h. */
ALWAYS_INLINE ints round_codes(bool is_short, floats weights, divisor by)
{
    if (is_short) {
        return nearest(multiply_add(weights, by.reciprocal, by.zero));
    }
    weights = lesser(weights, by.cut);
    const floats near = weights * by.reciprocal;
    return nearest(multiply_add(subtract_product(near, by.scale, weights), by.reciprocal, near) + by.zero);
}

/* `count` weights of the group `entry`, or of a group each from it on; returns the magnitudes raised. */
ALWAYS_INLINE vector divide(awq_dtype dtype, bool is_short, const uint8_t *restrict from, uint8_t *restrict codes,
                            int64_t count, const awq_float_line *line, int64_t entry, bool is_each, vector most)
{
    const int64_t item = awq_float_bytes(dtype);
    const float *scales = line->scales + entry, *reciprocals = line->reciprocals + entry, *zeros = line->zeros + entry;
    const bool apart = !is_each && is_apart(dtype);
    divisor by = divisor_of(all_of(*scales), all_of(*reciprocals), all_of(*zeros), is_short);
    int64_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        floats weights[4];
        ints v[4];
        load_step(dtype, apart, from + i * item, weights);
        for (int k = 0; k < 4; k++) {
            const int64_t at = i + k * LANES;
            if (is_each) {
                by = divisor_of(load_line(scales + at), load_line(reciprocals + at), load_line(zeros + at), is_short);
            }
            v[k] = round_codes(is_short, weights[k], by);
        }
        for (int k = 0; k < item; k++) {
            const uint8_t *at = from + i * item + k * VECTOR;
            most = raise_magnitude(dtype, most, load(at));
            if (k * VECTOR % AWQ_FLOAT_ASKED == 0) {
                awq_float_ask(at, line->ahead);
            }
        }
        put_codes(codes + i, v, apart, is_short);
    }
    for (; i < count; i += LANES) {
        const int64_t n = awq_min(count - i, LANES);
        if (is_each) {
            by = divisor_of(load_line_end(scales + i, n), load_line_end(reciprocals + i, n),
                            load_line_end(zeros + i, n), is_short);
        }
        most = raise_some(dtype, most, from + i * item, n * item);
        put_some_codes(codes + i, round_codes(is_short, load_some(dtype, from + i * item, n), by), n, is_short);
    }
    return most;
}

ALWAYS_INLINE bool quantize_as(awq_dtype dtype, bool is_short, const uint8_t *restrict from, uint8_t *restrict codes,
                               const awq_float_line *line)
{
    const int64_t item = awq_float_bytes(dtype);
    vector most = no_codes();
    if (line->group == 1) {
        return is_all_below(dtype, divide(dtype, is_short, from, codes, line->count, line, 0, true, most), is_short);
    }
    int64_t left = line->group - line->taken;
    for (int64_t i = 0, entry = 0; i < line->count; i += left, left = line->group, entry++) {
        const int64_t count = awq_min(left, line->count - i);
        most = divide(dtype, is_short, from + i * item, codes + i, count, line, entry, false, most);
    }
    return is_all_below(dtype, most, is_short);
}

static bool quantize(awq_dtype dtype, const void *restrict weight, uint8_t *restrict codes, const awq_float_line *line)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16:
        return line->is_short ? quantize_as(AWQ_DTYPE_FLOAT16, true, weight, codes, line)
                              : quantize_as(AWQ_DTYPE_FLOAT16, false, weight, codes, line);
    case AWQ_DTYPE_BFLOAT16:
        return line->is_short ? quantize_as(AWQ_DTYPE_BFLOAT16, true, weight, codes, line)
                              : quantize_as(AWQ_DTYPE_BFLOAT16, false, weight, codes, line);
    default: return quantize_as(AWQ_DTYPE_FLOAT32, false, weight, codes, line);
    }
}

/* --- min_max --- */

/* A group a weight, of n of them. */
ALWAYS_INLINE vector scan_lanes(awq_dtype dtype, const uint8_t *restrict from, int64_t n, float *restrict low,
                                float *restrict high, vector most)
{
    const floats w = load_some(dtype, from, n);
    put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)low, lesser(w, load_line_end(low, n)), n);
    put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)high, greater(w, load_line_end(high, n)), n);
    return raise_magnitude(AWQ_DTYPE_FLOAT32, most, bits_of(w));
}

ALWAYS_INLINE vector scan_each(awq_dtype dtype, const uint8_t *restrict from, int64_t count, float *restrict low,
                               float *restrict high)
{
    const int64_t item = awq_float_bytes(dtype);
    vector most = no_codes();
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        most = scan_lanes(dtype, from + i * item, LANES, low + i, high + i, most);
    }
    if (i < count) {
        most = scan_lanes(dtype, from + i * item, count - i, low + i, high + i, most);
    }
    return most;
}

ALWAYS_INLINE bool min_max_as(awq_dtype dtype, const uint8_t *restrict from, int64_t count, int64_t group,
                              int64_t taken, float *restrict low, float *restrict high)
{
    if (group == 1) {
        return is_all_below(AWQ_DTYPE_FLOAT32, scan_each(dtype, from, count, low, high), false);
    }
    vector most = no_codes();
    int64_t left = group - taken;
    for (int64_t i = 0; i < count; i += left, left = group, low++, high++) {
        most = scan_group(dtype, from + i * awq_float_bytes(dtype), awq_min(left, count - i), low, high, most);
    }
    return is_all_below(AWQ_DTYPE_FLOAT32, most, false);
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

/* --- scales --- */

/* Written so that compilers make vectors of it. */
static bool invert(const float *restrict scales, int64_t count, float least, float *restrict reciprocals)
{
    unsigned odd = 0;
    for (int64_t i = 0; i < count; i++) {
        const float divisor = scales[i] == 0 ? __builtin_inff() : scales[i];
        odd |= (scales[i] != 0) & !((scales[i] >= least) & (scales[i] <= AWQ_FLOAT_MOST_SCALE));
        reciprocals[i] = 1 / divisor;
    }
    return odd == 0;
}

static void widen(awq_dtype dtype, const void *restrict from, int64_t count, float *restrict to)
{
    const uint8_t *at = from;
    const int64_t item = awq_float_bytes(dtype);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t n = awq_min(count - i, LANES);
        put_some(AWQ_DTYPE_FLOAT32, (uint8_t *)(to + i), load_some(dtype, at + i * item, n), n);
    }
}

static void narrow(awq_dtype dtype, const float *restrict from, int64_t count, void *restrict to)
{
    uint8_t *at = to;
    const int64_t item = awq_float_bytes(dtype);
    for (int64_t i = 0; i < count; i += LANES) {
        const int64_t n = awq_min(count - i, LANES);
        put_some(dtype, at + i * item, load_line_end(from + i, n), n);
    }
}

#endif

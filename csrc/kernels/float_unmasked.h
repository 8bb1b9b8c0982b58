/* What float_lines.h wants of instruction sets that take weights as they lie and cannot leave out lanes of a load or a
   store, so that ends of lines pass through memory of their own. Included below their other primitives, of which put_floats stores LANES floats. */
#ifndef AWQPACK_FLOAT_UNMASKED_H
#define AWQPACK_FLOAT_UNMASKED_H

#include <string.h>

#include "float_bits.h"
#include "float_kernels.h"

ALWAYS_INLINE bool is_apart(awq_dtype dtype)
{
    (void)dtype;
    return false;
}

ALWAYS_INLINE void load_step(awq_dtype dtype, bool apart, const uint8_t *from, floats v[4])
{
    (void)apart;
    for (int k = 0; k < 4; k++) {
        v[k] = load_floats(dtype, from + k * LANES * awq_float_bytes(dtype));
    }
}

ALWAYS_INLINE floats load_some(awq_dtype dtype, const uint8_t *from, int64_t n)
{
    uint8_t whole[VECTOR] = {0};
    if (n == LANES) {
        return load_floats(dtype, from);
    }
    memcpy(whole, from, (size_t)(n * awq_float_bytes(dtype)));
    return load_floats(dtype, whole);
}

ALWAYS_INLINE floats load_some_codes(const uint8_t *codes, int64_t n)
{
    uint8_t whole[LANES] = {0};
    if (n == LANES) {
        return load_codes(codes);
    }
    memcpy(whole, codes, (size_t)n);
    return load_codes(whole);
}

ALWAYS_INLINE void put_some(awq_dtype dtype, uint8_t *to, floats v, int64_t n)
{
    uint8_t whole[VECTOR];
    if (n == LANES) {
        put_floats(dtype, to, v);
        return;
    }
    put_floats(dtype, whole, v);
    memcpy(to, whole, (size_t)(n * awq_float_bytes(dtype)));
}

ALWAYS_INLINE void put_some_codes(uint8_t *to, ints v, int64_t n, bool is_short)
{
    uint8_t whole[STEP];
    put_codes(whole, (const ints[]){v, v, v, v}, false, is_short);
    memcpy(to, whole, (size_t)n);
}

ALWAYS_INLINE vector raise_some(awq_dtype dtype, vector most, const uint8_t *from, int64_t bytes)
{
    uint8_t whole[VECTOR] = {0};
    memcpy(whole, from, (size_t)bytes);
    return raise_magnitude(dtype, most, load(whole));
}

/* In lanes of float32, as these instruction sets have nothing better. */
ALWAYS_INLINE vector scan_group(awq_dtype dtype, const uint8_t *restrict from, int64_t count, float *restrict low,
                                float *restrict high, vector most)
{
    const int64_t item = awq_float_bytes(dtype);
    floats least = all_of(*low), greatest = all_of(*high);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const floats w = load_floats(dtype, from + i * item);
        if (i * item % AWQ_FLOAT_ASKED == 0) {
            awq_float_ask(from + i * item, AWQ_FLOAT_READ_AHEAD);
        }
        most = raise_magnitude(AWQ_DTYPE_FLOAT32, most, bits_of(w));
        least = lesser(w, least);
        greatest = greater(w, greatest);
    }
    if (i > 0) {
        float lows[LANES], highs[LANES];
        put_floats(AWQ_DTYPE_FLOAT32, (uint8_t *)lows, least);
        put_floats(AWQ_DTYPE_FLOAT32, (uint8_t *)highs, greatest);
        for (int k = 0; k < LANES; k++) {
            *low = lows[k] < *low ? lows[k] : *low;
            *high = highs[k] > *high ? highs[k] : *high;
        }
    }
    for (; i < count; i++) {
        const float w = awq_float_load(dtype, from + i * item);
        most = raise_magnitude(AWQ_DTYPE_FLOAT32, most, bits_of(all_of(w)));
        *low = w < *low ? w : *low;
        *high = w > *high ? w : *high;
    }
    return most;
}

#endif

/* What the float kernels for AVX-512 share. */
#ifndef AWQPACK_AVX512_FLOAT_H
#define AWQPACK_AVX512_FLOAT_H

#include "float_kernels.h"

#include "avx512.h"

typedef __m512 floats;
typedef __m512i ints;

enum { LANES = VECTOR / sizeof(float), STEP = VECTOR };

ALWAYS_INLINE __mmask16 first_lanes(int64_t n)
{
    return n <= 0 ? 0 : n >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}

ALWAYS_INLINE floats all_of(float value)
{
    return _mm512_set1_ps(value);
}

ALWAYS_INLINE floats widened_halves(awq_dtype dtype, __m256i halves)
{
    return dtype == AWQ_DTYPE_FLOAT16 ? _mm512_cvtph_ps(halves)
                                      : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

ALWAYS_INLINE floats load_floats(awq_dtype dtype, const uint8_t *from)
{
    return dtype == AWQ_DTYPE_FLOAT32 ? _mm512_loadu_ps(from)
                                      : widened_halves(dtype, _mm256_loadu_si256((const void *)from));
}

/* Masked accesses are slower, stores by far: only the ends of lines take them. */
ALWAYS_INLINE floats load_some(awq_dtype dtype, const uint8_t *from, int64_t n)
{
    return dtype == AWQ_DTYPE_FLOAT32 ? _mm512_maskz_loadu_ps(first_lanes(n), from)
                                      : widened_halves(dtype, _mm256_maskz_loadu_epi16(first_lanes(n), from));
}

/* The greatest magnitude so far, in lanes as wide as the dtype: what is finite is below infinity there. */
ALWAYS_INLINE vector raise_magnitude(awq_dtype dtype, vector most, vector weights)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return _mm512_max_epu32(most, _mm512_and_si512(weights, _mm512_set1_epi32(0x7fffffff)));
    }
    return _mm512_max_epu16(most, _mm512_and_si512(weights, _mm512_set1_epi16(0x7fff)));
}

ALWAYS_INLINE bool is_all_finite(awq_dtype dtype, vector most)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(0x7f800000)) == 0;
    }
    return _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(dtype == AWQ_DTYPE_FLOAT16 ? 0x7c00 : 0x7f80)) == 0;
}

/* Contract in float_kernels.h. */
bool awq_avx512_min_max(awq_dtype dtype, const void *restrict weight, int64_t count, int64_t group, int64_t taken,
                        float *restrict low, float *restrict high);

#endif

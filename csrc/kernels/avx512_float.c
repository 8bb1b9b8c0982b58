/* Floats beside codes for AVX-512: the primitives of float_lines.h. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512_float.h"

/* Rounds half to even; no NaN comes here. The processor's own conversion to bfloat16 takes subnormal numbers for 0. */
ALWAYS_INLINE __m256i halves_of(awq_dtype dtype, __m512 v)
{
    if (dtype == AWQ_DTYPE_FLOAT16) {
        return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

ALWAYS_INLINE void put_pair(awq_dtype dtype, uint8_t *to, const floats v[2], bool stream)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        put(to, _mm512_castps_si512(v[0]), stream);
        put(to + VECTOR, _mm512_castps_si512(v[1]), stream);
    } else {
        put(to, _mm512_inserti64x4(_mm512_castsi256_si512(halves_of(dtype, v[0])), halves_of(dtype, v[1]), 1), stream);
    }
}

ALWAYS_INLINE void put_some(awq_dtype dtype, uint8_t *to, floats v, int64_t n)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        _mm512_mask_storeu_ps(to, first_lanes(n), v);
    } else {
        _mm256_mask_storeu_epi16(to, first_lanes(n), halves_of(dtype, v));
    }
}

ALWAYS_INLINE floats load_codes(const uint8_t *codes)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)codes)));
}

ALWAYS_INLINE floats load_some_codes(const uint8_t *codes, int64_t n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), codes)));
}

ALWAYS_INLINE floats lesser(floats a, floats b)
{
    return _mm512_min_ps(a, b);
}

ALWAYS_INLINE floats multiply_add(floats a, floats b, floats c)
{
    return _mm512_fmadd_ps(a, b, c);
}

ALWAYS_INLINE floats subtract_product(floats a, floats b, floats c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

ALWAYS_INLINE ints nearest(floats v)
{
    return _mm512_cvtps_epi32(v);
}

ALWAYS_INLINE void put_codes(uint8_t *to, const ints v[4], bool is_short)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    const __m512i cut = is_short ? _mm512_subs_epu8(bytes, _mm512_set1_epi8((char)(int)AWQ_FLOAT_BASE))
                                 : _mm512_min_epu8(bytes, _mm512_set1_epi8(AWQ_CODE_MAX));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, cut));
}

ALWAYS_INLINE void put_some_codes(uint8_t *to, ints v, int64_t n, bool is_short)
{
    const __m512i least = _mm512_set1_epi32(is_short ? (int)AWQ_FLOAT_BASE : 0);
    const __m512i positive = _mm512_sub_epi32(_mm512_max_epi32(v, least), least);
    _mm512_mask_cvtepi32_storeu_epi8(to, first_lanes(n), _mm512_min_epi32(positive, _mm512_set1_epi32(AWQ_CODE_MAX)));
}

ALWAYS_INLINE vector raise_some(awq_dtype dtype, vector most, const uint8_t *from, int64_t bytes)
{
    return raise_magnitude(dtype, most, _mm512_maskz_loadu_epi8(first_bytes(bytes), from));
}

/* A permutation of the weights of all codes. */
ALWAYS_INLINE int64_t look_up(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                              float scale, float zero, bool stream)
{
    const floats all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const floats weights = (all - all_of(zero)) * all_of(scale);
    int64_t i = 0;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        for (; i + LANES <= count; i += LANES) {
            const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + i)));
            put(to + 4 * i, _mm512_castps_si512(_mm512_permutexvar_ps(at, weights)), stream);
        }
        return i;
    }
    const __m512i halves = _mm512_castsi256_si512(halves_of(dtype, weights));
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const __m512i at = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(codes + i)));
        put(to + 2 * i, _mm512_permutexvar_epi16(at, halves), stream);
    }
    return i;
}

#include "float_lines.h"

const awq_float_kernels awq_float_avx512 = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = awq_avx512_min_max,
    .widen = widen,
    .narrow = narrow,
};

TARGET_END
#endif

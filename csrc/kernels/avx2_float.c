/* Floats beside codes for AVX2 with FMA and F16C: the primitives of float_lines.h. */
#include "kernels.h"

#if defined(__x86_64__)

#include "float_kernels.h"

#define AWQ_TARGET "avx2,fma,f16c"
#include "avx2.h"

typedef __m256 floats;
typedef __m256i ints;

enum { LANES = 8, STEP = VECTOR };

ALWAYS_INLINE floats all_of(float value)
{
    return _mm256_set1_ps(value);
}

ALWAYS_INLINE floats load_floats(awq_dtype dtype, const uint8_t *from)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return _mm256_loadu_ps((const float *)(const void *)from);
    }
    const __m128i halves = _mm_loadu_si128((const void *)from);
    return dtype == AWQ_DTYPE_FLOAT16 ? _mm256_cvtph_ps(halves)
                                      : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* Rounds half to even; no NaN comes here. */
ALWAYS_INLINE __m128i halves_of(awq_dtype dtype, floats v)
{
    if (dtype == AWQ_DTYPE_FLOAT16) {
        return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

ALWAYS_INLINE void put_floats(awq_dtype dtype, uint8_t *to, floats v)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        _mm256_storeu_ps((float *)(void *)to, v);
    } else {
        _mm_storeu_si128((void *)to, halves_of(dtype, v));
    }
}

ALWAYS_INLINE void put_pair(awq_dtype dtype, uint8_t *to, const floats v[2], bool stream)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        put(to, _mm256_castps_si256(v[0]), stream);
        put(to + VECTOR, _mm256_castps_si256(v[1]), stream);
    } else {
        put(to, _mm256_set_m128i(halves_of(dtype, v[1]), halves_of(dtype, v[0])), stream);
    }
}

ALWAYS_INLINE floats load_codes(const uint8_t *codes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)codes)));
}

ALWAYS_INLINE floats lesser(floats a, floats b)
{
    return _mm256_min_ps(a, b);
}

ALWAYS_INLINE floats greater(floats a, floats b)
{
    return _mm256_max_ps(a, b);
}

ALWAYS_INLINE vector bits_of(floats v)
{
    return _mm256_castps_si256(v);
}

ALWAYS_INLINE floats multiply_add(floats a, floats b, floats c)
{
    return _mm256_fmadd_ps(a, b, c);
}

ALWAYS_INLINE floats subtract_product(floats a, floats b, floats c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

ALWAYS_INLINE ints nearest(floats v)
{
    return _mm256_cvtps_epi32(v);
}

ALWAYS_INLINE void put_codes(uint8_t *to, const ints v[4], bool apart, bool is_short)
{
    (void)apart;
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i cut = is_short ? _mm256_subs_epu8(bytes, _mm256_set1_epi8((char)(int)AWQ_FLOAT_BASE))
                                 : _mm256_min_epu8(bytes, _mm256_set1_epi8(AWQ_CODE_MAX));
    put(to, _mm256_permutevar8x32_epi32(cut, order), false);
}

/* The greatest magnitude so far, in lanes as wide as the dtype: what is finite is below infinity there. */
ALWAYS_INLINE vector raise_magnitude(awq_dtype dtype, vector most, vector weights)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return _mm256_max_epu32(most, _mm256_and_si256(weights, _mm256_set1_epi32(0x7fffffff)));
    }
    return _mm256_max_epu16(most, _mm256_and_si256(weights, _mm256_set1_epi16(0x7fff)));
}

ALWAYS_INLINE bool is_all_below(awq_dtype dtype, vector most, bool is_short)
{
    const int last = awq_float_beyond(dtype, is_short) - 1;
    const __m256i beyond = dtype == AWQ_DTYPE_FLOAT32 ? _mm256_cmpgt_epi32(most, _mm256_set1_epi32(last))
                                                      : _mm256_cmpgt_epi16(most, _mm256_set1_epi16((short)last));
    return _mm256_testz_si256(beyond, beyond);
}

/* Weights of two bytes: low and high bytes apart. */
ALWAYS_INLINE int64_t look_up(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                              float scale, float zero, bool stream)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return 0;
    }
    const floats from_0 = {0, 1, 2, 3, 4, 5, 6, 7}, s = all_of(scale), z = all_of(zero);
    const __m128i a = halves_of(dtype, (from_0 - z) * s), b = halves_of(dtype, (from_0 + all_of(LANES) - z) * s);
    const __m128i mask = _mm_set1_epi16(255);
    const __m256i low = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(a, mask), _mm_and_si128(b, mask)));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8)));
    int64_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        const __m256i at = _mm256_permute4x64_epi64(load(codes + i), 0xd8);
        const __m256i lows = _mm256_shuffle_epi8(low, at), highs = _mm256_shuffle_epi8(high, at);
        put(to + 2 * i, _mm256_unpacklo_epi8(lows, highs), stream);
        put(to + 2 * i + VECTOR, _mm256_unpackhi_epi8(lows, highs), stream);
    }
    return i;
}

#include "float_unmasked.h"

#include "float_lines.h"

const awq_float_kernels awq_float_avx2 = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = min_max,
    .invert = invert,
    .widen = widen,
    .narrow = narrow,
};

TARGET_END
#endif

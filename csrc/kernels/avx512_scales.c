/* The least and the greatest of groups of floats for AVX-512: as integers, which floats are once negative ones are
   turned. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512_float.h"
#include "float_bits.h"

/* Signed integers of the dtype's width in the order of the floats they are; the same again turns them back. */
ALWAYS_INLINE __m512i in_order(awq_dtype dtype, __m512i bits)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return _mm512_ternarylogic_epi32(bits, _mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0x7fffffff), 0x78);
    }
    return _mm512_ternarylogic_epi32(bits, _mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff), 0x78);
}

/* The lesser and the greater of each lane. */
typedef struct extremes {
    __m512i low, high;
} extremes;

ALWAYS_INLINE extremes widened(awq_dtype dtype, extremes so_far, __m512i v)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return (extremes){_mm512_min_epi32(so_far.low, v), _mm512_max_epi32(so_far.high, v)};
    }
    return (extremes){_mm512_min_epi16(so_far.low, v), _mm512_max_epi16(so_far.high, v)};
}

/* The least of 32 signed lanes of 16 bits. */
ALWAYS_INLINE int16_t least_of(__m512i v)
{
    const __m256i half = _mm256_min_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i quarter = _mm_min_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i turned = _mm_xor_si128(quarter, _mm_set1_epi16(INT16_MIN));
    return (int16_t)(_mm_extract_epi16(_mm_minpos_epu16(turned), 0) ^ 0x8000);
}

/* The float that a signed integer stands for in the order. */
ALWAYS_INLINE float float_at(awq_dtype dtype, int32_t rank)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return awq_float_of((uint32_t)(rank < 0 ? rank ^ 0x7fffffff : rank));
    }
    const uint16_t half = (uint16_t)(rank < 0 ? rank ^ 0x7fff : rank);
    return dtype == AWQ_DTYPE_FLOAT16
               ? _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_castsi128_si256(_mm_cvtsi32_si128(half))))
               : awq_float_of_bfloat(half);
}

/* One group's weights. False when some are not finite. */
ALWAYS_INLINE bool scan_group(awq_dtype dtype, const uint8_t *restrict from, int64_t count, float *low, float *high)
{
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2, bytes = count * item;
    const __m512i first =
        in_order(dtype, dtype == AWQ_DTYPE_FLOAT32 ? _mm512_set1_epi32((int)awq_bits_of(awq_float_load(dtype, from)))
                                                   : _mm512_set1_epi16((short)(from[0] | from[1] << 8)));
    extremes a = {first, first}, b = a;
    int64_t i = 0;
    for (; i + 2 * VECTOR <= bytes; i += 2 * VECTOR) {
        a = widened(dtype, a, in_order(dtype, load(from + i)));
        b = widened(dtype, b, in_order(dtype, load(from + i + VECTOR)));
    }
    for (; i < bytes; i += VECTOR) {
        const __mmask64 lanes = first_bytes(bytes - i);
        const __m512i v = in_order(dtype, _mm512_maskz_loadu_epi8(lanes, from + i));
        a = widened(dtype, a, _mm512_mask_blend_epi8(lanes, first, v));
    }
    a = (extremes){widened(dtype, a, b.low).low, widened(dtype, a, b.high).high};
    int32_t least, most;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        least = _mm512_reduce_min_epi32(a.low);
        most = _mm512_reduce_max_epi32(a.high);
    } else {
        least = least_of(a.low);
        most = ~least_of(_mm512_ternarylogic_epi32(a.high, a.high, a.high, 0x55));
    }
    const int32_t infinity = dtype == AWQ_DTYPE_FLOAT32 ? 0x7f800000 : dtype == AWQ_DTYPE_FLOAT16 ? 0x7c00 : 0x7f80;
    const float lower = float_at(dtype, least), higher = float_at(dtype, most);
    *low = lower < *low ? lower : *low;
    *high = higher > *high ? higher : *high;
    return most < infinity && least > -infinity - 1;
}

/* A group a weight. */
ALWAYS_INLINE bool scan_each(awq_dtype dtype, const uint8_t *restrict from, int64_t count, float *restrict low,
                             float *restrict high)
{
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
    __m512i most = _mm512_setzero_si512();
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const __m512 v = load_floats(dtype, from + i * item);
        most = raise_magnitude(AWQ_DTYPE_FLOAT32, most, _mm512_castps_si512(v));
        _mm512_storeu_ps(low + i, _mm512_min_ps(v, _mm512_loadu_ps(low + i)));
        _mm512_storeu_ps(high + i, _mm512_max_ps(v, _mm512_loadu_ps(high + i)));
    }
    if (i < count) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 v = load_some(dtype, from + i * item, count - i);
        most = raise_magnitude(AWQ_DTYPE_FLOAT32, most, _mm512_castps_si512(v));
        _mm512_mask_storeu_ps(low + i, lanes, _mm512_min_ps(v, _mm512_maskz_loadu_ps(lanes, low + i)));
        _mm512_mask_storeu_ps(high + i, lanes, _mm512_max_ps(v, _mm512_maskz_loadu_ps(lanes, high + i)));
    }
    return is_all_finite(AWQ_DTYPE_FLOAT32, most);
}

ALWAYS_INLINE bool min_max_as(awq_dtype dtype, const uint8_t *restrict from, int64_t count, int64_t group,
                              int64_t taken, float *restrict low, float *restrict high)
{
    if (group == 1) {
        return scan_each(dtype, from, count, low, high);
    }
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
    bool is_finite = true;
    for (int64_t i = 0, left = group - taken; i < count; i += left, left = group, low++, high++) {
        is_finite &= scan_group(dtype, from + i * item, awq_min(left, count - i), low, high);
    }
    return is_finite;
}

bool awq_avx512_min_max(awq_dtype dtype, const void *restrict weight, int64_t count, int64_t group, int64_t taken,
                        float *restrict low, float *restrict high)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16: return min_max_as(AWQ_DTYPE_FLOAT16, weight, count, group, taken, low, high);
    case AWQ_DTYPE_BFLOAT16: return min_max_as(AWQ_DTYPE_BFLOAT16, weight, count, group, taken, low, high);
    default: return min_max_as(AWQ_DTYPE_FLOAT32, weight, count, group, taken, low, high);
    }
}

TARGET_END
#endif

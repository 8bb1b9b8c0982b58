/* Floats beside codes for AVX-512: the primitives of float_lines.h. */
#include "kernels.h"

#if defined(__x86_64__)

#include "float_bits.h"
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

ALWAYS_INLINE bool is_all_below(awq_dtype dtype, vector most, bool is_short)
{
    const int beyond = awq_float_beyond(dtype, is_short);
    return dtype == AWQ_DTYPE_FLOAT32 ? _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(beyond)) == 0
                                      : _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16((short)beyond)) == 0;
}

/* bfloat16 in the upper halves, rounded half to even; no NaN comes here. The processor's own conversion takes subnormal
   numbers for 0. */
ALWAYS_INLINE __m512i rounded_uppers(__m512 v)
{
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

ALWAYS_INLINE __m256i halves_of(awq_dtype dtype, __m512 v)
{
    return dtype == AWQ_DTYPE_FLOAT16 ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                                      : _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_uppers(v), 16));
}

/* The upper halves of both. */
ALWAYS_INLINE __m512i uppers_of(__m512i low, __m512i high)
{
    const __m512i odd = _mm512_setr_epi32(0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015,
                                          0x001b0019, 0x001f001d, 0x00230021, 0x00270025, 0x002b0029, 0x002f002d,
                                          0x00330031, 0x00370035, 0x003b0039, 0x003f003d);
    return _mm512_permutex2var_epi16(low, odd, high);
}

ALWAYS_INLINE void put_pair(awq_dtype dtype, uint8_t *to, const floats v[2], bool stream)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        put(to, _mm512_castps_si512(v[0]), stream);
        put(to + VECTOR, _mm512_castps_si512(v[1]), stream);
    } else if (dtype == AWQ_DTYPE_BFLOAT16) {
        put(to, uppers_of(rounded_uppers(v[0]), rounded_uppers(v[1])), stream);
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

ALWAYS_INLINE floats greater(floats a, floats b)
{
    return _mm512_max_ps(a, b);
}

ALWAYS_INLINE vector bits_of(floats v)
{
    return _mm512_castps_si512(v);
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

/* bfloat16 are the upper halves of floats: of each two, one is there and the other a shift away. */
ALWAYS_INLINE bool is_apart(awq_dtype dtype)
{
    return dtype == AWQ_DTYPE_BFLOAT16;
}

/* Apart: the first of each two among 2 * LANES, the second ones, and the same of as many more. */
ALWAYS_INLINE void load_step(awq_dtype dtype, bool apart, const uint8_t *from, floats v[4])
{
    for (int k = 0; k < 4; k++) {
        if (!apart) {
            v[k] = load_floats(dtype, from + k * LANES * awq_float_bytes(dtype));
            continue;
        }
        const __m512i both = load(from + k / 2 * VECTOR);
        v[k] = _mm512_castsi512_ps(k % 2 == 0 ? _mm512_slli_epi32(both, 16)
                                              : _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
    }
}

/* Where the codes of weights that came apart are once put_codes has packed them: four of each of its vectors in each 128
   bits. */
ALWAYS_INLINE __m512i together(__m512i bytes)
{
    const __m512i first =
        _mm512_setr_epi64(0x0703060205010400, 0x1713161215111410, 0x2723262225212420, 0x3733363235313430,
                          0x0f0b0e0a0d090c08, 0x1f1b1e1a1d191c18, 0x2f2b2e2a2d292c28, 0x3f3b3e3a3d393c38);
    return _mm512_permutexvar_epi8(first, bytes);
}

ALWAYS_INLINE void put_codes(uint8_t *to, const ints v[4], bool apart, bool is_short)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    const __m512i cut = is_short ? _mm512_subs_epu8(bytes, _mm512_set1_epi8((char)(int)AWQ_FLOAT_BASE))
                                 : _mm512_min_epu8(bytes, _mm512_set1_epi8(AWQ_CODE_MAX));
    _mm512_storeu_si512(to, apart ? together(cut) : _mm512_permutexvar_epi32(order, cut));
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

/* --- the least and the greatest, as integers, which floats are once negative ones are turned --- */

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

ALWAYS_INLINE vector scan_group(awq_dtype dtype, const uint8_t *restrict from, int64_t count, float *low, float *high,
                                vector most)
{
    const int64_t item = awq_float_bytes(dtype), bytes = count * item;
    const __m512i first =
        in_order(dtype, dtype == AWQ_DTYPE_FLOAT32 ? _mm512_set1_epi32((int)awq_bits_of(awq_float_load(dtype, from)))
                                                   : _mm512_set1_epi16((short)(from[0] | from[1] << 8)));
    extremes a = {first, first}, b = a;
    int64_t i = 0;
    for (; i + 2 * VECTOR <= bytes; i += 2 * VECTOR) {
        awq_float_ask(from + i, AWQ_FLOAT_READ_AHEAD);
        awq_float_ask(from + i, AWQ_FLOAT_READ_AHEAD + VECTOR);
        a = widened(dtype, a, in_order(dtype, load(from + i)));
        b = widened(dtype, b, in_order(dtype, load(from + i + VECTOR)));
    }
    for (; i < bytes; i += VECTOR) {
        const __mmask64 lanes = first_bytes(bytes - i);
        const __m512i v = in_order(dtype, _mm512_maskz_loadu_epi8(lanes, from + i));
        a = widened(dtype, a, _mm512_mask_blend_epi8(lanes, first, v));
    }
    a = (extremes){widened(dtype, a, b.low).low, widened(dtype, a, b.high).high};
    int32_t least, greatest;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        least = _mm512_reduce_min_epi32(a.low);
        greatest = _mm512_reduce_max_epi32(a.high);
    } else {
        least = least_of(a.low);
        greatest = ~least_of(_mm512_ternarylogic_epi32(a.high, a.high, a.high, 0x55));
    }
    const int32_t infinity = dtype == AWQ_DTYPE_FLOAT32 ? 0x7f800000 : dtype == AWQ_DTYPE_FLOAT16 ? 0x7c00 : 0x7f80;
    const float lower = float_at(dtype, least), higher = float_at(dtype, greatest);
    *low = lower < *low ? lower : *low;
    *high = higher > *high ? higher : *high;
    return greatest < infinity && least > -infinity - 1 ? most : _mm512_set1_epi32(0x7f800000);
}

#include "float_lines.h"

const awq_float_kernels awq_float_avx512 = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = min_max,
    .invert = invert,
    .widen = widen,
    .narrow = narrow,
};

TARGET_END
#endif

/* Floats beside codes for AVX-512. A group of one scale has but 16 weights: they are looked up. */
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

/* --- dequantize --- */

ALWAYS_INLINE __m512 weights_of(__m512 codes, __m512 zero, __m512 scale)
{
    return _mm512_mul_ps(_mm512_sub_ps(codes, zero), scale);
}

ALWAYS_INLINE __m512 codes_as_floats(const uint8_t *codes, __mmask16 lanes)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, codes)));
}

/* `count` codes of one scale. */
ALWAYS_INLINE void look_up(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                           float scale, float zero, bool stream)
{
    const __m512 all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 weights = weights_of(all, _mm512_set1_ps(zero), _mm512_set1_ps(scale));
    int64_t i = 0;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        for (; i + LANES <= count; i += LANES) {
            const __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + i)));
            put(to + 4 * i, _mm512_castps_si512(_mm512_permutexvar_ps(at, weights)), stream);
        }
        if (i < count) {
            const __mmask16 rest = first_lanes(count - i);
            const __m512i at = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(rest, codes + i));
            _mm512_mask_storeu_ps(to + 4 * i, rest, _mm512_permutexvar_ps(at, weights));
        }
        return;
    }
    const __m512i halves = _mm512_castsi256_si512(halves_of(dtype, weights));
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const __m512i at = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(codes + i)));
        put(to + 2 * i, _mm512_permutexvar_epi16(at, halves), stream);
    }
    if (i < count) {
        const __mmask32 rest = (__mmask32)((UINT64_C(1) << (count - i)) - 1);
        const __m512i at = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(rest, codes + i));
        _mm512_mask_storeu_epi16(to + 2 * i, rest, _mm512_permutexvar_epi16(at, halves));
    }
}

/* A scale a code. */
ALWAYS_INLINE void multiply(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to,
                            const awq_float_line *line, bool stream)
{
    int64_t i = 0;
    for (; i + 2 * LANES <= line->count; i += 2 * LANES) {
        __m512 v[2];
        for (int k = 0; k < 2; k++) {
            const int64_t at = i + k * LANES;
            v[k] = weights_of(codes_as_floats(codes + at, 0xffff), _mm512_loadu_ps(line->zeros + at),
                              _mm512_loadu_ps(line->scales + at));
        }
        if (dtype == AWQ_DTYPE_FLOAT32) {
            put(to + 4 * i, _mm512_castps_si512(v[0]), stream);
            put(to + 4 * i + VECTOR, _mm512_castps_si512(v[1]), stream);
        } else {
            put(to + 2 * i,
                _mm512_inserti64x4(_mm512_castsi256_si512(halves_of(dtype, v[0])), halves_of(dtype, v[1]), 1), stream);
        }
    }
    for (; i < line->count; i += LANES) {
        const __mmask16 rest = first_lanes(line->count - i);
        const __m512 v = weights_of(codes_as_floats(codes + i, rest), _mm512_maskz_loadu_ps(rest, line->zeros + i),
                                    _mm512_maskz_loadu_ps(rest, line->scales + i));
        if (dtype == AWQ_DTYPE_FLOAT32) {
            _mm512_mask_storeu_ps(to + 4 * i, rest, v);
        } else {
            _mm256_mask_storeu_epi16(to + 2 * i, rest, halves_of(dtype, v));
        }
    }
}

ALWAYS_INLINE void dequantize_as(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to,
                                 const awq_float_line *line, bool stream)
{
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
    if (line->group == 1) {
        if (stream && (uintptr_t)to % VECTOR == 0) {
            multiply(dtype, codes, to, line, true);
        } else {
            multiply(dtype, codes, to, line, false);
        }
        return;
    }
    int64_t left = line->group - line->taken;
    for (int64_t i = 0, entry = 0; i < line->count; i += left, left = line->group, entry++) {
        const int64_t count = awq_float_min(left, line->count - i);
        if (stream && (uintptr_t)(to + i * item) % VECTOR == 0) {
            look_up(dtype, codes + i, to + i * item, count, line->scales[entry], line->zeros[entry], true);
        } else {
            look_up(dtype, codes + i, to + i * item, count, line->scales[entry], line->zeros[entry], false);
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

/* Codes as int32, below 0 and above 15 where they are cut off later: see float_kernels.h. */
ALWAYS_INLINE __m512i round_codes(__m512 weights, __m512 scale, __m512 reciprocal, __m512 zero, __m512 cut)
{
    const __m512 w = _mm512_min_ps(weights, cut);
    const __m512 near = _mm512_mul_ps(w, reciprocal);
    const __m512 q = _mm512_fmadd_ps(_mm512_fnmadd_ps(near, scale, w), reciprocal, near);
    return _mm512_cvtps_epi32(_mm512_add_ps(q, zero));
}

/* Four vectors of codes to bytes. */
ALWAYS_INLINE __m512i join_codes(const __m512i v[4])
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
    return _mm512_permutexvar_epi32(order, _mm512_min_epu8(bytes, _mm512_set1_epi8(AWQ_CODE_MAX)));
}

/* What a vector of weights is divided by: of one group, or of each lane. */
typedef struct divisor {
    __m512 scale, reciprocal, zero, cut;
} divisor;

ALWAYS_INLINE divisor divisor_at(const awq_float_line *line, int64_t entry, bool is_each, __mmask16 lanes)
{
    const float *scales = line->scales + entry, *reciprocals = line->reciprocals + entry, *zeros = line->zeros + entry;
    const __m512 scale = is_each ? _mm512_maskz_loadu_ps(lanes, scales) : _mm512_set1_ps(*scales);
    return (divisor){
        scale,
        is_each ? _mm512_maskz_loadu_ps(lanes, reciprocals) : _mm512_set1_ps(*reciprocals),
        is_each ? _mm512_maskz_loadu_ps(lanes, zeros) : _mm512_set1_ps(*zeros),
        _mm512_mul_ps(scale, _mm512_set1_ps(AWQ_FLOAT_CUT)),
    };
}

/* `count` weights of the group `entry`, or of a group each from it on. */
ALWAYS_INLINE __m512i divide(awq_dtype dtype, const uint8_t *restrict from, uint8_t *restrict codes, int64_t count,
                             const awq_float_line *line, int64_t entry, bool is_each, __m512i most)
{
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
    divisor by = divisor_at(line, entry, is_each, is_each ? 0 : 0xffff);
    int64_t i = 0;
    for (; i + VECTOR <= count; i += VECTOR) {
        __m512i v[4];
        for (int k = 0; k < 4; k++) {
            const int64_t at = i + k * LANES;
            if (is_each) {
                by = divisor_at(line, entry + at, true, 0xffff);
            }
            v[k] = round_codes(load_floats(dtype, from + at * item, 0xffff), by.scale, by.reciprocal, by.zero, by.cut);
        }
        for (int k = 0; k < item; k++) {
            most = raise_magnitude(dtype, most, load(from + i * item + k * VECTOR));
        }
        _mm512_storeu_si512(codes + i, join_codes(v));
    }
    for (; i < count; i += LANES) {
        const __mmask16 rest = first_lanes(count - i);
        if (is_each) {
            by = divisor_at(line, entry + i, true, rest);
        }
        most = raise_magnitude(
            dtype, most, _mm512_maskz_loadu_epi8(first_bytes(awq_float_min(count - i, LANES) * item), from + i * item));
        const __m512i v =
            round_codes(load_floats(dtype, from + i * item, rest), by.scale, by.reciprocal, by.zero, by.cut);
        const __m512i cut =
            _mm512_min_epi32(_mm512_max_epi32(v, _mm512_setzero_si512()), _mm512_set1_epi32(AWQ_CODE_MAX));
        _mm512_mask_cvtepi32_storeu_epi8(codes + i, rest, cut);
    }
    return most;
}

ALWAYS_INLINE bool quantize_as(awq_dtype dtype, const uint8_t *restrict from, uint8_t *restrict codes,
                               const awq_float_line *line)
{
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
    __m512i most = _mm512_setzero_si512();
    if (line->group == 1) {
        most = divide(dtype, from, codes, line->count, line, 0, true, most);
        return is_all_finite(dtype, most);
    }
    int64_t left = line->group - line->taken;
    for (int64_t i = 0, entry = 0; i < line->count; i += left, left = line->group, entry++) {
        const int64_t count = awq_float_min(left, line->count - i);
        most = divide(dtype, from + i * item, codes + i, count, line, entry, false, most);
    }
    return is_all_finite(dtype, most);
}

static bool quantize(awq_dtype dtype, const void *restrict weight, uint8_t *restrict codes, const awq_float_line *line)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16: return quantize_as(AWQ_DTYPE_FLOAT16, weight, codes, line);
    case AWQ_DTYPE_BFLOAT16: return quantize_as(AWQ_DTYPE_BFLOAT16, weight, codes, line);
    default: return quantize_as(AWQ_DTYPE_FLOAT32, weight, codes, line);
    }
}

static void widen(awq_dtype dtype, const void *restrict from, int64_t count, float *restrict to)
{
    const int64_t item = dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        _mm512_storeu_ps(to + i, load_floats(dtype, (const uint8_t *)from + i * item, 0xffff));
    }
    if (i < count) {
        const __mmask16 rest = first_lanes(count - i);
        _mm512_mask_storeu_ps(to + i, rest, load_floats(dtype, (const uint8_t *)from + i * item, rest));
    }
}

static void narrow(awq_dtype dtype, const float *restrict from, int64_t count, void *restrict to)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 v = _mm512_maskz_loadu_ps(lanes, from + i);
        if (dtype == AWQ_DTYPE_FLOAT32) {
            _mm512_mask_storeu_ps((float *)to + i, lanes, v);
        } else {
            _mm256_mask_storeu_epi16((uint8_t *)to + 2 * i, lanes, halves_of(dtype, v));
        }
    }
}

const awq_float_kernels awq_float_avx512 = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = awq_avx512_min_max,
    .widen = widen,
    .narrow = narrow,
};

TARGET_END
#endif

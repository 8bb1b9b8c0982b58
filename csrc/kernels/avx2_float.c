/* Floats beside codes for AVX2 with FMA and F16C. What is left of a line is done as plain C does it: the results are
   the same. */
#include "kernels.h"

#if defined(__x86_64__)

#include "float_bits.h"
#include "float_kernels.h"

#define AWQ_TARGET "avx2,fma,f16c"
#include "x86.h"

enum { LANES = 8, QUARTERS = 4, STEP = LANES * QUARTERS };

ALWAYS_INLINE int64_t item_of(awq_dtype dtype)
{
    return dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
}

ALWAYS_INLINE __m256 load_floats(awq_dtype dtype, const uint8_t *from)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return _mm256_loadu_ps((const float *)(const void *)from);
    }
    const __m128i halves = _mm_loadu_si128((const void *)from);
    return dtype == AWQ_DTYPE_FLOAT16 ? _mm256_cvtph_ps(halves)
                                      : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* Rounds half to even; no NaN comes here. */
ALWAYS_INLINE __m128i halves_of(awq_dtype dtype, __m256 v)
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

ALWAYS_INLINE void put_floats(awq_dtype dtype, uint8_t *to, __m256 v)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        _mm256_storeu_ps((float *)(void *)to, v);
    } else {
        _mm_storeu_si128((void *)to, halves_of(dtype, v));
    }
}

/* --- dequantize --- */

ALWAYS_INLINE __m256 weights_of(const uint8_t *codes, __m256 zero, __m256 scale)
{
    const __m256 code = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)codes)));
    return _mm256_mul_ps(_mm256_sub_ps(code, zero), scale);
}

/* Codes of one scale have but 16 weights of two bytes: they are looked up, low and high bytes apart. */
ALWAYS_INLINE int64_t look_up(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                              float scale, float zero, bool stream)
{
    static const uint8_t all[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m256 s = _mm256_set1_ps(scale), z = _mm256_set1_ps(zero);
    const __m128i a = halves_of(dtype, weights_of(all, z, s)), b = halves_of(dtype, weights_of(all + LANES, z, s));
    const __m128i mask = _mm_set1_epi16(255);
    const __m256i low = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(a, mask), _mm_and_si128(b, mask)));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8)));
    int64_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        const __m256i at = _mm256_permute4x64_epi64(_mm256_loadu_si256((const void *)(codes + i)), 0xd8);
        const __m256i lows = _mm256_shuffle_epi8(low, at), highs = _mm256_shuffle_epi8(high, at);
        const __m256i first = _mm256_unpacklo_epi8(lows, highs), second = _mm256_unpackhi_epi8(lows, highs);
        if (stream) {
            _mm256_stream_si256((void *)(to + 2 * i), first);
            _mm256_stream_si256((void *)(to + 2 * i + 32), second);
        } else {
            _mm256_storeu_si256((void *)(to + 2 * i), first);
            _mm256_storeu_si256((void *)(to + 2 * i + 32), second);
        }
    }
    return i;
}

ALWAYS_INLINE void dequantize_as(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to,
                                 const awq_float_line *line, bool stream)
{
    const int64_t item = item_of(dtype);
    const bool is_each = line->group == 1;
    int64_t left = is_each ? line->count : line->group - line->taken;
    for (int64_t i = 0, entry = 0; i < line->count; left = line->group, entry++) {
        const int64_t end = i + awq_float_min(left, line->count - i);
        const float *scale = line->scales + entry, *zero = line->zeros + entry;
        if (dtype != AWQ_DTYPE_FLOAT32 && !is_each) {
            const bool aligned = stream && (uintptr_t)(to + i * item) % 32 == 0;
            i += look_up(dtype, codes + i, to + i * item, end - i, *scale, *zero, aligned);
        }
        for (; i + LANES <= end; i += LANES) {
            const __m256 s = is_each ? _mm256_loadu_ps(scale + i) : _mm256_set1_ps(*scale);
            const __m256 z = is_each ? _mm256_loadu_ps(zero + i) : _mm256_set1_ps(*zero);
            put_floats(dtype, to + i * item, weights_of(codes + i, z, s));
        }
        for (; i < end; i++) {
            const int64_t at = is_each ? i : 0;
            awq_float_store(dtype, to + i * item, ((float)codes[i] - zero[at]) * scale[at]);
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

ALWAYS_INLINE __m256i magnitude(__m256 v)
{
    return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
}

ALWAYS_INLINE bool is_all_finite(__m256i most)
{
    return _mm256_testz_si256(_mm256_cmpgt_epi32(most, _mm256_set1_epi32(0x7f7fffff)), _mm256_set1_epi32(-1));
}

/* Codes as int32, below 0 and above 15 where they are cut off later: see float_kernels.h. */
ALWAYS_INLINE __m256i round_codes(__m256 weights, __m256 scale, __m256 reciprocal, __m256 zero)
{
    const __m256 w = _mm256_min_ps(weights, _mm256_mul_ps(scale, _mm256_set1_ps(AWQ_FLOAT_CUT)));
    const __m256 near = _mm256_mul_ps(w, reciprocal);
    const __m256 q = _mm256_fmadd_ps(_mm256_fnmadd_ps(near, scale, w), reciprocal, near);
    return _mm256_cvtps_epi32(_mm256_add_ps(q, zero));
}

ALWAYS_INLINE void put_codes(uint8_t *codes, const __m256i v[QUARTERS])
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const __m256i in_order = _mm256_permutevar8x32_epi32(_mm256_min_epu8(bytes, _mm256_set1_epi8(AWQ_CODE_MAX)), order);
    _mm256_storeu_si256((void *)codes, in_order);
}

ALWAYS_INLINE bool quantize_as(awq_dtype dtype, const uint8_t *restrict from, uint8_t *restrict codes,
                               const awq_float_line *line)
{
    const int64_t item = item_of(dtype);
    const bool is_each = line->group == 1;
    __m256i most = _mm256_setzero_si256();
    bool is_finite = true;
    int64_t left = is_each ? line->count : line->group - line->taken;
    for (int64_t i = 0, entry = 0; i < line->count; left = line->group, entry++) {
        const int64_t end = i + awq_float_min(left, line->count - i);
        const float *scale = line->scales + entry, *zero = line->zeros + entry, *reciprocal = line->reciprocals + entry;
        for (; i + STEP <= end; i += STEP) {
            __m256i v[QUARTERS];
            for (int k = 0; k < QUARTERS; k++) {
                const int64_t at = i + k * LANES;
                const __m256 w = load_floats(dtype, from + at * item);
                most = _mm256_max_epu32(most, magnitude(w));
                v[k] = round_codes(w, is_each ? _mm256_loadu_ps(scale + at) : _mm256_set1_ps(*scale),
                                   is_each ? _mm256_loadu_ps(reciprocal + at) : _mm256_set1_ps(*reciprocal),
                                   is_each ? _mm256_loadu_ps(zero + at) : _mm256_set1_ps(*zero));
            }
            put_codes(codes + i, v);
        }
        for (; i < end; i++) {
            const int64_t at = is_each ? i : 0;
            const float w = awq_float_load(dtype, from + i * item);
            is_finite = is_finite && awq_is_finite(w);
            codes[i] = awq_round_code((scale[at] == 0 ? 0 : w / scale[at]) + zero[at]);
        }
    }
    return is_finite && is_all_finite(most);
}

static bool quantize(awq_dtype dtype, const void *restrict weight, uint8_t *restrict codes, const awq_float_line *line)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16: return quantize_as(AWQ_DTYPE_FLOAT16, weight, codes, line);
    case AWQ_DTYPE_BFLOAT16: return quantize_as(AWQ_DTYPE_BFLOAT16, weight, codes, line);
    default: return quantize_as(AWQ_DTYPE_FLOAT32, weight, codes, line);
    }
}

/* --- min_max --- */

/* The least and the greatest of what came before and of elements [i, end); what is left of them is the caller's. */
ALWAYS_INLINE int64_t scan_group(awq_dtype dtype, const uint8_t *restrict from, int64_t i, int64_t end, float *low,
                                 float *high, __m256i *most)
{
    if (i + LANES > end) {
        return i;
    }
    const int64_t item = item_of(dtype);
    __m256 least = _mm256_set1_ps(*low), greatest = _mm256_set1_ps(*high);
    for (; i + LANES <= end; i += LANES) {
        const __m256 w = load_floats(dtype, from + i * item);
        *most = _mm256_max_epu32(*most, magnitude(w));
        least = _mm256_min_ps(w, least);
        greatest = _mm256_max_ps(w, greatest);
    }
    float lows[LANES], highs[LANES];
    _mm256_storeu_ps(lows, least);
    _mm256_storeu_ps(highs, greatest);
    for (int k = 0; k < LANES; k++) {
        *low = lows[k] < *low ? lows[k] : *low;
        *high = highs[k] > *high ? highs[k] : *high;
    }
    return i;
}

ALWAYS_INLINE bool min_max_as(awq_dtype dtype, const uint8_t *restrict from, int64_t count, int64_t group,
                              int64_t taken, float *restrict low, float *restrict high)
{
    const int64_t item = item_of(dtype);
    const bool is_each = group == 1;
    __m256i most = _mm256_setzero_si256();
    bool is_finite = true;
    int64_t left = is_each ? count : group - taken;
    for (int64_t i = 0; i < count; left = group, low++, high++) {
        const int64_t end = i + awq_float_min(left, count - i);
        for (; is_each && i + LANES <= end; i += LANES) {
            const __m256 w = load_floats(dtype, from + i * item);
            most = _mm256_max_epu32(most, magnitude(w));
            _mm256_storeu_ps(low + i, _mm256_min_ps(w, _mm256_loadu_ps(low + i)));
            _mm256_storeu_ps(high + i, _mm256_max_ps(w, _mm256_loadu_ps(high + i)));
        }
        if (!is_each) {
            i = scan_group(dtype, from, i, end, low, high, &most);
        }
        for (; i < end; i++) {
            const int64_t at = is_each ? i : 0;
            const float w = awq_float_load(dtype, from + i * item);
            is_finite = is_finite && awq_is_finite(w);
            low[at] = w < low[at] ? w : low[at];
            high[at] = w > high[at] ? w : high[at];
        }
    }
    return is_finite && is_all_finite(most);
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

static void widen(awq_dtype dtype, const void *restrict from, int64_t count, float *restrict to)
{
    const uint8_t *at = from;
    const int64_t item = item_of(dtype);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        _mm256_storeu_ps(to + i, load_floats(dtype, at + i * item));
    }
    for (; i < count; i++) {
        to[i] = awq_float_load(dtype, at + i * item);
    }
}

static void narrow(awq_dtype dtype, const float *restrict from, int64_t count, void *restrict to)
{
    uint8_t *at = to;
    const int64_t item = item_of(dtype);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        put_floats(dtype, at + i * item, _mm256_loadu_ps(from + i));
    }
    for (; i < count; i++) {
        awq_float_store(dtype, at + i * item, from[i]);
    }
}

const awq_float_kernels awq_float_avx2 = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = min_max,
    .widen = widen,
    .narrow = narrow,
};

TARGET_END
#endif

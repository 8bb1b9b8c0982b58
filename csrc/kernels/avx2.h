/* AVX2: the primitives that its files share, under the names that x86.h, rows.h and panel.h use. */
#ifndef AWQPACK_AVX2_H
#define AWQPACK_AVX2_H

#include "kernels.h"

#include <immintrin.h>
#include <string.h>

#ifndef AWQ_TARGET
#define AWQ_TARGET "avx2"
#endif
#include "x86.h"

typedef __m256i vector;

enum { VECTOR = sizeof(vector), LANE_COUNT = VECTOR / 16, HALVES = LINE / VECTOR };

static inline vector load(const uint8_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}

static inline void put(uint8_t *p, vector v, bool stream)
{
    if (stream) {
        _mm256_stream_si256((void *)p, v);
    } else {
        _mm256_storeu_si256((void *)p, v);
    }
}

/* A run that starts anywhere; only its whole lines are streamed. Most have no ends: memcpy is a call. */
static inline void copy_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, bool stream)
{
    int64_t i = stream ? bytes_to_line(to, bytes) : 0;
    if (i > 0) {
        memcpy(to, from, (size_t)i);
    }
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, load(from + i), stream);
        put(to + i + VECTOR, load(from + i + VECTOR), stream);
    }
    if (i < bytes) {
        memcpy(to + i, from + i, (size_t)(bytes - i));
    }
}

static inline vector no_codes(void)
{
    return _mm256_setzero_si256();
}

static inline uint8_t or_bytes(vector seen)
{
    const __m128i pair = _mm_or_si128(_mm256_castsi256_si128(seen), _mm256_extracti128_si256(seen, 1));
    return or_lanes((uint64_t)_mm_cvtsi128_si64(_mm_or_si128(pair, _mm_unpackhi_epi64(pair, pair))));
}

/* A perfect shuffle of the bytes of each 128-bit lane: its low and its high half. */
static inline vector zip_low(vector a, vector b)
{
    return _mm256_unpacklo_epi8(a, b);
}

static inline vector zip_high(vector a, vector b)
{
    return _mm256_unpackhi_epi8(a, b);
}

/* The same of 16, 32 and 64 bits. */
static inline vector zip16_low(vector a, vector b)
{
    return _mm256_unpacklo_epi16(a, b);
}

static inline vector zip16_high(vector a, vector b)
{
    return _mm256_unpackhi_epi16(a, b);
}

static inline vector zip32_low(vector a, vector b)
{
    return _mm256_unpacklo_epi32(a, b);
}

static inline vector zip32_high(vector a, vector b)
{
    return _mm256_unpackhi_epi32(a, b);
}

static inline vector zip64_low(vector a, vector b)
{
    return _mm256_unpacklo_epi64(a, b);
}

static inline vector zip64_high(vector a, vector b)
{
    return _mm256_unpackhi_epi64(a, b);
}

/* The bytes of each 128-bit lane in an order. */
static inline vector shuffle(vector v, __m128i order)
{
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(order));
}

/* Payload bytes of codes side by side in two vectors. */
static inline vector join(vector low, vector high, vector *seen)
{
    const vector mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    *seen = _mm256_or_si256(*seen, _mm256_or_si256(low, high));
    return _mm256_or_si256(_mm256_and_si256(low, mask), _mm256_slli_epi16(_mm256_and_si256(high, mask), 4));
}

/* The codes that start at bit `shift` of payload bytes. */
static inline vector nibbles(vector bytes, int shift)
{
    return _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(AWQ_CODE_MAX));
}

/* Swaps the upper half of every 2 * side nibbles of one vector with the lower half of those of another. */
ALWAYS_INLINE void swap_nibbles(vector *a, vector *b, int side)
{
    const vector low = _mm256_set1_epi32(side == 4 ? 0xffff : side == 2 ? 0x00ff00ff : 0x0f0f0f0f), first = *a;
    *a = _mm256_or_si256(_mm256_and_si256(low, first), _mm256_andnot_si256(low, _mm256_slli_epi32(*b, 4 * side)));
    *b = _mm256_or_si256(_mm256_and_si256(low, _mm256_srli_epi32(first, 4 * side)), _mm256_andnot_si256(low, *b));
}

/* 16 bytes l of each of four vectors, side by side, as line l; and the way back, from lines `stride` apart. */
static inline void lines_of_lanes(const vector v[4], vector lines[LANE_COUNT][HALVES])
{
    lines[0][0] = _mm256_permute2x128_si256(v[0], v[1], 0x20);
    lines[0][1] = _mm256_permute2x128_si256(v[2], v[3], 0x20);
    lines[1][0] = _mm256_permute2x128_si256(v[0], v[1], 0x31);
    lines[1][1] = _mm256_permute2x128_si256(v[2], v[3], 0x31);
}

static inline void get_lanes(vector v[4], const uint8_t *from, int64_t stride)
{
    const vector a = load(from), b = load(from + VECTOR), c = load(from + stride), d = load(from + stride + VECTOR);
    v[0] = _mm256_permute2x128_si256(a, c, 0x20);
    v[1] = _mm256_permute2x128_si256(a, c, 0x31);
    v[2] = _mm256_permute2x128_si256(b, d, 0x20);
    v[3] = _mm256_permute2x128_si256(b, d, 0x31);
}

/* By whole lanes, which is how NumPy's buffers start. */
static inline bool can_shift(int shift)
{
    return shift % 16 == 0;
}

/* The last `shift` bytes of a line, and the others of the one that follows it. */
static inline void shift_line(const uint8_t *rest, const vector line[HALVES], int shift, vector shifted[HALVES])
{
    const vector last = load(rest + VECTOR);
    if (shift == 16) {
        shifted[0] = _mm256_permute2x128_si256(last, line[0], 0x21);
        shifted[1] = _mm256_permute2x128_si256(line[0], line[1], 0x21);
    } else if (shift == 32) {
        shifted[0] = last;
        shifted[1] = line[0];
    } else {
        shifted[0] = load(rest + 16);
        shifted[1] = _mm256_permute2x128_si256(last, line[0], 0x21);
    }
}

#include "lines.h"

/* Contracts in kernels.h. */
awq_kernel awq_avx2_pack_v1_panel, awq_avx2_pack_v2_panel, awq_avx2_unpack_panel;
extern const awq_walks awq_avx2_marlin;

#endif

/* AVX-512 F, BW, VL and VBMI: the primitives that its files share, under the names that x86.h, rows.h and panel.h
   use. */
#ifndef AWQPACK_AVX512_H
#define AWQPACK_AVX512_H

#include "kernels.h"

#include <immintrin.h>

#define AWQ_TARGET "avx512f,avx512bw,avx512vl,avx512vbmi"
#include "x86.h"

typedef __m512i vector;

enum { VECTOR = sizeof(vector), LANE_COUNT = VECTOR / 16, HALVES = LINE / VECTOR };

static inline vector load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}

static inline void put(uint8_t *p, vector v, bool stream)
{
    if (stream) {
        _mm512_stream_si512((void *)p, v);
    } else {
        _mm512_storeu_si512(p, v);
    }
}

static inline uint64_t first_bytes(int64_t n)
{
    return n <= 0 ? 0 : n >= LINE ? UINT64_MAX : (UINT64_C(1) << n) - 1;
}

/* A run that starts anywhere; only its whole lines are streamed. */
static inline void copy_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, bool stream)
{
    const int64_t head = stream ? bytes_to_line(to, bytes) : 0;
    _mm512_mask_storeu_epi8(to, first_bytes(head), _mm512_maskz_loadu_epi8(first_bytes(head), from));
    int64_t i = head;
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, load(from + i), stream);
    }
    const uint64_t rest = first_bytes(bytes - i);
    _mm512_mask_storeu_epi8(to + i, rest, _mm512_maskz_loadu_epi8(rest, from + i));
}

static inline vector no_codes(void)
{
    return _mm512_setzero_si512();
}

static inline uint8_t or_bytes(vector seen)
{
    return or_lanes((uint64_t)_mm512_reduce_or_epi64(seen));
}

/* A perfect shuffle of the bytes of each 128-bit lane: its low and its high half. */
static inline vector zip_low(vector a, vector b)
{
    return _mm512_unpacklo_epi8(a, b);
}

static inline vector zip_high(vector a, vector b)
{
    return _mm512_unpackhi_epi8(a, b);
}

/* The same of 16, 32 and 64 bits. */
static inline vector zip16_low(vector a, vector b)
{
    return _mm512_unpacklo_epi16(a, b);
}

static inline vector zip16_high(vector a, vector b)
{
    return _mm512_unpackhi_epi16(a, b);
}

static inline vector zip32_low(vector a, vector b)
{
    return _mm512_unpacklo_epi32(a, b);
}

static inline vector zip32_high(vector a, vector b)
{
    return _mm512_unpackhi_epi32(a, b);
}

static inline vector zip64_low(vector a, vector b)
{
    return _mm512_unpacklo_epi64(a, b);
}

static inline vector zip64_high(vector a, vector b)
{
    return _mm512_unpackhi_epi64(a, b);
}

/* The bytes of each 128-bit lane in an order. */
static inline vector shuffle(vector v, __m128i order)
{
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(order));
}

/* Payload bytes of codes side by side in two vectors. */
static inline vector join(vector low, vector high, vector *seen)
{
    *seen = _mm512_ternarylogic_epi64(*seen, low, high, 0xfe);
    return _mm512_ternarylogic_epi64(_mm512_set1_epi8(AWQ_CODE_MAX), low, _mm512_slli_epi16(high, 4), 0xca);
}

/* The codes that start at bit `shift` of payload bytes. */
static inline vector nibbles(vector bytes, int shift)
{
    return _mm512_and_si512(_mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift)), _mm512_set1_epi8(AWQ_CODE_MAX));
}

/* Swaps the upper half of every 2 * side nibbles of one vector with the lower half of those of another. */
ALWAYS_INLINE void swap_nibbles(vector *a, vector *b, int side)
{
    const vector low = _mm512_set1_epi32(side == 4 ? 0xffff : side == 2 ? 0x00ff00ff : 0x0f0f0f0f), first = *a;
    *a = _mm512_ternarylogic_epi32(low, first, _mm512_slli_epi32(*b, 4 * side), 0xca);
    *b = _mm512_ternarylogic_epi32(low, _mm512_srli_epi32(first, 4 * side), *b, 0xca);
}

/* Transposes 4 x 4 lanes. */
static inline void transpose_four(vector v[4])
{
    const vector a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
    const vector b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
    const vector c = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    const vector d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* 16 bytes l of each of four vectors, side by side, as line l; and the way back, from lines `stride` apart. */
static inline void lines_of_lanes(vector v[4], vector lines[LANE_COUNT][HALVES])
{
    transpose_four(v);
#pragma GCC unroll 4
    for (int l = 0; l < LANE_COUNT; l++) {
        lines[l][0] = v[l];
    }
}

static inline void get_lanes(vector v[4], const uint8_t *from, int64_t stride)
{
#pragma GCC unroll 4
    for (int l = 0; l < LANE_COUNT; l++) {
        v[l] = load(from + l * stride);
    }
    transpose_four(v);
}

static inline bool can_shift(int shift)
{
    (void)shift;
    return true;
}

/* The last `shift` bytes of a line, and the others of the one that follows it. */
static inline void shift_line(const uint8_t *rest, const vector line[HALVES], int shift, vector shifted[HALVES])
{
    const int64_t eight = 0x0706050403020100, next = 0x0808080808080808;
    const vector bytes = _mm512_setr_epi64(eight, eight + next, eight + 2 * next, eight + 3 * next, eight + 4 * next,
                                           eight + 5 * next, eight + 6 * next, eight + 7 * next);
    const vector at = _mm512_add_epi8(bytes, _mm512_set1_epi8((char)(LINE - shift)));
    shifted[0] = _mm512_permutex2var_epi8(load(rest), at, line[0]);
}

#include "lines.h"

/* Contracts in kernels.h. */
awq_kernel awq_avx512_pack_v1_panel, awq_avx512_pack_v2_panel, awq_avx512_unpack_panel;
extern const awq_walks awq_avx512_marlin;

#endif

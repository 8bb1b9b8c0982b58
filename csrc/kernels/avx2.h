/* What the row-major and the column-major kernels for AVX2 share. */
#ifndef AWQPACK_AVX2_H
#define AWQPACK_AVX2_H

#include "kernels.h"

#include <immintrin.h>
#include <stddef.h>

enum {
    VECTOR = 32,
    LINE = 64, /* bytes of a cache line */
};

static inline __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}

/* The address is a number here, since it may lie past the end of the source. */
static inline void prefetch(const uint8_t *p, ptrdiff_t ahead)
{
    _mm_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead), _MM_HINT_T0);
}

static inline uint8_t or_bytes(__m256i seen)
{
    const __m128i pair = _mm_or_si128(_mm256_castsi256_si128(seen), _mm256_extracti128_si256(seen, 1));
    uint64_t bits = (uint64_t)_mm_cvtsi128_si64(_mm_or_si128(pair, _mm_unpackhi_epi64(pair, pair)));
    bits |= bits >> 32;
    bits |= bits >> 16;
    return (uint8_t)(bits | bits >> 8);
}

/* Contracts in kernels.h. */
enum { AVX2_SCRATCH = 576 << 10 };
uint8_t awq_avx2_pack_panel(const awq_panel *panel);
uint8_t awq_avx2_unpack_panel(const awq_panel *panel);

#endif

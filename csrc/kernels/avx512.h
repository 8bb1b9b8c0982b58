/* What the row-major and the column-major kernels for AVX-512 share. */
#ifndef AWQPACK_AVX512_H
#define AWQPACK_AVX512_H

#include "kernels.h"

#include <immintrin.h>
#include <stddef.h>

enum { LINE = 64 /* bytes of a vector and of a cache line */ };

static inline __m512i load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}

/* The address is a number here, since it may lie past the end of the source. */
static inline void prefetch(const uint8_t *p, ptrdiff_t ahead)
{
    _mm_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead), _MM_HINT_T0);
}

static inline uint64_t first_bytes(int64_t n)
{
    return n <= 0 ? 0 : n >= LINE ? UINT64_MAX : (UINT64_C(1) << n) - 1;
}

static inline uint8_t or_bytes(__m512i seen)
{
    uint64_t bits = (uint64_t)_mm512_reduce_or_epi64(seen);
    bits |= bits >> 32;
    bits |= bits >> 16;
    return (uint8_t)(bits | bits >> 8);
}

/* Contracts in kernels.h. */
enum { AVX512_SCRATCH = 576 << 10 };
uint8_t awq_avx512_pack_panel(const awq_panel *panel);
uint8_t awq_avx512_unpack_panel(const awq_panel *panel);

#endif

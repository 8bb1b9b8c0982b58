/*
 * What every file for an x86 instruction set starts with: from here to TARGET_END at its end, functions are compiled
 * for AWQ_TARGET, whatever the compiler was asked for. Included once, by avx2.h or avx512.h.
 */
#ifndef AWQPACK_X86_H
#define AWQPACK_X86_H

#include <immintrin.h>

#include "kernels.h"

#define AWQ_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define AWQ_TARGET_BEGIN(isa) AWQ_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END AWQ_PRAGMA(clang attribute pop)
#else
#define AWQ_TARGET_BEGIN(isa) AWQ_PRAGMA(GCC push_options) AWQ_PRAGMA(GCC target(isa))
#define TARGET_END AWQ_PRAGMA(GCC pop_options)
#endif

AWQ_TARGET_BEGIN(AWQ_TARGET)

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum {
    LINE = 64,         /* bytes of a cache line */
    SCRATCH = 1 << 20, /* bytes that panels ask for */
};

/* Bytes of a run before its first whole line. */
static inline int64_t bytes_to_line(const uint8_t *p, int64_t bytes)
{
    const int64_t head = (int64_t)(-(uintptr_t)p % LINE);
    return head < bytes ? head : bytes;
}

/* The address is a number here, since it may lie past the end of the source. */
static inline void prefetch(const uint8_t *p, int64_t ahead)
{
    _mm_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead), _MM_HINT_T0);
}

/* Into the second-level cache, as the columns of a large matrix fall on the same few sets of the first. */
static inline void prefetch_far(const uint8_t *p, int64_t ahead)
{
    _mm_prefetch((const void *)((uintptr_t)p + (uintptr_t)ahead), _MM_HINT_T1);
}

/* The OR of eight bytes. */
static inline uint8_t or_lanes(uint64_t bits)
{
    bits |= bits >> 32;
    bits |= bits >> 16;
    return (uint8_t)(bits | bits >> 8);
}

#endif

/* The float kernels of an instruction set: one contiguous line of weights beside its codes. No packing is known
   here. */
#ifndef AWQPACK_FLOAT_KERNELS_H
#define AWQPACK_FLOAT_KERNELS_H

#include "awqpack/floats.h"
#include "sizes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of an element of the three dtypes, which awq_dtype_bytes knows among others. */
static inline int64_t awq_float_bytes(awq_dtype dtype)
{
    return dtype == AWQ_DTYPE_FLOAT32 ? 4 : 2;
}

/* How far ahead of what is taken weights are asked for, where they become codes and where they are only read, and what
   asking once brings; in bytes, measured. The processor alone asks too late, as what is done with them fills its window.
   Half a page ahead is worse than nothing where it asks for the rest of a page by itself (Zen 4). */
enum { AWQ_FLOAT_AHEAD = 1 << 13, AWQ_FLOAT_READ_AHEAD = 1 << 12, AWQ_FLOAT_ASKED = 64 };

/* Asks for what lies so many bytes from there, which need not be memory of ours. */
static inline void awq_float_ask(const uint8_t *from, int64_t ahead)
{
    __builtin_prefetch((const void *)((uintptr_t)from + (uintptr_t)ahead), 0, 2);
}

/* Scales and zeros of a line: entry i serves `group` elements, but for the first, of whose `taken` lie before the
   line. */
typedef struct awq_float_line {
    int64_t count; /* elements */
    int64_t group, taken;
    const float *scales, *zeros;
    /* quantize only: */
    const float *reciprocals; /* 1 / scale, and 0 of a scale of 0 */
    bool is_short;            /* quotients need no correction: see AWQ_FLOAT_BASE */
    int64_t ahead; /* bytes from each weight to one that is read later, and asked for meanwhile; 0: there is none */
} awq_float_line;

/*
 * Contract, beside that of kernels.h (any alignment, nothing outside the ranges, no allocation):
 *  - results are those of floats.h bit for bit, where the caller has made the floating point mode the usual one;
 *  - quantize may take what a reciprocal and its correction give for the quotient: see AWQ_FLOAT_LEAST_SCALE.
 */
typedef struct awq_float_kernels {
    /* `stream` is that of kernels.h. */
    void (*dequantize)(awq_dtype dtype, const uint8_t *restrict codes, void *restrict weight,
                       const awq_float_line *line, bool stream);

    /* False when some weight is not finite; it may be when one of a short line is not below AWQ_FLOAT_MOST_SHORT. Codes
       are unspecified then. */
    bool (*quantize)(awq_dtype dtype, const void *restrict weight, uint8_t *restrict codes, const awq_float_line *line);

    /* Lowers low[i] and raises high[i] to what group i of the line holds. False when some weight is not finite. */
    bool (*min_max)(awq_dtype dtype, const void *restrict weight, int64_t count, int64_t group, int64_t taken,
                    float *restrict low, float *restrict high);

    /* 1 / scale, and 0 of a scale of 0. False when some scale is neither 0 nor from `least` to
       AWQ_FLOAT_MOST_SCALE. */
    bool (*invert)(const float *restrict scales, int64_t count, float least, float *restrict reciprocals);

    /* float32 of `count` contiguous floats. */
    void (*widen)(awq_dtype dtype, const void *restrict from, int64_t count, float *restrict to);

    /* The reverse, rounding half to even; none is NaN. */
    void (*narrow)(awq_dtype dtype, const float *restrict from, int64_t count, void *restrict to);
} awq_float_kernels;

extern const awq_float_kernels awq_float_scalar;
extern const awq_float_kernels awq_float_avx2;   /* x86-64 only: with FMA and F16C */
extern const awq_float_kernels awq_float_avx512; /* x86-64 only */
extern const awq_float_kernels awq_float_neon;   /* aarch64 only */

/*
 * Of a scale between these (or 0), r = 1 / scale correctly rounded, q0 = w * r, q = fma(fma(-q0, scale, w), r, q0) is
 * the correctly rounded quotient wherever that matters: a division by one multiplication and two fused ones is exact
 * while nothing underflows, and below 1/8 as well as above 32 any q gives the same code. Larger w are cut to
 * AWQ_FLOAT_CUT scales first, so that nothing overflows. Other scales divide: the scalar kernel does.
 */
#define AWQ_FLOAT_LEAST_SCALE 0x1p-96f
#define AWQ_FLOAT_MOST_SCALE 0x1p96f
#define AWQ_FLOAT_CUT 32.0f

/*
 * Weights and scales of at most 11 bits, as float16 and bfloat16 have, need no correction: w / scale + zero lies exactly
 * half way between two codes or at least 2^-13 from there. fma(w, r, zero + AWQ_FLOAT_BASE) is off by 2^-20 before it is
 * rounded to a multiple of 2^-16, so it is half way just where the quotient is, and on its side elsewhere. The base is
 * even, so that halves go where they should, and codes saturate as bytes do, at 255.
 */
#define AWQ_FLOAT_BASE 240.0f
/* No such weight is 2^30 or more of such a scale, so that none is cut. */
#define AWQ_FLOAT_LEAST_SHORT 0x1p-24f
#define AWQ_FLOAT_MOST_SHORT 0x1p6f

/* Bits, in the dtype, of the least magnitude that a line has no weight of: AWQ_FLOAT_MOST_SHORT or infinity. */
static inline int awq_float_beyond(awq_dtype dtype, bool is_short)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return 0x7f800000;
    }
    return dtype == AWQ_DTYPE_FLOAT16 ? (is_short ? 0x5400 : 0x7c00) : (is_short ? 0x4280 : 0x7f80);
}

#ifdef __cplusplus
}
#endif

#endif

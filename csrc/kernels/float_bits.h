/* float16 and bfloat16 as bits, in plain C: what every instruction set agrees with, and needs for odd elements. */
#ifndef AWQPACK_FLOAT_BITS_H
#define AWQPACK_FLOAT_BITS_H

#include <string.h>

#include "awqpack/view.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* The floating point mode: rounding half to even, subnormal numbers as they are, whatever the thread's program has
   set. */
#if defined(__x86_64__)
typedef unsigned awq_float_mode;

static inline awq_float_mode awq_float_mode_enter(void)
{
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return before;
}

static inline void awq_float_mode_leave(awq_float_mode before)
{
    _mm_setcsr(before);
}
#elif defined(__aarch64__)
typedef uint64_t awq_float_mode;

static inline awq_float_mode awq_float_mode_enter(void)
{
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return before;
}

static inline void awq_float_mode_leave(awq_float_mode before)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
}
#else
typedef int awq_float_mode;

static inline awq_float_mode awq_float_mode_enter(void)
{
    return 0;
}

static inline void awq_float_mode_leave(awq_float_mode before)
{
    (void)before;
}
#endif

static inline uint32_t awq_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float awq_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline bool awq_is_finite(float value)
{
    return (awq_bits_of(value) & 0x7f800000u) != 0x7f800000u;
}

static inline float awq_float_of_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 0) { /* fraction * 2^-24, exactly */
        return awq_float_of(awq_bits_of((float)fraction * 0x1p-24f) | sign);
    }
    return awq_float_of(sign | (exponent == 31 ? 0xffu : exponent + 112) << 23 | fraction << 13);
}

static inline float awq_float_of_bfloat(uint16_t bfloat)
{
    return awq_float_of((uint32_t)bfloat << 16);
}

/* Rounds half to even. NaN stays NaN. */
static inline uint16_t awq_half_of(float value)
{
    const uint32_t bits = awq_bits_of(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    }
    if (magnitude >= 0x47800000u) { /* 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    }
    if (magnitude >= 0x38800000u) { /* normal: drop 13 bits; a carry out of the fraction is right as it is */
        return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13));
    }
    if (magnitude < 0x33000000u) { /* below half of 2^-24 */
        return sign;
    }
    const uint32_t fraction = (magnitude & 0x7fffff) | 0x800000, shift = 126 - (magnitude >> 23);
    const uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1), half = 1u << (shift - 1);
    return (uint16_t)(sign | (kept + (rest > half || (rest == half && (kept & 1)))));
}

static inline uint16_t awq_bfloat_of(float value)
{
    const uint32_t bits = awq_bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* clamp(rint(value), 0, 15), rint half to even; NaN gives 0. */
static inline uint8_t awq_round_code(float value)
{
    if (!(value > 0)) {
        return 0;
    }
    if (value >= AWQ_CODE_MAX) {
        return AWQ_CODE_MAX;
    }
    const int whole = (int)value;
    const float rest = value - (float)whole;
    return (uint8_t)(whole + (rest > 0.5f || (rest == 0.5f && whole % 2 != 0)));
}

/* An element of any of the three dtypes, at any alignment. */
static inline float awq_float_load(awq_dtype dtype, const void *address)
{
    uint16_t half;
    float value;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        memcpy(&value, address, sizeof value);
        return value;
    }
    memcpy(&half, address, sizeof half);
    return dtype == AWQ_DTYPE_FLOAT16 ? awq_float_of_half(half) : awq_float_of_bfloat(half);
}

static inline void awq_float_store(awq_dtype dtype, void *address, float value)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        memcpy(address, &value, sizeof value);
        return;
    }
    const uint16_t half = dtype == AWQ_DTYPE_FLOAT16 ? awq_half_of(value) : awq_bfloat_of(value);
    memcpy(address, &half, sizeof half);
}

#endif

/* Floats beside codes for NEON: the primitives of float_lines.h. */
#include "kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "float_kernels.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef float32x4_t floats;
typedef int32x4_t ints;
typedef uint8x16_t vector;

enum { VECTOR = sizeof(vector), LANES = 4, STEP = VECTOR };

ALWAYS_INLINE vector load(const uint8_t *p)
{
    return vld1q_u8(p);
}

ALWAYS_INLINE vector no_codes(void)
{
    return vdupq_n_u8(0);
}

ALWAYS_INLINE floats all_of(float value)
{
    return vdupq_n_f32(value);
}

ALWAYS_INLINE vector bits_of(floats v)
{
    return vreinterpretq_u8_f32(v);
}

ALWAYS_INLINE floats load_floats(awq_dtype dtype, const uint8_t *from)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return vreinterpretq_f32_u8(vld1q_u8(from));
    }
    const uint8x8_t halves = vld1_u8(from);
    return dtype == AWQ_DTYPE_FLOAT16 ? vcvt_f32_f16(vreinterpret_f16_u8(halves))
                                      : vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(halves), 16));
}

/* Rounds half to even; no NaN comes here. */
ALWAYS_INLINE uint8x8_t halves_of(awq_dtype dtype, floats v)
{
    if (dtype == AWQ_DTYPE_FLOAT16) {
        return vreinterpret_u8_f16(vcvt_f16_f32(v));
    }
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vreinterpret_u8_u16(vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16));
}

/* Writes plainly, as AArch64 sees whole lines written by itself. */
ALWAYS_INLINE void put_pair(awq_dtype dtype, uint8_t *to, const floats v[2], bool stream)
{
    (void)stream;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        vst1q_u8(to, bits_of(v[0]));
        vst1q_u8(to + VECTOR, bits_of(v[1]));
    } else {
        vst1q_u8(to, vcombine_u8(halves_of(dtype, v[0]), halves_of(dtype, v[1])));
    }
}

ALWAYS_INLINE floats load_codes(const uint8_t *codes)
{
    uint32_t four;
    memcpy(&four, codes, sizeof four);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

ALWAYS_INLINE void put_floats(awq_dtype dtype, uint8_t *to, floats v)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        vst1q_u8(to, bits_of(v));
    } else {
        vst1_u8(to, halves_of(dtype, v));
    }
}

ALWAYS_INLINE floats lesser(floats a, floats b)
{
    return vminq_f32(a, b);
}

ALWAYS_INLINE floats greater(floats a, floats b)
{
    return vmaxq_f32(a, b);
}

ALWAYS_INLINE floats multiply_add(floats a, floats b, floats c)
{
    return vfmaq_f32(c, a, b);
}

ALWAYS_INLINE floats subtract_product(floats a, floats b, floats c)
{
    return vfmsq_f32(c, a, b);
}

ALWAYS_INLINE ints nearest(floats v)
{
    return vcvtnq_s32_f32(v);
}

ALWAYS_INLINE void put_codes(uint8_t *to, const ints v[4], bool apart, bool is_short)
{
    (void)apart;
    const int16x8_t low = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
    const uint8x16_t bytes = vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
    vst1q_u8(to, is_short ? vqsubq_u8(bytes, vdupq_n_u8((uint8_t)AWQ_FLOAT_BASE))
                          : vminq_u8(bytes, vdupq_n_u8(AWQ_CODE_MAX)));
}

/* The greatest magnitude so far, in lanes as wide as the dtype: what is finite is below infinity there. */
ALWAYS_INLINE vector raise_magnitude(awq_dtype dtype, vector most, vector weights)
{
    if (dtype == AWQ_DTYPE_FLOAT32) {
        const uint32x4_t magnitude = vandq_u32(vreinterpretq_u32_u8(weights), vdupq_n_u32(0x7fffffff));
        return vreinterpretq_u8_u32(vmaxq_u32(vreinterpretq_u32_u8(most), magnitude));
    }
    const uint16x8_t magnitude = vandq_u16(vreinterpretq_u16_u8(weights), vdupq_n_u16(0x7fff));
    return vreinterpretq_u8_u16(vmaxq_u16(vreinterpretq_u16_u8(most), magnitude));
}

ALWAYS_INLINE bool is_all_below(awq_dtype dtype, vector most, bool is_short)
{
    const uint32_t beyond = (uint32_t)awq_float_beyond(dtype, is_short);
    return dtype == AWQ_DTYPE_FLOAT32 ? vmaxvq_u32(vreinterpretq_u32_u8(most)) < beyond
                                      : vmaxvq_u16(vreinterpretq_u16_u8(most)) < beyond;
}

/* Weights of two bytes: low and high bytes apart. */
ALWAYS_INLINE int64_t look_up(awq_dtype dtype, const uint8_t *restrict codes, uint8_t *restrict to, int64_t count,
                              float scale, float zero, bool stream)
{
    (void)stream;
    if (dtype == AWQ_DTYPE_FLOAT32) {
        return 0;
    }
    uint8_t halves[4 * 8];
    for (int i = 0; i < 4; i++) {
        const floats four = {(float)(4 * i), (float)(4 * i + 1), (float)(4 * i + 2), (float)(4 * i + 3)};
        vst1_u8(halves + 8 * i, halves_of(dtype, (four - all_of(zero)) * all_of(scale)));
    }
    const uint8x16x2_t weights = vld2q_u8(halves);
    int64_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        const uint8x16_t at = load(codes + i);
        const uint8x16x2_t found = {{vqtbl1q_u8(weights.val[0], at), vqtbl1q_u8(weights.val[1], at)}};
        vst2q_u8(to + 2 * i, found);
    }
    return i;
}

#include "float_unmasked.h"

#include "float_lines.h"

const awq_float_kernels awq_float_neon = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = min_max,
    .invert = invert,
    .widen = widen,
    .narrow = narrow,
};

#endif

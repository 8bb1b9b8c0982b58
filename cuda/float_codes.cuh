/* Weights to codes: the fast way, whether it is right, and the slow way, which reports what is wrong. */
#ifndef AWQPACK_CUDA_FLOAT_CODES_CUH
#define AWQPACK_CUDA_FLOAT_CODES_CUH

#include <type_traits>

#include "float_common.cuh"

namespace awq_cuda {

/*
 * How the fast way divides. Quotients of weights and scales of at most eleven significant bits, as float16 and bfloat16
 * have, need no correction: AWQ_FLOAT_BASE (csrc/kernels/float_kernels.h) says why. Here their sums with zeros are rounded
 * to multiples of 2^-15, and errors are below 2^-18.
 */
enum class Division { uncorrected, corrected };

/* A factor as the fast way wants it: all of it by sixteenths, so that codes are the range that additions saturate to. */
template <Division D>
struct Divisor {
    float zero, reciprocal, scale;
};
template <>
struct Divisor<Division::uncorrected> {
    float zero, reciprocal; /* the zero beside uncorrected_bias */
};

constexpr float uncorrected_bias = 24.0f; /* floats around it are 2^-19 apart: 2^-15 of a code */

__device__ __forceinline__ float rough_reciprocal_of(float value)
{
    float guess;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(value));
    return guess;
}

/* As __frcp_rn without its ways for numbers near the ends of the range, which no fast divisor is. */
__device__ __forceinline__ float reciprocal_of(float value)
{
    const float guess = rough_reciprocal_of(value);
    return __fmaf_rn(__fmaf_rn(-value, guess, 1.0f), guess, guess);
}

constexpr float least_fast_scale = 0x1p-100f;

/* Whether the fast way may divide by it, as what is no valid factor is not. */
__device__ __forceinline__ bool is_fast(const Factor &factor)
{
    return factor.scale >= least_fast_scale && factor.scale <= 0x1p100f &&
           factor.zero <= static_cast<float>(AWQ_CODE_MAX);
}

template <Division D>
__device__ __forceinline__ Divisor<D> divisor_of(const Factor &factor)
{
    const float scale = __fmul_rn(factor.scale, 16.0f);
    if constexpr (D == Division::uncorrected) {
        return {__fmaf_rn(factor.zero, 0.0625f, uncorrected_bias), rough_reciprocal_of(scale)};
    } else {
        return {__fmul_rn(factor.zero, 0.0625f), reciprocal_of(scale), scale};
    }
}

/* Weights below it, and all that follows from them and a fast divisor, stay in float32's range. */
constexpr float fast_weights = 0x1p27f;

/* The quotient and the zero, not rounded to a code yet. */
__device__ __forceinline__ float fast_sum(float weight, const Divisor<Division::uncorrected> &d)
{
    return __fadd_rn(__fmaf_rn(weight, d.reciprocal, d.zero), -uncorrected_bias);
}

/*
 * With the correctly rounded reciprocal, one correction gives the correctly rounded quotient of any two float32 while
 * nothing leaves the normal range (checked for every divisor, over all dividends whose quotients lie so near the middle
 * of two numbers that the errors could matter). Where something does, below 2^-26, only the quotient's size matters.
 */
__device__ __forceinline__ float fast_sum(float weight, const Divisor<Division::corrected> &d)
{
    const float guess = __fmul_rn(weight, d.reciprocal);
    return __fadd_rn(__fmaf_rn(__fmaf_rn(-guess, d.scale, weight), d.reciprocal, guess), d.zero);
}

/* The code, in the lowest byte, of a weight; 16 where it is cut off above. */
template <Division D>
__device__ __forceinline__ uint32_t fast_code(float weight, const Divisor<D> &d)
{
    const float code = __saturatef(fast_sum(weight, d));
    return __float_as_uint(__fadd_rn(code, 786432.0f)); /* 1.5 * 2^19: rounds to sixteenths, half to even */
}

/* Four codes a word, of eight of fast_code. */
__device__ __forceinline__ Words<2> join_codes(const uint32_t (&codes)[8])
{
    Words<2> bytes;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t four = __byte_perm(__byte_perm(codes[4 * i], codes[4 * i + 1], 0x0040),
                                          __byte_perm(codes[4 * i + 2], codes[4 * i + 3], 0x0040), 0x5410);
        bytes.w[i] = four - (four >> 4 & 0x01010101);
    }
    return bytes;
}

/* The code of any weight: one that is not finite saturates, NaN and a scale of zero give the zero. */
__device__ __forceinline__ uint32_t any_code(float weight, const Factor &factor)
{
    const float quotient = factor.scale == 0.0f ? 0.0f : __fdiv_rn(weight, factor.scale);
    const float code = isnan(quotient) ? factor.zero : __fadd_rn(quotient, factor.zero);
    return static_cast<uint32_t>(rintf(fminf(fmaxf(code, 0.0f), static_cast<float>(AWQ_CODE_MAX))));
}

/* The code of the weight at (row, col), whatever it is; reports what is wrong with it or its factor. */
template <class T>
__device__ __forceinline__ uint32_t careful_code(const FloatJob &job, int64_t row, int64_t col)
{
    const Factor factor = factor_at(job, factor_source(job), row, col);
    const uint8_t *p = job.codes + blockIdx.y * job.codes_batch + row * job.codes_row + col * job.codes_col;
    const float weight = load_weight<T>(p);
    const bool bad_scale = !(factor.scale >= 0.0f && is_finite(factor.scale));
    const bool bad_zero = factor.zero > static_cast<float>(AWQ_CODE_MAX);
    if (!job.fault.is_wanted()) {
    } else if (bad_scale || bad_zero) {
        const uint64_t matrix = matrix_index(job) / (static_cast<uint64_t>(job.rows) * static_cast<uint64_t>(job.cols));
        const int64_t across = job.cols / job.group_cols.size, down = job.rows / job.group_rows.size;
        const uint64_t index = matrix * static_cast<uint64_t>(down * across) +
                               static_cast<uint64_t>(job.group_rows.of_any(row) * across + job.group_cols.of_any(col));
        report_fault(job.fault, float_fault_key(bad_scale ? AWQ_CUDA_FAULT_SCALE : AWQ_CUDA_FAULT_ZERO, index));
    } else if (!is_finite(weight)) {
        report_fault(job.fault, float_fault_key(AWQ_CUDA_FAULT_WEIGHT,
                                                matrix_index(job) + static_cast<uint64_t>(row * job.cols + col)));
    }
    return any_code(weight, factor);
}

/* The slow way for `count` of eight weights below (Down) or beside each other: reads them again. */
template <class T, bool Down>
__device__ __noinline__ Words<2> careful_codes(const FloatJob &job, int64_t row, int64_t col, int count)
{
    uint64_t codes = 0;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        codes |= static_cast<uint64_t>(careful_code<T>(job, Down ? row + i : row, Down ? col : col + i)) << 8 * i;
    }
    return {{static_cast<uint32_t>(codes), static_cast<uint32_t>(codes >> 32)}};
}

/* A pair of 16-bit floats, for what the processor does with both at once. */
template <class T>
struct PairOf;
template <>
struct PairOf<__half> {
    using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
    using Type = __nv_bfloat162;
};

template <class T>
__device__ __forceinline__ typename PairOf<T>::Type as_pair(uint32_t bits)
{
    return *reinterpret_cast<const typename PairOf<T>::Type *>(&bits);
}

template <class Pair>
__device__ __forceinline__ uint32_t pair_bits(Pair pair)
{
    return *reinterpret_cast<const uint32_t *>(&pair);
}

/* Whether codes made the fast way are right: whether all that they were made from is fit for it. */
template <class T>
struct Fast {
    float sum = 0.0f;  /* of magnitudes of float32; NaN and infinity stay in it */
    uint32_t most = 0; /* of other dtypes the largest, a pair; NaN stays in it */
    bool factors = true;

    __device__ __forceinline__ void count(const Weights<T> &weights)
    {
#pragma unroll
        for (int i = 0; i < Weights<T>::words; i++) {
            if constexpr (sizeof(T) == 4) {
                sum += fabsf(weights.at(i));
            } else {
                most = pair_bits(__hmax2_nan(as_pair<T>(most), __habs2(as_pair<T>(weights.w[i]))));
            }
        }
    }

    __device__ __forceinline__ void count(const Factor &factor) { factors = factors && is_fast(factor); }

    /* Eight scales and their zeros, a byte each. */
    template <class S>
    __device__ __forceinline__ void count(const Weights<S> &scales, const Words<2> &zeros)
    {
        if constexpr (sizeof(T) == 4 || !std::is_same_v<S, T>) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                count(Factor{scales.at(i), 0.0f});
            }
        } else {
            count(scales); /* which are as good above as weights are */
            uint32_t least = scales.w[0];
#pragma unroll
            for (int i = 1; i < 4; i++) {
                least = pair_bits(__hmin2(as_pair<T>(least), as_pair<T>(scales.w[i])));
            }
            factors = factors && low_float(least, FloatOf<T>::kind) >= least_fast_scale &&
                      high_float(least, FloatOf<T>::kind) >= least_fast_scale;
        }
        factors = factors && ((zeros.w[0] | zeros.w[1]) & high_nibbles) == 0;
    }

    __device__ __forceinline__ bool holds() const
    {
        if constexpr (sizeof(T) == 4) {
            return factors && sum < fast_weights;
        } else {
            return factors && low_float(most, FloatOf<T>::kind) < fast_weights &&
                   high_float(most, FloatOf<T>::kind) < fast_weights;
        }
    }
};

/* Four codes a word from eight weights the fast way, each with its own divisor or all with the one. */
template <class T, Division D, int N>
__device__ __forceinline__ Words<2> fast_codes_of(const Weights<T> &weights, const Divisor<D> (&divisors)[N])
{
    static_assert(N == 1 || N == 8, "a divisor for all, or one for each");
    uint32_t codes[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        codes[i] = fast_code(weights.at(i), divisors[i % N]);
    }
    return join_codes(codes);
}

/* The same of weights beside each other from (row, col) on, the slow way where it takes that. */
template <class T, Division D>
__device__ __forceinline__ Words<2> codes_of(const FloatJob &job, const Weights<T> &weights, const Factor &factor,
                                             int64_t row, int64_t col, int count)
{
    Fast<T> fast;
    fast.count(weights);
    fast.count(factor);
    const Divisor<D> divisors[1] = {divisor_of<D>(factor)};
    const Words<2> codes = fast_codes_of(weights, divisors);
    return fast.holds() ? codes : careful_codes<T, false>(job, row, col, count);
}

} // namespace awq_cuda

#endif

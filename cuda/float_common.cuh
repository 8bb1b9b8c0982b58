/* What all kernels of floats share: their job, groups of codes with their scales, weights, and the arithmetic back. */
#ifndef AWQPACK_CUDA_FLOAT_COMMON_CUH
#define AWQPACK_CUDA_FLOAT_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "awqpack_cuda.h"
#include "memory.cuh"

namespace awq_cuda {

/* The dtypes of weights and scales, as numbers of tables. */
enum FloatKind { kind_float16, kind_bfloat16, kind_float32, float_kinds };

template <class T>
struct FloatOf;
template <>
struct FloatOf<__half> {
    static constexpr FloatKind kind = kind_float16;
};
template <>
struct FloatOf<__nv_bfloat16> {
    static constexpr FloatKind kind = kind_bfloat16;
};
template <>
struct FloatOf<float> {
    static constexpr FloatKind kind = kind_float32;
};

/* Codes that lie beside each other share a group: a division by its size is a multiplication for places below 2^31. */
struct Groups {
    int64_t size;
    uint32_t factor; /* 2^shift / size, rounded up; 0 where one group is all there is */
    int shift;

    __device__ __forceinline__ uint32_t of(uint32_t place) const
    {
        return static_cast<uint32_t>(static_cast<uint64_t>(place) * factor >> shift);
    }
    __device__ __forceinline__ int64_t of_any(int64_t place) const
    {
        return place <= INT32_MAX ? of(static_cast<uint32_t>(place)) : place / size;
    }
};

/* Scales or zeros: an element a group. Strides in bytes. */
struct GroupValues {
    const uint8_t *data;
    int64_t row, col, batch;
};

/* A job whose codes are weights: Job's code strides are theirs, in bytes. */
struct FloatJob : Job {
    GroupValues scales, zeros; /* null zeros: 8 */
    Groups group_rows, group_cols;
    FloatKind scale_kind;
    int64_t scales_step, zeros_step; /* bytes to the factor of a thread's next row or column; 0 where they share it */
    bool vector_factors; /* groups are columns: neighbours' scales and zeros lie in vectors, aligned to 16 and 8 */
};

using FloatKernel = void (*)(FloatJob job, uint32_t split);

/* What float_launch.cu has to know of a kernel, of which each packing and dtype may have its own. */
struct FloatWalk {
    FloatKernel kernel;
    Shape (*shape)(const FloatJob &job);
};

/* ---- dtypes ---- */

__device__ __forceinline__ float half_bits(uint32_t bits)
{
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ __forceinline__ float low_float(uint32_t pair, FloatKind kind)
{
    return kind == kind_float16 ? half_bits(pair & 0xffff) : __uint_as_float(pair << 16);
}

__device__ __forceinline__ float high_float(uint32_t pair, FloatKind kind)
{
    return kind == kind_float16 ? half_bits(pair >> 16) : __uint_as_float(pair & 0xffff0000);
}

/* Two float32 rounded to half even, as a pair of T; the first of them is the low one. */
template <class T>
__device__ __forceinline__ uint32_t round_pair(float low, float high)
{
    if constexpr (FloatOf<T>::kind == kind_float16) {
        const __half2 pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<const uint32_t *>(&pair);
    } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<const uint32_t *>(&pair);
    }
}

template <class T>
__device__ __forceinline__ T round_one(float value)
{
    if constexpr (FloatOf<T>::kind == kind_float16) {
        return __float2half_rn(value);
    } else if constexpr (FloatOf<T>::kind == kind_bfloat16) {
        return __float2bfloat16_rn(value);
    } else {
        return value;
    }
}

/* ---- scales and zeros ---- */

/* Apart, so that several loads can be under way before the first is read. */
__device__ __forceinline__ uint32_t load_scale_bits(const uint8_t *p, FloatKind kind)
{
    return kind == kind_float32 ? __ldg(reinterpret_cast<const uint32_t *>(p))
                                : __ldg(reinterpret_cast<const unsigned short *>(p));
}

__device__ __forceinline__ float scale_of(uint32_t bits, FloatKind kind)
{
    return kind == kind_float32 ? __uint_as_float(bits) : low_float(bits, kind);
}

struct Factor {
    float scale, zero;
};

/* Scales and zeros of the matrix this block works on. Without zeros, theirs are scales, read for nothing. */
struct FactorSource {
    const uint8_t *scales, *zeros;
};

__device__ __forceinline__ FactorSource factor_source(const FloatJob &job)
{
    const uint8_t *scales = job.scales.data + blockIdx.y * job.scales.batch;
    return {scales, job.zeros.data == nullptr ? scales : job.zeros.data + blockIdx.y * job.zeros.batch};
}

__device__ __forceinline__ float zero_of(const FloatJob &job, uint32_t zero)
{
    return job.zeros.data == nullptr ? static_cast<float>(AWQ_SYMMETRIC_ZERO) : static_cast<float>(zero);
}

__device__ __forceinline__ Factor group_factor(const FloatJob &job, const FactorSource &source, int64_t group_row,
                                               int64_t group_col)
{
    const uint32_t scale =
        load_scale_bits(source.scales + group_row * job.scales.row + group_col * job.scales.col, job.scale_kind);
    const uint32_t zero = __ldg(source.zeros + group_row * job.zeros.row + group_col * job.zeros.col);
    return {scale_of(scale, job.scale_kind), zero_of(job, zero)};
}

__device__ __forceinline__ Factor factor_at(const FloatJob &job, const FactorSource &source, int64_t row, int64_t col)
{
    return group_factor(job, source, job.group_rows.of_any(row), job.group_cols.of_any(col));
}

/* N factors from that of (row, col) on: step(i) counts scales_step and zeros_step to factor i. All loads are under way
   before the first is used. */
template <int N, class Step>
__device__ __forceinline__ void load_factors(const FloatJob &job, uint32_t row, uint32_t col, Step step,
                                             Factor (&factors)[N])
{
    const FactorSource source = factor_source(job);
    const int64_t group_row = job.group_rows.of(row), group_col = job.group_cols.of(col);
    const uint8_t *scale = source.scales + group_row * job.scales.row + group_col * job.scales.col;
    const uint8_t *zero = source.zeros + group_row * job.zeros.row + group_col * job.zeros.col;
    uint32_t scales[N], zeros[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int64_t steps = step(i);
        scales[i] = load_scale_bits(scale + steps * job.scales_step, job.scale_kind);
        zeros[i] = __ldg(zero + steps * job.zeros_step);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        factors[i] = {scale_of(scales[i], job.scale_kind), zero_of(job, zeros[i])};
    }
}

/* The factors of N columns, whose groups are a column each. */
template <int N>
__device__ __forceinline__ void load_column_factors(const FloatJob &job, uint32_t row, uint32_t col,
                                                    Factor (&factors)[N])
{
    const FactorSource source = factor_source(job);
    const int64_t group_row = job.group_rows.of(row);
    const uint8_t *scale = source.scales + group_row * job.scales.row + col * job.scales.col;
    const uint8_t *zero = source.zeros + group_row * job.zeros.row + col * job.zeros.col;
    if (job.vector_factors && job.scale_kind != kind_float32) {
        const Words<N / 2> v = load_vector<N / 2>(scale);
#pragma unroll
        for (int i = 0; i < N; i++) {
            factors[i].scale =
                i % 2 == 0 ? low_float(v.w[i / 2], job.scale_kind) : high_float(v.w[i / 2], job.scale_kind);
        }
    } else {
        uint32_t scales[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            scales[i] = load_scale_bits(scale + i * job.scales.col, job.scale_kind);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            factors[i].scale = scale_of(scales[i], job.scale_kind);
        }
    }
    uint32_t zeros[N];
    if (job.vector_factors) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const uint32_t four = __ldg(reinterpret_cast<const uint32_t *>(zero + i));
#pragma unroll
            for (int k = 0; k < 4; k++) {
                zeros[i + k] = four >> 8 * k & 255;
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            zeros[i] = __ldg(zero + i * job.zeros.col);
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        factors[i].zero = zero_of(job, zeros[i]);
    }
}

/* ---- codes to weights ---- */

/* float32 (code - zero) * scale of byte `k` of four codes, of which one is read as 2^23 + code. */
__device__ __forceinline__ float weight_of(uint32_t codes, int k, const Factor &factor)
{
    constexpr float two_23 = 8388608.0f;
    const float code = __uint_as_float(__byte_perm(codes, 0x4b000000, 0x7440 | k));
    return __fmul_rn(__fsub_rn(code, __fadd_rn(two_23, factor.zero)), factor.scale);
}

/* Stores weights beside each other, to an address aligned to 16 bytes, which they fill. */
template <class T, int N>
__device__ __forceinline__ void store_weights(uint8_t *p, const float (&weights)[N])
{
    constexpr int together = 16 / static_cast<int>(sizeof(T));
    static_assert(N % together == 0, "whole vectors");
#pragma unroll
    for (int i = 0; i < N; i += together) {
        Words<4> v;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if constexpr (sizeof(T) == 4) {
                v.w[k] = __float_as_uint(weights[i + k]);
            } else {
                v.w[k] = round_pair<T>(weights[i + 2 * k], weights[i + 2 * k + 1]);
            }
        }
        store_vector<4>(p + i * sizeof(T), v);
    }
}

/* ---- weights ---- */

/* Eight weights as they lie in memory. */
template <class T>
struct Weights {
    static constexpr int words = 8 * static_cast<int>(sizeof(T)) / 4;
    uint32_t w[words];

    __device__ __forceinline__ float at(int i) const
    {
        if constexpr (sizeof(T) == 4) {
            return __uint_as_float(w[i]);
        } else {
            return i % 2 == 0 ? low_float(w[i / 2], FloatOf<T>::kind) : high_float(w[i / 2], FloatOf<T>::kind);
        }
    }
};

/* Loads them from an address aligned to 16 bytes. */
template <class T>
__device__ __forceinline__ Weights<T> load_weights(const uint8_t *p)
{
    Weights<T> v;
#pragma unroll
    for (int i = 0; i < Weights<T>::words; i += 4) {
        const Words<4> four = load_vector<4>(p + 4 * i);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v.w[i + k] = four.w[k];
        }
    }
    return v;
}

/* One weight at any address that suits T, as a float and as its bits. */
template <class T>
__device__ __forceinline__ uint32_t load_weight_bits(const uint8_t *p)
{
    return load_scale_bits(p, FloatOf<T>::kind);
}

template <class T>
__device__ __forceinline__ float load_weight(const uint8_t *p)
{
    return scale_of(load_weight_bits<T>(p), FloatOf<T>::kind);
}

/* ---- faults ---- */

/* Which tensor a fault lies in, above its index there: of several, the first is reported. */
__device__ __forceinline__ unsigned long long float_fault_key(awq_cuda_fault_tensor tensor, uint64_t index)
{
    return static_cast<unsigned long long>(tensor) << AWQ_CUDA_FAULT_TENSOR_SHIFT | index;
}

__device__ __forceinline__ bool is_finite(float value)
{
    return fabsf(value) < INFINITY;
}

} // namespace awq_cuda

#endif

/* Round-to-nearest's own scales and zeros: the least and the greatest weight of each group, in one pass. */
#ifndef AWQPACK_CUDA_FLOAT_SCALES_CUH
#define AWQPACK_CUDA_FLOAT_SCALES_CUH

#include <type_traits>

#include "float_common.cuh"

namespace awq_cuda {

/*
 * A launch sees the weight with its contiguous dimension, if any, along its columns; what else it knows of rows and
 * columns is exchanged with them. A group is then a rectangle of group_rows rows.
 */
struct ScalesJob : FloatJob {
    awq_scale_mode mode;
    bool exchanged; /* rows are the tensor's columns */
    bool vectors;   /* rows of groups are vectors of 16 bytes */
    int lanes;      /* of a warp that share a group */
};

using ScalesKernel = void (*)(ScalesJob job, uint32_t split);

constexpr int scales_threads = 256;

/* The least and the greatest of weights, as they lie in memory: two of 16 bits side by side. NaN stays. */
template <class T>
struct Extent {
    uint32_t low, high;

    __device__ __forceinline__ static Extent none()
    {
        constexpr uint32_t infinity = FloatOf<T>::kind == kind_float16    ? 0x7c007c00
                                      : FloatOf<T>::kind == kind_bfloat16 ? 0x7f807f80
                                                                          : 0x7f800000;
        return {infinity, infinity | (sizeof(T) == 4 ? 0x80000000 : 0x80008000)};
    }
    __device__ __forceinline__ void take(uint32_t least, uint32_t greatest)
    {
        if constexpr (sizeof(T) == 4) {
            low = __float_as_uint(min_nan(__uint_as_float(low), __uint_as_float(least)));
            high = __float_as_uint(max_nan(__uint_as_float(high), __uint_as_float(greatest)));
        } else {
            low = bits_of(__hmin2_nan(pair_of(low), pair_of(least)));
            high = bits_of(__hmax2_nan(pair_of(high), pair_of(greatest)));
        }
    }
    __device__ __forceinline__ float least() const
    {
        return sizeof(T) == 4 ? __uint_as_float(low)
                              : min_nan(low_float(low, FloatOf<T>::kind), high_float(low, FloatOf<T>::kind));
    }
    __device__ __forceinline__ float greatest() const
    {
        return sizeof(T) == 4 ? __uint_as_float(high)
                              : max_nan(low_float(high, FloatOf<T>::kind), high_float(high, FloatOf<T>::kind));
    }

  private:
    using Pair = std::conditional_t<FloatOf<T>::kind == kind_float16, __half2, __nv_bfloat162>;
    __device__ __forceinline__ static Pair pair_of(uint32_t bits) { return *reinterpret_cast<const Pair *>(&bits); }
    __device__ __forceinline__ static uint32_t bits_of(const Pair &pair)
    {
        return *reinterpret_cast<const uint32_t *>(&pair);
    }
    __device__ __forceinline__ static float min_nan(float a, float b)
    {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        float least;
        asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
        return least;
#else
        return isnan(a) || isnan(b) ? NAN : fminf(a, b);
#endif
    }
    __device__ __forceinline__ static float max_nan(float a, float b) { return -min_nan(-a, -b); }
};

/* One weight, as often as it fits. */
template <class T>
__device__ __forceinline__ Words<4> repeat_weight(const uint8_t *p)
{
    uint32_t bits = load_weight_bits<T>(p);
    bits |= sizeof(T) == 2 ? bits << 16 : 0;
    return {{bits, bits, bits, bits}};
}

/* Linear index of the weight at (row, col), as the tensor counts its dimensions. */
__device__ __forceinline__ uint64_t weight_index(const ScalesJob &job, int64_t row, int64_t col)
{
    return matrix_index(job) + static_cast<uint64_t>(job.exchanged ? col * job.rows + row : row * job.cols + col);
}

/* Reports the first weight of a group that is not finite. */
template <class T>
__device__ __noinline__ void report_group(const ScalesJob &job, int64_t row, int64_t col)
{
    const uint8_t *weights = job.codes + blockIdx.y * job.codes_batch;
#pragma unroll 1
    for (int64_t i = row; i < row + job.group_rows.size; i++) {
#pragma unroll 1
        for (int64_t k = col; k < col + job.group_cols.size; k++) {
            if (!is_finite(load_weight<T>(weights + i * job.codes_row + k * job.codes_col))) {
                report_fault(job.fault, float_fault_key(AWQ_CUDA_FAULT_WEIGHT, weight_index(job, i, k)));
                if (!job.exchanged) {
                    return; /* in the order of the tensor */
                }
                break;
            }
        }
    }
}

/* The code that a float32 rounds to. */
__device__ __forceinline__ uint8_t round_code(float value)
{
    return static_cast<uint8_t>(rintf(fminf(fmaxf(value, 0.0f), static_cast<float>(AWQ_CODE_MAX))));
}

/* Rounds the scale to its dtype and stores it; returns what was stored. */
__device__ __forceinline__ float store_scale(uint8_t *p, float scale, FloatKind kind)
{
    if (kind == kind_float32) {
        *reinterpret_cast<float *>(p) = scale;
        return scale;
    }
    const uint32_t bits =
        kind == kind_float16 ? round_pair<__half>(scale, 0.0f) : round_pair<__nv_bfloat16>(scale, 0.0f);
    *reinterpret_cast<unsigned short *>(p) = static_cast<unsigned short>(bits);
    return low_float(bits, kind);
}

/* Stores the scale and the zero of a group, and reports what is wrong with it. */
template <class T>
__device__ __forceinline__ void store_group(const ScalesJob &job, const Extent<T> &extent, int64_t group_row,
                                            int64_t group_col)
{
    constexpr float steps[] = {15.0f, 15.0f, 7.0f, 7.5f, 8.0f};
    static_assert(sizeof steps / sizeof *steps == AWQ_SCALES_MODE_COUNT, "one for each mode");
    float low = extent.least(), high = extent.greatest();
    const bool finite = is_finite(low) && is_finite(high);
    if (job.mode == AWQ_SCALES_WITH_ZERO) {
        low = fminf(low, 0.0f), high = fmaxf(high, 0.0f);
    }
    const bool symmetric = job.mode >= AWQ_SCALES_ABSMAX_7;
    const float range = symmetric ? fmaxf(-low, high) : __fsub_rn(high, low);
    float step = steps[0];
#pragma unroll
    for (int mode = 1; mode < AWQ_SCALES_MODE_COUNT; mode++) {
        step = job.mode == mode ? steps[mode] : step;
    }
    uint8_t *scales = const_cast<uint8_t *>(job.scales.data) + blockIdx.y * job.scales.batch;
    uint8_t *zeros = const_cast<uint8_t *>(job.zeros.data) + blockIdx.y * job.zeros.batch;
    const float scale = store_scale(scales + group_row * job.scales.row + group_col * job.scales.col,
                                    range > 0.0f ? __fdiv_rn(range, step) : 0.0f, job.scale_kind);
    zeros[group_row * job.zeros.row + group_col * job.zeros.col] = symmetric       ? AWQ_SYMMETRIC_ZERO
                                                                   : scale == 0.0f ? (low < 0.0f ? AWQ_CODE_MAX : 0)
                                                                                   : round_code(__fdiv_rn(-low, scale));
    if (!job.fault.is_wanted()) {
        return;
    }
    if (!finite) {
        report_group<T>(job, group_row * job.group_rows.size, group_col * job.group_cols.size);
    } else if (!is_finite(scale)) {
        const int64_t across = job.cols / job.group_cols.size, down = job.rows / job.group_rows.size;
        const uint64_t matrix = matrix_index(job) / (static_cast<uint64_t>(job.rows) * static_cast<uint64_t>(job.cols));
        const int64_t place = job.exchanged ? group_col * down + group_row : group_row * across + group_col;
        report_fault(job.fault, float_fault_key(AWQ_CUDA_FAULT_RANGE, matrix * static_cast<uint64_t>(down * across) +
                                                                          static_cast<uint64_t>(place)));
    }
}

/* The groups that a lane finishes: extents[0..count). */
struct HeldGroups {
    int first, count;
};

/* Brings together what `lanes` neighbouring lanes found of `Groups` groups. Half of the groups that a lane holds go to
   another for the other half of that one's, as long as there are two. */
template <class T, int Groups>
__device__ __forceinline__ HeldGroups share_extents(Extent<T> (&extents)[Groups], int lane, int lanes)
{
    HeldGroups held = {0, Groups};
    int step = lanes / 2;
#pragma unroll
    for (int half = Groups / 2; half > 0; half /= 2, step /= 2) {
        if (step == 0) {
            return held;
        }
        const bool upper = (lane & step) != 0;
#pragma unroll
        for (int g = 0; g < half; g++) {
            const Extent<T> given = upper ? extents[g] : extents[g + half];
            extents[g] = upper ? extents[g + half] : extents[g];
            extents[g].take(__shfl_xor_sync(0xffffffff, given.low, step),
                            __shfl_xor_sync(0xffffffff, given.high, step));
        }
        held = {held.first + (upper ? half : 0), half};
    }
    const bool is_first = step == 0 || lane % (2 * step) == 0; /* of the lanes that now compare the same group */
    for (; step > 0; step /= 2) {
        extents[0].take(__shfl_xor_sync(0xffffffff, extents[0].low, step),
                        __shfl_xor_sync(0xffffffff, extents[0].high, step));
    }
    return {held.first, is_first ? 1 : 0};
}

/*
 * A thread block is (lanes x groups across) x (threads down), split = thread blocks across. `lanes` lanes of a warp share
 * `Groups` groups below each other, of whose rows they take 16 bytes at a time; each then finishes some of these groups.
 */
template <class T, int Groups>
__global__ void __launch_bounds__(scales_threads)
    scales_of_rows(const __grid_constant__ ScalesJob job, const uint32_t split)
{
    constexpr int N = 16 / static_cast<int>(sizeof(T));
    const int lane = threadIdx.x & (job.lanes - 1);
    const int64_t first = (static_cast<int64_t>(blockIdx.x / split) * blockDim.y + threadIdx.y) * Groups;
    const int64_t group_col = (static_cast<int64_t>(blockIdx.x % split) * blockDim.x + threadIdx.x) / job.lanes;
    const int64_t row = first * job.group_rows.size, col = group_col * job.group_cols.size;
    const uint8_t *weights = job.codes + blockIdx.y * job.codes_batch + row * job.codes_row + col * job.codes_col;
    Extent<T> extents[Groups];
#pragma unroll
    for (int g = 0; g < Groups; g++) {
        extents[g] = Extent<T>::none();
    }
    if (col < job.cols && row < job.rows) {
#pragma unroll 1
        for (int64_t i = 0; i < job.group_rows.size; i++) {
#pragma unroll(Groups == 1 ? 4 : 1)
            for (int64_t at = job.vectors ? N * lane : lane; at < job.group_cols.size;
                 at += job.vectors ? N * job.lanes : job.lanes) {
                const uint8_t *p = weights + i * job.codes_row + at * job.codes_col;
                Words<4> v[Groups];
#pragma unroll
                for (int g = 0; g < Groups; g++) {
                    const uint8_t *of_group =
                        row + g * job.group_rows.size < job.rows ? p + g * job.group_rows.size * job.codes_row : p;
                    v[g] = job.vectors ? load_vector<4>(of_group) : repeat_weight<T>(of_group);
                }
#pragma unroll
                for (int g = 0; g < Groups; g++) {
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        extents[g].take(v[g].w[k], v[g].w[k]);
                    }
                }
            }
        }
    }
    const HeldGroups held = share_extents<T, Groups>(extents, lane, job.lanes);
    for (int g = 0; g < held.count; g++) {
        Extent<T> mine = extents[0];
#pragma unroll
        for (int k = 1; k < Groups; k++) {
            mine = g == k ? extents[k] : mine;
        }
        const int64_t group = held.first + g;
        if (col < job.cols && row + group * job.group_rows.size < job.rows) {
            store_group<T>(job, mine, first + group, group_col);
        }
    }
    finish_check(job.fault);
}

constexpr int column_lanes = 32, column_slices = scales_threads / column_lanes;

/* Groups of one column: a thread takes the columns of 16 bytes of every eighth row of a group; split = thread blocks
   across. */
template <class T>
__global__ void __launch_bounds__(scales_threads)
    scales_of_columns(const __grid_constant__ ScalesJob job, const uint32_t split)
{
    constexpr int N = 16 / static_cast<int>(sizeof(T)), per_word = N / 4;
    __shared__ uint32_t lows[column_slices][4][column_lanes], highs[column_slices][4][column_lanes];
    const int lane = threadIdx.x % column_lanes, slice = threadIdx.x / column_lanes;
    const int64_t group_row = blockIdx.x / split;
    const int64_t first = static_cast<int64_t>(blockIdx.x % split) * column_lanes * N, col = first + lane * N;
    const uint8_t *weights =
        job.codes + blockIdx.y * job.codes_batch + group_row * job.group_rows.size * job.codes_row + col * sizeof(T);
    Extent<T> mine[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        mine[k] = Extent<T>::none();
    }
    if (col < job.cols) {
#pragma unroll 8
        for (int64_t i = slice; i < job.group_rows.size; i += column_slices) {
            const Words<4> v = load_vector<4>(weights + i * job.codes_row);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                mine[k].take(v.w[k], v.w[k]);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        lows[slice][k][lane] = mine[k].low, highs[slice][k][lane] = mine[k].high;
    }
    __syncthreads();
    /* a thread finishes one of the thread block's columns: half of a word, or a word */
    const int number = static_cast<int>(threadIdx.x), word = number / per_word;
    if (number < column_lanes * N && first + number < job.cols) {
        Extent<T> extent = Extent<T>::none();
#pragma unroll
        for (int i = 0; i < column_slices; i++) {
            extent.take(lows[i][word % 4][word / 4], highs[i][word % 4][word / 4]);
        }
        if constexpr (sizeof(T) == 2) { /* both halves then are this column's */
            const uint32_t half = number % 2 == 0 ? 0x1010 : 0x3232;
            extent = {__byte_perm(extent.low, 0, half), __byte_perm(extent.high, 0, half)};
        }
        store_group<T>(job, extent, group_row, first + number);
    }
    finish_check(job.fault);
}

static_assert(scales_threads == 8 * column_lanes, "a thread for each column of a thread block");

} // namespace awq_cuda

#endif

/* Weights and payload of any stride and any packing, one payload item a thread: correct for what the other kernels do
 * not take. */
#ifndef AWQPACK_CUDA_FLOAT_GENERIC_CUH
#define AWQPACK_CUDA_FLOAT_GENERIC_CUH

#include "float_common.cuh"

namespace awq_cuda {

constexpr int float_generic_threads = 256;

/* split = 1 where neighbouring threads take neighbouring rows of blocks, 0 where they take the next item of a row. */
inline Shape float_generic_shape(const FloatJob &job, awq_packing packing)
{
    const awq_packing_traits &traits = awq_packings[packing];
    const int64_t items = job.rows * job.cols / 2 / traits.item_bytes;
    const int64_t row_step = job.codes_row < 0 ? -job.codes_row : job.codes_row;
    const int64_t col_step = job.codes_col < 0 ? -job.codes_col : job.codes_col;
    return {static_cast<uint64_t>(ceil_div(items, float_generic_threads)), dim3(float_generic_threads),
            (row_step < col_step) != traits.runs_down};
}

/* A payload item, and the row and the column that its nibbles are counted from. */
struct FloatItem {
    int64_t offset, row, col;
    bool exists;
};

template <awq_packing P>
__device__ __forceinline__ FloatItem float_item(const FloatJob &job, uint32_t split)
{
    constexpr awq_packing_traits traits = awq_packings[P];
    static_assert(traits.item_bytes == 2 || traits.item_bytes == 4, "what the kernels below load and store");
    constexpr int block_items = traits.block_rows * traits.block_cols / 2 / traits.item_bytes;
    const int64_t blocks_down = job.rows / traits.block_rows, blocks_across = job.cols / traits.block_cols;
    const int64_t lines = traits.runs_down ? blocks_across : blocks_down;
    const int64_t numbers = (traits.runs_down ? blocks_down : blocks_across) * block_items;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * float_generic_threads + threadIdx.x;
    const int64_t line = split != 0 ? index % lines : index / numbers;
    const int64_t number = split != 0 ? index / lines : index % numbers;
    const int64_t block = number / block_items;
    const awq_place place = awq_place_of(&traits, static_cast<int>(number % block_items) * 2 * traits.item_bytes);
    return {line * job.payload_row + number * job.payload_col,
            (traits.runs_down ? block : line) * traits.block_rows + place.row,
            (traits.runs_down ? line : block) * traits.block_cols + place.col, index < lines * numbers};
}

/* The factor of one code after another: looked up again where the group is another one. */
class FactorWalk {
  public:
    __device__ __forceinline__ explicit FactorWalk(const FloatJob &job) : job_(job), source_(factor_source(job)) {}
    __device__ __forceinline__ const Factor &at(int64_t row, int64_t col)
    {
        const int64_t group_row = job_.group_rows.of_any(row), group_col = job_.group_cols.of_any(col);
        if (group_row != group_row_ || group_col != group_col_) {
            factor_ = group_factor(job_, source_, group_row, group_col);
            group_row_ = group_row, group_col_ = group_col;
        }
        return factor_;
    }

  private:
    const FloatJob &job_;
    FactorSource source_;
    Factor factor_;
    int64_t group_row_ = -1, group_col_ = -1;
};

template <awq_packing P, class T>
__global__ void __launch_bounds__(float_generic_threads)
    dequantize_generic(const __grid_constant__ FloatJob job, const uint32_t split)
{
    constexpr awq_packing_traits traits = awq_packings[P];
    const FloatItem item = float_item<P>(job, split);
    if (!item.exists) {
        return;
    }
    const uint8_t *payload = job.payload + blockIdx.y * job.payload_batch + item.offset;
    uint8_t *weights = job.codes + blockIdx.y * job.codes_batch + item.row * job.codes_row + item.col * job.codes_col;
    const uint32_t codes = traits.item_bytes == 4 ? __ldg(reinterpret_cast<const uint32_t *>(payload))
                                                  : __ldg(reinterpret_cast<const unsigned short *>(payload));
    FactorWalk factors(job);
#pragma unroll
    for (int nibble = 0; nibble < 2 * traits.item_bytes; nibble++) {
        const awq_place place = awq_place_of(&traits, nibble);
        const Factor factor = factors.at(item.row + place.row, item.col + place.col);
        *reinterpret_cast<T *>(weights + place.row * job.codes_row + place.col * job.codes_col) =
            round_one<T>(weight_of(codes >> (4 * nibble) & AWQ_CODE_MAX, 0, factor));
    }
}

template <awq_packing P, class T>
__device__ __forceinline__ void quantize_item(const FloatJob &job, const FloatItem &item)
{
    constexpr awq_packing_traits traits = awq_packings[P];
    uint8_t *payload = job.payload + blockIdx.y * job.payload_batch + item.offset;
    uint32_t codes = 0;
#pragma unroll 1
    for (int nibble = 0; nibble < 2 * traits.item_bytes; nibble++) {
        const awq_place place = awq_place_of(&traits, nibble);
        codes |= careful_code<T>(job, item.row + place.row, item.col + place.col) << (4 * nibble);
    }
    if constexpr (traits.item_bytes == 4) {
        *reinterpret_cast<uint32_t *>(payload) = codes;
    } else {
        *reinterpret_cast<unsigned short *>(payload) = static_cast<unsigned short>(codes);
    }
}

template <awq_packing P, class T>
__global__ void __launch_bounds__(float_generic_threads)
    quantize_generic(const __grid_constant__ FloatJob job, const uint32_t split)
{
    const FloatItem item = float_item<P>(job, split);
    if (item.exists) {
        quantize_item<P, T>(job, item);
    }
    finish_check(job.fault);
}

/* The kernels by packing and the dtype of weights. */
template <class T>
constexpr FloatKernel generic_dequantizers[AWQ_PACKING_COUNT] = {
    dequantize_generic<AWQ_PACKING_V1, T>,
    dequantize_generic<AWQ_PACKING_V1_REORDER, T>,
    dequantize_generic<AWQ_PACKING_V2, T>,
    dequantize_generic<AWQ_PACKING_MARLIN, T>,
};

template <class T>
constexpr FloatKernel generic_quantizers[AWQ_PACKING_COUNT] = {
    quantize_generic<AWQ_PACKING_V1, T>,
    quantize_generic<AWQ_PACKING_V1_REORDER, T>,
    quantize_generic<AWQ_PACKING_V2, T>,
    quantize_generic<AWQ_PACKING_MARLIN, T>,
};

} // namespace awq_cuda

#endif

/* Any packing, codes and payload of any stride, one payload item a thread: correct for what others do not take. */
#ifndef AWQPACK_CUDA_GENERIC_CUH
#define AWQPACK_CUDA_GENERIC_CUH

#include <type_traits>

#include "common.cuh"

namespace awq_cuda {

constexpr int generic_threads = 256;

/* Items in a row of the payload. */
template <awq_packing P>
__host__ __device__ constexpr int64_t line_items(int64_t rows, int64_t cols)
{
    return (runs_down<P> ? rows / block_rows<P> : cols / block_cols<P>)*block_items<P>;
}

/* split = 1 where neighbouring threads take neighbouring rows of the payload, 0 where they take neighbours in a row. */
template <awq_packing P>
Shape generic_shape(const Job &job)
{
    const int64_t items = payload_lines<P>(job.rows, job.cols) * line_items<P>(job.rows, job.cols);
    const int64_t row_step = job.codes_row < 0 ? -job.codes_row : job.codes_row;
    const int64_t col_step = job.codes_col < 0 ? -job.codes_col : job.codes_col;
    return {static_cast<uint64_t>(ceil_div(items, generic_threads)), dim3(generic_threads),
            runs_down<P> ? col_step < row_step : row_step < col_step};
}

template <awq_packing P>
struct GenericShape {
    static constexpr Shape (*value)(const Job &job) = generic_shape<P>;
};

/* A payload item: where it is, and where the code of its first nibble is. */
struct Item {
    int64_t line, number, row, col;
    bool exists;
};

template <awq_packing P>
__device__ __forceinline__ Item item_at(int64_t line, int64_t number)
{
    const int64_t block = number / block_items<P>;
    const awq_place place = place_of<P>(static_cast<int>(number % block_items<P>) * item_codes<P>);
    return {line, number, (runs_down<P> ? block : line) * block_rows<P> + place.row,
            (runs_down<P> ? line : block) * block_cols<P> + place.col, true};
}

template <awq_packing P>
__device__ __forceinline__ Item generic_item(const Job &job, uint32_t split)
{
    const int64_t index = static_cast<int64_t>(blockIdx.x) * generic_threads + threadIdx.x;
    const int64_t lines = payload_lines<P>(job.rows, job.cols);
    const int64_t numbers = line_items<P>(job.rows, job.cols);
    Item item = item_at<P>(split != 0 ? index % lines : index / numbers, split != 0 ? index / lines : index % numbers);
    item.exists = item.line < lines && item.number < numbers;
    return item;
}

template <awq_packing P>
using ItemOf = std::conditional_t<
    item_bytes<P> == 8, uint64_t,
    std::conditional_t<item_bytes<P> == 4, uint32_t, std::conditional_t<item_bytes<P> == 2, uint16_t, uint8_t>>>;

/* Where it is in the payload of the batch. */
__device__ __forceinline__ int64_t item_offset(const Job &job, const Item &item)
{
    return blockIdx.y * job.payload_batch + item.line * job.payload_row + item.number * job.payload_col;
}

template <awq_packing P>
__device__ __forceinline__ void pack_item(const Job &job, const Item &item)
{
    const uint8_t *source =
        job.codes + blockIdx.y * job.codes_batch + item.row * job.codes_row + item.col * job.codes_col;
    ItemOf<P> packed = 0;
    uint8_t seen = 0;
#pragma unroll
    for (int nibble = 0; nibble < item_codes<P>; nibble++) {
        const awq_place place = place_of<P>(nibble);
        const uint8_t code = source[place.row * job.codes_row + place.col * job.codes_col];
        packed |= static_cast<ItemOf<P>>(code & AWQ_CODE_MAX) << (4 * nibble);
        seen |= code;
    }
    *reinterpret_cast<ItemOf<P> *>(job.payload + item_offset(job, item)) = packed;
    if (seen > AWQ_CODE_MAX) {
        report_codes(job, item.row, item.col, item_codes<P>, place_of<P>);
    }
}

template <awq_packing P>
__global__ void __launch_bounds__(generic_threads) pack_generic(const Job job, const uint32_t split)
{
    const Item item = generic_item<P>(job, split);
    if (item.exists) {
        pack_item<P>(job, item);
    }
    finish_check(job.fault);
}

template <awq_packing P>
__global__ void __launch_bounds__(generic_threads) unpack_generic(const Job job, const uint32_t split)
{
    const Item item = generic_item<P>(job, split);
    if (!item.exists) {
        return;
    }
    const ItemOf<P> packed = *reinterpret_cast<const ItemOf<P> *>(job.payload + item_offset(job, item));
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch + item.row * job.codes_row + item.col * job.codes_col;
#pragma unroll
    for (int nibble = 0; nibble < item_codes<P>; nibble++) {
        const awq_place place = place_of<P>(nibble);
        target[place.row * job.codes_row + place.col * job.codes_col] =
            static_cast<uint8_t>(packed >> (4 * nibble) & AWQ_CODE_MAX);
    }
}

template <awq_packing P>
struct GenericPacker {
    static constexpr Walk value = {pack_generic<P>, generic_shape<P>, 1, 1};
};

template <awq_packing P>
struct GenericUnpacker {
    static constexpr Walk value = {unpack_generic<P>, generic_shape<P>, 1, 1};
};

} // namespace awq_cuda

#endif

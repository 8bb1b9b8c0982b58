/* Codes and payload of any stride, one payload element a thread: correct for what the other kernels do not take. */
#ifndef AWQPACK_CUDA_GENERIC_CUH
#define AWQPACK_CUDA_GENERIC_CUH

#include "common.cuh"

namespace awq_cuda {

constexpr int generic_threads = 256;

constexpr __host__ __device__ int64_t line_elements(awq_packing packing, int64_t cols)
{
    return interleaves_rows(packing) ? cols : cols / AWQ_WORD_CODES;
}

/* split = 1 where neighbouring threads take neighbouring rows, 0 where they take neighbouring elements of a row. */
inline Shape generic_shape(const Job &job, awq_packing packing)
{
    const int64_t elements = payload_lines(packing, job.rows) * line_elements(packing, job.cols);
    const int64_t row_step = job.codes_row < 0 ? -job.codes_row : job.codes_row;
    const int64_t col_step = job.codes_col < 0 ? -job.codes_col : job.codes_col;
    return {static_cast<uint64_t>(ceil_div(elements, generic_threads)), dim3(generic_threads), row_step < col_step};
}

/* A payload element, and the row and the first column it holds. */
struct Element {
    int64_t line, number, row, col;
    bool exists;
};

template <awq_packing L>
__device__ __forceinline__ Element generic_element(const Job &job, uint32_t split)
{
    const int64_t index = static_cast<int64_t>(blockIdx.x) * generic_threads + threadIdx.x;
    const int64_t lines = payload_lines(L, job.rows);
    const int64_t numbers = line_elements(L, job.cols);
    Element e;
    e.line = split != 0 ? index % lines : index / numbers;
    e.number = split != 0 ? index / lines : index % numbers;
    e.exists = e.line < lines && e.number < numbers;
    if constexpr (interleaves_rows(L)) {
        e.row = AWQ_QUAD_ROWS * e.line + e.number / 16 % AWQ_QUAD_ROWS;
        e.col = AWQ_BLOCK_CODES * (e.number / 64) + 32 * (e.number / 8 % 2) + e.number % 8;
    } else {
        e.row = e.line;
        e.col = AWQ_WORD_CODES * e.number;
    }
    return e;
}

template <awq_packing L>
__device__ __forceinline__ void pack_element(const Job &job, const Element &e)
{
    const uint8_t *source =
        job.codes + blockIdx.y * job.codes_batch + e.row * job.codes_row + e.col * job.codes_col;
    uint8_t *target =
        job.payload + blockIdx.y * job.payload_batch + e.line * job.payload_row + e.number * job.payload_col;
    const uint64_t index = matrix_index(job) + static_cast<uint64_t>(e.row * job.cols + e.col);
    uint32_t element = 0;
    unsigned long long key = UINT64_MAX;
#pragma unroll
    for (int nibble = 0; nibble < 2 * element_bytes(L); nibble++) {
        const int col = low_column(L, nibble / 2) + nibble % 2 * high_step(L);
        const uint8_t code = source[col * job.codes_col];
        element |= static_cast<uint32_t>(code & AWQ_CODE_MAX) << (4 * nibble);
        if (code > AWQ_CODE_MAX && fault_key(index + col, code) < key) {
            key = fault_key(index + col, code);
        }
    }
    if constexpr (element_bytes(L) == 4) {
        *reinterpret_cast<uint32_t *>(target) = element;
    } else {
        *reinterpret_cast<unsigned short *>(target) = static_cast<unsigned short>(element);
    }
    if (key != UINT64_MAX && job.fault.is_wanted()) {
        report_fault(job.fault, key);
    }
}

template <awq_packing L>
__global__ void __launch_bounds__(generic_threads) pack_generic(const Job job, const uint32_t split)
{
    const Element e = generic_element<L>(job, split);
    if (e.exists) {
        pack_element<L>(job, e);
    }
    finish_check(job.fault);
}

template <awq_packing L>
__global__ void __launch_bounds__(generic_threads) unpack_generic(const Job job, const uint32_t split)
{
    const Element e = generic_element<L>(job, split);
    if (!e.exists) {
        return;
    }
    const uint8_t *source =
        job.payload + blockIdx.y * job.payload_batch + e.line * job.payload_row + e.number * job.payload_col;
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch + e.row * job.codes_row + e.col * job.codes_col;
    uint32_t element;
    if constexpr (element_bytes(L) == 4) {
        element = *reinterpret_cast<const uint32_t *>(source);
    } else {
        element = *reinterpret_cast<const unsigned short *>(source);
    }
#pragma unroll
    for (int nibble = 0; nibble < 2 * element_bytes(L); nibble++) {
        const int col = low_column(L, nibble / 2) + nibble % 2 * high_step(L);
        target[col * job.codes_col] = static_cast<uint8_t>(element >> (4 * nibble) & AWQ_CODE_MAX);
    }
}

/* The kernels by packing. */
constexpr Kernel generic_packers[AWQ_PACKING_COUNT] = {
    pack_generic<AWQ_PACKING_V1>,
    pack_generic<AWQ_PACKING_V1_REORDER>,
    pack_generic<AWQ_PACKING_V2>,
};

constexpr Kernel generic_unpackers[AWQ_PACKING_COUNT] = {
    unpack_generic<AWQ_PACKING_V1>,
    unpack_generic<AWQ_PACKING_V1_REORDER>,
    unpack_generic<AWQ_PACKING_V2>,
};

} // namespace awq_cuda

#endif

/* What all kernels share: their job and its launch, packings, byte shuffles, invalid codes. */
#ifndef AWQPACK_CUDA_COMMON_CUH
#define AWQPACK_CUDA_COMMON_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#include <utility>

#include "awqpack/packing.h"
#include "fault.cuh"

namespace awq_cuda {

/* One launch: a batch of equally shaped matrices. Strides are in bytes. */
struct Job {
    uint8_t *codes;
    uint8_t *payload;
    Fault fault;
    int64_t rows, cols;
    int64_t codes_row, codes_col, codes_batch;
    int64_t payload_row, payload_col, payload_batch;
    uint64_t first;      /* linear index of code (0, 0) of the first matrix ... */
    uint64_t batch_step; /* ... and how much further it is in the next one */
    bool codes_aligned;  /* every full vector of codes is aligned to its size */
    bool payload_aligned;
};

/* Threads that every multiprocessor holds: of any architecture, and of the one that is compiled for now. */
constexpr int resident_threads_min = 1024;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int resident_threads = resident_threads_min;
#else
constexpr int resident_threads = 1536;
#endif

/* So many blocks of a multiprocessor, or as many as any of the architecture holds. */
__host__ __device__ constexpr int resident_blocks(int wanted, int threads)
{
    return wanted * threads <= resident_threads ? wanted : resident_threads / threads;
}

inline __host__ __device__ int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* `split` is what the kernel family needs to find its place in the grid; see the shape function beside each. */
using Kernel = void (*)(Job job, uint32_t split);

/* The launch shape of a job; blocks may exceed what a grid can have. */
struct Shape {
    uint64_t blocks;
    dim3 threads;
    uint32_t split;
    size_t shared = 0; /* bytes */
};

/* Blocks along the direction in which they are counted first, which is what `split` says, and across it. */
inline Shape grid_shape(int64_t along, int64_t across, dim3 threads)
{
    return {static_cast<uint64_t>(along) * static_cast<uint64_t>(across), threads, static_cast<uint32_t>(along)};
}

/* For so many threads along and across: blocks as wide as these need, a power of two from `least` to `threads`, and as
   high as they then can be. */
inline Shape grid_of_threads(int64_t along, int64_t across, int least, int threads)
{
    int width = least;
    while (width < threads && width < along) {
        width *= 2;
    }
    return grid_shape(ceil_div(along, width), ceil_div(across, threads / width), dim3(width, threads / width));
}

/* What launch.cu has to know of a kernel; there is none where `kernel` is null. */
struct Walk {
    Kernel kernel;
    Shape (*shape)(const Job &job);
    int64_t codes_vector, payload_vector; /* what its vector accesses are aligned to */
};

constexpr uint32_t low_nibbles = 0x0f0f0f0f;
constexpr uint32_t high_nibbles = 0xf0f0f0f0;

/* N 32-bit words: 4N codes of a row or of a column, or N payload words. */
template <int N>
struct Words {
    uint32_t w[N];
};

/* ---- packings ---- */

/* Of a packing's row, what code is made from. */
template <awq_packing P>
constexpr int block_rows = awq_packings[P].block_rows;
template <awq_packing P>
constexpr int block_cols = awq_packings[P].block_cols;
template <awq_packing P>
constexpr int item_bytes = awq_packings[P].item_bytes;
template <awq_packing P>
constexpr int item_codes = 2 * item_bytes<P>;
template <awq_packing P>
constexpr int block_items = awq_block_items(&awq_packings[P]);
template <awq_packing P>
constexpr bool runs_down = awq_packings[P].runs_down;

/* Rows of the payload of a matrix of codes. */
template <awq_packing P>
__host__ __device__ constexpr int64_t payload_lines(int64_t rows, int64_t cols)
{
    return runs_down<P> ? cols / block_cols<P> : rows / block_rows<P>;
}

template <awq_packing P>
__host__ __device__ constexpr awq_place place_of(int nibble)
{
    constexpr awq_packing_traits traits = awq_packings[P];
    return awq_place_of(&traits, nibble);
}

/* Whether eight codes of a payload word lie in one row, as do the codes that share a byte. */
template <awq_packing P>
constexpr bool has_row_words = !runs_down<P> && place_of<P>(7).row == 0 && block_cols<P> % AWQ_WORD_CODES == 0;

/* First column of words of payload that hold one row of codes. */
template <awq_packing P>
__host__ __device__ constexpr int word_column(int word)
{
    static_assert(has_row_words<P>, "words of eight columns");
    constexpr int words = block_cols<P> / AWQ_WORD_CODES;
    return word / words * block_cols<P> + place_of<P>(word % words * AWQ_WORD_CODES).col;
}

/* Column, counted from word_column, in the low nibble of byte 0..3 of a word; the high nibble is high_step further. */
template <awq_packing P>
__host__ __device__ constexpr int low_column(int byte)
{
    static_assert(has_row_words<P>, "words of eight columns");
    return place_of<P>(2 * byte).col;
}

template <awq_packing P>
constexpr int high_step = awq_packings[P].step[0].col;

/* Entry<P>::value of every packing P, so that one without kernels of its own has what all have. */
template <template <awq_packing> class Entry, class = std::make_integer_sequence<int, AWQ_PACKING_COUNT>>
struct ByPacking;
template <template <awq_packing> class Entry, int... P>
struct ByPacking<Entry, std::integer_sequence<int, P...>> {
    static constexpr decltype(Entry<AWQ_PACKING_V1>::value) table[] = {Entry<static_cast<awq_packing>(P)>::value...};
};

/* Bytes whose low nibbles come from `low` and whose high nibbles come from the low ones of `high`. */
__device__ __forceinline__ uint32_t join_nibbles(uint32_t low, uint32_t high)
{
    return (low & low_nibbles) | ((high << 4) & high_nibbles);
}

/* The V1 word of eight codes a row, four in each argument. */
template <awq_packing P>
__device__ __forceinline__ uint32_t pack_word(uint32_t first, uint32_t second)
{
    first &= low_nibbles;
    second &= low_nibbles;
    if constexpr (P == AWQ_PACKING_V1) {
        return __byte_perm(first | first >> 4, second | second >> 4, 0x6420);
    } else {
        return __byte_perm(first | first >> 12, second | second >> 12, 0x5140);
    }
}

template <awq_packing P>
__device__ __forceinline__ void unpack_word(uint32_t word, uint32_t *first, uint32_t *second)
{
    const uint32_t low = word & low_nibbles;
    const uint32_t high = word >> 4 & low_nibbles;
    if constexpr (P == AWQ_PACKING_V1) {
        *first = __byte_perm(low, high, 0x5140);
        *second = __byte_perm(low, high, 0x7362);
    } else {
        *first = __byte_perm(low, high, 0x6420);
        *second = __byte_perm(low, high, 0x7531);
    }
}

/* The same of sixteen codes and two words. */
template <awq_packing P>
__device__ __forceinline__ Words<2> pack_words(const Words<4> &codes)
{
    return {{pack_word<P>(codes.w[0], codes.w[1]), pack_word<P>(codes.w[2], codes.w[3])}};
}

template <awq_packing P>
__device__ __forceinline__ Words<4> unpack_words(const Words<2> &words)
{
    static_assert(has_row_words<P> && block_items<P> == 1, "a word is a block");
    Words<4> codes;
    unpack_word<P>(words.w[0], &codes.w[0], &codes.w[1]);
    unpack_word<P>(words.w[1], &codes.w[2], &codes.w[3]);
    return codes;
}

/* Transposes a 4x4 square of bytes, one row a word. */
__device__ __forceinline__ void transpose_bytes(uint32_t w[4])
{
    const uint32_t a = __byte_perm(w[0], w[1], 0x5140);
    const uint32_t b = __byte_perm(w[2], w[3], 0x5140);
    const uint32_t c = __byte_perm(w[0], w[1], 0x7362);
    const uint32_t d = __byte_perm(w[2], w[3], 0x7362);
    w[0] = __byte_perm(a, b, 0x5410);
    w[1] = __byte_perm(a, b, 0x7632);
    w[2] = __byte_perm(c, d, 0x5410);
    w[3] = __byte_perm(c, d, 0x7632);
}

/* ---- invalid codes ---- */

template <int N>
__device__ __forceinline__ bool any_invalid(const Words<N> &v)
{
    uint32_t seen = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        seen |= v.w[i];
    }
    return (seen & high_nibbles) != 0;
}

/* Linear index of code (0, 0) of the matrix this block works on. */
__device__ __forceinline__ uint64_t matrix_index(const Job &job)
{
    return job.first + blockIdx.y * job.batch_step;
}

/*
 * Reports the first invalid one of the `count` codes of a thread, of which place(i) counts row and column from (row, col);
 * reads them again, since this is the rare case. Their order does not matter.
 */
template <class Place>
__device__ __forceinline__ void report_codes(const Job &job, int64_t row, int64_t col, int count, Place place)
{
    if (!job.fault.is_wanted()) {
        return;
    }
    const uint8_t *codes = job.codes + blockIdx.y * job.codes_batch + row * job.codes_row + col * job.codes_col;
    const uint64_t index = matrix_index(job) + static_cast<uint64_t>(row * job.cols + col);
    unsigned long long key = UINT64_MAX;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        const awq_place at = place(i);
        const uint8_t code = codes[at.row * job.codes_row + at.col * job.codes_col];
        const unsigned long long here = (index + static_cast<uint64_t>(at.row * job.cols + at.col)) << 8 | code;
        if (code > AWQ_CODE_MAX && here < key) {
            key = here;
        }
    }
    report_fault(job.fault, key);
}

/* The same of contiguous ones of a row. */
__device__ __forceinline__ void report_row(const Job &job, int64_t row, int64_t col, int count)
{
    report_codes(job, row, col, count, [](int i) { return awq_place{0, i}; });
}

} // namespace awq_cuda

#endif

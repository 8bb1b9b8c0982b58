/* Row-major codes beside a row-major payload: rows of contiguous codes, any distance between rows. */
#ifndef AWQPACK_CUDA_ROWMAJOR_CUH
#define AWQPACK_CUDA_ROWMAJOR_CUH

#include "memory.cuh"

namespace awq_cuda {

/*
 * A unit is 16 contiguous codes of a row and 8 contiguous payload bytes. Threads take units in payload order, so that
 * a warp moves whole lines on both sides; of V2, which spreads 32 codes over 16 bytes, neighbouring lanes swap halves.
 */
constexpr int unit_codes = 16;
constexpr int unit_bytes = 8;
constexpr int min_row_threads = 4; /* lanes that swap halves lie in one row */

/* Threads that a multiprocessor can hold. Registers shall suffice for all of them: a block that waits to be counted
   then costs nothing, as others load meanwhile. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 800
constexpr int most_threads = 1024;
#elif __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
constexpr int most_threads = 2048;
#else
constexpr int most_threads = 1536;
#endif

/* Near: the units of a thread are a warp apart, not a block. */
template <int UnitsPerThread, int ThreadsPerBlock, bool Near>
struct RowConfig {
    static constexpr int unroll = UnitsPerThread;
    static constexpr int threads = ThreadsPerBlock;
    static constexpr bool near = Near;
};

/* Units that hold one row of a block; the rows of a block follow each other. */
template <awq_packing P>
constexpr int row_units = block_rows<P> == 1 ? 1 : block_cols<P> / unit_codes;

/* Units in a row of the payload. */
template <awq_packing P>
constexpr __host__ __device__ int64_t line_units(int64_t cols)
{
    return ceil_div(cols * block_rows<P>, unit_codes);
}

/* Blocks of (threads along a row) x (rows); split = blocks along a row. */
template <awq_packing P, class Config>
Shape rows_shape(const Job &job)
{
    return grid_of_threads(ceil_div(line_units<P>(job.cols), Config::unroll), payload_lines<P>(job.rows, job.cols),
                           min_row_threads, Config::threads);
}

/* Where a thread works: its payload row, its first unit there and how far apart its units are. */
struct RowPlace {
    int64_t line, unit, units;
    uint32_t step;
    bool full; /* every unit of the thread that exists has 16 codes */
};

template <awq_packing P, class Config>
__device__ __forceinline__ RowPlace row_place(const Job &job, uint32_t split)
{
    const uint32_t down = blockIdx.x / split;
    const uint32_t across = blockIdx.x - down * split;
    RowPlace place;
    place.line = static_cast<int64_t>(down) * blockDim.y + threadIdx.y;
    place.step = Config::near && blockDim.x > 32 ? 32 : blockDim.x;
    place.unit = static_cast<int64_t>(across) * (blockDim.x * Config::unroll) + threadIdx.x;
    if constexpr (Config::near) {
        place.unit += (threadIdx.x / place.step) * place.step * (Config::unroll - 1);
    }
    /* a thread below the last row has no units, but stays to swap with its neighbour */
    place.units = place.line < payload_lines<P>(job.rows, job.cols) ? line_units<P>(job.cols) : 0;
    place.full = block_cols<P> % unit_codes == 0 || job.cols % unit_codes == 0 ||
                 place.unit + (Config::unroll - 1) * static_cast<int64_t>(place.step) + 1 < place.units;
    return place;
}

template <awq_packing P>
__device__ __forceinline__ int64_t unit_row(int64_t line, int64_t unit)
{
    return block_rows<P> * line + unit / row_units<P> % block_rows<P>;
}

template <awq_packing P>
__device__ __forceinline__ int64_t unit_col(int64_t unit)
{
    constexpr int row_codes = row_units<P> * unit_codes;
    return row_codes * (unit / (row_units<P> * block_rows<P>)) + unit_codes * (unit % row_units<P>);
}

/* 16, or 8 in the last unit of a V1 row. */
__device__ __forceinline__ int unit_count(const Job &job, int64_t col)
{
    return job.cols - col < unit_codes ? AWQ_WORD_CODES : unit_codes;
}

/* Whether two units share their codes, of which the nibbles that are 8 apart then share a byte. */
template <awq_packing P>
constexpr bool swaps_halves = place_of<P>(2).col == unit_codes;

template <awq_packing P>
__device__ __forceinline__ Words<2> pack_unit(const Words<4> &codes, bool odd)
{
    if constexpr (swaps_halves<P>) {
        const uint32_t low = join_nibbles(codes.w[0], codes.w[2]);
        const uint32_t high = join_nibbles(codes.w[1], codes.w[3]);
        const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? low : high, 1);
        const uint32_t even_bytes = odd ? other : low;
        const uint32_t odd_bytes = odd ? high : other;
        return {{__byte_perm(even_bytes, odd_bytes, 0x5140), __byte_perm(even_bytes, odd_bytes, 0x7362)}};
    } else {
        return pack_words<P>(codes);
    }
}

template <awq_packing P>
__device__ __forceinline__ Words<4> unpack_unit(const Words<2> &payload, bool odd)
{
    if constexpr (swaps_halves<P>) {
        const uint32_t even_bytes = __byte_perm(payload.w[0], payload.w[1], 0x6420);
        const uint32_t odd_bytes = __byte_perm(payload.w[0], payload.w[1], 0x7531);
        const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? even_bytes : odd_bytes, 1);
        const uint32_t low = odd ? other : even_bytes;
        const uint32_t high = odd ? odd_bytes : other;
        return {{low & low_nibbles, high & low_nibbles, low >> 4 & low_nibbles, high >> 4 & low_nibbles}};
    } else {
        return unpack_words<P>(payload);
    }
}

/* Reports the first invalid code of each unit of a thread. */
template <awq_packing P, class Config>
__device__ __forceinline__ void report_units(const Job &job, const RowPlace &place)
{
#pragma unroll 1
    for (int i = 0; i < Config::unroll; i++) {
        const int64_t unit = place.unit + i * place.step;
        if (unit < place.units) {
            const int64_t col = unit_col<P>(unit);
            report_row(job, unit_row<P>(place.line, unit), col, unit_count(job, col));
        }
    }
}

template <awq_packing P, class Config>
__global__ void __launch_bounds__(Config::threads, most_threads / Config::threads)
    pack_rows(const Job job, const uint32_t split)
{
    const RowPlace place = row_place<P, Config>(job, split);
    const uint8_t *source = job.codes + blockIdx.y * job.codes_batch;
    uint8_t *target = job.payload + blockIdx.y * job.payload_batch + place.line * job.payload_row;

    Words<4> codes[Config::unroll] = {}; /* all loads are under way before the first store */
#pragma unroll
    for (int i = 0; i < Config::unroll; i++) {
        const int64_t unit = place.unit + i * place.step;
        if (unit < place.units) {
            const int64_t col = unit_col<P>(unit);
            codes[i] = load_codes<4>(source + unit_row<P>(place.line, unit) * job.codes_row + col, unit_count(job, col),
                                     col > 0 && col + unit_codes + 3 <= job.cols, job.codes_aligned && place.full);
        }
    }
    bool invalid = false;
#pragma unroll
    for (int i = 0; i < Config::unroll; i++) {
        const int64_t unit = place.unit + i * place.step;
        const Words<2> packed = pack_unit<P>(codes[i], threadIdx.x % 2 != 0);
        if (unit < place.units) {
            store_payload<P, 2>(target + unit * unit_bytes, packed, unit_count(job, unit_col<P>(unit)) / AWQ_WORD_CODES,
                                job.payload_aligned && place.full);
            invalid |= any_invalid(codes[i]);
        }
    }
    if (invalid) {
        report_units<P, Config>(job, place);
    }
    finish_check(job.fault);
}

template <awq_packing P, class Config>
__global__ void __launch_bounds__(Config::threads) unpack_rows(const Job job, const uint32_t split)
{
    const RowPlace place = row_place<P, Config>(job, split);
    const uint8_t *source = job.payload + blockIdx.y * job.payload_batch + place.line * job.payload_row;
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch;

    Words<2> packed[Config::unroll] = {};
#pragma unroll
    for (int i = 0; i < Config::unroll; i++) {
        const int64_t unit = place.unit + i * place.step;
        if (unit < place.units) {
            packed[i] =
                load_payload<P, 2>(source + unit * unit_bytes, unit_count(job, unit_col<P>(unit)) / AWQ_WORD_CODES,
                                   job.payload_aligned && place.full);
        }
    }
#pragma unroll
    for (int i = 0; i < Config::unroll; i++) {
        const int64_t unit = place.unit + i * place.step;
        const Words<4> codes = unpack_unit<P>(packed[i], threadIdx.x % 2 != 0);
        if (unit < place.units) {
            const int64_t col = unit_col<P>(unit);
            store_codes<4>(target + unit_row<P>(place.line, unit) * job.codes_row + col, codes, unit_count(job, col),
                           job.codes_aligned && place.full);
        }
    }
}

template <awq_packing P, class Config>
constexpr Walk row_packer = {pack_rows<P, Config>, rows_shape<P, Config>, unit_codes, unit_bytes};

template <awq_packing P, class Config>
constexpr Walk row_unpacker = {unpack_rows<P, Config>, rows_shape<P, Config>, unit_codes, unit_bytes};

} // namespace awq_cuda

#endif

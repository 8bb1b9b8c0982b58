/* Payloads viewed transposed, as GPTQ's qweight is V1's, of packings whose block is one word. */
#ifndef AWQPACK_CUDA_TURNED_CUH
#define AWQPACK_CUDA_TURNED_CUH

#include "memory.cuh"

namespace awq_cuda {

/* ---- columns of contiguous codes: a thread takes one word of four rows ---- */

constexpr int turned_threads = 256;
constexpr int turned_rows = 4;

/* Blocks of 256 threads down; split = blocks down. */
template <awq_packing P>
Shape turned_columns_shape(const Job &job)
{
    return grid_shape(ceil_div(job.rows, turned_threads * turned_rows), job.cols / block_cols<P>, dim3(turned_threads));
}

struct TurnedPlace {
    int64_t row, word;
    int count; /* rows */
    bool inside;
};

__device__ __forceinline__ TurnedPlace turned_place(const Job &job, uint32_t split)
{
    const uint32_t word = blockIdx.x / split;
    const int64_t row = (static_cast<int64_t>(blockIdx.x - word * split) * turned_threads + threadIdx.x) * turned_rows;
    const int64_t left = job.rows - row;
    return {row, word,
            left <= 0            ? 0
            : left < turned_rows ? static_cast<int>(left)
                                 : turned_rows,
            row > 0 && left >= turned_rows + 3};
}

template <awq_packing P>
__global__ void __launch_bounds__(turned_threads) pack_turned_columns(const Job job, const uint32_t split)
{
    const TurnedPlace place = turned_place(job, split);
    const uint8_t *source =
        job.codes + blockIdx.y * job.codes_batch + place.row + place.word * block_cols<P> * job.codes_col;
    uint32_t low[4], high[4], seen = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        low[k] = load_codes<1>(source + low_column<P>(k) * job.codes_col, place.count, place.inside).w[0];
        high[k] =
            load_codes<1>(source + (low_column<P>(k) + high_step<P>)*job.codes_col, place.count, place.inside).w[0];
    }
    Words<4> words;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        seen |= low[k] | high[k];
        words.w[k] = join_nibbles(low[k], high[k]);
    }
    transpose_bytes(words.w);
    uint8_t *target =
        job.payload + blockIdx.y * job.payload_batch + place.row * AWQ_WORD_BYTES + place.word * job.payload_col;
    store_payload<P, 4>(target, words, place.count, job.payload_aligned);
    if ((seen & high_nibbles) != 0) {
        report_codes(job, place.row, place.word * block_cols<P>, place.count * block_cols<P>,
                     [](int i) { return awq_place{i / block_cols<P>, i % block_cols<P>}; });
    }
    finish_check(job.fault);
}

template <awq_packing P>
__global__ void __launch_bounds__(turned_threads) unpack_turned_columns(const Job job, const uint32_t split)
{
    const TurnedPlace place = turned_place(job, split);
    const uint8_t *source =
        job.payload + blockIdx.y * job.payload_batch + place.row * AWQ_WORD_BYTES + place.word * job.payload_col;
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch + place.row + place.word * block_cols<P> * job.codes_col;
    Words<4> words = load_payload<P, 4>(source, place.count, job.payload_aligned);
    transpose_bytes(words.w);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const Words<1> low = {{words.w[k] & low_nibbles}}, high = {{words.w[k] >> 4 & low_nibbles}};
        store_codes<1>(target + low_column<P>(k) * job.codes_col, low, place.count);
        store_codes<1>(target + (low_column<P>(k) + high_step<P>)*job.codes_col, high, place.count);
    }
}

/* ---- rows of contiguous codes: tiles of words change direction in shared memory ---- */

constexpr int turned_tile_rows = 64;
constexpr int turned_tile_words = 32;
constexpr int turned_pitch = turned_tile_rows + 1; /* lanes of one row or of one word then have banks of their own */
constexpr int turned_unit_words = 2;               /* 16 codes */
constexpr int turned_units = turned_tile_words / turned_unit_words;
constexpr int turned_passes = turned_tile_rows * turned_units / turned_threads;

/* split = blocks across. */
template <awq_packing P>
Shape turned_rows_shape(const Job &job)
{
    return grid_shape(ceil_div(job.cols, turned_tile_words * block_cols<P>), ceil_div(job.rows, turned_tile_rows),
                      dim3(turned_threads));
}

/* A unit of 16 codes of a row, or the 8 that are left of it. */
struct TurnedUnit {
    int row, word;
    int64_t at_row, at_col;
    int words; /* that exist */
};

template <awq_packing P>
__device__ __forceinline__ TurnedUnit turned_unit(const Job &job, uint32_t split, int pass)
{
    const uint32_t down = blockIdx.x / split;
    const int number = pass * turned_threads + static_cast<int>(threadIdx.x);
    TurnedUnit unit;
    unit.row = number / turned_units;
    unit.word = number % turned_units * turned_unit_words;
    unit.at_row = static_cast<int64_t>(down) * turned_tile_rows + unit.row;
    unit.at_col = (static_cast<int64_t>(blockIdx.x - down * split) * turned_tile_words + unit.word) * block_cols<P>;
    const int64_t left = unit.at_row < job.rows ? (job.cols - unit.at_col) / block_cols<P> : 0;
    unit.words = left <= 0 ? 0 : left < turned_unit_words ? 1 : turned_unit_words;
    return unit;
}

/* Calls use(word of the tile, row of it, address in the payload) for those of a thread that exist. */
template <awq_packing P, class Use>
__device__ __forceinline__ void each_turned_word(const Job &job, uint32_t split, Use use)
{
    const uint32_t down = blockIdx.x / split;
    const int64_t first_word = static_cast<int64_t>(blockIdx.x - down * split) * turned_tile_words;
    const int row = static_cast<int>(threadIdx.x) % turned_tile_rows;
    const int64_t at_row = static_cast<int64_t>(down) * turned_tile_rows + row;
    uint8_t *const payload = job.payload + blockIdx.y * job.payload_batch + at_row * AWQ_WORD_BYTES;
#pragma unroll
    for (int word = static_cast<int>(threadIdx.x) / turned_tile_rows; word < turned_tile_words;
         word += turned_threads / turned_tile_rows) {
        if (at_row < job.rows && (first_word + word) * block_cols<P> < job.cols) {
            use(word, row, reinterpret_cast<uint32_t *>(payload + (first_word + word) * job.payload_col));
        }
    }
}

template <awq_packing P>
__global__ void __launch_bounds__(turned_threads) pack_turned_rows(const Job job, const uint32_t split)
{
    __shared__ uint32_t tile[turned_tile_words * turned_pitch];
    const uint8_t *source = job.codes + blockIdx.y * job.codes_batch;
    Words<4> codes[turned_passes];
#pragma unroll
    for (int pass = 0; pass < turned_passes; pass++) {
        const TurnedUnit unit = turned_unit<P>(job, split, pass);
        const uint8_t *p = source + unit.at_row * job.codes_row + unit.at_col;
        const bool inside = unit.at_col > 0 && unit.at_col + turned_unit_words * block_cols<P> + 3 <= job.cols;
        codes[pass] = load_codes<4>(p, unit.words * block_cols<P>, inside, job.codes_aligned);
    }
#pragma unroll
    for (int pass = 0; pass < turned_passes; pass++) {
        const TurnedUnit unit = turned_unit<P>(job, split, pass);
        const Words<2> words = pack_words<P>(codes[pass]);
        tile[unit.word * turned_pitch + unit.row] = words.w[0];
        tile[(unit.word + 1) * turned_pitch + unit.row] = words.w[1];
        if (any_invalid(codes[pass])) {
            report_row(job, unit.at_row, unit.at_col, unit.words * block_cols<P>);
        }
    }
    __syncthreads();
    each_turned_word<P>(job, split, [&](int word, int row, uint32_t *p) { *p = tile[word * turned_pitch + row]; });
    finish_check(job.fault);
}

template <awq_packing P>
__global__ void __launch_bounds__(turned_threads) unpack_turned_rows(const Job job, const uint32_t split)
{
    __shared__ uint32_t tile[turned_tile_words * turned_pitch];
    each_turned_word<P>(job, split,
                        [&](int word, int row, uint32_t *p) { tile[word * turned_pitch + row] = __ldg(p); });
    __syncthreads();
#pragma unroll
    for (int pass = 0; pass < turned_passes; pass++) {
        const TurnedUnit unit = turned_unit<P>(job, split, pass);
        if (unit.words > 0) { /* what does not exist of the tile was not written, and is not stored */
            Words<4> codes = {};
            unpack_word<P>(tile[unit.word * turned_pitch + unit.row], &codes.w[0], &codes.w[1]);
            if (unit.words > 1) {
                unpack_word<P>(tile[(unit.word + 1) * turned_pitch + unit.row], &codes.w[2], &codes.w[3]);
            }
            uint8_t *p = job.codes + blockIdx.y * job.codes_batch + unit.at_row * job.codes_row + unit.at_col;
            store_codes<4>(p, codes, unit.words * block_cols<P>, job.codes_aligned);
        }
    }
}

template <awq_packing P>
constexpr Walk turned_row_packer = {pack_turned_rows<P>, turned_rows_shape<P>, 16, 4};
template <awq_packing P>
constexpr Walk turned_row_unpacker = {unpack_turned_rows<P>, turned_rows_shape<P>, 16, 4};
template <awq_packing P>
constexpr Walk turned_column_packer = {pack_turned_columns<P>, turned_columns_shape<P>, 4, 16};
template <awq_packing P>
constexpr Walk turned_column_unpacker = {unpack_turned_columns<P>, turned_columns_shape<P>, 4, 16};

} // namespace awq_cuda

#endif

/* Marlin beside weights whose rows are contiguous and aligned to 16 bytes: blocks change order between the lanes of a
 * warp. */
#ifndef AWQPACK_CUDA_FLOAT_MARLIN_CUH
#define AWQPACK_CUDA_FLOAT_MARLIN_CUH

#include "float_common.cuh"
#include "marlin.cuh"

namespace awq_cuda {

/*
 * Lanes are those of marlin.cuh: (q, t) has the rows q, q + 8, ... of block t of four. Pairs of lanes share factors,
 * whose groups are whole runs of the 32 columns of a pair; each row has a factor of its own, or all of them share one.
 */
constexpr int marlin_pair_cols = 2 * block_cols<marlin>;

/* The factors of a lane's rows. */
__device__ __forceinline__ void load_marlin_factors(const FloatJob &job, const MarlinRows &place,
                                                    Factor (&factors)[marlin_row_steps])
{
    const bool exists = place.t / 2 * 2 < place.lines;
    const uint32_t row = exists ? static_cast<uint32_t>(place.block * block_rows<marlin>) + place.q : 0;
    const uint32_t col = exists ? static_cast<uint32_t>((place.line + place.t / 2 * 2) * block_cols<marlin>) : 0;
    load_factors(job, row, col, [](int m) { return 8 * m; }, factors);
}

/* Stores a row of the blocks of a pair of lanes, of which either brings the sixteen codes of its own: the lanes
   exchange halves of them, so that the pair stores whole blocks. `p` is where the row begins in the first block. */
template <class T>
__device__ __forceinline__ void store_marlin_row(uint8_t *p, const Words<4> &codes, const Factor &factor,
                                                 const MarlinRows &place)
{
    const bool odd = place.t % 2 != 0;
    const uint32_t got[2] = {__shfl_xor_sync(0xffffffff, odd ? codes.w[0] : codes.w[2], 1),
                             __shfl_xor_sync(0xffffffff, odd ? codes.w[1] : codes.w[3], 1)};
#pragma unroll
    for (int block = 0; block < 2; block++) {
        const bool own = odd == (block == 1);
        const uint32_t words[2] = {own ? codes.w[odd ? 2 : 0] : got[0], own ? codes.w[odd ? 3 : 1] : got[1]};
        float values[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            values[k] = weight_of(words[k / 4], k % 4, factor);
        }
        if (place.t / 2 * 2 + block < place.lines) {
            store_weights<T>(p + (block * block_cols<marlin> + (odd ? 8 : 0)) * static_cast<int>(sizeof(T)), values);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(marlin_threads)
    dequantize_marlin_rows(const __grid_constant__ FloatJob job, const uint32_t split)
{
    const MarlinRows place = marlin_rows_place(job, split);
    uint32_t words[4][4] = {};
    load_blocks(job, place, true, words);
    Factor factors[marlin_row_steps];
    load_marlin_factors(job, place, factors);
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch +
                      (place.block * block_rows<marlin> + place.q) * job.codes_row +
                      (place.line + place.t / 2 * 2) * block_cols<marlin> * static_cast<int>(sizeof(T));
#pragma unroll
    for (int j = 0; j < 4; j++) {
        exchange_quad(words[j], place.t);
        Words<4> upper, lower;
        split_rows(words[j], &upper, &lower);
        store_marlin_row<T>(target + 16 * j * job.codes_row, upper, factors[2 * j], place);
        store_marlin_row<T>(target + (16 * j + 8) * job.codes_row, lower, factors[2 * j + 1], place);
    }
}

template <class T>
__global__ void __launch_bounds__(marlin_threads, 2)
    quantize_marlin_rows(const __grid_constant__ FloatJob job, const uint32_t split)
{
    const MarlinRows place = marlin_rows_place(job, split);
    const int64_t row = place.block * block_rows<marlin> + place.q, col = (place.line + place.t) * block_cols<marlin>;
    const uint8_t *source =
        job.codes + blockIdx.y * job.codes_batch + row * job.codes_row + col * static_cast<int>(sizeof(T));
    Factor factors[marlin_row_steps];
    load_marlin_factors(job, place, factors);
    uint32_t words[4][4];
#pragma unroll
    for (int first = 0; first < 4; first += sizeof(T) == 2 ? 2 : 1) { /* rows whose loads are under way at once */
        constexpr int together = sizeof(T) == 2 ? 4 : 2;
        Weights<T> weights[together][2] = {};
#pragma unroll
        for (int m = 0; m < together; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (place.exists) {
                    weights[m][half] = load_weights<T>(source + 8 * (2 * first + m) * job.codes_row +
                                                       8 * half * static_cast<int>(sizeof(T)));
                }
            }
        }
        Words<4> rows[together];
#pragma unroll
        for (int m = 0; m < together; m++) {
            const Divisor divisors[1] = {divisor_of(factors[2 * first + m])};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Words<2> codes = codes_of<T, false>(job, weights[m][half], divisors, row + 8 * (2 * first + m),
                                                          col + 8 * half, place.exists ? 8 : 0);
                rows[m].w[2 * half] = codes.w[0], rows[m].w[2 * half + 1] = codes.w[1];
            }
        }
#pragma unroll
        for (int j = 0; j < together / 2; j++) {
            join_rows(rows[2 * j], rows[2 * j + 1], words[first + j]);
            exchange_quad(words[first + j], place.t);
        }
    }
    store_blocks(job, place, true, words);
    finish_check(job.fault);
}

} // namespace awq_cuda

#endif

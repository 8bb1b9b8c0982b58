/* Marlin beside weights whose rows are contiguous and aligned to 16 bytes: blocks change order between the lanes of a
 * warp. */
#ifndef AWQPACK_CUDA_FLOAT_MARLIN_CUH
#define AWQPACK_CUDA_FLOAT_MARLIN_CUH

#include "float_codes.cuh"
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
   exchange words of them, so that each vector of the one lies beside one of the other. `p` is where the row begins in
   the first block. */
template <class T>
__device__ __forceinline__ void store_marlin_row(uint8_t *p, const Words<4> &codes, const Factor &factor,
                                                 const MarlinRows &place)
{
    constexpr int vectors = static_cast<int>(sizeof(T)) / 2; /* of two words' weights; so far apart are the words */
    constexpr int odd_word = 3 - vectors; /* the first that the odd lane stores; the even one's is 0 */
    const bool odd = place.t % 2 != 0;
    uint32_t kept[2], got[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t even = codes.w[i * vectors], other = codes.w[odd_word + i * vectors];
        kept[i] = odd ? other : even;
        got[i] = __shfl_xor_sync(0xffffffff, odd ? even : other, 1);
    }
#pragma unroll
    for (int block = 0; block < 2; block++) {
        float values[vectors][8 / vectors];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const uint32_t word = odd == (block == 1) ? kept[k / 4] : got[k / 4];
            values[k * vectors / 8][k % (8 / vectors)] = weight_of(word, k % 4, factor);
        }
        if (place.t / 2 * 2 + block < place.lines) {
            uint8_t *q = p + (block * block_cols<marlin> + (odd ? 4 * odd_word : 0)) * static_cast<int>(sizeof(T));
#pragma unroll
            for (int i = 0; i < vectors; i++) {
                store_weights<T>(q + i * 4 * vectors * static_cast<int>(sizeof(T)), values[i]);
            }
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

/* Of those tried on an H100, the fastest: registers suffice for the 16-bit weights of four rows and for those of the
   next four, which come while the first become codes. */
constexpr int marlin_quantize_threads = 128, marlin_quantize_blocks = 4;
template <class T>
constexpr bool loads_ahead = sizeof(T) == 2;

/* Loads `Rows` rows of a lane, from its row `first` on, of whose sixteen weights either half is a vector or two. */
template <class T, int Rows>
__device__ __forceinline__ void load_marlin_weights(const FloatJob &job, const MarlinRows &place, const uint8_t *source,
                                                    int first, Weights<T> (&weights)[Rows][2])
{
#pragma unroll
    for (int m = 0; m < Rows; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (place.exists && first < marlin_row_steps) {
                weights[m][half] =
                    load_weights<T>(source + 8 * (first + m) * job.codes_row + 8 * half * static_cast<int>(sizeof(T)));
            }
        }
    }
}

template <class T, Division D>
__global__ void __launch_bounds__(marlin_quantize_threads, marlin_quantize_blocks)
    quantize_marlin_rows(const __grid_constant__ FloatJob job, const uint32_t split)
{
    constexpr int together = 8 / static_cast<int>(sizeof(T)); /* rows whose loads are under way at once */
    const MarlinRows place = marlin_rows_place(job, split);
    const int64_t row = place.block * block_rows<marlin> + place.q, col = (place.line + place.t) * block_cols<marlin>;
    const uint8_t *source =
        job.codes + blockIdx.y * job.codes_batch + row * job.codes_row + col * static_cast<int>(sizeof(T));
    Weights<T> weights[together][2] = {};
    load_marlin_weights(job, place, source, 0, weights);
    Factor factors[marlin_row_steps];
    load_marlin_factors(job, place, factors);
    uint32_t words[4][4];
#pragma unroll
    for (int first = 0; first < marlin_row_steps; first += together) {
        Weights<T> next[together][2] = {};
        if constexpr (loads_ahead<T>) {
            load_marlin_weights(job, place, source, first + together, next);
        } else if (first > 0) {
            load_marlin_weights(job, place, source, first, weights);
        }
        Words<4> rows[together];
#pragma unroll
        for (int m = 0; m < together; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Words<2> codes = codes_of<T, D>(job, weights[m][half], factors[first + m], row + 8 * (first + m),
                                                      col + 8 * half, place.exists ? 8 : 0);
                rows[m].w[2 * half] = codes.w[0], rows[m].w[2 * half + 1] = codes.w[1];
                if constexpr (loads_ahead<T>) {
                    weights[m][half] = next[m][half];
                }
            }
        }
#pragma unroll
        for (int j = 0; j < together / 2; j++) {
            uint32_t (&joined)[4] = words[first / 2 + j];
            join_rows(rows[2 * j], rows[2 * j + 1], joined);
            exchange_quad(joined, place.t);
        }
    }
    store_blocks(job, place, true, words);
    finish_check(job.fault);
}

template <int Threads>
Shape float_marlin_shape(const FloatJob &job)
{
    return marlin_rows_shape<Threads>(job);
}

template <class T>
constexpr FloatWalk marlin_row_dequantizer = {dequantize_marlin_rows<T>, float_marlin_shape<marlin_threads>};

template <class T, Division D>
constexpr FloatWalk marlin_row_quantizer = {quantize_marlin_rows<T, D>, float_marlin_shape<marlin_quantize_threads>};

} // namespace awq_cuda

#endif

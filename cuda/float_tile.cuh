/* Weights whose columns are contiguous, of whole vectors of 16 bytes, beside a payload whose rows are contiguous and
   aligned: tiles change direction in shared memory, as payload. */
#ifndef AWQPACK_CUDA_FLOAT_TILE_CUH
#define AWQPACK_CUDA_FLOAT_TILE_CUH

#include "float_common.cuh"
#include "tile.cuh"

namespace awq_cuda {

/*
 * Slots, lines and vectors are those of tile.cuh, with eight rows a slot: 16 bytes of a column of 16-bit weights. What
 * a slot has of factors is eight of them: one a column where eight rows are of one group (ByRow false), else one a row.
 */
constexpr int float_slot_rows = 8;

template <class Config>
Shape float_tile_shape(const FloatJob &job)
{
    static_assert(Config::rows == float_slot_rows, "the factors of a slot");
    return tile_shape<Config>(job);
}

/* Column, counted from its slot, of the low (k even) or high (k odd) nibble of byte k / 2. */
template <awq_packing P>
__device__ __forceinline__ constexpr int slot_column(int k)
{
    return low_column<P>(k / 2) + k % 2 * high_step<P>;
}

/* Of column slot_column(i) of a slot, or of its row i; of the first slot where this one is outside. */
template <awq_packing P, bool ByRow>
__device__ __forceinline__ void load_slot_factors(const FloatJob &job, const Slot &slot, Factor (&factors)[8])
{
    const uint32_t row = slot.count == 0 ? 0 : static_cast<uint32_t>(slot.row);
    const uint32_t col = slot.count == 0 ? 0 : static_cast<uint32_t>(slot.col);
    if constexpr (!ByRow && block_rows<P> == 1) {
        if (job.vector_factors) {
            Factor in_order[8];
            load_column_factors(job, row, col, in_order);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                factors[i] = in_order[slot_column<P>(i)];
            }
            return;
        }
    }
    load_factors(job, row, col, [](int i) { return ByRow ? i : slot_column<P>(i); }, factors);
}

/* Stores eight rows of a column. Of float32 they fill two vectors: then a pair of lanes, whose rows follow each other,
   stores first the rows of the one and then those of the other, since half a sector takes as long as a whole one. */
template <class T>
__device__ __forceinline__ void store_slot_column(uint8_t *p, const float (&values)[8], bool exists)
{
    if constexpr (sizeof(T) == 4) {
        const bool odd = threadIdx.x % 2 != 0;
        const bool beside = __shfl_xor_sync(0xffffffff, exists, 1);
        float even_rows[4], odd_rows[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float got = __shfl_xor_sync(0xffffffff, odd ? values[i] : values[i + 4], 1);
            even_rows[i] = odd ? got : values[i];
            odd_rows[i] = odd ? values[i + 4] : got;
        }
        p -= odd ? 16 : 0;
        if (odd ? beside : exists) {
            store_weights<T>(p, even_rows);
        }
        if (odd ? exists : beside) {
            store_weights<T>(p + 32, odd_rows);
        }
    } else if (exists) {
        store_weights<T>(p, values);
    }
}

template <awq_packing P, class T, bool ByRow, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident)
    dequantize_tiles(const __grid_constant__ FloatJob job, const uint32_t split)
{
    uint32_t *const tile = reinterpret_cast<uint32_t *>(tile_memory);
    const TilePlace block = block_place<Config>(job, split);
    uint8_t *weights = job.codes + blockIdx.y * job.codes_batch;

    load_lines<P, Config>(job, block, true);
    __syncthreads();
#pragma unroll 1
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot slot = tile_slot<P, Config>(job, block, number + static_cast<int>(threadIdx.x));
        Factor factors[8];
        load_slot_factors<P, ByRow>(job, slot, factors);
        uint32_t words[8]; /* of rows, then byte 0..3 of four rows each */
#pragma unroll
        for (int row = 0; row < 8; row++) {
            words[row] = tile[slot_word<P, Config>(slot, row)];
        }
        transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words));
        transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words + 4));
        uint8_t *p = weights + slot.col * job.codes_col + slot.row * static_cast<int>(sizeof(T));
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float values[8];
#pragma unroll
            for (int row = 0; row < 8; row++) {
                const uint32_t codes = words[row / 4 * 4 + k / 2] >> 4 * (k % 2) & low_nibbles;
                values[row] = weight_of(codes, row % 4, factors[ByRow ? row : k]);
            }
            store_slot_column<T>(p + slot_column<P>(k) * job.codes_col, values, slot.count != 0);
        }
    }
}

/* Brings memory nearer for a load that registers have no room for yet. */
__device__ __forceinline__ void prefetch(const uint8_t *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

template <awq_packing P, class T, bool ByRow, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident)
    quantize_tiles(const __grid_constant__ FloatJob job, const uint32_t split)
{
    constexpr int together = 4; /* columns whose loads are under way at once */
    uint32_t *const tile = reinterpret_cast<uint32_t *>(tile_memory);
    const TilePlace block = block_place<Config>(job, split);
    const uint8_t *weights = job.codes + blockIdx.y * job.codes_batch;

#pragma unroll 1
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot slot = tile_slot<P, Config>(job, block, number + static_cast<int>(threadIdx.x));
        const uint8_t *p = weights + slot.col * job.codes_col + slot.row * static_cast<int>(sizeof(T));
        Factor factors[8];
        Divisor divisors[ByRow ? 8 : 1];
        uint32_t words[8];                       /* byte 0..3 of four rows each, then of rows */
        if (sizeof(T) == 2 && slot.count != 0) { /* wider ones are that many already */
#pragma unroll
            for (int k = together; k < 8; k++) {
                prefetch(p + slot_column<P>(k) * job.codes_col);
            }
        }
#pragma unroll
        for (int first = 0; first < 8; first += together) {
            Weights<T> columns[together] = {};
#pragma unroll
            for (int k = 0; k < together; k++) {
                if (slot.count != 0) {
                    columns[k] = load_weights<T>(p + slot_column<P>(first + k) * job.codes_col);
                }
            }
            if (first == 0) {
                load_slot_factors<P, ByRow>(job, slot, factors);
                if constexpr (ByRow) {
#pragma unroll
                    for (int row = 0; row < 8; row++) {
                        divisors[row] = divisor_of(factors[row]);
                    }
                }
            }
            Words<2> low;
#pragma unroll
            for (int k = 0; k < together; k++) {
                if constexpr (!ByRow) {
                    divisors[0] = divisor_of(factors[first + k]);
                }
                const Words<2> codes = codes_of<T, true>(job, columns[k], divisors, slot.row,
                                                         slot.col + slot_column<P>(first + k), slot.count);
                if (k % 2 == 0) {
                    low = codes;
                } else {
                    words[(first + k) / 2] = join_nibbles(low.w[0], codes.w[0]);
                    words[(first + k) / 2 + 4] = join_nibbles(low.w[1], codes.w[1]);
                }
            }
        }
        transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words));
        transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words + 4));
#pragma unroll
        for (int row = 0; row < 8; row++) {
            tile[slot_word<P, Config>(slot, row)] = words[row];
        }
    }
    __syncthreads();
    store_lines<P, Config>(job, block, true);
    finish_check(job.fault);
}

template <class T, bool ByRow, class Config>
constexpr FloatWalk tile_dequantizers[AWQ_PACKING_COUNT] = {
    {dequantize_tiles<AWQ_PACKING_V1, T, ByRow, Config>, float_tile_shape<Config>},
    {dequantize_tiles<AWQ_PACKING_V1_REORDER, T, ByRow, Config>, float_tile_shape<Config>},
    {dequantize_tiles<AWQ_PACKING_V2, T, ByRow, Config>, float_tile_shape<Config>},
};

template <class T, bool ByRow, class Config>
constexpr FloatWalk tile_quantizers[AWQ_PACKING_COUNT] = {
    {quantize_tiles<AWQ_PACKING_V1, T, ByRow, Config>, float_tile_shape<Config>},
    {quantize_tiles<AWQ_PACKING_V1_REORDER, T, ByRow, Config>, float_tile_shape<Config>},
    {quantize_tiles<AWQ_PACKING_V2, T, ByRow, Config>, float_tile_shape<Config>},
};

} // namespace awq_cuda

#endif

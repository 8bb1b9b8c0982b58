/* Weights whose columns are contiguous, of whole vectors of 16 bytes, beside a payload whose rows are contiguous and
   aligned: tiles change direction in shared memory, as payload. */
#ifndef AWQPACK_CUDA_FLOAT_TILE_CUH
#define AWQPACK_CUDA_FLOAT_TILE_CUH

#include "float_codes.cuh"
#include "tile.cuh"

namespace awq_cuda {

/*
 * Slots, lines and vectors are those of tile.cuh, with eight rows a slot: 16 bytes of a column of 16-bit weights. What
 * a slot has of factors is eight of them: one a column where eight rows are of one group, else one a row (SlotFactors).
 */
constexpr int float_slot_rows = 8;

/* float_launch.cu leaves matrices of 2^30 rows or columns to the generic kernel: 32 bits hold their places. */
template <int ThreadsPerBlock, bool RowsFirst, int Band, int Down, int Across, int Resident>
using FloatTileConfig = TileConfig<float_slot_rows, ThreadsPerBlock, RowsFirst, Band, Down, Across, Resident, uint32_t>;

template <class Config>
Shape float_tile_shape(const FloatJob &job)
{
    return tile_shape<Config>(job);
}

/* Column, counted from its slot, of the low (k even) or high (k odd) nibble of byte k / 2. */
template <awq_packing P>
__device__ __forceinline__ constexpr int slot_column(int k)
{
    return low_column<P>(k / 2) + k % 2 * high_step<P>;
}

/* How the factors of a slot are found: one for each of its rows, or one for each of its columns, which then may be
   neighbours in vectors, with scales of the weights' dtype or of the other one of 16 bits. */
enum class SlotFactors { of_rows, of_columns, in_vectors, in_other_vectors, none };

/* The dtype of scales in vectors. */
template <class T, SlotFactors F>
struct ScaleOf {
    using Type = T;
};
template <>
struct ScaleOf<__half, SlotFactors::in_other_vectors> {
    using Type = __nv_bfloat16;
};
template <>
struct ScaleOf<__nv_bfloat16, SlotFactors::in_other_vectors> {
    using Type = __half;
};

/* Whether the columns of a slot are neighbours. */
template <awq_packing P>
constexpr bool has_slot_vectors = block_cols<P> == AWQ_WORD_CODES;

constexpr bool is_in_vectors(SlotFactors factors)
{
    return factors == SlotFactors::in_vectors || factors == SlotFactors::in_other_vectors;
}

/* Whether there are kernels for factors that are found so. */
template <awq_packing P, class T, SlotFactors F>
constexpr bool has_slot_factors =
    !is_in_vectors(F) || (has_slot_vectors<P> && (F == SlotFactors::in_vectors || sizeof(T) == 2));

/* Eight factors: of a slot's rows, or of its columns in the order of slot_column. */
template <awq_packing P, class T, SlotFactors F, bool InVectors = is_in_vectors(F)>
struct SlotSource {
    Factor factors[8];

    __device__ __forceinline__ SlotSource(const FloatJob &job, uint32_t row, uint32_t col)
    {
        constexpr bool by_row = F == SlotFactors::of_rows;
        load_factors(job, row, col, [](int i) { return by_row ? i : slot_column<P>(i); }, factors);
    }
    __device__ __forceinline__ Factor at(int i) const { return factors[i]; }
    __device__ __forceinline__ void count(Fast<T> &fast) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            fast.count(factors[i]);
        }
    }
};

/* As they are in memory until they are wanted, which takes fewer registers. */
template <awq_packing P, class T, SlotFactors F>
struct SlotSource<P, T, F, true> {
    Weights<typename ScaleOf<T, F>::Type> scales;
    Words<2> zeros;

    __device__ __forceinline__ SlotSource(const FloatJob &job, uint32_t row, uint32_t col)
    {
        const FactorSource source = factor_source(job);
        const int64_t group_row = job.group_rows.of(row);
        scales = load_weights<typename ScaleOf<T, F>::Type>(source.scales + group_row * job.scales.row +
                                                            col * job.scales.col);
        const Words<2> there = load_vector<2>(source.zeros + group_row * job.zeros.row + col);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            zeros.w[i] = job.zeros.data == nullptr ? 0x01010101 * AWQ_SYMMETRIC_ZERO : there.w[i];
        }
    }
    __device__ __forceinline__ Factor at(int i) const
    {
        const int col = slot_column<P>(i);
        return {scales.at(col), static_cast<float>(zeros.w[col / 4] >> 8 * (col % 4) & 255)};
    }
    __device__ __forceinline__ void count(Fast<T> &fast) const { fast.count(scales, zeros); }
};

/* Those of the first slot where this one is outside. */
template <awq_packing P, class T, SlotFactors F, class Config>
__device__ __forceinline__ SlotSource<P, T, F> slot_source(const FloatJob &job, const Slot<Config> &slot)
{
    return {job, slot.count == 0 ? 0 : slot.row, slot.count == 0 ? 0 : slot.col};
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

template <awq_packing P, class T, SlotFactors F, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident)
    dequantize_tiles(const __grid_constant__ FloatJob job, const uint32_t split)
{
    uint32_t *const tile = reinterpret_cast<uint32_t *>(tile_memory);
    const TilePlace<Config> block = block_place<Config>(job, split);
    uint8_t *weights = job.codes + blockIdx.y * job.codes_batch;

    load_lines<P, Config>(job, block, true);
    __syncthreads();
#pragma unroll 1
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot<Config> slot = tile_slot<P, Config>(job, block, number + threadIdx.x);
        const SlotSource<P, T, F> source = slot_source<P, T, F>(job, slot);
        uint32_t words[8]; /* of rows, then byte 0..3 of four rows each */
#pragma unroll
        for (int row = 0; row < 8; row++) {
            words[row] = tile[slot_word<P, Config>(slot, row)];
        }
        transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words));
        transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words + 4));
        uint8_t *p = weights + slot.col * job.codes_col + slot.row * static_cast<int64_t>(sizeof(T));
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float values[8];
#pragma unroll
            for (int row = 0; row < 8; row++) {
                const uint32_t codes = words[row / 4 * 4 + k / 2] >> 4 * (k % 2) & low_nibbles;
                values[row] = weight_of(codes, row % 4, source.at(F == SlotFactors::of_rows ? row : k));
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

/* Puts a slot's words, of which each has byte 0..3 of four rows, into the tile. */
template <awq_packing P, class Config>
__device__ __forceinline__ void put_slot(const Slot<Config> &slot, uint32_t (&words)[8])
{
    uint32_t *const tile = reinterpret_cast<uint32_t *>(tile_memory);
    transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words));
    transpose_bytes(*reinterpret_cast<uint32_t (*)[4]>(words + 4));
#pragma unroll
    for (int row = 0; row < 8; row++) {
        tile[slot_word<P, Config>(slot, row)] = words[row];
    }
}

/* Byte k / 2 of a slot's words is whole with the codes of column slot_column(k), k odd, and those of the one before. */
__device__ __forceinline__ void join_columns(int k, const Words<2> &low, const Words<2> &high, uint32_t (&words)[8])
{
    words[k / 2] = join_nibbles(low.w[0], high.w[0]);
    words[k / 2 + 4] = join_nibbles(low.w[1], high.w[1]);
}

/* The slow way for a slot, which puts its words itself: words handed back would lie in local memory either way. It finds
   the slot again, too, which else took registers in the fast way. */
template <awq_packing P, class T, class Config>
__device__ __noinline__ void put_careful_slot(const FloatJob &job, const TilePlace<Config> block, uint32_t number)
{
    const Slot<Config> slot = tile_slot<P, Config>(job, block, number);
    uint32_t words[8];
    Words<2> low;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const Words<2> codes = careful_codes<T, true>(job, slot.row, slot.col + slot_column<P>(k), slot.count);
        if (k % 2 == 0) {
            low = codes;
        } else {
            join_columns(k, low, codes, words);
        }
    }
    put_slot<P, Config>(slot, words);
}

constexpr int columns_together = 4; /* whose loads are under way at once */

/* The words of a slot, as put_slot wants them, made the fast way; returns whether they are right, which is asked once: a
   branch a column would keep the arithmetic of columns apart. */
template <awq_packing P, class T, Division D, SlotFactors F, class Config>
__device__ __forceinline__ bool quantize_slot(const FloatJob &job, const Slot<Config> &slot, const uint8_t *weights,
                                              uint32_t (&words)[8])
{
    constexpr bool by_row = F == SlotFactors::of_rows;
    const SlotSource<P, T, F> source = slot_source<P, T, F>(job, slot);
    Divisor<D> divisors[by_row ? 8 : 1];
    Fast<T> fast;
#pragma unroll
    for (int first = 0; first < 8; first += columns_together) {
        Weights<T> columns[columns_together];
#pragma unroll
        for (int k = 0; k < columns_together; k++) {
            columns[k] = load_weights<T>(weights + slot_column<P>(first + k) * job.codes_col);
        }
        if constexpr (by_row) {
            if (first == 0) {
#pragma unroll
                for (int row = 0; row < 8; row++) {
                    divisors[row] = divisor_of<D>(source.at(row));
                }
            }
        }
        Words<2> low;
#pragma unroll
        for (int k = 0; k < columns_together; k++) {
            if (!by_row) {
                divisors[0] = divisor_of<D>(source.at(first + k));
            }
            const Words<2> codes = fast_codes_of(columns[k], divisors);
            fast.count(columns[k]);
            if (k % 2 == 0) {
                low = codes;
            } else {
                join_columns(first + k, low, codes, words);
            }
        }
    }
    source.count(fast);
    return fast.holds();
}

template <awq_packing P, class T, Division D, SlotFactors F, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident)
    quantize_tiles(const __grid_constant__ FloatJob job, const uint32_t split)
{
    const TilePlace<Config> block = block_place<Config>(job, split);
    const uint8_t *weights = job.codes + blockIdx.y * job.codes_batch;

#pragma unroll 1
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot<Config> slot = tile_slot<P, Config>(job, block, number + threadIdx.x);
        const uint8_t *p = weights; /* whose first slot is read where this one is outside */
        if (slot.count != 0) {
            p += slot.col * job.codes_col + slot.row * static_cast<int64_t>(sizeof(T));
        }
        if (sizeof(T) == 2) { /* wider ones are enough at once already */
#pragma unroll
            for (int k = columns_together; k < 8; k++) {
                prefetch(p + slot_column<P>(k) * job.codes_col);
            }
        }
        uint32_t words[8];
        if (quantize_slot<P, T, D, F>(job, slot, p, words)) {
            put_slot<P, Config>(slot, words);
        } else {
            put_careful_slot<P, T, Config>(job, block, number + threadIdx.x);
        }
    }
    __syncthreads();
    store_lines<P, Config>(job, block, true);
    finish_check(job.fault);
}

/* D is how a kernel that quantizes divides: scales in vectors beside 16-bit weights, 16 bits themselves, uncorrected. */
template <bool Quantizes, awq_packing P, class T, Division D, SlotFactors F, class Config>
constexpr FloatWalk tile_walk()
{
    constexpr bool is_never = Quantizes && is_in_vectors(F) && sizeof(T) == 2 && D == Division::corrected;
    if constexpr (!has_slot_factors<P, T, F> || is_never) {
        return {nullptr, nullptr};
    } else if constexpr (Quantizes) {
        return {quantize_tiles<P, T, D, F, Config>, float_tile_shape<Config>};
    } else {
        return {dequantize_tiles<P, T, F, Config>, float_tile_shape<Config>};
    }
}

/* The kernels of a packing, by how a slot finds its factors. */
struct TileWalks {
    FloatWalk by_factors[static_cast<int>(SlotFactors::none)];
};

/* Eight divisors at once take more registers: factors of rows may have a configuration of their own. */
template <bool Quantizes, awq_packing P, class T, Division D, class Config, class RowConfig>
constexpr TileWalks tile_walks_of = {{tile_walk<Quantizes, P, T, D, SlotFactors::of_rows, RowConfig>(),
                                      tile_walk<Quantizes, P, T, D, SlotFactors::of_columns, Config>(),
                                      tile_walk<Quantizes, P, T, D, SlotFactors::in_vectors, Config>(),
                                      tile_walk<Quantizes, P, T, D, SlotFactors::in_other_vectors, Config>()}};

template <bool Quantizes, class T, Division D, class Config, class RowConfig = Config>
constexpr TileWalks tile_walks[AWQ_PACKING_COUNT] = {
    tile_walks_of<Quantizes, AWQ_PACKING_V1, T, D, Config, RowConfig>,
    tile_walks_of<Quantizes, AWQ_PACKING_V1_REORDER, T, D, Config, RowConfig>,
    tile_walks_of<Quantizes, AWQ_PACKING_V2, T, D, Config, RowConfig>,
};

} // namespace awq_cuda

#endif

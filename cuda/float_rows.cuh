/* Weights whose rows are contiguous and aligned to 16 bytes, beside a payload whose rows are contiguous: one pass. */
#ifndef AWQPACK_CUDA_FLOAT_ROWS_CUH
#define AWQPACK_CUDA_FLOAT_ROWS_CUH

#include "float_codes.cuh"

namespace awq_cuda {

/*
 * A unit is eight weights of a row, or four where these fill 16 bytes. Neighbouring threads take neighbouring units, so
 * that a warp moves whole lines of weights; a thread takes several, so placed that they share what scales give:
 *   along     four units apart, sixteen units of a row being of one group
 *   below     below each other, each with a factor of its own, or all with one
 *   columns   below each other, all of one group down; a factor for each of their columns
 * Where it quantizes, a thread may take them in passes: the weights of the next ones come while these become codes.
 */
enum class Units { along, below, columns };

constexpr int along_units = 4; /* that a thread has of a row: of V2, they are a row of a block */

template <Units Kind, int UnitsPerPass, int ThreadsPerBlock, int Resident, int Passes = 1>
struct FloatRowConfig {
    static constexpr Units kind = Kind;
    static constexpr bool shared = Kind != Units::columns; /* the columns of a unit share a factor */
    static constexpr int pass = UnitsPerPass;
    static constexpr int units = Passes * UnitsPerPass; /* of a thread */
    static constexpr int across = Kind == Units::along ? units : 1;
    static constexpr int down = Kind == Units::along ? 1 : units;
    static constexpr int threads = ThreadsPerBlock;
    /* blocks of a multiprocessor that registers shall suffice for */
    static constexpr int resident = resident_blocks(Resident, ThreadsPerBlock);
    static_assert(Kind == Units::along ? units == along_units : units % AWQ_QUAD_ROWS == 0,
                  "a thread starts where a block or a row of V2's payload does");
    static_assert(Passes == 1 || Kind == Units::columns, "passes share their factors");
};

constexpr int near_units = 4; /* threads whose units alternate; of V2, they make four units' words */
constexpr int quantized_unit = 8;

template <class T>
constexpr int dequantized_unit = 16 / static_cast<int>(sizeof(T));

/* split = blocks along a row. */
template <class Config>
Shape float_rows_shape(const FloatJob &job, int unit)
{
    return grid_of_threads(ceil_div(job.cols, near_units * Config::across * unit) * near_units,
                           ceil_div(job.rows, Config::down), near_units, Config::threads);
}

/* The first unit of a thread, and how many of its units exist; one that has none is placed where others are. */
struct FloatRowPlace {
    uint32_t row, col;
    int count;
};

template <class Config, int Unit>
__device__ __forceinline__ FloatRowPlace float_row_place(const FloatJob &job, uint32_t split)
{
    const uint32_t down = blockIdx.x / split;
    const uint32_t number = (blockIdx.x - down * split) * blockDim.x + threadIdx.x;
    const uint32_t rows = static_cast<uint32_t>(job.rows), cols = static_cast<uint32_t>(job.cols);
    FloatRowPlace place;
    place.row = (down * blockDim.y + threadIdx.y) * Config::down;
    place.col = (number / near_units * (near_units * Config::across) + number % near_units) * Unit;
    const int left = static_cast<int>(Config::kind == Units::along
                                          ? (cols - place.col + (near_units * Unit - 1)) / (near_units * Unit)
                                          : rows - place.row);
    place.count = place.row >= rows || place.col >= cols ? 0 : left < Config::units ? left : Config::units;
    if (place.count == 0) {
        place.row = 0, place.col = 0;
    }
    return place;
}

/* Bytes from the weights of a thread's first unit to those of unit i. */
template <class Config, int UnitBytes>
__device__ __forceinline__ int64_t weights_step(const FloatJob &job, int i)
{
    return Config::kind == Units::along ? i * near_units * UnitBytes : i * job.codes_row;
}

/* The factor of each unit; there is no condition around any load: one that does not exist has that of the first. */
template <class Config>
__device__ __forceinline__ void load_unit_factors(const FloatJob &job, const FloatRowPlace &place,
                                                  Factor (&factors)[Config::down])
{
    load_factors(job, place.row, place.col, [&](int i) { return i < place.count ? i : 0; }, factors);
}

/* ---- the payload of a unit ---- */

/* V2 keeps 32 columns of a row in 16 bytes, of which eight columns are one nibble of every item; V1 eight in a word. */
template <awq_packing P>
constexpr int unit_words = (block_rows<P> > 1) ? 4 : 1;

template <awq_packing P>
__device__ __forceinline__ int64_t unit_offset(const FloatJob &job, uint32_t row, uint32_t col)
{
    if constexpr (block_rows<P> > 1) {
        return row / AWQ_QUAD_ROWS * job.payload_row + col / AWQ_BLOCK_CODES * AWQ_QUAD_BLOCK_BYTES +
               row % AWQ_QUAD_ROWS * AWQ_BLOCK_BYTES + col / 32 % 2 * 16;
    } else {
        return row * job.payload_row + col / AWQ_WORD_CODES * AWQ_WORD_BYTES;
    }
}

/* Bytes from the payload of a thread's first unit to that of unit i. */
template <awq_packing P, class Config, int Unit>
__device__ __forceinline__ int64_t payload_step(const FloatJob &job, int i)
{
    if constexpr (Config::kind == Units::along) { /* the first lies in the first sixteen columns of a block of V2 */
        return (block_rows<P> > 1) ? unit_offset<P>(job, 0, i * near_units * Unit) : i * near_units * Unit / 2;
    } else if constexpr (block_rows<P> > 1) {
        return i / AWQ_QUAD_ROWS * job.payload_row + i % AWQ_QUAD_ROWS * AWQ_BLOCK_BYTES;
    } else {
        return i * job.payload_row;
    }
}

template <awq_packing P>
__device__ __forceinline__ Words<unit_words<P>> load_unit(const uint8_t *p)
{
    if constexpr (block_rows<P> > 1) {
        return load_vector<4>(p);
    } else {
        return {{load_along(p)}};
    }
}

/* Four codes a word: of eight columns from `col` on. */
template <awq_packing P>
__device__ __forceinline__ Words<2> unit_codes_of(const Words<unit_words<P>> &words, uint32_t col)
{
    Words<2> codes;
    if constexpr (block_rows<P> > 1) {
        const int shift = 4 * static_cast<int>(col / 8 % 4);
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = words.w[i] >> shift & 0x000f000f;
        }
        codes.w[0] = __byte_perm(pairs[0], pairs[1], 0x6420);
        codes.w[1] = __byte_perm(pairs[2], pairs[3], 0x6420);
    } else {
        unpack_word<P>(words.w[0], &codes.w[0], &codes.w[1]);
    }
    return codes;
}

/* Packs a unit and stores what this thread has of its payload; every lane of a warp comes here. */
template <awq_packing P>
__device__ __forceinline__ void store_unit(uint8_t *payload, const Words<2> &codes, bool exists)
{
    if constexpr (block_rows<P> > 1) {
        /* each of four lanes has one nibble of the same eight items: they gather two items each */
        const int nibble = threadIdx.x % 4;
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = __byte_perm(codes.w[i / 2], 0, i % 2 == 0 ? 0x4140 : 0x4342) << (4 * nibble);
        }
        const bool high = nibble & 2, odd = nibble & 1;
        const uint32_t first =
            (high ? pairs[2] : pairs[0]) | __shfl_xor_sync(0xffffffff, high ? pairs[0] : pairs[2], 2);
        const uint32_t second =
            (high ? pairs[3] : pairs[1]) | __shfl_xor_sync(0xffffffff, high ? pairs[1] : pairs[3], 2);
        const uint32_t word = (odd ? second : first) | __shfl_xor_sync(0xffffffff, odd ? first : second, 1);
        if (exists) {
            *reinterpret_cast<uint32_t *>(payload + 4 * nibble) = word;
        }
    } else if (exists) {
        *reinterpret_cast<uint32_t *>(payload) = pack_word<P>(codes.w[0], codes.w[1]);
    }
}

/* ---- the kernels ---- */

template <awq_packing P, class T, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident)
    dequantize_rows(const __grid_constant__ FloatJob job, const uint32_t split)
{
    constexpr int N = dequantized_unit<T>;
    const FloatRowPlace place = float_row_place<Config, N>(job, split);
    const uint8_t *payload = job.payload + blockIdx.y * job.payload_batch + unit_offset<P>(job, place.row, place.col);
    uint8_t *weights = job.codes + blockIdx.y * job.codes_batch + place.row * job.codes_row + place.col * sizeof(T);

    static_assert(Config::pass == Config::units, "one pass");
    Words<unit_words<P>> packed[Config::units] = {}; /* all loads are under way before the first store */
#pragma unroll
    for (int i = 0; i < Config::units; i++) {
        if (i < place.count) {
            packed[i] = load_unit<P>(payload + payload_step<P, Config, N>(job, i));
        }
    }
    Factor factors[Config::shared ? Config::down : N];
    if constexpr (Config::shared) {
        load_unit_factors<Config>(job, place, factors);
    } else {
        load_column_factors(job, place.row, place.col, factors);
    }
#pragma unroll
    for (int i = 0; i < Config::units; i++) {
        if (i >= place.count) {
            return;
        }
        const uint32_t col = place.col + (Config::kind == Units::along ? i * near_units * N : 0);
        const Words<2> codes = unit_codes_of<P>(packed[i], col);
        float values[N];
#pragma unroll
        for (int k = 0; k < N; k++) {
            const uint32_t four = N == 4 ? codes.w[col / 4 % 2] : codes.w[k / 4];
            values[k] = weight_of(four, k % 4, factors[!Config::shared ? k : Config::down == 1 ? 0 : i]);
        }
        store_weights<T>(weights + weights_step<Config, 16>(job, i), values);
    }
}

/* Loads the units of a pass that exist, of which unit `first` is the first. */
template <class T, class Config>
__device__ __forceinline__ void load_units(const FloatJob &job, const FloatRowPlace &place, const uint8_t *weights,
                                           int first, Weights<T> (&units)[Config::pass])
{
    constexpr int unit_bytes = quantized_unit * static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < Config::pass; i++) {
        if (first + i < place.count) {
            units[i] = load_weights<T>(weights + weights_step<Config, unit_bytes>(job, first + i));
        }
    }
}

/* The divisors of the columns of a unit; returns whether the fast way may divide by all of them. */
template <Division D>
__device__ __forceinline__ bool load_column_divisors(const FloatJob &job, const FloatRowPlace &place,
                                                     Divisor<D> (&divisors)[quantized_unit])
{
    Factor factors[quantized_unit];
    load_column_factors(job, place.row, place.col, factors);
    bool fast = true;
#pragma unroll
    for (int i = 0; i < quantized_unit; i++) {
        divisors[i] = divisor_of<D>(factors[i]);
        fast = fast && is_fast(factors[i]);
    }
    return fast;
}

/* First row and column of unit i of a thread. */
template <class Config>
__device__ __forceinline__ FloatRowPlace unit_place(const FloatRowPlace &place, int i)
{
    const bool along = Config::kind == Units::along;
    return {place.row + (along ? 0 : i), place.col + (along ? i * near_units * quantized_unit : 0), i < place.count};
}

/* The slow way for the units of a pass, of which unit `first` is the first; every lane of a warp comes here. */
template <awq_packing P, class T, class Config>
__device__ __noinline__ void store_careful_units(const FloatJob &job, const FloatRowPlace place, uint8_t *payload,
                                                 int first)
{
#pragma unroll 1
    for (int i = first; i < first + Config::pass; i++) {
        const FloatRowPlace unit = unit_place<Config>(place, i);
        const Words<2> codes = careful_codes<T, false>(job, unit.row, unit.col, unit.count == 0 ? 0 : quantized_unit);
        store_unit<P>(payload + payload_step<P, Config, quantized_unit>(job, i), codes, unit.count != 0);
    }
}

template <awq_packing P, class T, Division D, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident)
    quantize_rows(const __grid_constant__ FloatJob job, const uint32_t split)
{
    constexpr int N = quantized_unit;
    const FloatRowPlace place = float_row_place<Config, N>(job, split);
    const uint8_t *weights =
        job.codes + blockIdx.y * job.codes_batch + place.row * job.codes_row + place.col * sizeof(T);
    uint8_t *payload = job.payload + blockIdx.y * job.payload_batch + unit_offset<P>(job, place.row, place.col);

    Weights<T> units[Config::pass] = {};
    load_units<T, Config>(job, place, weights, 0, units);
    Factor factors[Config::shared ? Config::down : 1];
    Divisor<D> divisors[Config::shared ? 1 : N];
    bool has_fast_columns = true;
    if constexpr (Config::shared) {
        load_unit_factors<Config>(job, place, factors);
    } else {
        has_fast_columns = load_column_divisors(job, place, divisors);
    }
#pragma unroll 1
    for (int first = 0; first < Config::units; first += Config::pass) {
        Weights<T> next[Config::pass] = {};
        if constexpr (Config::pass < Config::units) {
            load_units<T, Config>(job, place, weights, first + Config::pass, next);
        }
        Words<2> codes[Config::pass];
        Fast<T> fast; /* asked once: a branch a unit would keep the arithmetic of units apart */
#pragma unroll
        for (int i = 0; i < Config::pass; i++) {
            if (Config::shared && (Config::down > 1 || i == 0)) {
                const Factor &factor = factors[Config::down > 1 ? i : 0];
                fast.count(factor);
                divisors[0] = divisor_of<D>(factor);
            }
            fast.count(units[i]);
            codes[i] = fast_codes_of(units[i], divisors);
        }
        if (__all_sync(0xffffffff, has_fast_columns && fast.holds())) {
#pragma unroll
            for (int i = 0; i < Config::pass; i++) {
                store_unit<P>(payload + payload_step<P, Config, N>(job, first + i), codes[i], first + i < place.count);
            }
        } else {
            store_careful_units<P, T, Config>(job, place, payload, first);
        }
#pragma unroll
        for (int i = 0; i < Config::pass; i++) {
            units[i] = next[i];
        }
    }
    finish_check(job.fault);
}

/* What float_launch.cu has to know of the kernels for one kind of units. */
struct FloatRowKernel {
    FloatKernel kernel;
    Shape (*shape)(const FloatJob &job, int unit);
};

/* The kernels by packing and the dtype of weights. V2's units are four words, which may want more registers. */
template <class T, class Config, class WideConfig = Config>
constexpr FloatRowKernel row_dequantizers[AWQ_PACKING_COUNT] = {
    {dequantize_rows<AWQ_PACKING_V1, T, Config>, float_rows_shape<Config>},
    {dequantize_rows<AWQ_PACKING_V1_REORDER, T, Config>, float_rows_shape<Config>},
    {dequantize_rows<AWQ_PACKING_V2, T, WideConfig>, float_rows_shape<WideConfig>},
};

template <class T, Division D, class Config>
constexpr FloatRowKernel row_quantizers[AWQ_PACKING_COUNT] = {
    {quantize_rows<AWQ_PACKING_V1, T, D, Config>, float_rows_shape<Config>},
    {quantize_rows<AWQ_PACKING_V1_REORDER, T, D, Config>, float_rows_shape<Config>},
    {quantize_rows<AWQ_PACKING_V2, T, D, Config>, float_rows_shape<Config>},
};

} // namespace awq_cuda

#endif

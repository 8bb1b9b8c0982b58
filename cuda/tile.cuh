/* Column-major codes beside a row-major payload: tiles change direction in shared memory, as payload words. */
#ifndef AWQPACK_CUDA_TILE_CUH
#define AWQPACK_CUDA_TILE_CUH

#include "memory.cuh"

namespace awq_cuda {

/*
 * A tile is 8 * Rows rows by 256 columns of codes, and as many lines of 128 payload bytes as it has rows: of V1 the 32
 * words of one row, of V2, whose blocks have four rows, one block. On the side of the codes a slot is Rows rows of the
 * eight columns of one word; a warp works on eight slots down by four across, or of a pair of tiles on sixteen down by
 * two across, which is 128 or 256 bytes of a column at a time. On the side of the payload eight threads share a line,
 * 16 bytes each.
 *
 * In shared memory the 16-byte vectors of a line are exchanged by the slot the line belongs to: the 32 words that a
 * warp moves between slots and lines then lie in 32 banks, and so do the eight vectors of a line.
 */
constexpr int tile_slots_down = 8;
constexpr int tile_words = 32;
constexpr int tile_cols = tile_words * AWQ_WORD_CODES;
constexpr int tile_slots = tile_slots_down * tile_words; /* of one tile */
constexpr int tile_line_vectors = 8;

/*
 * A block takes Down x Across tiles. Neighbouring blocks are neighbours down where RowsFirst, else across; after Band
 * of them the next ones follow beside these, so that the blocks at work share lines of memory on both sides.
 */
template <int RowsPerSlot, int ThreadsPerBlock, bool RowsFirst, int Band, int Down, int Across,
          int Resident = resident_threads_min / ThreadsPerBlock, class Place = int64_t>
struct TileConfig {
    using Index = Place;                     /* of rows and columns; fewer bits take fewer registers */
    static constexpr int rows = RowsPerSlot; /* codes of one column in a slot, 8 or 16 */
    static constexpr int threads = ThreadsPerBlock;
    static constexpr bool rows_first = RowsFirst;
    static constexpr int band = Band;
    static constexpr int down = Down;
    static constexpr int across = Across;
    static constexpr int tiles = Down * Across;
    static constexpr bool pairs = Down % 2 == 0; /* a warp takes slots of two tiles down at once */
    /* unpacking blocks of a multiprocessor that registers shall suffice for */
    static constexpr int resident = resident_blocks(Resident, ThreadsPerBlock);
    static constexpr int lines = tile_slots_down * RowsPerSlot; /* of one tile */
    static constexpr int vectors = lines * tile_line_vectors;
    static constexpr int block_rows = Down * lines;
    static constexpr int block_cols = Across * tile_cols;
    static constexpr size_t shared = sizeof(uint4) * tiles * vectors;
    static_assert(tiles * tile_slots % threads == 0 && tiles * vectors % threads == 0, "threads share evenly");
};

constexpr int endless = INT32_MAX; /* one band, however large the grid */

struct TileGrid {
    uint32_t down, across; /* blocks */
};

template <class Config>
__host__ __device__ __forceinline__ TileGrid tile_grid(const Job &job)
{
    return {static_cast<uint32_t>(ceil_div(job.rows, Config::block_rows)),
            static_cast<uint32_t>(ceil_div(job.cols, Config::block_cols))};
}

/* split = the width of a band: no wider than the grid, so that the blocks of a band are no more than those of it. */
template <class Config>
Shape tile_shape(const Job &job)
{
    const TileGrid grid = tile_grid<Config>(job);
    const uint32_t fast = Config::rows_first ? grid.down : grid.across;
    return {static_cast<uint64_t>(grid.down) * grid.across, dim3(Config::threads),
            fast < static_cast<uint32_t>(Config::band) ? fast : Config::band, Config::shared};
}

template <class Config>
struct TilePlace {
    typename Config::Index row, col; /* of the first code */
};

/* Where the first tile of a block lies. */
template <class Config>
__device__ __forceinline__ TilePlace<Config> block_place(const Job &job, uint32_t split)
{
    const TileGrid grid = tile_grid<Config>(job);
    const uint32_t fast_blocks = Config::rows_first ? grid.down : grid.across;
    const uint32_t slow_blocks = Config::rows_first ? grid.across : grid.down;
    const uint32_t band = blockIdx.x / (split * slow_blocks);
    const uint32_t rest = blockIdx.x - band * (split * slow_blocks);
    const uint32_t left = fast_blocks - band * split;
    const uint32_t width = left < split ? left : split;
    const uint32_t slow = rest / width;
    const uint32_t fast = band * split + rest - slow * width;
    using Index = typename Config::Index;
    return {static_cast<Index>(Config::rows_first ? fast : slow) * Config::block_rows,
            static_cast<Index>(Config::rows_first ? slow : fast) * Config::block_cols};
}

template <class Config>
__device__ __forceinline__ TilePlace<Config> tile_place(const TilePlace<Config> &block, int tile)
{
    if constexpr (Config::tiles == 1) {
        return block;
    }
    return {block.row + tile % Config::down * Config::lines, block.col + tile / Config::down * tile_cols};
}

/* What a thread does with a slot: its first row, the first column of its word, and how many of its rows exist. */
template <class Config>
struct Slot {
    int tile, down, word;
    typename Config::Index row, col;
    int count;
    bool inside; /* of a column, for load_codes */
};

template <awq_packing P, class Config>
__device__ __forceinline__ Slot<Config> tile_slot(const Job &job, const TilePlace<Config> &block, uint32_t number)
{
    Slot<Config> slot;
    if constexpr (Config::pairs) {
        const uint32_t across = number / (2 * tile_slots_down);
        slot.tile = across / tile_words * 2 + number / tile_slots_down % 2;
        slot.word = across % tile_words;
    } else {
        slot.tile = Config::tiles == 1 ? 0 : number / tile_slots;
        slot.word = (Config::tiles == 1 ? number : number % tile_slots) / tile_slots_down;
    }
    slot.down = number % tile_slots_down;
    const TilePlace<Config> place = tile_place<Config>(block, slot.tile);
    slot.row = place.row + slot.down * Config::rows;
    slot.col = place.col + word_column<P>(slot.word);
    /* a block may mix its words, but there are whole blocks only: the order of words decides */
    const bool exists = slot.row < job.rows && place.col + AWQ_WORD_CODES * slot.word < job.cols;
    const int64_t left = job.rows - slot.row;
    slot.count = !exists ? 0 : left < Config::rows ? static_cast<int>(left) : Config::rows;
    slot.inside = slot.row > 0 && slot.row + Config::rows + 3 <= job.rows;
    return slot;
}

/* Word index in shared memory of row 0..Config::rows-1 of a slot. */
template <awq_packing P, class Config>
__device__ __forceinline__ int slot_word(const Slot<Config> &slot, int row)
{
    constexpr int row_words = tile_words / block_rows<P>; /* of a line that belong to one row */
    const int line = slot.down * Config::rows + row / block_rows<P> * block_rows<P> + slot.word / row_words;
    int word = row % block_rows<P> * row_words + slot.word % row_words;
    word ^= slot.down * 4;
    if constexpr (Config::pairs) {
        word ^= slot.tile % 2 * 2;
    }
    return (slot.tile * Config::lines + line) * tile_words + word;
}

/*
 * What a thread does with a vector: the tile across and the line, counted from the top of the block, that it belongs
 * to, and which of that line it is. Lines that follow each other in the payload are counted through, from tile to tile
 * across, so that neighbouring threads take whole runs of it.
 */
struct Vector {
    int across, line, number;
};

template <awq_packing P, class Config>
__device__ __forceinline__ Vector tile_vector(int number)
{
    constexpr int together = block_rows<P>; /* lines of a tile */
    const int line = number / tile_line_vectors;
    const int run = line / together;
    return {run % Config::across, run / Config::across * together + line % together, number % tile_line_vectors};
}

/* Index in shared memory of a vector; eight of them are a line. */
template <class Config>
__device__ __forceinline__ int vector_index(const Vector &v)
{
    const int down = v.line / Config::rows % tile_slots_down;
    return (v.across * Config::block_rows + v.line) * tile_line_vectors + (v.number ^ down);
}

/* Offset of a vector in the payload, and how many of its four words exist. */
template <awq_packing P, class Config>
__device__ __forceinline__ int64_t vector_offset(const Job &job, const TilePlace<Config> &block, const Vector &v,
                                                 int *count)
{
    const int64_t row = block.row + v.line / block_rows<P> * block_rows<P>;
    const int64_t col = block.col + v.across * tile_cols;
    const int64_t word = col * block_rows<P> / AWQ_WORD_CODES + v.line % block_rows<P> * tile_words + 4 * v.number;
    const int64_t left = job.cols * block_rows<P> / AWQ_WORD_CODES - word;
    *count = row >= job.rows || left <= 0 ? 0 : left < 4 ? static_cast<int>(left) : 4;
    return row / block_rows<P> * job.payload_row + word * AWQ_WORD_BYTES;
}

/* The tiles of a block, those of a column of tiles after each other; the launch says how large it is. */
extern __shared__ uint4 tile_memory[];

/* Vectors in shared memory. Of pairs of tiles the lower one has the halves of a vector exchanged, so that the words
   that a warp moves between both tiles and lines lie in 32 banks, too. */
template <class Config>
__device__ __forceinline__ bool is_exchanged(const Vector &v)
{
    return Config::pairs && v.line / Config::lines % 2 == 1;
}

template <class Config>
__device__ __forceinline__ void put_vector(const Vector &v, const Words<4> &words)
{
    tile_memory[vector_index<Config>(v)] = is_exchanged<Config>(v)
                                               ? make_uint4(words.w[2], words.w[3], words.w[0], words.w[1])
                                               : make_uint4(words.w[0], words.w[1], words.w[2], words.w[3]);
}

template <class Config>
__device__ __forceinline__ Words<4> get_vector(const Vector &v)
{
    const uint4 u = tile_memory[vector_index<Config>(v)];
    return is_exchanged<Config>(v) ? Words<4>{{u.z, u.w, u.x, u.y}} : Words<4>{{u.x, u.y, u.z, u.w}};
}

/* Whether all of a block's vectors exist and are aligned. */
template <class Config>
__device__ __forceinline__ bool is_whole(const Job &job, const TilePlace<Config> &block, bool aligned)
{
    return aligned && block.row + Config::block_rows <= job.rows && block.col + Config::block_cols <= job.cols;
}

/* Stores the lines of a block, once all of its threads have put their words. */
template <awq_packing P, class Config>
__device__ __forceinline__ void store_lines(const Job &job, const TilePlace<Config> &block, bool aligned)
{
    uint8_t *target = job.payload + blockIdx.y * job.payload_batch;
    int count;
    if (is_whole<Config>(job, block, aligned)) {
#pragma unroll
        for (int first = 0; first < Config::tiles * Config::vectors; first += Config::threads) {
            const Vector v = tile_vector<P, Config>(first + static_cast<int>(threadIdx.x));
            store_vector<4>(target + vector_offset<P, Config>(job, block, v, &count), get_vector<Config>(v));
        }
    } else {
#pragma unroll 1
        for (int first = 0; first < Config::tiles * Config::vectors; first += Config::threads) {
            const Vector v = tile_vector<P, Config>(first + static_cast<int>(threadIdx.x));
            uint8_t *p = target + vector_offset<P, Config>(job, block, v, &count);
            store_payload<P, 4>(p, get_vector<Config>(v), count, aligned);
        }
    }
}

template <awq_packing P, class Config>
__global__ void __launch_bounds__(Config::threads, resident_threads_min / Config::threads)
    pack_tiles(const Job job, const uint32_t split)
{
    constexpr int N = Config::rows / 4;
    uint32_t *const tile = reinterpret_cast<uint32_t *>(tile_memory);
    const TilePlace<Config> block = block_place<Config>(job, split);
    const uint8_t *source = job.codes + blockIdx.y * job.codes_batch;

#pragma unroll 1
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot<Config> slot = tile_slot<P, Config>(job, block, number + threadIdx.x);
        const uint8_t *p = source + slot.col * job.codes_col + slot.row;
        Words<N> low[4], high[4]; /* of byte 0..3 of the word */
#pragma unroll
        for (int k = 0; k < 4; k++) {
            low[k] = load_codes<N>(p + low_column<P>(k) * job.codes_col, slot.count, slot.inside, job.codes_aligned);
            high[k] = load_codes<N>(p + (low_column<P>(k) + high_step<P>)*job.codes_col, slot.count, slot.inside,
                                    job.codes_aligned);
        }
        bool invalid = false;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            invalid |= any_invalid(low[k]) | any_invalid(high[k]);
        }
        if (invalid) {
            report_codes(job, slot.row, slot.col, slot.count * AWQ_WORD_CODES,
                         [](int i) { return awq_place{i / AWQ_WORD_CODES, place_of<P>(i % AWQ_WORD_CODES).col}; });
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint32_t words[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                words[k] = join_nibbles(low[k].w[i], high[k].w[i]);
            }
            transpose_bytes(words);
#pragma unroll
            for (int row = 0; row < 4; row++) {
                tile[slot_word<P, Config>(slot, 4 * i + row)] = words[row];
            }
        }
    }
    __syncthreads();
    store_lines<P, Config>(job, block, job.payload_aligned);
    finish_check(job.fault);
}

/* Loads the lines of a block. One way for whole blocks and others, with all loads under way, took 1.7 times as long. */
template <awq_packing P, class Config>
__device__ __forceinline__ void load_lines(const Job &job, const TilePlace<Config> &block, bool aligned)
{
    constexpr int passes = Config::tiles * Config::vectors / Config::threads;
    const uint8_t *source = job.payload + blockIdx.y * job.payload_batch;
    if (is_whole<Config>(job, block, aligned)) {
        Words<4> packed[passes]; /* all loads are under way before the first store */
#pragma unroll
        for (int i = 0; i < passes; i++) {
            const Vector v = tile_vector<P, Config>(i * Config::threads + static_cast<int>(threadIdx.x));
            int count;
            packed[i] = load_vector<4>(source + vector_offset<P, Config>(job, block, v, &count));
        }
#pragma unroll
        for (int i = 0; i < passes; i++) {
            const Vector v = tile_vector<P, Config>(i * Config::threads + static_cast<int>(threadIdx.x));
            put_vector<Config>(v, packed[i]);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < passes; i++) {
            const Vector v = tile_vector<P, Config>(i * Config::threads + static_cast<int>(threadIdx.x));
            int count;
            const uint8_t *p = source + vector_offset<P, Config>(job, block, v, &count);
            put_vector<Config>(v, load_payload<P, 4>(p, count, aligned));
        }
    }
}

template <awq_packing P, class Config>
__global__ void __launch_bounds__(Config::threads, Config::resident) unpack_tiles(const Job job, const uint32_t split)
{
    constexpr int N = Config::rows / 4;
    uint32_t *const tile = reinterpret_cast<uint32_t *>(tile_memory);
    const TilePlace<Config> block = block_place<Config>(job, split);
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch;

    load_lines<P, Config>(job, block, job.payload_aligned);
    __syncthreads();
#pragma unroll 1
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot<Config> slot = tile_slot<P, Config>(job, block, number + threadIdx.x);
        uint8_t *p = target + slot.col * job.codes_col + slot.row;
        Words<N> bytes[4]; /* byte 0..3 of the word, of all rows */
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint32_t words[4];
#pragma unroll
            for (int row = 0; row < 4; row++) {
                words[row] = tile[slot_word<P, Config>(slot, 4 * i + row)];
            }
            transpose_bytes(words);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                bytes[k].w[i] = words[k];
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            Words<N> low, high;
#pragma unroll
            for (int i = 0; i < N; i++) {
                low.w[i] = bytes[k].w[i] & low_nibbles;
                high.w[i] = bytes[k].w[i] >> 4 & low_nibbles;
            }
            uint8_t *to_low = p + low_column<P>(k) * job.codes_col;
            uint8_t *to_high = p + (low_column<P>(k) + high_step<P>)*job.codes_col;
            store_codes<N>(to_low, low, slot.count, job.codes_aligned);
            store_codes<N>(to_high, high, slot.count, job.codes_aligned);
        }
    }
}

template <awq_packing P, class Config>
constexpr Walk tile_packer = {pack_tiles<P, Config>, tile_shape<Config>, Config::rows, 16};

template <awq_packing P, class Config>
constexpr Walk tile_unpacker = {unpack_tiles<P, Config>, tile_shape<Config>, Config::rows, 16};

} // namespace awq_cuda

#endif

/* Column-major codes beside a row-major payload: tiles change direction in shared memory, as payload words. */
#ifndef AWQPACK_CUDA_TILE_CUH
#define AWQPACK_CUDA_TILE_CUH

#include "common.cuh"

namespace awq_cuda {

/*
 * A tile is 8 * Rows rows by 256 columns of codes, and as many lines of 128 payload bytes as it has rows: of V1 the 32
 * words of one row, of V2 one block of each of four rows. On the side of the codes a slot is Rows rows of the eight
 * columns of one word; a warp works on eight slots down by four across, which is whole lines of four columns at a
 * time. On the side of the payload eight threads share a line, 16 bytes each.
 *
 * In shared memory the 16-byte vectors of a line are exchanged by the slot the line belongs to: the 32 words that a
 * warp moves between slots and lines then lie in 32 banks, and so do the eight vectors of a line.
 */
constexpr int tile_slots_down = 8;
constexpr int tile_words = 32;
constexpr int tile_cols = tile_words * AWQ_WORD_CODES;
constexpr int tile_slots = tile_slots_down * tile_words; /* of one tile */
constexpr int tile_line_bytes = 128;
constexpr int tile_line_vectors = 8;

/*
 * A block takes Down x Across tiles. Neighbouring blocks are neighbours down where RowsFirst, else across; after Band
 * of them the next ones follow beside these, so that the blocks at work share lines of memory on both sides.
 */
template <int RowsPerSlot, int ThreadsPerBlock, bool RowsFirst, int Band, int Down, int Across, int LoadKind>
struct TileConfig {
    static constexpr int rows = RowsPerSlot; /* codes of one column in a slot, 8 or 16 */
    static constexpr int threads = ThreadsPerBlock;
    static constexpr bool rows_first = RowsFirst;
    static constexpr int band = Band;
    static constexpr int down = Down;
    static constexpr int across = Across;
    static constexpr int tiles = Down * Across;
    static constexpr int load = LoadKind;
    static constexpr int lines = tile_slots_down * RowsPerSlot; /* of one tile */
    static constexpr int vectors = lines * tile_line_vectors;
    static constexpr int block_rows = Down * lines;
    static constexpr int block_cols = Across * tile_cols;
};

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
    const uint64_t down = static_cast<uint64_t>(ceil_div(job.rows, Config::block_rows));
    const uint64_t across = static_cast<uint64_t>(ceil_div(job.cols, Config::block_cols));
    const uint64_t fast = Config::rows_first ? down : across;
    return {down * across, dim3(Config::threads),
            static_cast<uint32_t>(fast < static_cast<uint64_t>(Config::band) ? fast : Config::band)};
}

struct TilePlace {
    int64_t row, col; /* of the first code */
};

/* Where the first tile of a block lies; blocks are counted in the order they shall run in. */
template <class Config>
__device__ __forceinline__ TilePlace block_place(const TileGrid &grid, uint32_t split, uint32_t number)
{
    const uint32_t fast_blocks = Config::rows_first ? grid.down : grid.across;
    const uint32_t slow_blocks = Config::rows_first ? grid.across : grid.down;
    const uint32_t band = number / (split * slow_blocks);
    const uint32_t rest = number - band * (split * slow_blocks);
    const uint32_t left = fast_blocks - band * split;
    const uint32_t width = left < split ? left : split;
    const uint32_t slow = rest / width;
    const uint32_t fast = band * split + rest - slow * width;
    return {static_cast<int64_t>(Config::rows_first ? fast : slow) * Config::block_rows,
            static_cast<int64_t>(Config::rows_first ? slow : fast) * Config::block_cols};
}

template <class Config>
__device__ __forceinline__ TilePlace tile_place(const TilePlace &block, int tile)
{
    if constexpr (Config::tiles == 1) {
        return block;
    }
    return {block.row + tile % Config::down * Config::lines, block.col + tile / Config::down * tile_cols};
}

/* What a thread does with a slot: its first row, the first column of its word, and how many of its rows exist. */
struct Slot {
    int tile, down, word;
    int64_t row, col;
    int count;
    bool inside; /* of a column, for load_codes */
};

template <awq_layout L, class Config>
__device__ __forceinline__ Slot tile_slot(const Job &job, const TilePlace &block, int number)
{
    Slot slot;
    slot.tile = Config::tiles == 1 ? 0 : number / tile_slots;
    slot.down = number % tile_slots_down;
    slot.word = (Config::tiles == 1 ? number : number % tile_slots) / tile_slots_down;
    const TilePlace place = tile_place<Config>(block, slot.tile);
    slot.row = place.row + slot.down * Config::rows;
    slot.col = place.col + AWQ_BLOCK_CODES * (slot.word / 8) + word_column(L, slot.word % 8);
    /* V2 mixes the words of a block, but has whole blocks only, so that word order decides for both */
    const bool exists = slot.row < job.rows && place.col + AWQ_WORD_CODES * slot.word < job.cols;
    const int64_t left = job.rows - slot.row;
    slot.count = !exists ? 0 : left < Config::rows ? static_cast<int>(left) : Config::rows;
    slot.inside = slot.row > 0 && slot.row + Config::rows + 3 <= job.rows;
    return slot;
}

/* Word index in shared memory of row 0..Config::rows-1 of a slot. */
template <awq_layout L, class Config>
__device__ __forceinline__ int slot_word(const Slot &slot, int row)
{
    int line = slot.down * Config::rows + row;
    int word = slot.word;
    if constexpr (interleaves_rows(L)) {
        word = 8 * (row % AWQ_QUAD_ROWS) + slot.word % 8;
        line = line / AWQ_QUAD_ROWS * AWQ_QUAD_ROWS + slot.word / 8;
    }
    return (slot.tile * Config::lines + line) * tile_words + (word ^ slot.down * 4);
}

/* Byte index in shared memory of a vector; eight of them are a line. */
template <class Config>
__device__ __forceinline__ int vector_byte(int number)
{
    const int line = number / tile_line_vectors;
    const int down = Config::tiles == 1 ? line / Config::rows : line / Config::rows % tile_slots_down;
    return line * tile_line_bytes + (number % tile_line_vectors ^ down) * 16;
}

/* Offset of a vector in the payload, and how many of its four words exist. */
template <awq_layout L, class Config>
__device__ __forceinline__ int64_t vector_offset(const Job &job, const TilePlace &block, int number, int *count)
{
    const TilePlace place = tile_place<Config>(block, number / Config::vectors);
    const int line = (Config::tiles == 1 ? number : number % Config::vectors) / tile_line_vectors;
    const int vector = number % tile_line_vectors;
    if constexpr (interleaves_rows(L)) {
        const int64_t quad = place.row / AWQ_QUAD_ROWS + line / AWQ_QUAD_ROWS;
        const int64_t block = place.col / AWQ_BLOCK_CODES + line % AWQ_QUAD_ROWS;
        *count = quad * AWQ_QUAD_ROWS < job.rows && block * AWQ_BLOCK_CODES < job.cols ? 4 : 0;
        return quad * job.payload_row + block * AWQ_QUAD_BLOCK_BYTES + vector * 16;
    } else {
        const int64_t row = place.row + line;
        const int64_t left = (job.cols - place.col) / AWQ_WORD_CODES - 4 * vector;
        *count = row >= job.rows || left <= 0 ? 0 : left < 4 ? static_cast<int>(left) : 4;
        return row * job.payload_row + place.col / 2 + vector * 16;
    }
}

/* Reports the first invalid code of a slot; reads them again, since this is the rare case. */
template <awq_layout L>
__device__ __forceinline__ void report_slot(const Job &job, const Slot &slot, const uint8_t *codes)
{
#pragma unroll 1
    for (int row = 0; row < slot.count; row++) {
        unsigned long long key = UINT64_MAX;
#pragma unroll 1
        for (int i = 0; i < AWQ_WORD_CODES; i++) {
            const int col = low_column(L, i / 2) + i % 2 * high_step(L);
            const uint8_t code = codes[col * job.codes_col + row];
            const uint64_t index = static_cast<uint64_t>((slot.row + row) * job.cols + slot.col + col);
            if (code > AWQ_CODE_MAX && fault_key(matrix_index(job) + index, code) < key) {
                key = fault_key(matrix_index(job) + index, code);
            }
        }
        if (key != UINT64_MAX) {
            report_fault(job.fault, key);
            return;
        }
    }
}

template <awq_layout L, class Config>
__global__ void __launch_bounds__(Config::threads) pack_tiles(const Job job, const uint32_t split)
{
    constexpr int N = Config::rows / 4;
    alignas(16) __shared__ uint32_t tile[Config::tiles * Config::lines * tile_words];
    const TilePlace block = block_place<Config>(tile_grid<Config>(job), split, blockIdx.x);
    const uint8_t *source = job.codes + blockIdx.y * job.codes_batch;
    uint8_t *target = job.payload + blockIdx.y * job.payload_batch;

#pragma unroll
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot slot = tile_slot<L, Config>(job, block, number + static_cast<int>(threadIdx.x));
        const uint8_t *p = source + slot.col * job.codes_col + slot.row;
        Words<N> low[4], high[4]; /* of byte 0..3 of the word */
        if (job.codes_aligned && slot.count == Config::rows) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                low[k] = load_vector<N, Config::load>(p + low_column(L, k) * job.codes_col);
                high[k] = load_vector<N, Config::load>(p + (low_column(L, k) + high_step(L)) * job.codes_col);
            }
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                low[k] = load_codes<N>(p + low_column(L, k) * job.codes_col, slot.count, slot.inside);
                high[k] = load_codes<N>(p + (low_column(L, k) + high_step(L)) * job.codes_col, slot.count, slot.inside);
            }
        }
        bool invalid = false;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            invalid |= any_invalid(low[k]) | any_invalid(high[k]);
        }
        if (invalid && job.fault != nullptr) {
            report_slot<L>(job, slot, p);
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
                tile[slot_word<L, Config>(slot, 4 * i + row)] = words[row];
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int first = 0; first < Config::tiles * Config::vectors; first += Config::threads) {
        const int number = first + static_cast<int>(threadIdx.x);
        const uint4 u = *reinterpret_cast<const uint4 *>(reinterpret_cast<const uint8_t *>(tile) +
                                                         vector_byte<Config>(number));
        const Words<4> packed = {{u.x, u.y, u.z, u.w}};
        int count;
        uint8_t *p = target + vector_offset<L, Config>(job, block, number, &count);
        if (job.payload_aligned && count == 4) {
            store_vector<4>(p, packed);
        } else {
            store_payload<L, 4>(p, packed, count);
        }
    }
}

template <awq_layout L, class Config>
__global__ void __launch_bounds__(Config::threads) unpack_tiles(const Job job, const uint32_t split)
{
    constexpr int N = Config::rows / 4;
    constexpr int passes = Config::tiles * Config::vectors / Config::threads;
    alignas(16) __shared__ uint32_t tile[Config::tiles * Config::lines * tile_words];
    const TilePlace block = block_place<Config>(tile_grid<Config>(job), split, blockIdx.x);
    const uint8_t *source = job.payload + blockIdx.y * job.payload_batch;
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch;

    Words<4> packed[passes]; /* all loads are under way before the first store */
    if (job.payload_aligned && block.row + Config::block_rows <= job.rows &&
        block.col + Config::block_cols <= job.cols) {
#pragma unroll
        for (int i = 0; i < passes; i++) {
            const int number = i * Config::threads + static_cast<int>(threadIdx.x);
            int count;
            packed[i] = load_vector<4, Config::load>(source + vector_offset<L, Config>(job, block, number, &count));
        }
    } else {
#pragma unroll
        for (int i = 0; i < passes; i++) {
            const int number = i * Config::threads + static_cast<int>(threadIdx.x);
            int count;
            const uint8_t *p = source + vector_offset<L, Config>(job, block, number, &count);
            if (job.payload_aligned && count == 4) {
                packed[i] = load_vector<4, Config::load>(p);
            } else {
                packed[i] = load_payload<L, 4>(p, count);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < passes; i++) {
        const int number = i * Config::threads + static_cast<int>(threadIdx.x);
        *reinterpret_cast<uint4 *>(reinterpret_cast<uint8_t *>(tile) + vector_byte<Config>(number)) =
            make_uint4(packed[i].w[0], packed[i].w[1], packed[i].w[2], packed[i].w[3]);
    }
    __syncthreads();
#pragma unroll
    for (int number = 0; number < Config::tiles * tile_slots; number += Config::threads) {
        const Slot slot = tile_slot<L, Config>(job, block, number + static_cast<int>(threadIdx.x));
        uint8_t *p = target + slot.col * job.codes_col + slot.row;
        Words<N> bytes[4]; /* byte 0..3 of the word, of all rows */
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint32_t words[4];
#pragma unroll
            for (int row = 0; row < 4; row++) {
                words[row] = tile[slot_word<L, Config>(slot, 4 * i + row)];
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
            uint8_t *to_low = p + low_column(L, k) * job.codes_col;
            uint8_t *to_high = p + (low_column(L, k) + high_step(L)) * job.codes_col;
            if (job.codes_aligned && slot.count == Config::rows) {
                store_vector<N>(to_low, low);
                store_vector<N>(to_high, high);
            } else {
                store_codes<N>(to_low, low, slot.count);
                store_codes<N>(to_high, high, slot.count);
            }
        }
    }
}

/* The kernels by layout. */
template <class Config>
constexpr Kernel tile_packers[AWQ_LAYOUT_COUNT] = {
    pack_tiles<AWQ_LAYOUT_V1, Config>,
    pack_tiles<AWQ_LAYOUT_V1_REORDER, Config>,
    pack_tiles<AWQ_LAYOUT_V2, Config>,
};

template <class Config>
constexpr Kernel tile_unpackers[AWQ_LAYOUT_COUNT] = {
    unpack_tiles<AWQ_LAYOUT_V1, Config>,
    unpack_tiles<AWQ_LAYOUT_V1_REORDER, Config>,
    unpack_tiles<AWQ_LAYOUT_V2, Config>,
};

} // namespace awq_cuda

#endif

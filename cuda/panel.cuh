/* Unpacking into columns through larger tiles than tile.cuh's: more bytes of a column and of a payload row at a time. */
#ifndef AWQPACK_CUDA_PANEL_CUH
#define AWQPACK_CUDA_PANEL_CUH

#include "async.cuh"
#include "tile.cuh"

namespace awq_cuda {

/* How codes are stored. */
constexpr int store_plain = 0;
constexpr int store_once = 1;      /* the first lines to leave the caches */
constexpr int store_bulk = 2;      /* gathered in shared memory, then whole runs of columns; plain below sm_90 */
constexpr int store_bulk_once = 3;

/* How many tiles a block takes, one after another, the next one being loaded while this one is stored. */
constexpr int walk_grid = 0; /* every gridDim.x'th; N > 0: N neighbours */

/* A warp stores WarpDown slots, that is 16 * WarpDown bytes of a column, at a time. */
template <class Tile, int WarpDown, int StoreKind, int Walk, int BlocksPerProcessor>
struct PanelConfig : Tile {
    static constexpr int warp_down = WarpDown;
    static constexpr int store = StoreKind;
    static constexpr int walk = Walk;
    static constexpr int blocks = BlocksPerProcessor; /* registers are limited to let them */
    static constexpr bool bulk = StoreKind == store_bulk || StoreKind == store_bulk_once;
    static constexpr int slots = Tile::tiles * tile_slots / Tile::threads; /* of a thread */
    static constexpr int payload_bytes = Tile::tiles * Tile::lines * tile_line_bytes;
    static constexpr int codes_bytes = Tile::block_rows * Tile::block_cols;
    static constexpr int shared_bytes = payload_bytes + (bulk ? codes_bytes : 0);
    static_assert(Tile::rows == 16 && WarpDown % tile_slots_down == 0 && WarpDown / tile_slots_down <= Tile::down &&
                      Tile::down % (WarpDown / tile_slots_down) == 0,
                  "the slots of a warp lie in one column of tiles");
    static_assert(Tile::tiles * tile_slots % Tile::threads == 0 && Tile::threads % 32 == 0, "threads share evenly");
};

/* blocks = what a grid without walking would have. */
template <class Config>
Shape panel_shape(const Job &job)
{
    Shape shape = tile_shape<Config>(job);
    constexpr uint64_t tiles = Config::walk > 0 ? Config::walk : 1;
    shape.blocks = (shape.blocks + tiles - 1) / tiles;
    return shape;
}

/* The slots of a block in the order of its threads, as numbers for tile_slot. */
template <class Config>
__device__ __forceinline__ int slot_number(int number)
{
    constexpr int tiles_down = Config::warp_down / tile_slots_down; /* of a warp */
    const int down = number % Config::warp_down;
    const int word = number / Config::warp_down % tile_words;
    const int group = number / (Config::warp_down * tile_words);
    return (group * tiles_down + down / tile_slots_down) * tile_slots + word * tile_slots_down + down % tile_slots_down;
}

/* A slot of a block, counted from the block's first code. */
template <awq_layout L, class Config>
__device__ __forceinline__ Slot place_slot(int number)
{
    Slot slot = {};
    slot.tile = number / tile_slots;
    slot.down = number % tile_slots_down;
    slot.word = number % tile_slots / tile_slots_down;
    slot.row = slot.tile % Config::down * Config::lines + slot.down * Config::rows;
    slot.col = slot.tile / Config::down * tile_cols + AWQ_BLOCK_CODES * (slot.word / 8) + word_column(L, slot.word % 8);
    return slot;
}

/* The blocks of vector accesses only: none of them at an edge, none of a matrix that is not aligned. */
template <class Config>
__device__ __forceinline__ TileGrid whole_blocks(const Job &job)
{
    if (!job.payload_aligned || !job.codes_aligned) {
        return {0, 0};
    }
    return {static_cast<uint32_t>(job.rows / Config::block_rows), static_cast<uint32_t>(job.cols / Config::block_cols)};
}

/* Starts loading a whole block's payload into shared memory, neighbouring threads along payload rows. */
template <awq_layout L, class Config>
__device__ __forceinline__ void fetch_whole(const Job &job, const TilePlace &block, const uint8_t *source,
                                            uint32_t *tile)
{
    constexpr int quads = interleaves_rows(L) ? AWQ_QUAD_ROWS : 1;
    constexpr int tile_vectors = quads * tile_line_vectors; /* of a payload row */
    constexpr int row_vectors = Config::across * tile_vectors;
    constexpr int step = Config::threads / row_vectors;
    constexpr int payload_rows = Config::block_rows / quads;
    static_assert(Config::threads % row_vectors == 0 && payload_rows % step == 0, "threads share payload rows evenly");
    const int vector = static_cast<int>(threadIdx.x) % row_vectors;
    const int row = static_cast<int>(threadIdx.x) / row_vectors;
    const int line = vector / tile_vectors * Config::block_rows + vector % tile_vectors / tile_line_vectors;
    const uint8_t *p = source + (block.row / quads + row) * job.payload_row + block.col / 2 * quads + vector * 16;
#pragma unroll
    for (int i = 0; i < payload_rows; i += step) {
        const int number = (line + (row + i) * quads) * tile_line_vectors + vector % tile_line_vectors;
        async_load<Config::load>(reinterpret_cast<uint8_t *>(tile) + vector_byte<Config>(number), p);
        p += step * job.payload_row;
    }
}

/* The payload of a block at the edge, or of any alignment: it is in shared memory at once. */
template <awq_layout L, class Config>
__device__ __forceinline__ void fetch_part(const Job &job, const TilePlace &block, const uint8_t *source,
                                           uint32_t *tile)
{
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Config::tiles * Config::vectors; i += Config::threads) {
        int count;
        const uint8_t *p = source + vector_offset<L, Config>(job, block, i, &count);
        const Words<4> v = load_payload<L, 4>(p, count);
        *reinterpret_cast<uint4 *>(reinterpret_cast<uint8_t *>(tile) + vector_byte<Config>(i)) =
            make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]);
    }
}

/* Byte 0..3 of the words of a slot, of all rows. */
template <awq_layout L, class Config>
__device__ __forceinline__ void read_slot(const uint32_t *tile, const Slot &slot, Words<4> (&bytes)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
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
}

/* Calls sink(column, codes) for the eight columns of a slot; columns are counted from the first of its word. */
template <awq_layout L, class Sink>
__device__ __forceinline__ void split_nibbles(const Words<4> (&bytes)[4], Sink sink)
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        Words<4> low, high;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            low.w[i] = bytes[k].w[i] & low_nibbles;
            high.w[i] = bytes[k].w[i] >> 4 & low_nibbles;
        }
        sink(low_column(L, k), low);
        sink(low_column(L, k) + high_step(L), high);
    }
}

template <class Config>
__device__ __forceinline__ void store_run(uint8_t *p, const Words<4> &v)
{
    if constexpr (Config::store == store_once || Config::store == store_bulk_once) {
        __stcs(reinterpret_cast<uint4 *>(p), make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]));
    } else {
        store_vector<4>(p, v);
    }
}

/* A block at the edge, or of any alignment, from beginning to end. */
template <awq_layout L, class Config>
__device__ __noinline__ void unpack_part(const Job &job, const TilePlace &block, const uint8_t *source,
                                            uint8_t *target, uint32_t *tile)
{
    fetch_part<L, Config>(job, block, source, tile);
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Config::tiles * tile_slots; i += Config::threads) {
        const Slot slot = tile_slot<L, Config>(job, block, i);
        Words<4> bytes[4];
        read_slot<L, Config>(tile, slot, bytes);
        uint8_t *p = target + slot.col * job.codes_col + slot.row;
        split_nibbles<L>(bytes, [&](int col, const Words<4> &v) {
            if (job.codes_aligned && slot.count == Config::rows) {
                store_vector<4>(p + col * job.codes_col, v);
            } else {
                store_codes<4>(p + col * job.codes_col, v, slot.count);
            }
        });
    }
    __syncthreads();
}

template <awq_layout L, class Config>
__global__ void __launch_bounds__(Config::threads, Config::blocks) unpack_panels(const Job job, const uint32_t split)
{
    extern __shared__ uint4 panel_memory[];
    uint32_t *const tile = reinterpret_cast<uint32_t *>(panel_memory);
    uint8_t *const runs = reinterpret_cast<uint8_t *>(panel_memory) + Config::payload_bytes;
    const uint8_t *source = job.payload + blockIdx.y * job.payload_batch;
    uint8_t *target = job.codes + blockIdx.y * job.codes_batch;

    const TileGrid whole = whole_blocks<Config>(job);
    const uint32_t step = Config::walk > 0 ? 1 : gridDim.x;
    uint32_t number = Config::walk > 0 ? blockIdx.x * Config::walk : blockIdx.x;
    uint32_t end = whole.down * whole.across;
    if (Config::walk > 0 && number < end && end - number > Config::walk) {
        end = number + Config::walk;
    }
    if (number < end) {
        TilePlace block = block_place<Config>(whole, split, number);
        fetch_whole<L, Config>(job, block, source, tile);
        for (;;) {
            async_wait();
            if constexpr (Config::bulk && has_bulk_copies) {
                bulk_wait(); /* the runs of the block before */
            }
            __syncthreads();
            Words<4> bytes[Config::slots][4];
#pragma unroll
            for (int s = 0; s < Config::slots; s++) {
                const int n = slot_number<Config>(s * Config::threads + static_cast<int>(threadIdx.x));
                read_slot<L, Config>(tile, place_slot<L, Config>(n), bytes[s]);
            }
            uint8_t *const corner = target + block.col * job.codes_col + block.row;
            const bool last = Config::walk == 1 || end - number <= step;
            if (!last) {
                __syncthreads();
                number += step;
                block = block_place<Config>(whole, split, number);
                fetch_whole<L, Config>(job, block, source, tile);
            }
#pragma unroll
            for (int s = 0; s < Config::slots; s++) {
                const int n = slot_number<Config>(s * Config::threads + static_cast<int>(threadIdx.x));
                const Slot slot = place_slot<L, Config>(n);
                if constexpr (Config::bulk && has_bulk_copies) {
                    uint8_t *p = runs + static_cast<int>(slot.col) * Config::block_rows + slot.row;
                    split_nibbles<L>(bytes[s], [&](int col, const Words<4> &v) {
                        store_vector<4>(p + col * Config::block_rows, v);
                    });
                } else {
                    uint8_t *p = corner + slot.col * job.codes_col + slot.row;
                    split_nibbles<L>(bytes[s],
                                     [&](int col, const Words<4> &v) { store_run<Config>(p + col * job.codes_col, v); });
                }
            }
            if constexpr (Config::bulk && has_bulk_copies) {
                bulk_fence();
                __syncthreads();
                for (int col = static_cast<int>(threadIdx.x); col < Config::block_cols; col += Config::threads) {
                    bulk_store<Config::store == store_bulk_once>(corner + col * job.codes_col,
                                                                 runs + col * Config::block_rows, Config::block_rows);
                }
            }
            if (last) {
                break;
            }
        }
        if constexpr (Config::bulk && has_bulk_copies) {
            bulk_wait();
        }
        __syncthreads();
    }

    /* the blocks below the whole ones, then those beside them */
    const TileGrid all = tile_grid<Config>(job);
    const uint32_t below = (all.down - whole.down) * all.across;
    const uint32_t parts = below + whole.down * (all.across - whole.across);
    for (uint32_t part = blockIdx.x; part < parts; part += gridDim.x) {
        const uint32_t beside = part - below;
        const uint32_t down = part < below ? whole.down + part / all.across : beside % whole.down;
        const uint32_t across = part < below ? part % all.across : whole.across + beside / whole.down;
        unpack_part<L, Config>(job, {static_cast<int64_t>(down) * Config::block_rows,
                                     static_cast<int64_t>(across) * Config::block_cols},
                               source, target, tile);
    }
}

template <class Config>
constexpr Kernel panel_unpackers[AWQ_LAYOUT_COUNT] = {
    unpack_panels<AWQ_LAYOUT_V1, Config>,
    unpack_panels<AWQ_LAYOUT_V1_REORDER, Config>,
    unpack_panels<AWQ_LAYOUT_V2, Config>,
};

} // namespace awq_cuda

#endif

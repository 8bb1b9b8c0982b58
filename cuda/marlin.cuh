/* Marlin beside codes whose rows or columns are contiguous: blocks change order between the lanes of a warp. */
#ifndef AWQPACK_CUDA_MARLIN_CUH
#define AWQPACK_CUDA_MARLIN_CUH

#include "sixteen.cuh"

namespace awq_cuda {

/*
 * A block is 64 rows by 16 columns of codes and 512 bytes of payload, in a row of it that holds the blocks below each
 * other. Its words 16q + 4t + j, q 0..7, t 0..3, j 0..3, hold the rows 16j + q and 8 below, the columns 2t and 8
 * beside, then the columns next to these.
 */
constexpr awq_packing marlin = AWQ_PACKING_MARLIN;
constexpr int marlin_block_bytes = awq_block_bytes(&awq_packings[marlin]);
constexpr int marlin_threads = 256;
static_assert(block_rows<marlin> == 64 && block_cols<marlin> == 16 && runs_down<marlin>, "what lanes are dealt for");

/* Of a quad of lanes, the one at `place` gets word `place` of each: word i is then that of lane i. Undoes itself. */
__device__ __forceinline__ void exchange_quad(uint32_t w[4], int place)
{
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = (place & step) != 0;
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            const int i = step == 1 ? 2 * pair : pair;
            const uint32_t got = __shfl_xor_sync(0xffffffff, upper ? w[i] : w[i + step], step);
            w[i] = upper ? got : w[i];
            w[i + step] = upper ? w[i + step] : got;
        }
    }
}

/* ---- rows of contiguous codes ---- */

/*
 * A warp takes four blocks beside each other, and a lane (q, t) their rows q, q + 8, ... in block t: the 64 bytes of
 * that block from 64q on. Quads exchange them, so that a warp moves whole blocks.
 */
constexpr int marlin_across = 4;
constexpr int marlin_row_steps = block_rows<marlin> / 8;

/* Blocks of (warps along a row) x (blocks down); split = blocks along a row. */
template <int Threads>
Shape marlin_rows_shape(const Job &job)
{
    return grid_of_threads(32 * ceil_div(job.cols, marlin_across * block_cols<marlin>), job.rows / block_rows<marlin>,
                           32, Threads);
}

/* What a lane does. */
struct MarlinRows {
    int q, t;
    int64_t block, line; /* down, and the first of its warp across */
    int lines;           /* that its warp has */
    bool exists;         /* its own block */
};

__device__ __forceinline__ MarlinRows marlin_rows_place(const Job &job, uint32_t split)
{
    const int lane = threadIdx.x % 32;
    const uint32_t down = blockIdx.x / split;
    const uint32_t across = blockIdx.x - down * split;
    MarlinRows place;
    place.q = lane / 4;
    place.t = lane % 4;
    place.block = static_cast<int64_t>(down) * blockDim.y + threadIdx.y;
    place.line = (static_cast<int64_t>(across) * (blockDim.x / 32) + threadIdx.x / 32) * marlin_across;
    const int64_t left = place.block < job.rows / block_rows<marlin> ? job.cols / block_cols<marlin> - place.line : 0;
    place.lines = left < 0 ? 0 : left < marlin_across ? static_cast<int>(left) : marlin_across;
    place.exists = place.t < place.lines;
    return place;
}

/* Where the first row of a lane's codes is, and its first 16 bytes of the warp's first block. */
template <class Side>
__device__ __forceinline__ int64_t marlin_rows_codes(const Job &job, const MarlinRows &place)
{
    return blockIdx.y * job.codes_batch + (place.block * block_rows<marlin> + place.q) * job.codes_row +
           (place.line + place.t) * Side::step(job);
}

__device__ __forceinline__ int64_t marlin_rows_payload(const Job &job, const MarlinRows &place)
{
    return blockIdx.y * job.payload_batch + place.line * job.payload_row + place.block * marlin_block_bytes +
           64 * place.q + 16 * place.t;
}

/* Words by t, of a lane's row of sixteen codes and the row eight below. */
__device__ __forceinline__ void join_rows(const Words<4> &upper, const Words<4> &lower, uint32_t (&words)[4])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t x = join_nibbles(upper.w[half], upper.w[half + 2]);
        const uint32_t y = join_nibbles(lower.w[half], lower.w[half + 2]);
        words[2 * half] = __byte_perm(x, y, 0x5140);
        words[2 * half + 1] = __byte_perm(x, y, 0x7362);
    }
}

__device__ __forceinline__ void split_rows(const uint32_t (&words)[4], Words<4> *upper, Words<4> *lower)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t x = __byte_perm(words[2 * half], words[2 * half + 1], 0x6420);
        const uint32_t y = __byte_perm(words[2 * half], words[2 * half + 1], 0x7531);
        upper->w[half] = x & low_nibbles, upper->w[half + 2] = x >> 4 & low_nibbles;
        lower->w[half] = y & low_nibbles, lower->w[half + 2] = y >> 4 & low_nibbles;
    }
}

/* What a lane moves of each of its warp's blocks: by j, then by the block. */
__device__ __forceinline__ void load_blocks(const Job &job, const MarlinRows &place, bool aligned,
                                            uint32_t (&words)[4][4])
{
    const uint8_t *source = job.payload + marlin_rows_payload(job, place);
#pragma unroll
    for (int i = 0; i < marlin_across; i++) {
        if (i < place.lines) {
            const Words<4> v = load_payload<marlin, 4>(source + i * job.payload_row, 4, aligned);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                words[j][i] = v.w[j];
            }
        }
    }
}

__device__ __forceinline__ void store_blocks(const Job &job, const MarlinRows &place, bool aligned,
                                             const uint32_t (&words)[4][4])
{
    uint8_t *target = job.payload + marlin_rows_payload(job, place);
#pragma unroll
    for (int i = 0; i < marlin_across; i++) {
        if (i < place.lines) {
            store_payload<marlin, 4>(target + i * job.payload_row,
                                     {{words[0][i], words[1][i], words[2][i], words[3][i]}}, 4, aligned);
        }
    }
}

template <class Side>
__global__ void __launch_bounds__(marlin_threads) pack_marlin_rows(const Job job, const uint32_t split)
{
    const MarlinRows place = marlin_rows_place(job, split);
    const uint8_t *source = job.codes + marlin_rows_codes<Side>(job, place);
    const int64_t col = (place.line + place.t) * block_cols<marlin>;
    const bool inside = col > 0 && col + sixteen + 3 <= job.cols;
    Words<4> rows[marlin_row_steps] = {};
    bool invalid = false;
    if (place.exists) {
#pragma unroll
        for (int m = 0; m < marlin_row_steps; m++) {
            rows[m] = Side::load(job, source + 8 * m * job.codes_row, inside);
        }
#pragma unroll
        for (int m = 0; m < marlin_row_steps; m++) {
            invalid |= any_invalid(rows[m]);
        }
    }
    if (invalid) {
        report_codes(job, place.block * block_rows<marlin> + place.q, col, marlin_row_steps * sixteen,
                     [](int i) { return awq_place{i / sixteen * 8, i % sixteen}; });
    }
    uint32_t words[4][4]; /* by j, then by t until quads exchange them, then by the block */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        join_rows(rows[2 * j], rows[2 * j + 1], words[j]);
        exchange_quad(words[j], place.t);
    }
    store_blocks(job, place, job.payload_aligned, words);
    finish_check(job.fault);
}

template <class Side>
__global__ void __launch_bounds__(marlin_threads) unpack_marlin_rows(const Job job, const uint32_t split)
{
    const MarlinRows place = marlin_rows_place(job, split);
    uint32_t words[4][4] = {};
    load_blocks(job, place, job.payload_aligned, words);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        exchange_quad(words[j], place.t);
    }
    if (!place.exists) {
        return;
    }
    uint8_t *target = job.codes + marlin_rows_codes<Side>(job, place);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        Words<4> upper, lower;
        split_rows(words[j], &upper, &lower);
        Side::store(job, target + 16 * j * job.codes_row, upper);
        Side::store(job, target + (16 * j + 8) * job.codes_row, lower);
    }
}

/* ---- columns of contiguous codes ---- */

/*
 * A warp takes two blocks below each other, and Unroll such pairs beside each other; a lane (t, block, j) takes the
 * rows from 16j on of the four columns of t, which are the words 4t + j, 16 + 4t + j, ... Quads exchange words, so that
 * a lane moves 16 bytes.
 */
constexpr int marlin_down = 2;
constexpr int marlin_unroll = 2;

/* Blocks of (warps down a column) x (pairs across); split = blocks down. */
inline Shape marlin_columns_shape(const Job &job)
{
    return grid_of_threads(32 * ceil_div(job.rows, marlin_down * block_rows<marlin>),
                           ceil_div(job.cols / block_cols<marlin>, marlin_unroll), 32, marlin_threads);
}

struct MarlinColumns {
    int t, j;
    int64_t block, line; /* its own down, and the first of its warp across */
    int lines;           /* of its own */
};

__device__ __forceinline__ MarlinColumns marlin_columns_place(const Job &job, uint32_t split)
{
    const int lane = threadIdx.x % 32;
    const uint32_t across = blockIdx.x / split;
    const uint32_t down = blockIdx.x - across * split;
    MarlinColumns place;
    place.t = lane / 8;
    place.j = lane % 4;
    place.block =
        (static_cast<int64_t>(down) * (blockDim.x / 32) + threadIdx.x / 32) * marlin_down + lane / 4 % marlin_down;
    place.line = (static_cast<int64_t>(across) * blockDim.y + threadIdx.y) * marlin_unroll;
    const int64_t left = place.block < job.rows / block_rows<marlin> ? job.cols / block_cols<marlin> - place.line : 0;
    place.lines = left < 0 ? 0 : left < marlin_unroll ? static_cast<int>(left) : marlin_unroll;
    return place;
}

/* Where a lane's rows of column 2t of its first block are, and its first 16 bytes of that block. */
template <class Side>
__device__ __forceinline__ int64_t marlin_columns_codes(const Job &job, const MarlinColumns &place)
{
    return blockIdx.y * job.codes_batch + (place.line * block_cols<marlin> + 2 * place.t) * job.codes_col +
           (place.block * 4 + place.j) * Side::step(job);
}

__device__ __forceinline__ int64_t marlin_columns_payload(const Job &job, const MarlinColumns &place)
{
    return blockIdx.y * job.payload_batch + place.line * job.payload_row + place.block * marlin_block_bytes +
           64 * place.j + 16 * place.t;
}

/* The columns of a lane, counted from 2t, in the order of their nibbles. */
__device__ __forceinline__ int marlin_column(int number)
{
    return number / 2 + number % 2 * 8;
}

template <class Side>
__global__ void __launch_bounds__(marlin_threads) pack_marlin_columns(const Job job, const uint32_t split)
{
    const MarlinColumns place = marlin_columns_place(job, split);
    const uint8_t *source = job.codes + marlin_columns_codes<Side>(job, place);
    uint8_t *target = job.payload + marlin_columns_payload(job, place);
    const int64_t row = (place.block * 4 + place.j) * sixteen;
    const bool inside = row > 0 && row + sixteen + 3 <= job.rows;
    Words<4> columns[marlin_unroll][4] = {};
#pragma unroll
    for (int i = 0; i < marlin_unroll; i++) {
        if (i < place.lines) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                columns[i][k] =
                    Side::load(job, source + (i * block_cols<marlin> + marlin_column(k)) * job.codes_col, inside);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < marlin_unroll; i++) {
        const Words<4> *const c = columns[i];
        if (any_invalid(c[0]) || any_invalid(c[1]) || any_invalid(c[2]) || any_invalid(c[3])) {
            report_codes(job, row, (place.line + i) * block_cols<marlin> + 2 * place.t, 4 * sixteen,
                         [](int k) { return awq_place{k / 4, marlin_column(k % 4)}; });
        }
        /* by halves of q: bytes are those of the rows q, q + 8 of two columns, then of the others */
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t words[4] = {
                join_nibbles(c[0].w[half], c[1].w[half]), join_nibbles(c[0].w[half + 2], c[1].w[half + 2]),
                join_nibbles(c[2].w[half], c[3].w[half]), join_nibbles(c[2].w[half + 2], c[3].w[half + 2])};
            transpose_bytes(words);
            exchange_quad(words, place.j);
            if (i < place.lines) {
                store_payload<marlin, 4>(target + i * job.payload_row + half * (marlin_block_bytes / 2),
                                         {{words[0], words[1], words[2], words[3]}}, 4, job.payload_aligned);
            }
        }
    }
    finish_check(job.fault);
}

template <class Side>
__global__ void __launch_bounds__(marlin_threads) unpack_marlin_columns(const Job job, const uint32_t split)
{
    const MarlinColumns place = marlin_columns_place(job, split);
    const uint8_t *source = job.payload + marlin_columns_payload(job, place);
    uint8_t *target = job.codes + marlin_columns_codes<Side>(job, place);
    Words<4> packed[marlin_unroll][2] = {};
#pragma unroll
    for (int i = 0; i < marlin_unroll; i++) {
        if (i < place.lines) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                packed[i][half] = load_payload<marlin, 4>(
                    source + i * job.payload_row + half * (marlin_block_bytes / 2), 4, job.payload_aligned);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < marlin_unroll; i++) {
        Words<4> columns[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t *const words = packed[i][half].w;
            exchange_quad(words, place.j);
            transpose_bytes(words);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                columns[k].w[half] = words[k / 2 * 2] >> (k % 2 * 4) & low_nibbles;
                columns[k].w[half + 2] = words[k / 2 * 2 + 1] >> (k % 2 * 4) & low_nibbles;
            }
        }
        if (i < place.lines) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                Side::store(job, target + (i * block_cols<marlin> + marlin_column(k)) * job.codes_col, columns[k]);
            }
        }
    }
}

/* The other side is codes, or a V1 payload: of the same codes for rows, of the transposed ones for columns. */
template <class Side>
constexpr Walk marlin_row_packer = {pack_marlin_rows<Side>, marlin_rows_shape<marlin_threads>, Side::vector, 16};
template <class Side>
constexpr Walk marlin_row_unpacker = {unpack_marlin_rows<Side>, marlin_rows_shape<marlin_threads>, Side::vector, 16};
template <class Side>
constexpr Walk marlin_column_packer = {pack_marlin_columns<Side>, marlin_columns_shape, Side::vector, 16};
template <class Side>
constexpr Walk marlin_column_unpacker = {unpack_marlin_columns<Side>, marlin_columns_shape, Side::vector, 16};

} // namespace awq_cuda

#endif

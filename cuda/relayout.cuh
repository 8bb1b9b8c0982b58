/* From any packing to any other, transposed or not: a tile of codes at a time, in shared memory. */
#ifndef AWQPACK_CUDA_RELAYOUT_CUH
#define AWQPACK_CUDA_RELAYOUT_CUH

#include "generic.cuh"

namespace awq_cuda {

/* The tile is square; whole blocks of every packing lie in it. */
constexpr int relayout_side = 128;
constexpr int relayout_pitch = relayout_side + 4;
constexpr int relayout_threads = 256;

/* What `split` says of a job whose codes are the source's payload; its rows and columns are the target's codes'. */
struct Relayout {
    awq_packing source, target;
    bool transpose;
};

inline __host__ __device__ uint32_t relayout_split(const Relayout &r)
{
    return static_cast<uint32_t>(r.source) << 16 | static_cast<uint32_t>(r.target) << 1 | (r.transpose ? 1u : 0u);
}

inline __host__ __device__ Relayout relayout_of(uint32_t split)
{
    return {static_cast<awq_packing>(split >> 16), static_cast<awq_packing>(split >> 1 & 0x7fff), (split & 1) != 0};
}

inline Shape relayout_shape(const Job &job, const Relayout &r)
{
    return {static_cast<uint64_t>(ceil_div(job.rows, relayout_side)) *
                static_cast<uint64_t>(ceil_div(job.cols, relayout_side)),
            dim3(relayout_threads), relayout_split(r)};
}

/* One of the payloads, and where the tile lies in the matrix of its codes. */
struct RelayoutSide {
    uint8_t *payload;
    int64_t line_stride, item_stride; /* bytes */
    int64_t rows, cols;               /* that the matrix has from there on */
};

/* Calls use(item, its address) for the items of a thread in the tile; item counts from the tile's first code. */
template <awq_packing P, class Use>
__device__ __forceinline__ void each_relayout_item(const RelayoutSide &side, Use use)
{
    static_assert(relayout_side % block_rows<P> == 0 && relayout_side % block_cols<P> == 0, "whole blocks");
    constexpr int lines = static_cast<int>(payload_lines<P>(relayout_side, relayout_side));
    constexpr int numbers = static_cast<int>(line_items<P>(relayout_side, relayout_side));
    const bool is_turned = side.line_stride < side.item_stride;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < lines * numbers; i += relayout_threads) {
        const Item item = item_at<P>(is_turned ? i % lines : i / numbers, is_turned ? i / lines : i % numbers);
        if (item.row < side.rows && item.col < side.cols) {
            use(item, side.payload + item.line * side.line_stride + item.number * side.item_stride);
        }
    }
}

/* Calls call(packing) with the packing as a constant. */
template <class Call, int... P>
__device__ __forceinline__ void with_packing(awq_packing packing, Call call, std::integer_sequence<int, P...>)
{
    ((packing == P ? call(std::integral_constant<awq_packing, static_cast<awq_packing>(P)>()) : void()), ...);
}
using AllPackings = std::make_integer_sequence<int, AWQ_PACKING_COUNT>;

/* Where the payload's item is that holds the first code of a tile. */
template <awq_packing P>
__device__ __forceinline__ int64_t relayout_offset(const RelayoutSide &side, int64_t row, int64_t col)
{
    return payload_lines<P>(row, col) * side.line_stride + line_items<P>(row, col) * side.item_stride;
}

__global__ void __launch_bounds__(relayout_threads) relayout_generic(const Job job, const uint32_t split)
{
    __shared__ uint8_t tile[relayout_side * relayout_pitch];
    const Relayout r = relayout_of(split);
    const uint32_t across = static_cast<uint32_t>(ceil_div(job.cols, relayout_side));
    const int64_t row = static_cast<int64_t>(blockIdx.x / across) * relayout_side;
    const int64_t col = static_cast<int64_t>(blockIdx.x % across) * relayout_side;
    const int64_t rows = job.rows - row, cols = job.cols - col;
    RelayoutSide source = {job.codes + blockIdx.y * job.codes_batch, job.codes_row, job.codes_col,
                           r.transpose ? cols : rows, r.transpose ? rows : cols};
    RelayoutSide target = {job.payload + blockIdx.y * job.payload_batch, job.payload_row, job.payload_col, rows, cols};
    const int row_step = r.transpose ? 1 : relayout_pitch, col_step = r.transpose ? relayout_pitch : 1;

    with_packing(
        r.source,
        [&](auto packing) {
            constexpr awq_packing P = decltype(packing)::value;
            source.payload += relayout_offset<P>(source, r.transpose ? col : row, r.transpose ? row : col);
            each_relayout_item<P>(source, [&](const Item &item, const uint8_t *p) {
                const ItemOf<P> packed = *reinterpret_cast<const ItemOf<P> *>(p);
                uint8_t *to = tile + item.row * row_step + item.col * col_step;
#pragma unroll
                for (int nibble = 0; nibble < item_codes<P>; nibble++) {
                    const awq_place place = place_of<P>(nibble);
                    to[place.row * row_step + place.col * col_step] =
                        static_cast<uint8_t>(packed >> (4 * nibble) & AWQ_CODE_MAX);
                }
            });
        },
        AllPackings());
    __syncthreads();
    with_packing(
        r.target,
        [&](auto packing) {
            constexpr awq_packing P = decltype(packing)::value;
            target.payload += relayout_offset<P>(target, row, col);
            each_relayout_item<P>(target, [&](const Item &item, uint8_t *p) {
                const uint8_t *from = tile + item.row * relayout_pitch + item.col;
                ItemOf<P> packed = 0;
#pragma unroll
                for (int nibble = 0; nibble < item_codes<P>; nibble++) {
                    const awq_place place = place_of<P>(nibble);
                    packed |= static_cast<ItemOf<P>>(from[place.row * relayout_pitch + place.col]) << (4 * nibble);
                }
                *reinterpret_cast<ItemOf<P> *>(p) = packed;
            });
        },
        AllPackings());
}

} // namespace awq_cuda

#endif

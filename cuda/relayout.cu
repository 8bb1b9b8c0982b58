/* The C entry point of relayout: which kernel takes a pair of packings. */
#include "relayout.cuh"

#include "awqpack_cuda.h"
#include "batch.cuh"
#include "marlin.cuh"

using namespace awq_cuda;

namespace {

/* What lies beside Marlin: a V1 payload of the same codes, of the transposed ones, or of the same viewed transposed. */
enum Beside { beside_same, beside_transposed, beside_turned, besides };

template <awq_packing P>
constexpr Walk to_marlin[besides] = {marlin_row_packer<WordCodes<P>>, marlin_column_packer<WordCodes<P>>,
                                     marlin_row_packer<TurnedWordCodes<P>>};
template <awq_packing P>
constexpr Walk from_marlin[besides] = {marlin_row_unpacker<WordCodes<P>>, marlin_column_unpacker<WordCodes<P>>,
                                       marlin_row_unpacker<TurnedWordCodes<P>>};

/* A pair that has kernels of its own. */
struct Pair {
    awq_packing source, target;
    const Walk *walks;
    bool is_packing; /* the source takes the place of codes; else the target does */
};
constexpr Pair pairs[] = {
    {AWQ_PACKING_V1, marlin, to_marlin<AWQ_PACKING_V1>, true},
    {AWQ_PACKING_V1_REORDER, marlin, to_marlin<AWQ_PACKING_V1_REORDER>, true},
    {marlin, AWQ_PACKING_V1, from_marlin<AWQ_PACKING_V1>, false},
    {marlin, AWQ_PACKING_V1_REORDER, from_marlin<AWQ_PACKING_V1_REORDER>, false},
};

const Pair *find_pair(const awq_relayout &r)
{
    for (const Pair &pair : pairs) {
        if (pair.source == r.source && pair.target == r.target) {
            return &pair;
        }
    }
    return nullptr;
}

/* A payload as one side of a job. */
struct Payload {
    uint8_t *data;
    int64_t item, row, col;
    const int64_t *batch_strides;
};

cudaError_t run(const awq_relayout &r, const void *source_data, void *target_data, cudaStream_t stream)
{
    const int64_t source_item = awq_packings[r.source].item_bytes, target_item = awq_packings[r.target].item_bytes;
    const Payload source = {static_cast<uint8_t *>(const_cast<void *>(source_data)), source_item,
                            r.source_row_stride * source_item, r.source_col_stride * source_item,
                            r.source_batch_strides};
    const Payload target = {static_cast<uint8_t *>(target_data), target_item, r.target_row_stride * target_item,
                            r.target_col_stride * target_item, r.target_batch_strides};
    const Pair *pair = find_pair(r);
    bool is_packing = pair == nullptr || pair->is_packing;
    const Payload &beside = is_packing ? source : target, &of_marlin = is_packing ? target : source;
    const bool is_plain = beside.col == beside.item, is_turned = beside.row == beside.item && !r.transpose;
    if (pair != nullptr && (of_marlin.col != of_marlin.item || !(is_plain || is_turned))) {
        pair = nullptr;
        is_packing = true;
    }
    const Payload &codes = is_packing ? source : target, &payload = is_packing ? target : source;
    const Batch batch = {r.batch_dims,          r.batch_sizes, codes.batch_strides,
                         payload.batch_strides, codes.item,    payload.item};
    if (count_matrices(batch) == 0 || r.rows == 0 || r.cols == 0) {
        return cudaSuccess;
    }
    const bool turns = r.transpose && !is_packing; /* Marlin's codes are then the source's */
    Job job = {};
    job.rows = turns ? r.cols : r.rows;
    job.cols = turns ? r.rows : r.cols;
    job.codes = codes.data;
    job.codes_row = codes.row;
    job.codes_col = codes.col;
    job.payload = payload.data;
    job.payload_row = payload.row;
    job.payload_col = payload.col;
    if (pair == nullptr) {
        const Walk walk = {relayout_generic, nullptr, 1, 1};
        const Shape shape = relayout_shape(job, {r.source, r.target, r.transpose});
        return launch_plan(make_plan(job, walk, shape, batch, 0, 0), batch, {}, stream);
    }
    if (r.transpose) { /* columns of Marlin's codes are rows of the payload beside it */
        job.codes_col = codes.row;
    }
    const Walk &walk = pair->walks[!is_plain ? beside_turned : r.transpose ? beside_transposed : beside_same];
    return launch_plan(make_plan(job, walk, walk.shape(job), batch, codes.row, payload.row), batch, {}, stream);
}

} // namespace

extern "C" int awq_cuda_relayout(const awq_relayout *relayout, const void *source, void *target, void *stream)
{
    return finish(run(*relayout, source, target, static_cast<cudaStream_t>(stream)));
}

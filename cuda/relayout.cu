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

/* The source takes the place of codes. */
cudaError_t run_generic(const awq_relayout &r, const Payload &source, const Payload &target, cudaStream_t stream)
{
    const Batch batch = {r.batch_dims,         r.batch_sizes, source.batch_strides,
                         target.batch_strides, source.item,   target.item};
    Job job = {};
    job.rows = r.rows;
    job.cols = r.cols;
    job.codes = source.data;
    job.codes_row = source.row;
    job.codes_col = source.col;
    job.payload = target.data;
    job.payload_row = target.row;
    job.payload_col = target.col;
    const Walk walk = {relayout_generic, nullptr, 1, 1};
    const Plan plan = make_plan(job, walk, relayout_shape(job, {r.source, r.target, r.transpose}), batch, 0, 0);
    return launch_plan(plan, batch, {}, stream);
}

cudaError_t run(const awq_relayout &r, const void *source_data, void *target_data, cudaStream_t stream)
{
    const int64_t source_item = awq_packings[r.source].item_bytes, target_item = awq_packings[r.target].item_bytes;
    const Payload source = {static_cast<uint8_t *>(const_cast<void *>(source_data)), source_item,
                            r.source_row_stride * source_item, r.source_col_stride * source_item,
                            r.source_batch_strides};
    const Payload target = {static_cast<uint8_t *>(target_data), target_item, r.target_row_stride * target_item,
                            r.target_col_stride * target_item, r.target_batch_strides};
    const Pair *pair = find_pair(r);
    const bool is_packing = pair == nullptr || pair->is_packing;
    const Payload &codes = is_packing ? source : target, &payload = is_packing ? target : source;
    const Batch batch = {r.batch_dims,          r.batch_sizes, codes.batch_strides,
                         payload.batch_strides, codes.item,    payload.item};
    if (count_matrices(batch) == 0 || r.rows == 0 || r.cols == 0) {
        return cudaSuccess;
    }
    Job job = {};
    job.codes = codes.data;
    job.payload = payload.data;
    job.payload_row = payload.row;
    job.payload_col = payload.col;
    const bool is_plain = codes.col == codes.item, is_turned = codes.row == codes.item && !r.transpose;
    if (pair == nullptr || payload.col != payload.item || !(is_plain || is_turned)) {
        return run_generic(r, source, target, stream);
    }
    const bool turns = r.transpose && !is_packing; /* Marlin's codes are then the source's */
    job.rows = turns ? r.cols : r.rows;
    job.cols = turns ? r.rows : r.cols;
    (r.transpose ? job.codes_col : job.codes_row) = codes.row;
    if (!is_plain) {
        job.codes_col = codes.col;
    }
    const Walk &walk = pair->walks[!is_plain ? beside_turned : r.transpose ? beside_transposed : beside_same];
    return launch_plan(make_plan(job, walk, walk.shape(job), batch, codes.row, payload.row), batch, {}, stream);
}

} // namespace

extern "C" int awq_cuda_relayout(const awq_relayout *relayout, const void *source, void *target, void *stream)
{
    return finish(run(*relayout, source, target, static_cast<cudaStream_t>(stream)));
}

/* The C entry points of pack and unpack: which kernel takes a geometry. */
#include "awqpack_cuda.h"

#include "batch.cuh"
#include "generic.cuh"
#include "marlin.cuh"
#include "rowmajor.cuh"
#include "tile.cuh"
#include "turned.cuh"

using namespace awq_cuda;

namespace {

/* Chosen by the --tune run of tests/c/check_cuda.cu. */
using PackRows = RowConfig<2, 256, true>;
using UnpackRows = RowConfig<2, 256, true>;
using PackTile = TileConfig<16, 512, true, 16, 2, 1>;
using PackQuadTile = TileConfig<16, 512, true, endless, 2, 1>; /* V2, whose payload runs are longer */
using UnpackTile = TileConfig<16, 512, true, endless, 2, 2, 3>;
using UnpackQuadTile = TileConfig<16, 512, true, endless, 2, 1, 2>;

/* What is contiguous: rows or columns of codes, beside a payload as it is or viewed transposed. */
enum Access { access_rows, access_columns, access_turned_rows, access_turned_columns, accesses };

/* The kernels that a packing has of its own, in the order of accesses. What is not here is generic. */
template <awq_packing P>
constexpr Walk v1_packers[accesses] = {row_packer<P, PackRows>, tile_packer<P, PackTile>, turned_row_packer<P>,
                                       turned_column_packer<P>};
template <awq_packing P>
constexpr Walk v1_unpackers[accesses] = {row_unpacker<P, UnpackRows>, tile_unpacker<P, UnpackTile>,
                                         turned_row_unpacker<P>, turned_column_unpacker<P>};
constexpr Walk v2_packers[accesses] = {row_packer<AWQ_PACKING_V2, PackRows>, tile_packer<AWQ_PACKING_V2, PackQuadTile>};
constexpr Walk v2_unpackers[accesses] = {row_unpacker<AWQ_PACKING_V2, UnpackRows>,
                                         tile_unpacker<AWQ_PACKING_V2, UnpackQuadTile>};
constexpr Walk marlin_packers[accesses] = {marlin_row_packer<ByteCodes>, marlin_column_packer<ByteCodes>};
constexpr Walk marlin_unpackers[accesses] = {marlin_row_unpacker<ByteCodes>, marlin_column_unpacker<ByteCodes>};

constexpr const Walk *packers[AWQ_PACKING_COUNT] = {v1_packers<AWQ_PACKING_V1>, v1_packers<AWQ_PACKING_V1_REORDER>,
                                                    v2_packers, marlin_packers};
constexpr const Walk *unpackers[AWQ_PACKING_COUNT] = {
    v1_unpackers<AWQ_PACKING_V1>, v1_unpackers<AWQ_PACKING_V1_REORDER>, v2_unpackers, marlin_unpackers};

const Walk &choose(const awq_geometry &g, bool pack)
{
    const Walk *own = (pack ? packers : unpackers)[g.packing];
    const bool is_plain = g.payload_col_stride == 1, is_turned = g.payload_row_stride == 1;
    const bool has_rows = g.codes_col_stride == 1, has_columns = g.codes_row_stride == 1;
    const bool fits[accesses] = {is_plain && has_rows, is_plain && has_columns, is_turned && has_rows,
                                 is_turned && has_columns};
    for (int access = 0; own != nullptr && access < accesses; access++) {
        if (fits[access] && own[access].kernel != nullptr) {
            return own[access];
        }
    }
    return (pack ? ByPacking<GenericPacker>::table : ByPacking<GenericUnpacker>::table)[g.packing];
}

/* Runs one direction over the whole geometry. Codes are checked where there is a word to tell of it. */
cudaError_t run(const awq_geometry &g, const void *codes, const void *payload, bool pack, uint64_t *fault,
                cudaStream_t stream)
{
    const awq_packing_traits &traits = awq_packings[g.packing];
    const Batch batch = {g.batch_dims,     g.batch_sizes, g.codes_batch_strides, g.payload_batch_strides, 1,
                         traits.item_bytes};
    const uint64_t count = count_matrices(batch);
    if (fault != nullptr) {
        *fault = AWQ_CUDA_NO_FAULT;
    }
    if (count == 0 || g.rows == 0 || g.cols == 0) {
        return cudaSuccess;
    }
    /* one job type serves both directions; a kernel writes to one side only */
    Job job = {};
    job.codes = static_cast<uint8_t *>(const_cast<void *>(codes));
    job.payload = static_cast<uint8_t *>(const_cast<void *>(payload));
    job.rows = g.rows;
    job.cols = g.cols;
    job.codes_row = g.codes_row_stride;
    job.codes_col = g.codes_col_stride;
    job.payload_row = g.payload_row_stride * traits.item_bytes;
    job.payload_col = g.payload_col_stride * traits.item_bytes;
    const Walk &walk = choose(g, pack);
    /* a single row of codes or of payload is never stepped from */
    const int64_t lines = traits.runs_down ? g.cols / traits.block_cols : g.rows / traits.block_rows;
    const int64_t codes_step = g.codes_col_stride != 1 ? job.codes_col : g.rows > 1 ? job.codes_row : 0;
    const int64_t payload_step = g.payload_col_stride != 1 ? job.payload_col : lines > 1 ? job.payload_row : 0;
    const Plan plan = make_plan(job, walk, walk.shape(job), batch, codes_step, payload_step);
    if (fault == nullptr) {
        return launch_plan(plan, batch, {}, stream);
    }
    return run_checked(plan.shape.blocks * count, stream, fault,
                       [&](const Fault &word) { return launch_plan(plan, batch, word, stream); });
}

} // namespace

extern "C" int awq_cuda_pack(const awq_geometry *geometry, const void *codes, void *payload, void *stream)
{
    return finish(run(*geometry, codes, payload, true, nullptr, static_cast<cudaStream_t>(stream)));
}

extern "C" int awq_cuda_pack_checked(const awq_geometry *geometry, const void *codes, void *payload, void *stream,
                                     uint64_t *fault)
{
    return finish(run(*geometry, codes, payload, true, fault, static_cast<cudaStream_t>(stream)));
}

extern "C" int awq_cuda_unpack(const awq_geometry *geometry, const void *payload, void *codes, void *stream)
{
    return finish(run(*geometry, codes, payload, false, nullptr, static_cast<cudaStream_t>(stream)));
}

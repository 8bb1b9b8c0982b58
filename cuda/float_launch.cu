/* The C entry points for floats: which kernel takes a geometry, and its launches over the batch. */
#include "awqpack_cuda.h"

#include <utility>

#include "batch.cuh"
#include "float_scales.cuh"
#include "float_tables.cuh"

using namespace awq_cuda;

namespace {

constexpr FloatKind kind_of(awq_dtype dtype)
{
    return dtype == AWQ_DTYPE_FLOAT16 ? kind_float16 : dtype == AWQ_DTYPE_BFLOAT16 ? kind_bfloat16 : kind_float32;
}

constexpr int64_t bytes_of(FloatKind kind)
{
    return kind == kind_float32 ? 4 : 2;
}

/* A plane of the geometry in bytes, with the batch dimension that lies in the grid. */
struct Plane {
    uint8_t *data;
    int64_t row, col, batch;

    Plane(const awq_plane &plane, int64_t element, int inner)
        : data(static_cast<uint8_t *>(plane.data)), row(plane.row_stride * element), col(plane.col_stride * element),
          batch(inner < 0 ? 0 : plane.batch_strides[inner] * element)
    {
    }
};

Groups groups_of(int64_t size, int64_t extent)
{
    if (size >= extent) {
        return {size, 0, 0};
    }
    int log = 0;
    while ((int64_t{1} << log) < size) {
        log++;
    }
    return {size, size > INT32_MAX ? 0 : static_cast<uint32_t>(((uint64_t{1} << (31 + log)) + size - 1) / size),
            31 + log};
}

BatchSizes batch_of(const awq_float_geometry &g)
{
    return {g.batch_dims, g.batch_sizes};
}

/* Whether a plane and all its steps are multiples of `vector` bytes; its columns are contiguous where it is read by
 * vectors. */
bool is_aligned(const awq_float_geometry &g, const awq_plane &plane, int64_t element, int64_t step, int64_t vector)
{
    return is_aligned(plane.data, step * element, batch_of(g), plane.batch_strides, element, vector);
}

/* The job of the first matrix. */
template <class AnyJob>
AnyJob make_job(const awq_float_geometry &g, const BatchWalk &walk)
{
    const int inner = walk.inner;
    const FloatKind weight_kind = kind_of(g.weight_dtype), scale_kind = kind_of(g.scale_dtype);
    const Plane weight(g.weight, bytes_of(weight_kind), inner),
        payload(g.payload, awq_packings[g.packing].item_bytes, inner), scales(g.scales, bytes_of(scale_kind), inner),
        zeros(g.zeros, 1, inner);
    AnyJob job = {};
    job.rows = g.rows;
    job.cols = g.cols;
    job.batch_step = inner < 0 ? 0 : walk.index_steps[inner];
    job.codes = weight.data, job.codes_row = weight.row, job.codes_col = weight.col, job.codes_batch = weight.batch;
    job.payload = payload.data, job.payload_row = payload.row, job.payload_col = payload.col;
    job.payload_batch = payload.batch;
    job.scales = {scales.data, scales.row, scales.col, scales.batch};
    if (zeros.data != nullptr) { /* without them, their steps are 0: see factor_source */
        job.zeros = {zeros.data, zeros.row, zeros.col, zeros.batch};
    }
    job.group_rows = groups_of(g.group_rows, g.rows);
    job.group_cols = groups_of(g.group_cols, g.cols);
    job.scale_kind = scale_kind;
    return job;
}

bool is_empty(const awq_float_geometry &g)
{
    return g.rows == 0 || g.cols == 0 || count_matrices(batch_of(g)) == 0;
}

/* Launches over the batch. */
template <class AnyJob>
cudaError_t launch(void (*kernel)(AnyJob, uint32_t), const Shape &shape, const awq_float_geometry &g,
                   const AnyJob &first, const BatchWalk &walk, cudaStream_t stream)
{
    const int64_t weight_bytes = bytes_of(kind_of(g.weight_dtype)), scale_bytes = bytes_of(first.scale_kind);
    const int64_t item_bytes = awq_packings[g.packing].item_bytes;
    const auto move = [&](AnyJob &job, int i, int64_t count) {
        job.codes += count * g.weight.batch_strides[i] * weight_bytes;
        job.payload += count * g.payload.batch_strides[i] * item_bytes;
        job.scales.data += count * g.scales.batch_strides[i] * scale_bytes;
        job.zeros.data += job.zeros.data == nullptr ? 0 : count * g.zeros.batch_strides[i];
        job.first += static_cast<uint64_t>(count) * walk.index_steps[i];
    };
    return launch_batch(kernel, shape, batch_of(g), walk.inner, first, move, stream);
}

/* The same; values are checked where there is a word to tell of it. */
template <class AnyJob>
cudaError_t launch_checked(void (*kernel)(AnyJob, uint32_t), const Shape &shape, const awq_float_geometry &g,
                           AnyJob job, const BatchWalk &walk, uint64_t *fault, cudaStream_t stream)
{
    if (fault == nullptr) {
        return launch(kernel, shape, g, job, walk, stream);
    }
    return run_checked(shape.blocks * count_matrices(batch_of(g)), stream, fault, [&](const Fault &word) {
        job.fault = word;
        return launch(kernel, shape, g, job, walk, stream);
    });
}

/* ---- quantize and dequantize ---- */

struct FloatChoice {
    FloatKernel kernel;
    Shape shape;
};

/* Columns that a slot of tiles has its eight in. */
constexpr int64_t slot_span(awq_packing packing)
{
    return awq_packings[packing].block_cols;
}

/* Whether groups of this size are whole runs of `run` codes, or one group is all there is. */
bool holds_runs(const Groups &groups, int64_t run)
{
    return groups.factor == 0 || groups.size % run == 0;
}

/* Of groups that are a column each: whether the scales of neighbours lie beside each other in vectors, and so do their
 * zeros. */
bool has_vector_factors(const awq_float_geometry &g)
{
    const bool steps_down = g.group_rows < g.rows;
    return g.scales.col_stride == 1 &&
           is_aligned(g, g.scales, bytes_of(kind_of(g.scale_dtype)), steps_down ? g.scales.row_stride : 0, 16) &&
           (g.zeros.data == nullptr ||
            (g.zeros.col_stride == 1 && is_aligned(g, g.zeros, 1, steps_down ? g.zeros.row_stride : 0, 8)));
}

/* The kernels for rows that suit the groups; none where these are too small. */
const FloatRowKernel *choose_rows(const awq_float_geometry &g, FloatJob &job, const FloatKernels &kernels)
{
    if (kernels.along != nullptr && holds_runs(job.group_cols, near_units * along_units * kernels.unit)) {
        return kernels.along;
    }
    const bool together = holds_runs(job.group_rows, kernels.below_rows);
    if (holds_runs(job.group_cols, kernels.unit) && (together || g.group_rows == 1)) {
        job.scales_step = together ? 0 : job.scales.row;
        job.zeros_step = together ? 0 : job.zeros.row;
        return kernels.below;
    }
    if (g.group_cols != 1 || !holds_runs(job.group_rows, kernels.short_columns_rows)) {
        return nullptr;
    }
    job.vector_factors = has_vector_factors(g);
    return holds_runs(job.group_rows, kernels.columns_rows) ? kernels.columns : kernels.short_columns;
}

/* How a slot finds its factors; `none` where they are not a step apart. */
SlotFactors choose_slots(const awq_float_geometry &g, FloatJob &job)
{
    const bool by_row = !holds_runs(job.group_rows, float_slot_rows);
    const bool together = holds_runs(job.group_cols, slot_span(g.packing));
    if (by_row ? g.group_rows != 1 || !together : g.group_cols != 1 && !together) {
        return SlotFactors::none;
    }
    job.scales_step = by_row ? job.scales.row : together ? 0 : job.scales.col;
    job.zeros_step = by_row ? job.zeros.row : together ? 0 : job.zeros.col;
    if (by_row) {
        return SlotFactors::of_rows;
    }
    const bool same = g.scale_dtype == g.weight_dtype;
    const bool narrow = g.weight_dtype != AWQ_DTYPE_FLOAT32 && g.scale_dtype != AWQ_DTYPE_FLOAT32;
    if (together || slot_span(g.packing) != AWQ_WORD_CODES || !has_vector_factors(g) || !(same || narrow)) {
        return SlotFactors::of_columns;
    }
    return same ? SlotFactors::in_vectors : SlotFactors::in_other_vectors;
}

/* Whether Marlin's rows can share factors as their kernel wants it. */
bool suits_marlin(const awq_float_geometry &g, FloatJob &job)
{
    const bool together = holds_runs(job.group_rows, awq_packings[g.packing].block_rows);
    job.scales_step = together ? 0 : job.scales.row;
    job.zeros_step = together ? 0 : job.zeros.row;
    return holds_runs(job.group_cols, marlin_pair_cols) && (together || g.group_rows == 1);
}

FloatChoice choose(const awq_float_geometry &g, FloatJob &job, const FloatKernels &kernels)
{
    const awq_packing_traits &traits = awq_packings[g.packing];
    const int64_t weight_bytes = bytes_of(kind_of(g.weight_dtype));
    const bool is_usual = g.payload.col_stride == 1 && g.rows <= INT32_MAX / 2 && g.cols <= INT32_MAX / 2;
    const bool has_rows = is_usual && g.weight.col_stride == 1 &&
                          is_aligned(g, g.weight, weight_bytes, g.rows > 1 ? g.weight.row_stride : 0, 16);
    const bool has_columns = is_usual && g.weight.row_stride == 1 && g.rows % float_slot_rows == 0 &&
                             is_aligned(g, g.weight, weight_bytes, g.weight.col_stride, 16);
    const auto has_payload = [&](int64_t vector) {
        /* one row of it takes no step to the next */
        const int64_t lines = traits.runs_down ? g.cols / traits.block_cols : g.rows / traits.block_rows;
        return is_aligned(g, g.payload, traits.item_bytes, lines > 1 ? g.payload.row_stride : 0, vector);
    };
    if (g.packing == AWQ_PACKING_MARLIN) {
        if (has_rows && has_payload(16) && suits_marlin(g, job)) {
            return {kernels.marlin_rows.kernel, kernels.marlin_rows.shape(job)};
        }
    } else if (has_rows && has_payload(traits.block_rows > 1 ? 16 : 4)) {
        const FloatRowKernel *rows = choose_rows(g, job, kernels);
        if (rows != nullptr && rows[g.packing].kernel != nullptr) {
            return {rows[g.packing].kernel, rows[g.packing].shape(job, kernels.unit)};
        }
    } else if (has_columns && has_payload(16)) {
        const SlotFactors factors = choose_slots(g, job);
        if (factors != SlotFactors::none) {
            const FloatWalk &tile = kernels.tiles[g.packing].by_factors[static_cast<int>(factors)];
            if (tile.kernel != nullptr) {
                return {tile.kernel, tile.shape(job)};
            }
        }
    }
    return {kernels.generic[g.packing], ByPacking<GenericShape>::table[g.packing](job)};
}

/* Quantizes or dequantizes; values are checked where there is a word to tell of it. */
cudaError_t run(const awq_float_geometry &g, const FloatKernels &kernels, uint64_t *fault, cudaStream_t stream)
{
    if (fault != nullptr) {
        *fault = AWQ_CUDA_NO_FAULT;
    }
    if (is_empty(g)) {
        return cudaSuccess;
    }
    const BatchWalk walk = walk_batch(batch_of(g), g.rows, g.cols);
    FloatJob job = make_job<FloatJob>(g, walk);
    const FloatChoice choice = choose(g, job, kernels);
    return launch_checked(choice.kernel, choice.shape, g, job, walk, fault, stream);
}

/* ---- min_max ---- */

/* Groups below each other that threads share, where one has not enough to load at once; and what a lane loads of a
   group, so that few lanes have to compare what they found. */
constexpr int shared_groups = 8, lane_loads = 2;

template <class T>
constexpr ScalesKernel scales_kernels[3] = {scales_of_rows<T, 1>, scales_of_rows<T, shared_groups>,
                                            scales_of_columns<T>};

/* The geometry with rows and columns exchanged. */
awq_float_geometry exchange(const awq_float_geometry &g)
{
    awq_float_geometry turned = g;
    std::swap(turned.rows, turned.cols);
    std::swap(turned.group_rows, turned.group_cols);
    for (awq_plane *plane : {&turned.weight, &turned.scales, &turned.zeros}) {
        std::swap(plane->row_stride, plane->col_stride);
    }
    return turned;
}

/* How the groups of a launch lie in blocks. */
Shape scales_of_rows_shape(const awq_float_geometry &g, int lanes, int groups)
{
    const int64_t down = g.rows / g.group_rows, across = g.cols / g.group_cols;
    return grid_of_threads(across * lanes, ceil_div(down, groups), lanes < 32 ? 32 : lanes, scales_threads);
}

cudaError_t run_min_max(const awq_float_geometry &geometry, awq_scale_mode mode, uint64_t *fault, cudaStream_t stream)
{
    if (fault != nullptr) {
        *fault = AWQ_CUDA_NO_FAULT;
    }
    if (is_empty(geometry)) {
        return cudaSuccess;
    }
    const bool exchanged = geometry.weight.col_stride != 1 && geometry.weight.row_stride == 1;
    const awq_float_geometry g = exchanged ? exchange(geometry) : geometry;
    const BatchWalk walk = walk_batch(batch_of(g), g.rows, g.cols);
    const FloatKind kind = kind_of(g.weight_dtype);
    const int64_t vector = 16 / bytes_of(kind);
    ScalesJob job = make_job<ScalesJob>(g, walk);
    job.mode = mode;
    job.exchanged = exchanged;
    job.vectors =
        g.weight.col_stride == 1 && is_aligned(g, g.weight, bytes_of(kind), g.rows > 1 ? g.weight.row_stride : 0, 16);
    const bool columns = g.group_cols == 1 && g.group_rows > 1 && job.vectors && g.cols % vector == 0;
    bool has_many = false;
    Shape shape;
    if (columns) {
        shape = grid_shape(ceil_div(g.cols, vector * column_lanes), g.rows / g.group_rows, dim3(scales_threads));
    } else {
        job.vectors = job.vectors && g.group_cols % vector == 0;
        const int64_t loads = g.group_rows * (job.vectors ? g.group_cols / vector : g.group_cols);
        job.lanes = 1;
        while (job.lanes < 32 && job.lanes * lane_loads < loads) {
            job.lanes *= 2;
        }
        has_many = loads < shared_groups * job.lanes;
        shape = scales_of_rows_shape(g, job.lanes, has_many ? shared_groups : 1);
    }
    const int number = columns ? 2 : has_many ? 1 : 0;
    const ScalesKernel kernels[float_kinds] = {scales_kernels<__half>[number], scales_kernels<__nv_bfloat16>[number],
                                               scales_kernels<float>[number]};
    return launch_checked(kernels[kind], shape, g, job, walk, fault, stream);
}

} // namespace

extern "C" int awq_cuda_dequantize(const awq_float_geometry *geometry, void *stream)
{
    return finish(
        run(*geometry, all_dequantizers[kind_of(geometry->weight_dtype)], nullptr, static_cast<cudaStream_t>(stream)));
}

extern "C" int awq_cuda_quantize(const awq_float_geometry *geometry, void *stream, uint64_t *fault)
{
    const FloatKernels *kernels = kind_of(geometry->scale_dtype) == kind_float32 ? wide_quantizers : narrow_quantizers;
    return finish(run(*geometry, kernels[kind_of(geometry->weight_dtype)], fault, static_cast<cudaStream_t>(stream)));
}

extern "C" int awq_cuda_min_max(const awq_float_geometry *geometry, awq_scale_mode mode, void *stream, uint64_t *fault)
{
    return finish(run_min_max(*geometry, mode, fault, static_cast<cudaStream_t>(stream)));
}

extern "C" int awq_cuda_fetch(void *host, const void *device, size_t bytes, void *stream)
{
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    cudaError_t error = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, s);
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(s);
    }
    return finish(error);
}

/* The host's side of every launch: batches of matrices, alignment, errors. */
#ifndef AWQPACK_CUDA_BATCH_CUH
#define AWQPACK_CUDA_BATCH_CUH

#include "common.cuh"

namespace awq_cuda {

constexpr int64_t max_grid_x = INT32_MAX;
constexpr int64_t max_grid_y = 65535;
constexpr size_t max_shared = 48 * 1024; /* what a kernel may have without being told so */

/* Takes an error this library caused out of the runtime's last-error state. */
inline int finish(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return static_cast<int>(error);
}

/* The leading dimensions of tensors, which are batches of matrices. */
struct BatchSizes {
    int32_t dims;
    const int64_t *sizes;
};

/* Matrices of codes beside those of payload. Strides are in elements. */
struct Batch : BatchSizes {
    const int64_t *codes_strides, *payload_strides;
    int64_t codes_element, payload_element; /* bytes */
};

inline uint64_t count_matrices(const BatchSizes &batch)
{
    uint64_t count = 1;
    for (int i = 0; i < batch.dims; i++) {
        count *= static_cast<uint64_t>(batch.sizes[i]);
    }
    return count;
}

/* Whether a pointer and every step that is taken from it are multiples of `vector` bytes. */
inline bool is_aligned(const void *pointer, int64_t step, const BatchSizes &batch, const int64_t *strides,
                       int64_t element, int64_t vector)
{
    bool aligned = reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(vector) == 0 && step % vector == 0;
    for (int i = 0; i < batch.dims; i++) {
        aligned = aligned && (batch.sizes[i] == 1 || strides[i] * element % vector == 0);
    }
    return aligned;
}

/* How launches go through a batch: its largest dimension lies in the grid, the others in a loop. */
struct BatchWalk {
    int inner;                          /* the dimension in the grid; -1 without any */
    uint64_t index_steps[AWQ_MAX_DIMS]; /* codes from a matrix to the next one of a dimension */
};

inline BatchWalk walk_batch(const BatchSizes &batch, int64_t rows, int64_t cols)
{
    BatchWalk walk;
    walk.inner = -1;
    uint64_t step = static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols);
    for (int i = batch.dims - 1; i >= 0; i--) {
        walk.index_steps[i] = step;
        step *= static_cast<uint64_t>(batch.sizes[i]);
        if (walk.inner < 0 || batch.sizes[i] > batch.sizes[walk.inner]) {
            walk.inner = i;
        }
    }
    return walk;
}

/* Launches over a batch, as many matrices at a time as a grid holds. `first` is the job of the first matrix;
   move(job, i, count) takes a job `count` matrices further along dimension i. */
template <class AnyJob, class Move>
cudaError_t launch_batch(void (*kernel)(AnyJob, uint32_t), const Shape &shape, const BatchSizes &batch, int inner,
                         const AnyJob &first, Move move, cudaStream_t stream)
{
    if (shape.blocks > static_cast<uint64_t>(max_grid_x)) {
        return cudaErrorInvalidConfiguration;
    }
    int64_t at[AWQ_MAX_DIMS] = {0};
    for (;;) {
        AnyJob job = first;
        for (int i = 0; i < batch.dims; i++) {
            move(job, i, at[i]);
        }
        for (int64_t left = inner < 0 ? 1 : batch.sizes[inner]; left > 0; left -= max_grid_y) {
            const dim3 grid(static_cast<unsigned>(shape.blocks),
                            static_cast<unsigned>(left < max_grid_y ? left : max_grid_y));
            uint32_t split = shape.split;
            void *arguments[] = {&job, &split};
            const cudaError_t error = cudaLaunchKernel(kernel, grid, shape.threads, arguments, shape.shared, stream);
            if (error != cudaSuccess) {
                return error;
            }
            if (left > max_grid_y) {
                move(job, inner, max_grid_y);
            }
        }
        int i = batch.dims - 1;
        while (i >= 0 && (i == inner || ++at[i] == batch.sizes[i])) {
            at[i--] = 0;
        }
        if (i < 0) {
            return cudaSuccess;
        }
    }
}

/* A job as launches take it. */
struct Plan {
    Job job; /* of the first matrix */
    Kernel kernel;
    Shape shape;
    BatchWalk walk;
};

/* Takes a job whose matrix and pointers are known. Steps are the strides that vectors of the walk do not run along. */
inline Plan make_plan(const Job &job, const Walk &walk, const Shape &shape, const Batch &batch, int64_t codes_step,
                      int64_t payload_step)
{
    Plan plan = {job, walk.kernel, shape, walk_batch(batch, job.rows, job.cols)};
    const int inner = plan.walk.inner;
    if (inner >= 0) {
        plan.job.codes_batch = batch.codes_strides[inner] * batch.codes_element;
        plan.job.payload_batch = batch.payload_strides[inner] * batch.payload_element;
        plan.job.batch_step = plan.walk.index_steps[inner];
    }
    plan.job.codes_aligned =
        is_aligned(job.codes, codes_step, batch, batch.codes_strides, batch.codes_element, walk.codes_vector);
    plan.job.payload_aligned =
        is_aligned(job.payload, payload_step, batch, batch.payload_strides, batch.payload_element, walk.payload_vector);
    return plan;
}

inline cudaError_t launch_plan(const Plan &plan, const Batch &batch, const Fault &fault, cudaStream_t stream)
{
    if (plan.shape.shared > max_shared) {
        const cudaError_t error = cudaFuncSetAttribute(plan.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(plan.shape.shared));
        if (error != cudaSuccess) {
            return error;
        }
    }
    Job first = plan.job;
    first.fault = fault;
    const auto move = [&](Job &job, int i, int64_t count) {
        job.codes += count * batch.codes_strides[i] * batch.codes_element;
        job.payload += count * batch.payload_strides[i] * batch.payload_element;
        job.first += static_cast<uint64_t>(count) * plan.walk.index_steps[i];
    };
    return launch_batch(plan.kernel, plan.shape, batch, plan.walk.inner, first, move, stream);
}

} // namespace awq_cuda

#endif

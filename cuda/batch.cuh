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

/* Matrices of codes beside those of payload. Strides are in elements. */
struct Batch {
    int32_t dims;
    const int64_t *sizes, *codes_strides, *payload_strides;
    int64_t codes_element, payload_element; /* bytes */
};

inline uint64_t count_matrices(const Batch &batch)
{
    uint64_t count = 1;
    for (int i = 0; i < batch.dims; i++) {
        count *= static_cast<uint64_t>(batch.sizes[i]);
    }
    return count;
}

/* Whether a pointer and every step that is taken from it are multiples of `vector` bytes. */
inline bool is_aligned(const void *pointer, int64_t step, const Batch &batch, const int64_t *strides, int64_t element,
                       int64_t vector)
{
    bool aligned = reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(vector) == 0 && step % vector == 0;
    for (int i = 0; i < batch.dims; i++) {
        aligned = aligned && (batch.sizes[i] == 1 || strides[i] * element % vector == 0);
    }
    return aligned;
}

/* A job as launches take it: the largest batch dimension in the grid, the others in a loop. */
struct Plan {
    Job job; /* of the first matrix */
    Kernel kernel;
    Shape shape;
    int inner; /* the dimension in the grid; -1 without any */
    uint64_t index_steps[AWQ_MAX_DIMS];
};

/* Takes a job whose matrix and pointers are known. Steps are the strides that vectors of the walk do not run along. */
inline Plan make_plan(const Job &job, const Walk &walk, const Shape &shape, const Batch &batch, int64_t codes_step,
                      int64_t payload_step)
{
    Plan plan;
    plan.job = job;
    plan.kernel = walk.kernel;
    plan.shape = shape;
    plan.inner = -1;
    uint64_t step = static_cast<uint64_t>(job.rows) * static_cast<uint64_t>(job.cols);
    for (int i = batch.dims - 1; i >= 0; i--) {
        plan.index_steps[i] = step;
        step *= static_cast<uint64_t>(batch.sizes[i]);
        if (plan.inner < 0 || batch.sizes[i] > batch.sizes[plan.inner]) {
            plan.inner = i;
        }
    }
    if (plan.inner >= 0) {
        plan.job.codes_batch = batch.codes_strides[plan.inner] * batch.codes_element;
        plan.job.payload_batch = batch.payload_strides[plan.inner] * batch.payload_element;
        plan.job.batch_step = plan.index_steps[plan.inner];
    }
    plan.job.codes_aligned =
        is_aligned(job.codes, codes_step, batch, batch.codes_strides, batch.codes_element, walk.codes_vector);
    plan.job.payload_aligned =
        is_aligned(job.payload, payload_step, batch, batch.payload_strides, batch.payload_element, walk.payload_vector);
    return plan;
}

/* Launches over `count` matrices, as many at a time as a grid holds. */
inline cudaError_t launch_matrices(const Plan &plan, Job job, int64_t count, cudaStream_t stream)
{
    while (count > 0) {
        const int64_t now = count < max_grid_y ? count : max_grid_y;
        const dim3 grid(static_cast<unsigned>(plan.shape.blocks), static_cast<unsigned>(now));
        uint32_t split = plan.shape.split;
        void *arguments[] = {&job, &split};
        const cudaError_t error =
            cudaLaunchKernel(plan.kernel, grid, plan.shape.threads, arguments, plan.shape.shared, stream);
        if (error != cudaSuccess) {
            return error;
        }
        job.codes += now * job.codes_batch;
        job.payload += now * job.payload_batch;
        job.first += static_cast<uint64_t>(now) * job.batch_step;
        count -= now;
    }
    return cudaSuccess;
}

inline cudaError_t launch_plan(const Plan &plan, const Batch &batch, const Fault &fault, cudaStream_t stream)
{
    if (plan.shape.blocks > static_cast<uint64_t>(max_grid_x)) {
        return cudaErrorInvalidConfiguration;
    }
    if (plan.shape.shared > max_shared) {
        const cudaError_t error = cudaFuncSetAttribute(plan.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(plan.shape.shared));
        if (error != cudaSuccess) {
            return error;
        }
    }
    int64_t at[AWQ_MAX_DIMS] = {0};
    for (;;) {
        Job job = plan.job;
        job.fault = fault;
        for (int i = 0; i < batch.dims; i++) {
            job.codes += at[i] * batch.codes_strides[i] * batch.codes_element;
            job.payload += at[i] * batch.payload_strides[i] * batch.payload_element;
            job.first += static_cast<uint64_t>(at[i]) * plan.index_steps[i];
        }
        const cudaError_t error = launch_matrices(plan, job, plan.inner < 0 ? 1 : batch.sizes[plan.inner], stream);
        if (error != cudaSuccess) {
            return error;
        }
        int i = batch.dims - 1;
        while (i >= 0 && (i == plan.inner || ++at[i] == batch.sizes[i])) {
            at[i--] = 0;
        }
        if (i < 0) {
            return cudaSuccess;
        }
    }
}

} // namespace awq_cuda

#endif

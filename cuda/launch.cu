/* The C entry points: which kernel takes a geometry, its launches over the batch, fault word, devices, error text. */
#include "awqpack_cuda.h"

#include <stdio.h>

#include "common.cuh"
#include "generic.cuh"
#include "rowmajor.cuh"
#include "tile.cuh"

#ifndef AWQPACK_CUDA_ARCHS
#define AWQPACK_CUDA_ARCHS ""
#endif

using namespace awq_cuda;

namespace {

/* Chosen by the --tune run of tests/c/check_cuda.cu. */
using PackRows = RowConfig<2, 256, true, load_plain>;
using UnpackRows = RowConfig<2, 256, true, load_plain>;
using PackTile = TileConfig<16, 512, true, 16, 2, 1, load_plain>;
using UnpackTile = TileConfig<16, 512, true, endless, 2, 2, load_plain, 3>;
using UnpackQuadTile = TileConfig<16, 512, true, endless, 2, 1, load_plain, 2>; /* V2, whose payload runs are longer */

constexpr TileKernel tile_packers[AWQ_PACKING_COUNT] = {
    tile_packer<AWQ_PACKING_V1, PackTile>,
    tile_packer<AWQ_PACKING_V1_REORDER, PackTile>,
    tile_packer<AWQ_PACKING_V2, PackTile>,
};
constexpr TileKernel tile_unpackers[AWQ_PACKING_COUNT] = {
    tile_unpacker<AWQ_PACKING_V1, UnpackTile>,
    tile_unpacker<AWQ_PACKING_V1_REORDER, UnpackTile>,
    tile_unpacker<AWQ_PACKING_V2, UnpackQuadTile>,
};

constexpr int64_t max_grid_x = INT32_MAX;
constexpr int64_t max_grid_y = 65535;
constexpr size_t max_shared = 48 * 1024; /* what a kernel may have without being told so */

/* Up to this, where all is a multiple of 16 bytes, a kernel of ours takes less of the host's time than cudaMemcpyAsync. */
constexpr size_t small_copy = 1 << 20;
constexpr int small_threads = 256;

__global__ void __launch_bounds__(small_threads)
    copy_small(const uint4 *__restrict__ source, uint4 *__restrict__ target, int count)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        target[i] = source[i];
    }
}

/* Takes an error this library caused out of the runtime's last-error state. */
int finish(cudaError_t error)
{
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
    }
    return static_cast<int>(error);
}

/* The kernel of a geometry, and the alignment its vector accesses need. */
struct Choice {
    Kernel kernel;
    Shape shape;
    int64_t codes_vector, payload_vector;
};

Choice choose(const awq_geometry &g, const Job &job, bool pack)
{
    if (g.payload_col_stride == 1 && g.codes_col_stride == 1) {
        if (pack) {
            return {row_packers<PackRows>[g.packing], rows_shape<PackRows>(job, g.packing), unit_codes, unit_bytes};
        }
        return {row_unpackers<UnpackRows>[g.packing], rows_shape<UnpackRows>(job, g.packing), unit_codes, unit_bytes};
    }
    if (g.payload_col_stride == 1 && g.codes_row_stride == 1) {
        const TileKernel &tile = (pack ? tile_packers : tile_unpackers)[g.packing];
        return {tile.kernel, tile.shape(job), tile.codes_vector, 16};
    }
    return {(pack ? generic_packers : generic_unpackers)[g.packing], generic_shape(job, g.packing), 1, 1};
}

/* Whether a pointer and every step that is taken from it are multiples of `vector` bytes. */
bool is_aligned(const void *pointer, int64_t step, const int64_t *batch_strides, int64_t element, const awq_geometry &g,
                int64_t vector)
{
    bool aligned = reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(vector) == 0 && step % vector == 0;
    for (int i = 0; i < g.batch_dims; i++) {
        aligned = aligned && (g.batch_sizes[i] == 1 || batch_strides[i] * element % vector == 0);
    }
    return aligned;
}

/* Launches over `count` matrices, as many at a time as a grid holds. */
cudaError_t launch_batch(const Choice &choice, Job job, int64_t count, cudaStream_t stream)
{
    if (choice.shape.blocks > static_cast<uint64_t>(max_grid_x)) {
        return cudaErrorInvalidConfiguration;
    }
    if (choice.shape.shared > max_shared) {
        const cudaError_t error = cudaFuncSetAttribute(choice.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(choice.shape.shared));
        if (error != cudaSuccess) {
            return error;
        }
    }
    while (count > 0) {
        const int64_t now = count < max_grid_y ? count : max_grid_y;
        const dim3 grid(static_cast<unsigned>(choice.shape.blocks), static_cast<unsigned>(now));
        uint32_t split = choice.shape.split;
        void *arguments[] = {&job, &split};
        const cudaError_t error = cudaLaunchKernel(choice.kernel, grid, choice.shape.threads, arguments,
                                                   choice.shape.shared, stream);
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

uint64_t matrices(const awq_geometry &g)
{
    uint64_t count = 1;
    for (int i = 0; i < g.batch_dims; i++) {
        count *= static_cast<uint64_t>(g.batch_sizes[i]);
    }
    return count;
}

/* A geometry as launches take it: the largest batch dimension in the grid, the others in a loop. */
struct Plan {
    Job job;
    Choice choice;
    int inner; /* the dimension in the grid; -1 without any */
    uint64_t index_steps[AWQ_MAX_DIMS];
};

Plan make_plan(const awq_geometry &g, uint8_t *codes, uint8_t *payload, bool pack)
{
    Plan plan;
    Job &job = plan.job;
    uint64_t step = static_cast<uint64_t>(g.rows) * static_cast<uint64_t>(g.cols);
    plan.inner = -1;
    for (int i = g.batch_dims - 1; i >= 0; i--) {
        plan.index_steps[i] = step;
        step *= static_cast<uint64_t>(g.batch_sizes[i]);
        if (plan.inner < 0 || g.batch_sizes[i] > g.batch_sizes[plan.inner]) {
            plan.inner = i;
        }
    }
    const int64_t element = element_bytes(g.packing);
    job = {};
    job.codes = codes;
    job.payload = payload;
    job.rows = g.rows;
    job.cols = g.cols;
    job.codes_row = g.codes_row_stride;
    job.codes_col = g.codes_col_stride;
    job.payload_row = g.payload_row_stride * element;
    job.payload_col = g.payload_col_stride * element;
    if (plan.inner >= 0) {
        job.codes_batch = g.codes_batch_strides[plan.inner];
        job.payload_batch = g.payload_batch_strides[plan.inner] * element;
        job.batch_step = plan.index_steps[plan.inner];
    }
    plan.choice = choose(g, job, pack);
    /* the stride that vectors do not run along; a single row or payload row never takes it */
    const int64_t codes_step = g.codes_col_stride != 1 ? job.codes_col : g.rows > 1 ? job.codes_row : 0;
    const int64_t payload_step = payload_lines(g.packing, g.rows) > 1 ? job.payload_row : 0;
    job.codes_aligned = is_aligned(codes, codes_step, g.codes_batch_strides, 1, g, plan.choice.codes_vector);
    job.payload_aligned = is_aligned(payload, payload_step, g.payload_batch_strides, element, g, plan.choice.payload_vector);
    return plan;
}

cudaError_t launch_plan(const awq_geometry &g, const Plan &plan, const Fault &fault, cudaStream_t stream)
{
    const int64_t element = element_bytes(g.packing);
    int64_t at[AWQ_MAX_DIMS] = {0};
    for (;;) {
        Job job = plan.job;
        job.fault = fault;
        for (int i = 0; i < g.batch_dims; i++) {
            job.codes += at[i] * g.codes_batch_strides[i];
            job.payload += at[i] * g.payload_batch_strides[i] * element;
            job.first += static_cast<uint64_t>(at[i]) * plan.index_steps[i];
        }
        const cudaError_t error = launch_batch(plan.choice, job, plan.inner < 0 ? 1 : g.batch_sizes[plan.inner], stream);
        if (error != cudaSuccess) {
            return error;
        }
        int i = g.batch_dims - 1;
        while (i >= 0 && (i == plan.inner || ++at[i] == g.batch_sizes[i])) {
            at[i--] = 0;
        }
        if (i < 0) {
            return cudaSuccess;
        }
    }
}

/* Runs one direction over the whole geometry. Codes are checked where there is a word to tell of it. */
cudaError_t run(const awq_geometry &g, const void *codes, const void *payload, bool pack, uint64_t *fault, cudaStream_t stream)
{
    const uint64_t count = matrices(g);
    if (fault != nullptr) {
        *fault = AWQ_CUDA_NO_FAULT;
    }
    if (count == 0 || g.rows == 0 || g.cols == 0) {
        return cudaSuccess;
    }
    /* one job type serves both directions; a kernel writes to one side only */
    const Plan plan = make_plan(g, static_cast<uint8_t *>(const_cast<void *>(codes)),
                                static_cast<uint8_t *>(const_cast<void *>(payload)), pack);
    if (fault == nullptr) {
        return launch_plan(g, plan, {}, stream);
    }
    return run_checked(plan.choice.shape.blocks * count, stream, fault,
                       [&](const Fault &word) { return launch_plan(g, plan, word, stream); });
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

extern "C" int awq_cuda_copy(void *target, const void *source, size_t bytes, void *stream)
{
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    if (bytes == 0) {
        return 0;
    }
    if (bytes > small_copy || (reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source) | bytes) % 16 != 0) {
        return finish(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, s));
    }
    int count = static_cast<int>(bytes / sizeof(uint4));
    void *arguments[] = {&source, &target, &count};
    return finish(cudaLaunchKernel(copy_small, (count + small_threads - 1) / small_threads, small_threads, arguments, 0, s));
}

extern "C" int awq_cuda_is_capturing(void *stream, bool *is_capturing)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
    *is_capturing = status != cudaStreamCaptureStatusNone;
    return finish(error);
}

extern "C" int awq_cuda_enter_device(int device, int *previous)
{
    cudaError_t error = cudaGetDevice(previous);
    if (error == cudaSuccess && *previous != device) {
        error = cudaSetDevice(device);
    }
    return finish(error);
}

extern "C" int awq_cuda_leave_device(int previous)
{
    int current;
    return awq_cuda_enter_device(previous, &current);
}

extern "C" int awq_cuda_probe(int device)
{
    int previous;
    int code = awq_cuda_enter_device(device, &previous);
    if (code == 0) {
        cudaFuncAttributes attributes;
        code = finish(cudaFuncGetAttributes(&attributes, generic_packers[AWQ_PACKING_V1]));
        (void)awq_cuda_leave_device(previous);
    }
    return code;
}

extern "C" const char *awq_cuda_error_text(int code, char *text, size_t size)
{
    const cudaError_t error = static_cast<cudaError_t>(code);
    (void)snprintf(text, size, "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
    return text;
}

extern "C" const char *awq_cuda_archs(void)
{
    return AWQPACK_CUDA_ARCHS;
}

extern "C" int awq_cuda_runtime_version(void)
{
    return CUDART_VERSION;
}

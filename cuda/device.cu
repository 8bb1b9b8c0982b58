/* The C entry points beside pack and unpack: copies, devices, captures, error text. */
#include "awqpack_cuda.h"

#include <stdio.h>

#include "batch.cuh"

#ifndef AWQPACK_CUDA_ARCHS
#define AWQPACK_CUDA_ARCHS ""
#endif

using namespace awq_cuda;

namespace {

/* Up to this, where all is a multiple of 16 bytes, a kernel takes less of the host's time than cudaMemcpyAsync. */
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

} // namespace

extern "C" int awq_cuda_copy(void *target, const void *source, size_t bytes, void *stream)
{
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    if (bytes == 0) {
        return 0;
    }
    if (bytes > small_copy ||
        (reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source) | bytes) % 16 != 0) {
        return finish(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, s));
    }
    int count = static_cast<int>(bytes / sizeof(uint4));
    void *arguments[] = {&source, &target, &count};
    return finish(
        cudaLaunchKernel(copy_small, (count + small_threads - 1) / small_threads, small_threads, arguments, 0, s));
}

extern "C" int awq_cuda_is_capturing(void *stream, bool *is_capturing)
{
    *is_capturing = false;
    if (stream == nullptr) { /* no graph can be captured from the legacy stream; to ask would take the host's time */
        return 0;
    }
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
        code = finish(cudaFuncGetAttributes(&attributes, copy_small));
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

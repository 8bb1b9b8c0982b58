/* The ops between floats and payloads on CUDA tensors. Compiled only with nvcc at hand. */
#include "kernels/float_bits.h"
#include "torch/cuda_shim.hpp"
#include "torch/float_ops.hpp"

namespace {

using awqpack::check;
using awqpack::current_stream;
using awqpack::Device;
using awqpack::DeviceGuard;
using awqpack::raise;
using awqpack::Tensor;

/* An element of a tensor on the device, by its row-major linear index. */
template <class T>
T fetch(const awq_view &view, int64_t linear, void *stream)
{
    const char *element = static_cast<const char *>(view.data);
    for (int64_t d = view.ndim - 1; d >= 0; d--) {
        element += linear % view.sizes[d] * view.strides[d] * awq_dtype_bytes(view.dtype);
        linear /= view.sizes[d];
    }
    T value{};
    check(awq_cuda_fetch(&value, element, static_cast<size_t>(awq_dtype_bytes(view.dtype)), stream));
    return value;
}

float fetch_float(const awq_view &view, int64_t linear, void *stream)
{
    const uint32_t bits = fetch<uint32_t>(view, linear, stream);
    return awq_float_load(view.dtype, &bits);
}

/* Raises what a fault word says. */
void raise_fault(const char *op, uint64_t fault, const awq_float_views &views, void *stream)
{
    if (fault == AWQ_CUDA_NO_FAULT) {
        return;
    }
    awq_error error;
    const int64_t linear = static_cast<int64_t>(fault & ((uint64_t{1} << AWQ_CUDA_FAULT_TENSOR_SHIFT) - 1));
    switch (static_cast<awq_cuda_fault_tensor>(fault >> AWQ_CUDA_FAULT_TENSOR_SHIFT)) {
    case AWQ_CUDA_FAULT_SCALE:
        awq_fail_scale_at(views.scales, linear, fetch_float(*views.scales, linear, stream), &error);
        break;
    case AWQ_CUDA_FAULT_ZERO:
        awq_fail_zero_at(views.zeros, linear, fetch<uint8_t>(*views.zeros, linear, stream), &error);
        break;
    case AWQ_CUDA_FAULT_WEIGHT:
        awq_fail_weight_at(op, views.weight, linear, fetch_float(*views.weight, linear, stream), &error);
        break;
    case AWQ_CUDA_FAULT_RANGE: awq_fail_range_at(views.scales, linear, &error); break;
    }
    raise(error);
}

/* Calls launch(geometry, stream, fault), without `fault` where nothing may wait for one, and raises what it found. */
template <class Launch>
void run_checked(const char *op, const Tensor &weight, const awq_float_views &views, awq_packing packing, bool validate,
                 Launch launch)
{
    const int device = Device(weight).index;
    const DeviceGuard guard(device);
    void *stream = current_stream(device);
    awq_float_geometry geometry;
    awq_float_geometry_init(&geometry, packing, &views);
    uint64_t fault = AWQ_CUDA_NO_FAULT;
    check(launch(geometry, stream, awqpack::may_check(validate, stream) ? &fault : nullptr));
    raise_fault(op, fault, views, stream);
}

/* Values are looked at where the kernels' host may wait for what they find: never by dequantize, nor while a graph is
 * captured. */
struct CudaFloats {
    static void dequantize(const Tensor &payload, const awq_float_views &views, awq_packing packing)
    {
        const int device = Device(payload).index;
        const DeviceGuard guard(device);
        awq_float_geometry geometry;
        awq_float_geometry_init(&geometry, packing, &views);
        check(awq_cuda_dequantize(&geometry, current_stream(device)));
    }

    static void quantize(const Tensor &weight, const awq_float_views &views, awq_packing packing, bool validate)
    {
        run_checked("quantize", weight, views, packing, validate,
                    [](const awq_float_geometry &geometry, void *stream, uint64_t *fault) {
                        return awq_cuda_quantize(&geometry, stream, fault);
                    });
    }

    static void min_max(const Tensor &weight, const awq_float_views &views, awq_scale_mode mode)
    {
        run_checked("min_max_scales", weight, views, AWQ_PACKING_V1, true,
                    [mode](const awq_float_geometry &geometry, void *stream, uint64_t *fault) {
                        return awq_cuda_min_max(&geometry, mode, stream, fault);
                    });
    }
};

} // namespace

void awqpack::implement_cuda_floats(torch::stable::detail::StableLibrary &library)
{
    implement_floats<CudaFloats>(library);
}

/* The ops on CUDA tensors: torch's current stream and allocator around the kernels of cuda/. Compiled only with nvcc at
   hand. */
#include <memory>

#include "torch/cuda_shim.hpp"
#include "torch/shim.h"

namespace {

using awqpack::check;
using awqpack::current_stream;
using awqpack::Device;
using awqpack::DeviceGuard;
using awqpack::find_stream;
using awqpack::raise;
using awqpack::succeed;
using awqpack::Tensor;
using torch::stable::detail::StableLibrary;

struct Cuda {
    static void pack(const Tensor &input, const awq_view &codes, const awq_view &payload, awq_packing packing,
                     bool validate)
    {
        const int device = Device(input).index;
        const DeviceGuard guard(device);
        void *stream = current_stream(device);
        awq_geometry geometry;
        awq_geometry_init(&geometry, packing, &codes, &payload);
        if (!awqpack::may_check(validate, stream)) {
            check(awq_cuda_pack(&geometry, codes.data, payload.data, stream));
            return;
        }
        uint64_t found;
        check(awq_cuda_pack_checked(&geometry, codes.data, payload.data, stream, &found));
        if (found != AWQ_CUDA_NO_FAULT) {
            awq_error error;
            awq_fail_code_at(codes.sizes, codes.ndim, static_cast<int64_t>(found >> 8), static_cast<int>(found & 255),
                             &error);
            raise(error);
        }
    }

    static void unpack(const Tensor &input, const awq_view &payload, const awq_view &codes, awq_packing packing)
    {
        const int device = Device(input).index;
        const DeviceGuard guard(device);
        awq_geometry geometry;
        awq_geometry_init(&geometry, packing, &codes, &payload);
        check(awq_cuda_unpack(&geometry, payload.data, codes.data, current_stream(device)));
    }

    static void relayout(const Tensor &input, const awq_relayout &relayout, const void *source, void *target)
    {
        const int device = Device(input).index;
        const DeviceGuard guard(device);
        check(awq_cuda_relayout(&relayout, source, target, current_stream(device)));
    }
};

/* Held while CUDA tensors come to these kernels; without it they go to the portable ones. */
std::unique_ptr<StableLibrary> &registration()
{
    static std::unique_ptr<StableLibrary> library;
    return library;
}

} // namespace

bool awq_cuda_register(void)
{
    if (registration() == nullptr) {
        registration() =
            std::make_unique<StableLibrary>(StableLibrary::Kind::IMPL, "awqpack", "CUDA", __FILE__, __LINE__);
        awqpack::implement<Cuda>(*registration());
        awqpack::implement_relayout<Cuda>(*registration());
        awqpack::implement_cuda_floats(*registration());
    }
    return true;
}

void awq_cuda_unregister(void)
{
    registration().reset();
}

bool awq_cuda_is_registered(void)
{
    return registration() != nullptr;
}

bool awq_cuda_copy_on(int device, void *target, const void *source, size_t bytes, awq_error *error)
{
    void *stream;
    int previous;
    if (!find_stream(device, &stream, error) || !succeed(awq_cuda_enter_device(device, &previous), error)) {
        return false;
    }
    const int code = awq_cuda_copy(target, source, bytes, stream);
    (void)awq_cuda_leave_device(previous);
    return succeed(code, error);
}

bool awq_cuda_can_run(int device, awq_error *error)
{
    return succeed(awq_cuda_probe(device), error);
}

const char *awq_cuda_arch_list(void)
{
    return awq_cuda_archs();
}

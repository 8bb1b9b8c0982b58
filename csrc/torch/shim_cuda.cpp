/* The ops on CUDA tensors: torch's current stream and allocator around the kernels of cuda/. Compiled only with nvcc at hand. */
#include <dlfcn.h>

#include <memory>

#include "awqpack_cuda.h"
#include "torch/ops.hpp"
#include "torch/shim.h"

namespace {

using awqpack::raise;
using awqpack::require;
using torch::stable::Tensor;
using torch::stable::detail::StableLibrary;

bool succeed(int code, awq_error *error)
{
    char text[256];
    return code == 0 || awq_fail(error, AWQ_ERROR_RUNTIME, "CUDA error in awqpack: %s",
                                 awq_cuda_error_text(code, text, sizeof text));
}

void check(int code)
{
    awq_error error;
    require(succeed(code, &error), error);
}

/* The function lives in libtorch_cuda, which a CPU-only torch does not have and this module must not need. */
bool find_stream(int32_t device, void **stream, awq_error *error)
{
    using Function = AOTITorchError (*)(int32_t, void **);
    static const Function function = [] {
        void *library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
        return library == nullptr ? nullptr
                                  : reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
    }();
    return (function != nullptr && function(device, stream) == TORCH_SUCCESS) ||
           awq_fail(error, AWQ_ERROR_RUNTIME, "awqpack found no current CUDA stream for device %d in this torch", device);
}

void *current_stream(int32_t device)
{
    awq_error error;
    void *stream = nullptr;
    require(find_stream(device, &stream, &error), error);
    return stream;
}

/* Makes a tensor's device current for as long as it lives. */
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : device_(device)
    {
        check(awq_cuda_enter_device(device, &previous_));
    }
    ~DeviceGuard()
    {
        if (previous_ != device_) {
            (void)awq_cuda_leave_device(previous_);
        }
    }
    DeviceGuard(const DeviceGuard &) = delete;
    DeviceGuard &operator=(const DeviceGuard &) = delete;

  private:
    int device_, previous_;
};

struct Cuda {
    static void pack(const Tensor &input, const awq_view &codes, const awq_view &payload, awq_packing packing, bool validate)
    {
        const int device = input.get_device_index();
        const DeviceGuard guard(device);
        void *stream = current_stream(device);
        awq_geometry geometry;
        awq_geometry_init(&geometry, packing, &codes, &payload);
        bool is_capturing = false;
        if (validate) {
            check(awq_cuda_is_capturing(stream, &is_capturing));
        }
        if (!validate || is_capturing) {
            check(awq_cuda_pack(&geometry, codes.data, payload.data, stream));
            return;
        }
        uint64_t found;
        check(awq_cuda_pack_checked(&geometry, codes.data, payload.data, stream, &found));
        if (found != AWQ_CUDA_NO_FAULT) {
            awq_error error;
            awq_fail_code_at(codes.sizes, codes.ndim, static_cast<int64_t>(found >> 8), static_cast<int>(found & 255), &error);
            raise(error);
        }
    }

    static void unpack(const Tensor &input, const awq_view &payload, const awq_view &codes, awq_packing packing)
    {
        const int device = input.get_device_index();
        const DeviceGuard guard(device);
        awq_geometry geometry;
        awq_geometry_init(&geometry, packing, &codes, &payload);
        check(awq_cuda_unpack(&geometry, payload.data, codes.data, current_stream(device)));
    }

    static void relayout(const Tensor &input, const awq_relayout &relayout, const void *source, void *target)
    {
        const int device = input.get_device_index();
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
        registration() = std::make_unique<StableLibrary>(StableLibrary::Kind::IMPL, "awqpack", "CUDA", __FILE__, __LINE__);
        awqpack::implement<Cuda>(*registration());
        awqpack::implement_relayout<Cuda>(*registration());
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

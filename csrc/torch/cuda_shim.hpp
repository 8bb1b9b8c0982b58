/* What the CUDA backends share: CUDA's errors as exceptions, torch's current stream, the current device. */
#ifndef AWQPACK_CUDA_SHIM_HPP
#define AWQPACK_CUDA_SHIM_HPP

#include <dlfcn.h>

#include "awqpack_cuda.h"
#include "torch/ops.hpp"

namespace awqpack {

inline bool succeed(int code, awq_error *error)
{
    char text[256];
    return code == 0 || awq_fail(error, AWQ_ERROR_RUNTIME, "CUDA error in awqpack: %s",
                                 awq_cuda_error_text(code, text, sizeof text));
}

inline void check(int code)
{
    awq_error error;
    require(succeed(code, &error), error);
}

/* The function lives in libtorch_cuda, which a CPU-only torch does not have and this module must not need. */
inline bool find_stream(int32_t device, void **stream, awq_error *error)
{
    using Function = AOTITorchError (*)(int32_t, void **);
    static const Function function = [] {
        void *library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
        return library == nullptr ? nullptr
                                  : reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
    }();
    return (function != nullptr && function(device, stream) == TORCH_SUCCESS) ||
           awq_fail(error, AWQ_ERROR_RUNTIME, "awqpack found no current CUDA stream for device %d in this torch",
                    device);
}

inline void *current_stream(int32_t device)
{
    awq_error error;
    void *stream = nullptr;
    require(find_stream(device, &stream, &error), error);
    return stream;
}

/* Makes a tensor's device current for as long as it lives. */
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : device_(device) { check(awq_cuda_enter_device(device, &previous_)); }
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

/* Whether a call may wait for what it finds in its arguments: it wants to, and no graph is being captured. */
inline bool may_check(bool wanted, void *stream)
{
    bool is_capturing = false;
    if (wanted) {
        check(awq_cuda_is_capturing(stream, &is_capturing));
    }
    return wanted && !is_capturing;
}

/* Sends CUDA tensors of the ops between floats and payloads to the kernels of cuda/. */
void implement_cuda_floats(torch::stable::detail::StableLibrary &library);

} // namespace awqpack

#endif

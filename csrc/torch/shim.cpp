/* Registers awqpack's ops over libtorch's stable ABI, lends torch's thread pool and its memory to the C code; nothing
   else. */
#include <cstdlib>

#include "kernels/cpu.h"
#include "kernels/relayout.h"
#include "torch/ops.hpp"
#include "torch/parallel.hpp"
#include "torch/shim.h"

namespace {

using awqpack::require;
using awqpack::Tensor;

struct Cpu {
    static uint8_t run(awq_direction direction, awq_packing packing, const awq_view &codes, const awq_view &payload)
    {
        awq_error error;
        awq_job job;
        uint8_t seen = 0;
        const awq_kernels *kernels = awq_active_kernels(&error);
        require(kernels != nullptr, error);
        awq_job_init(&job, direction, packing, kernels, &codes, &payload);
        require(awq_parallel_run(&job, &seen, &error), error);
        return seen;
    }

    static void pack(const Tensor &, const awq_view &codes, const awq_view &payload, awq_packing packing, bool validate)
    {
        awq_error error;
        const uint8_t seen = run(AWQ_PACK, packing, codes, payload);
        require(!validate || seen <= AWQ_CODE_MAX || awq_fail_invalid_code(&codes, &error), error);
    }

    static void unpack(const Tensor &, const awq_view &payload, const awq_view &codes, awq_packing packing)
    {
        run(AWQ_UNPACK, packing, codes, payload);
    }

    static void relayout(const Tensor &, const awq_relayout &relayout, const void *source, void *target)
    {
        awq_error error;
        awq_relayout_job job;
        unsigned seen = 0;
        const awq_kernels *kernels = awq_active_kernels(&error);
        require(kernels != nullptr, error);
        awq_relayout_job_init(&job, &relayout, kernels, source, target);
        require(awqpack::parallel_run(job, awq_relayout_job_run, &seen, &error), error);
    }
};

} // namespace

bool awq_parallel_run(const awq_job *job, uint8_t *seen, awq_error *error)
{
    unsigned all = 0;
    const bool ok = awqpack::parallel_run(*job, awq_job_run, &all, error);
    *seen = static_cast<uint8_t>(all);
    return ok;
}

const awq_kernels *awq_active_kernels(awq_error *error)
{
    struct Choice {
        awq_error error;
        const awq_kernels *kernels;
    };
    static const Choice choice = [] {
        Choice made{};
        made.kernels = awq_cpu_choose(std::getenv("AWQPACK_CPU"), &made.error);
        return made;
    }();
    *error = choice.error;
    return choice.kernels;
}

const awq_error *awq_last_error(void)
{
    return &awqpack::last_error;
}

bool awq_tensor_new(int32_t ndim, const int64_t *sizes, int bits, int32_t cuda_device, void **tensor, void **data)
{
    const bool on_host = cuda_device < 0;
    int64_t strides[AWQ_MAX_DIMS];
    awq_error error;
    AtenTensorHandle handle;
    if (ndim > AWQ_MAX_DIMS || !awq_dense_strides(ndim, sizes, nullptr, strides, &error) ||
        aoti_torch_empty_strided(ndim, sizes, strides, bits == 16 ? aoti_torch_dtype_int16() : aoti_torch_dtype_int32(),
                                 on_host ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(),
                                 on_host ? 0 : cuda_device, &handle) != TORCH_SUCCESS) {
        return false;
    }
    if (aoti_torch_get_data_ptr(handle, data) != TORCH_SUCCESS) {
        aoti_torch_delete_tensor_object(handle);
        return false;
    }
    *tensor = handle;
    return true;
}

void awq_tensor_delete(void *tensor)
{
    aoti_torch_delete_tensor_object(static_cast<AtenTensorHandle>(tensor));
}

STABLE_TORCH_LIBRARY(awqpack, m)
{
    m.def("pack(Tensor codes, int packing, bool reorder, bool validate=True) -> Tensor");
    m.def("unpack(Tensor payload, int packing, bool reorder, int[]? stride_order=None) -> Tensor");
    m.def("pack_out(Tensor codes, int packing, bool reorder, bool validate=True, *, Tensor(a!) out) -> ()");
    m.def("unpack_out(Tensor payload, int packing, bool reorder, *, Tensor(a!) out) -> ()");
    m.def("relayout(Tensor payload, int source, bool source_reorder, int target, bool target_reorder, bool transpose) "
          "-> Tensor");
    m.def("relayout_out(Tensor payload, int source, bool source_reorder, int target, bool target_reorder, bool "
          "transpose, "
          "*, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(awqpack, CPU, m)
{
    awqpack::implement<Cpu>(m);
    awqpack::implement_relayout<Cpu>(m);
}

#ifndef AWQPACK_WITH_CUDA
bool awq_cuda_register(void)
{
    return false;
}

void awq_cuda_unregister(void) {}

bool awq_cuda_is_registered(void)
{
    return false;
}

bool awq_cuda_copy_on(int, void *, const void *, size_t, awq_error *error)
{
    return awq_fail(error, AWQ_ERROR_RUNTIME, "this build has no CUDA kernels");
}

bool awq_cuda_can_run(int, awq_error *)
{
    return false;
}

const char *awq_cuda_arch_list(void)
{
    return "";
}
#endif

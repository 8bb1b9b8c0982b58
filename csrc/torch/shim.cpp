/* Registers awqpack's ops over libtorch's stable ABI and lends torch's thread pool to the C code; nothing else. */
#include <atomic>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "kernels/cpu.h"
#include "torch/shim.h"

namespace {

using torch::stable::Tensor;
using Order = std::optional<std::vector<int64_t>>;

/* pybind turns these into Python's own: ValueError, MemoryError and RuntimeError. */
[[noreturn]] void raise(const awq_error &error)
{
    switch (error.kind) {
    case AWQ_ERROR_VALUE:
        throw std::invalid_argument(error.text);
    case AWQ_ERROR_MEMORY:
        throw std::bad_alloc();
    default:
        throw std::runtime_error(error.text);
    }
}

void require(bool ok, const awq_error &error)
{
    if (!ok) {
        raise(error);
    }
}

struct Dtype {
    awq_dtype dtype;
    const char *name;
};

Dtype dtype_of(const Tensor &tensor)
{
    using torch::headeronly::ScalarType;
    switch (tensor.scalar_type()) {
    case ScalarType::Byte: return {AWQ_DTYPE_UINT8, "torch.uint8"};
    case ScalarType::Short: return {AWQ_DTYPE_INT16, "torch.int16"};
    case ScalarType::Int: return {AWQ_DTYPE_INT32, "torch.int32"};
    case ScalarType::Char: return {AWQ_DTYPE_OTHER, "torch.int8"};
    case ScalarType::Long: return {AWQ_DTYPE_OTHER, "torch.int64"};
    case ScalarType::Bool: return {AWQ_DTYPE_OTHER, "torch.bool"};
    case ScalarType::Half: return {AWQ_DTYPE_OTHER, "torch.float16"};
    case ScalarType::BFloat16: return {AWQ_DTYPE_OTHER, "torch.bfloat16"};
    case ScalarType::Float: return {AWQ_DTYPE_OTHER, "torch.float32"};
    case ScalarType::Double: return {AWQ_DTYPE_OTHER, "torch.float64"};
    case ScalarType::ComplexHalf: return {AWQ_DTYPE_OTHER, "torch.complex32"};
    case ScalarType::ComplexFloat: return {AWQ_DTYPE_OTHER, "torch.complex64"};
    case ScalarType::ComplexDouble: return {AWQ_DTYPE_OTHER, "torch.complex128"};
    case ScalarType::UInt16: return {AWQ_DTYPE_OTHER, "torch.uint16"};
    case ScalarType::UInt32: return {AWQ_DTYPE_OTHER, "torch.uint32"};
    case ScalarType::UInt64: return {AWQ_DTYPE_OTHER, "torch.uint64"};
    default: return {AWQ_DTYPE_OTHER, "another dtype"};
    }
}

awq_view view_of(const Tensor &tensor, void *data)
{
    const Dtype dtype = dtype_of(tensor);
    return {data, tensor.sizes().data(), tensor.strides().data(), tensor.dim(), dtype.dtype, dtype.name};
}

/* Reading through the const pointer keeps copy-on-write storage shared. */
awq_view input_view(const Tensor &tensor)
{
    return view_of(tensor, const_cast<void *>(tensor.const_data_ptr()));
}

awq_view output_view(const Tensor &tensor)
{
    return view_of(tensor, tensor.mutable_data_ptr());
}

int32_t torch_dtype(awq_dtype dtype)
{
    switch (dtype) {
    case AWQ_DTYPE_INT16: return aoti_torch_dtype_int16();
    case AWQ_DTYPE_INT32: return aoti_torch_dtype_int32();
    default: return aoti_torch_dtype_uint8();
    }
}

awq_layout layout_of(int64_t packing, bool reorder)
{
    awq_error error;
    awq_layout layout;
    require(awq_layout_from_packing(packing, reorder, &layout, &error), error);
    return layout;
}

Tensor empty_beside(const Tensor &input, const int64_t *sizes, const int64_t *order, awq_dtype dtype)
{
    awq_error error;
    int64_t strides[AWQ_MAX_DIMS];
    require(awq_dense_strides(input.dim(), sizes, order, strides, &error), error);
    int32_t device_type, device_index;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(input.get(), &device_type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(input.get(), &device_index));
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(input.dim(), sizes, strides, torch_dtype(dtype), device_type,
                                                    device_index, &handle));
    return Tensor(handle);
}

const awq_kernels *active_kernels()
{
    awq_error error;
    const awq_kernels *kernels = awq_active_kernels(&error);
    require(kernels != nullptr, error);
    return kernels;
}

void run_pack(const awq_view &codes, const awq_view &payload, awq_layout layout, bool validate)
{
    awq_error error;
    awq_job job;
    awq_job_init(&job, AWQ_PACK, layout, active_kernels(), &codes, &payload);
    uint8_t seen = 0;
    require(awq_parallel_run(&job, &seen, &error), error);
    require(!validate || seen <= AWQ_CODE_MAX || awq_fail_invalid_code(&codes, &error), error);
}

void run_unpack(const awq_view &payload, const awq_view &codes, awq_layout layout)
{
    awq_error error;
    awq_job job;
    awq_job_init(&job, AWQ_UNPACK, layout, active_kernels(), &codes, &payload);
    uint8_t seen = 0;
    require(awq_parallel_run(&job, &seen, &error), error);
}

Tensor pack(const Tensor codes, int64_t packing, bool reorder, bool validate)
{
    awq_error error;
    const awq_layout layout = layout_of(packing, reorder);
    const awq_view input = input_view(codes);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_codes(&input, layout, sizes, &error), error);
    Tensor payload = empty_beside(codes, sizes, nullptr, awq_payload_dtype(layout));
    run_pack(input, output_view(payload), layout, validate);
    return payload;
}

void pack_out(const Tensor codes, int64_t packing, bool reorder, bool validate, Tensor out)
{
    awq_error error;
    const awq_layout layout = layout_of(packing, reorder);
    const awq_view input = input_view(codes), payload = output_view(out);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_codes(&input, layout, sizes, &error), error);
    require(awq_check_out(&payload, awq_payload_dtype(layout), sizes, &input, &error), error);
    run_pack(input, payload, layout, validate);
}

Tensor unpack(const Tensor payload, int64_t packing, bool reorder, Order stride_order)
{
    awq_error error;
    const awq_layout layout = layout_of(packing, reorder);
    const awq_view input = input_view(payload);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_payload(&input, layout, sizes, &error), error);
    if (stride_order && static_cast<int64_t>(stride_order->size()) != input.ndim) {
        awq_fail(&error, AWQ_ERROR_VALUE, "stride_order expects one entry for each of the %lld dimensions; got %zu",
                 static_cast<long long>(input.ndim), stride_order->size());
        raise(error);
    }
    Tensor codes = empty_beside(payload, sizes, stride_order ? stride_order->data() : nullptr, AWQ_DTYPE_UINT8);
    run_unpack(input, output_view(codes), layout);
    return codes;
}

void unpack_out(const Tensor payload, int64_t packing, bool reorder, Tensor out)
{
    awq_error error;
    const awq_layout layout = layout_of(packing, reorder);
    const awq_view input = input_view(payload), codes = output_view(out);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_payload(&input, layout, sizes, &error), error);
    require(awq_check_out(&codes, AWQ_DTYPE_UINT8, sizes, &input, &error), error);
    run_unpack(input, codes, layout);
}

struct Run {
    const awq_job *job;
    std::atomic<unsigned> seen;
};

void run_units(int64_t begin, int64_t end, void *context)
{
    Run *run = static_cast<Run *>(context);
    run->seen.fetch_or(awq_job_run(run->job, begin, end), std::memory_order_relaxed);
}

} // namespace

bool awq_parallel_run(const awq_job *job, uint8_t *seen, awq_error *error)
{
    Run run{job, {0}};
    if (torch_parallel_for(0, job->units, job->units_per_task, run_units, &run) != TORCH_SUCCESS) {
        return awq_fail(error, AWQ_ERROR_RUNTIME, "torch_parallel_for failed");
    }
    *seen = static_cast<uint8_t>(run.seen.load());
    return true;
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

STABLE_TORCH_LIBRARY(awqpack, m)
{
    m.def("pack(Tensor codes, int packing, bool reorder, bool validate=True) -> Tensor");
    m.def("unpack(Tensor payload, int packing, bool reorder, int[]? stride_order=None) -> Tensor");
    m.def("pack_out(Tensor codes, int packing, bool reorder, bool validate=True, *, Tensor(a!) out) -> ()");
    m.def("unpack_out(Tensor payload, int packing, bool reorder, *, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(awqpack, CPU, m)
{
    m.impl("pack", TORCH_BOX(&pack));
    m.impl("unpack", TORCH_BOX(&unpack));
    m.impl("pack_out", TORCH_BOX(&pack_out));
    m.impl("unpack_out", TORCH_BOX(&unpack_out));
}

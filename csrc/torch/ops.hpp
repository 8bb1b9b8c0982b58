/* The ops over any backend: checks, allocation and errors, which the CPU and CUDA registrations share. */
#ifndef AWQPACK_OPS_HPP
#define AWQPACK_OPS_HPP

#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "awqpack/relayout.h"

namespace awqpack {

struct DeleteTensor {
    void operator()(AtenTensorHandle handle) const { (void)aoti_torch_delete_tensor_object(handle); }
};

/* A call owns its tensors. torch::stable::Tensor would share them, and take a twentieth of the time of a small call. */
using Tensor = std::unique_ptr<AtenTensorOpaque, DeleteTensor>;
using MaybeTensor = std::optional<Tensor>;
using Order = std::optional<std::vector<int64_t>>;

/* The last error of this thread that is no RuntimeError: see awq_last_error. */
inline thread_local awq_error last_error;

/* A std::bad_alloc that says what there was no memory for. */
class MemoryError : public std::bad_alloc {
  public:
    explicit MemoryError(const char *text) : text_(text) {}
    const char *what() const noexcept override { return text_.what(); }

  private:
    std::runtime_error text_;
};

/* pybind turns these into Python's ValueError, MemoryError and RuntimeError; torch 2.15 and newer make RuntimeError of
   all. */
[[noreturn]] inline void raise(const awq_error &error)
{
    switch (error.kind) {
    case AWQ_ERROR_VALUE: last_error = error; throw std::invalid_argument(error.text);
    case AWQ_ERROR_MEMORY: last_error = error; throw MemoryError(error.text);
    default: throw std::runtime_error(error.text);
    }
}

inline void require(bool ok, const awq_error &error)
{
    if (!ok) {
        raise(error);
    }
}

struct Dtype {
    awq_dtype dtype;
    const char *name;
};

inline Dtype dtype_of(torch::headeronly::ScalarType type)
{
    using torch::headeronly::ScalarType;
    switch (type) {
    case ScalarType::Byte: return {AWQ_DTYPE_UINT8, "torch.uint8"};
    case ScalarType::Short: return {AWQ_DTYPE_INT16, "torch.int16"};
    case ScalarType::Int: return {AWQ_DTYPE_INT32, "torch.int32"};
    case ScalarType::Char: return {AWQ_DTYPE_OTHER, "torch.int8"};
    case ScalarType::Long: return {AWQ_DTYPE_OTHER, "torch.int64"};
    case ScalarType::Bool: return {AWQ_DTYPE_OTHER, "torch.bool"};
    case ScalarType::Half: return {AWQ_DTYPE_FLOAT16, "torch.float16"};
    case ScalarType::BFloat16: return {AWQ_DTYPE_BFLOAT16, "torch.bfloat16"};
    case ScalarType::Float: return {AWQ_DTYPE_FLOAT32, "torch.float32"};
    case ScalarType::Double: return {AWQ_DTYPE_OTHER, "torch.float64"};
    case ScalarType::ComplexHalf: return {AWQ_DTYPE_OTHER, "torch.complex32"};
    case ScalarType::ComplexFloat: return {AWQ_DTYPE_OTHER, "torch.complex64"};
    case ScalarType::ComplexDouble: return {AWQ_DTYPE_OTHER, "torch.complex128"};
    case ScalarType::UInt16: return {AWQ_DTYPE_OTHER, "torch.uint16"};
    case ScalarType::UInt32: return {AWQ_DTYPE_OTHER, "torch.uint32"};
    case ScalarType::UInt64: return {AWQ_DTYPE_OTHER, "torch.uint64"};
    case ScalarType::Float8_e5m2: return {AWQ_DTYPE_OTHER, "torch.float8_e5m2"};
    case ScalarType::Float8_e4m3fn: return {AWQ_DTYPE_OTHER, "torch.float8_e4m3fn"};
    case ScalarType::Float8_e5m2fnuz: return {AWQ_DTYPE_OTHER, "torch.float8_e5m2fnuz"};
    case ScalarType::Float8_e4m3fnuz: return {AWQ_DTYPE_OTHER, "torch.float8_e4m3fnuz"};
    default: return {AWQ_DTYPE_OTHER, "another dtype"};
    }
}

inline torch::headeronly::ScalarType scalar_type(const Tensor &tensor)
{
    int32_t type;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
    return torch::stable::detail::to<torch::headeronly::ScalarType>(torch::stable::detail::from(type));
}

inline awq_view view_of(const Tensor &tensor, void *data)
{
    int64_t *sizes, *strides, ndim;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &ndim));
    const Dtype dtype = dtype_of(scalar_type(tensor));
    return {data, sizes, strides, ndim, dtype.dtype, dtype.name};
}

/* Reading through the const pointer keeps copy-on-write storage shared. */
inline awq_view input_view(const Tensor &tensor)
{
    const void *data;
    TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor.get(), &data));
    return view_of(tensor, const_cast<void *>(data));
}

inline awq_view output_view(const Tensor &tensor)
{
    void *data;
    TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor.get(), &data));
    return view_of(tensor, data);
}

struct Device {
    int32_t type, index;

    explicit Device(const Tensor &tensor)
    {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
    }
};

inline int32_t torch_dtype(awq_dtype dtype)
{
    switch (dtype) {
    case AWQ_DTYPE_INT16: return aoti_torch_dtype_int16();
    case AWQ_DTYPE_INT32: return aoti_torch_dtype_int32();
    case AWQ_DTYPE_FLOAT16: return aoti_torch_dtype_float16();
    case AWQ_DTYPE_BFLOAT16: return aoti_torch_dtype_bfloat16();
    case AWQ_DTYPE_FLOAT32: return aoti_torch_dtype_float32();
    default: return aoti_torch_dtype_uint8();
    }
}

inline awq_packing packing_of(int64_t number, bool reorder)
{
    awq_error error;
    awq_packing packing;
    require(awq_packing_from_number(number, reorder, &packing, &error), error);
    return packing;
}

inline Tensor empty_beside(const Tensor &input, const int64_t *sizes, const int64_t *order, awq_dtype dtype)
{
    awq_error error;
    int64_t ndim, strides[AWQ_MAX_DIMS];
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(input.get(), &ndim));
    require(awq_dense_strides(ndim, sizes, order, strides, &error), error);
    const Device device(input);
    AtenTensorHandle handle;
    if (aoti_torch_empty_strided(ndim, sizes, strides, torch_dtype(dtype), device.type, device.index, &handle) !=
        TORCH_SUCCESS) {
        awq_fail(&error, AWQ_ERROR_MEMORY,
                 "awqpack could not allocate a result of shape %s and dtype torch.%s: out of memory?",
                 awq_shape_text(sizes, ndim).chars, awq_dtype_name(dtype));
        raise(error);
    }
    return Tensor(handle);
}

inline void require_same_device(const Tensor &input, const Tensor &out, const char *what = "out")
{
    const Device expected(input), found(out);
    if (expected.type != found.type || expected.index != found.index) {
        awq_error error;
        awq_fail(&error, AWQ_ERROR_VALUE, "%s expects the device of the input; the two are on different devices", what);
        raise(error);
    }
}

/* ---- kernels as torch calls them ---- */

/* An argument from torch's stack, which the kernel owns. */
template <class T>
T take(StableIValue value)
{
    return torch::stable::detail::to<T>(value);
}

template <>
inline Tensor take<Tensor>(StableIValue value)
{
    return Tensor(take<AtenTensorHandle>(value));
}

template <>
inline MaybeTensor take<MaybeTensor>(StableIValue value)
{
    const auto handle = take<std::optional<AtenTensorHandle>>(value);
    return handle ? MaybeTensor(*handle) : std::nullopt;
}

inline void give(StableIValue *stack, Tensor result)
{
    stack[0] = torch::stable::detail::from(result.release());
}

inline void give(StableIValue *stack, std::tuple<Tensor, Tensor> results)
{
    give(stack, std::move(std::get<0>(results)));
    give(stack + 1, std::move(std::get<1>(results)));
}

template <auto Kernel>
struct Boxed;

template <class Result, class... Arguments, Result (*Kernel)(Arguments...)>
struct Boxed<Kernel> {
    static void call(StableIValue *stack, uint64_t count, uint64_t)
    {
        STD_TORCH_CHECK(count == sizeof...(Arguments), "awqpack's schema has ", count, " arguments, its kernel ",
                        sizeof...(Arguments));
        call_with(stack, std::index_sequence_for<Arguments...>());
    }

  private:
    template <std::size_t... I>
    static void call_with(StableIValue *stack, std::index_sequence<I...>)
    {
        if constexpr (std::is_void_v<Result>) {
            Kernel(take<std::decay_t<Arguments>>(stack[I])...);
        } else {
            give(stack, Kernel(take<std::decay_t<Arguments>>(stack[I])...));
        }
    }
};

/* NULL is contiguous. */
inline const int64_t *order_of(const awq_view &input, const Order &stride_order)
{
    if (stride_order && static_cast<int64_t>(stride_order->size()) != input.ndim) {
        awq_error error;
        awq_fail(&error, AWQ_ERROR_VALUE, "stride_order expects one entry for each of the %lld dimensions; got %zu",
                 static_cast<long long>(input.ndim), stride_order->size());
        raise(error);
    }
    return stride_order ? stride_order->data() : nullptr;
}

/* The ops, for a Backend that offers
 *     static void pack(const Tensor &input, const awq_view &codes, const awq_view &payload, awq_packing packing,
 *                      bool validate);
 *     static void unpack(const Tensor &input, const awq_view &payload, const awq_view &codes, awq_packing packing);
 */
template <class Backend>
Tensor pack(const Tensor &codes, int64_t number, bool reorder, bool validate)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(codes);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_codes(&input, packing, sizes, &error), error);
    Tensor payload = empty_beside(codes, sizes, nullptr, awq_payload_dtype(packing));
    Backend::pack(codes, input, output_view(payload), packing, validate);
    return payload;
}

template <class Backend>
void pack_out(const Tensor &codes, int64_t number, bool reorder, bool validate, const Tensor &out)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(codes), payload = output_view(out);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_codes(&input, packing, sizes, &error), error);
    require_same_device(codes, out);
    require(awq_check_out(&payload, awq_payload_dtype(packing), sizes, &input, &error), error);
    Backend::pack(codes, input, payload, packing, validate);
}

template <class Backend>
Tensor unpack(const Tensor &payload, int64_t number, bool reorder, const Order &stride_order)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(payload);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_payload(&input, packing, sizes, &error), error);
    Tensor codes = empty_beside(payload, sizes, order_of(input, stride_order), AWQ_DTYPE_UINT8);
    Backend::unpack(payload, input, output_view(codes), packing);
    return codes;
}

template <class Backend>
void unpack_out(const Tensor &payload, int64_t number, bool reorder, const Tensor &out)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(payload), codes = output_view(out);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_payload(&input, packing, sizes, &error), error);
    require_same_device(payload, out);
    require(awq_check_out(&codes, AWQ_DTYPE_UINT8, sizes, &input, &error), error);
    Backend::unpack(payload, input, codes, packing);
}

/* Two payloads on their way, for a Backend that offers
 *     static void relayout(const Tensor &input, const awq_relayout &relayout, const void *source, void *target);
 */
template <class Backend>
void relayout_into(const Tensor &payload, const Tensor &out, awq_packing source, awq_packing target, bool transpose)
{
    const awq_view from = input_view(payload), to = output_view(out);
    awq_relayout relayout;
    awq_relayout_init(&relayout, source, target, transpose, &from, &to);
    Backend::relayout(payload, relayout, from.data, to.data);
}

template <class Backend>
Tensor relayout(const Tensor &payload, int64_t source, bool source_reorder, int64_t target, bool target_reorder,
                bool transpose)
{
    awq_error error;
    const awq_packing from = packing_of(source, source_reorder), to = packing_of(target, target_reorder);
    const awq_view input = input_view(payload);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_relayout(&input, from, to, transpose, sizes, &error), error);
    Tensor out = empty_beside(payload, sizes, nullptr, awq_payload_dtype(to));
    relayout_into<Backend>(payload, out, from, to, transpose);
    return out;
}

template <class Backend>
void relayout_out(const Tensor &payload, int64_t source, bool source_reorder, int64_t target, bool target_reorder,
                  bool transpose, const Tensor &out)
{
    awq_error error;
    const awq_packing from = packing_of(source, source_reorder), to = packing_of(target, target_reorder);
    const awq_view input = input_view(payload), output = output_view(out);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_relayout(&input, from, to, transpose, sizes, &error), error);
    require_same_device(payload, out);
    require(awq_check_out(&output, awq_payload_dtype(to), sizes, &input, &error), error);
    relayout_into<Backend>(payload, out, from, to, transpose);
}

template <class Backend>
void implement_relayout(torch::stable::detail::StableLibrary &library)
{
    library.impl("relayout", Boxed<&relayout<Backend>>::call);
    library.impl("relayout_out", Boxed<&relayout_out<Backend>>::call);
}

template <class Backend>
void implement(torch::stable::detail::StableLibrary &library)
{
    library.impl("pack", Boxed<&pack<Backend>>::call);
    library.impl("unpack", Boxed<&unpack<Backend>>::call);
    library.impl("pack_out", Boxed<&pack_out<Backend>>::call);
    library.impl("unpack_out", Boxed<&unpack_out<Backend>>::call);
}

} // namespace awqpack

#endif

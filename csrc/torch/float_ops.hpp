/* The ops between floats and payloads over any backend: checks, allocation and errors. */
#ifndef AWQPACK_FLOAT_OPS_HPP
#define AWQPACK_FLOAT_OPS_HPP

#include "awqpack/floats.h"
#include "torch/ops.hpp"

namespace awqpack {

using torch::headeronly::ScalarType;

/* Scales and zeros of a call, on the device of its input. */
class Scaling {
  public:
    Scaling(const Tensor &input, const Tensor &scales, const MaybeTensor &zeros)
        : scales_(input_view(scales)), zeros_(zeros ? input_view(*zeros) : awq_view{}), has_zeros_(zeros.has_value())
    {
        require_same_device(input, scales, "scales");
        if (zeros) {
            require_same_device(input, *zeros, "zeros");
        }
    }

    const awq_view *scales() const { return &scales_; }

    const awq_view *zeros() const { return has_zeros_ ? &zeros_ : nullptr; }

    /* True when `out` shares no memory with them. */
    bool is_apart_from(const awq_view &out, const int64_t *sizes, awq_error *error) const
    {
        return awq_check_out(&out, out.dtype, sizes, &scales_, error) &&
               (!has_zeros_ || awq_check_out(&out, out.dtype, sizes, &zeros_, error));
    }

  private:
    awq_view scales_, zeros_;
    bool has_zeros_;
};

/* Asked for after the inputs are checked, as it is theirs where the caller names none. */
inline awq_dtype float_dtype(const char *op, ScalarType type)
{
    const Dtype dtype = dtype_of(type);
    awq_error error;
    require(awq_dtype_is_float(dtype.dtype) ||
                awq_fail(&error, AWQ_ERROR_VALUE,
                         "%s expects dtype torch.float16, torch.bfloat16 or torch.float32; got %s", op, dtype.name),
            error);
    return dtype.dtype;
}

/* The ops, for a Backend that offers the following, each for views that are checked. Values are the backend's to look
   at:
 * scales finite and not negative, zeros 0..15 (awq_fail_scale_at, awq_fail_zero_at), weights finite
 * (awq_fail_weight_at); without `validate` none of them.
 *     static void dequantize(const Tensor &payload, const awq_float_views &views, awq_packing packing);
 *     static void quantize(const Tensor &weight, const awq_float_views &views, awq_packing packing, bool validate);
 *     static void min_max(const Tensor &weight, const awq_float_views &views, awq_scale_mode mode);
 */
template <class Backend>
Tensor quantize(const Tensor &weight, const Tensor &scales, const MaybeTensor &zeros, int64_t number, bool reorder,
                bool validate)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(weight);
    const Scaling scaling(weight, scales, zeros);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_quantize(&input, scaling.scales(), scaling.zeros(), packing, sizes, &error), error);
    Tensor payload = empty_beside(weight, sizes, nullptr, awq_payload_dtype(packing));
    const awq_view output = output_view(payload);
    Backend::quantize(weight, {&input, &output, scaling.scales(), scaling.zeros()}, packing, validate);
    return payload;
}

template <class Backend>
void quantize_out(const Tensor &weight, const Tensor &scales, const MaybeTensor &zeros, int64_t number, bool reorder,
                  bool validate, const Tensor &out)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(weight), output = output_view(out);
    const Scaling scaling(weight, scales, zeros);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_quantize(&input, scaling.scales(), scaling.zeros(), packing, sizes, &error), error);
    require_same_device(weight, out);
    require(awq_check_out(&output, awq_payload_dtype(packing), sizes, &input, &error), error);
    require(scaling.is_apart_from(output, sizes, &error), error);
    Backend::quantize(weight, {&input, &output, scaling.scales(), scaling.zeros()}, packing, validate);
}

template <class Backend>
Tensor dequantize(const Tensor &payload, const Tensor &scales, const MaybeTensor &zeros, int64_t number, bool reorder,
                  ScalarType type, const Order &stride_order)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(payload);
    const Scaling scaling(payload, scales, zeros);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_dequantize(&input, scaling.scales(), scaling.zeros(), packing, AWQ_DTYPE_FLOAT32, sizes, &error),
            error);
    const awq_dtype dtype = float_dtype("dequantize", type);
    Tensor weight = empty_beside(payload, sizes, order_of(input, stride_order), dtype);
    const awq_view output = output_view(weight);
    Backend::dequantize(payload, {&output, &input, scaling.scales(), scaling.zeros()}, packing);
    return weight;
}

template <class Backend>
void dequantize_out(const Tensor &payload, const Tensor &scales, const MaybeTensor &zeros, int64_t number, bool reorder,
                    const Tensor &out)
{
    awq_error error;
    const awq_packing packing = packing_of(number, reorder);
    const awq_view input = input_view(payload), output = output_view(out);
    const Scaling scaling(payload, scales, zeros);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_dequantize(&input, scaling.scales(), scaling.zeros(), packing, AWQ_DTYPE_FLOAT32, sizes, &error),
            error);
    const awq_dtype dtype = float_dtype("dequantize", scalar_type(out));
    require_same_device(payload, out);
    require(awq_check_out(&output, dtype, sizes, &input, &error), error);
    require(scaling.is_apart_from(output, sizes, &error), error);
    Backend::dequantize(payload, {&output, &input, scaling.scales(), scaling.zeros()}, packing);
}

/* Owns the handle, as std::string's own conversion in torch's headers leaks one. */
inline awq_scale_mode mode_of(StringHandle name)
{
    const char *text;
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(name, &text));
    awq_error error;
    awq_scale_mode mode;
    const bool is_known = awq_scale_mode_from_name(text, &mode, &error);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(name));
    require(is_known, error);
    return mode;
}

template <class Backend>
std::tuple<Tensor, Tensor> min_max_scales(const Tensor &weight, int64_t group_rows, int64_t group_cols,
                                          StringHandle name, ScalarType type)
{
    awq_error error;
    const awq_scale_mode mode = mode_of(name);
    const awq_view input = input_view(weight);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_min_max(&input, group_rows, group_cols, AWQ_DTYPE_FLOAT32, sizes, &error), error);
    const awq_dtype dtype = float_dtype("min_max_scales", type);
    Tensor scales = empty_beside(weight, sizes, nullptr, dtype),
           zeros = empty_beside(weight, sizes, nullptr, AWQ_DTYPE_UINT8);
    const awq_view scales_view = output_view(scales), zeros_view = output_view(zeros);
    Backend::min_max(weight, {&input, nullptr, &scales_view, &zeros_view}, mode);
    return {std::move(scales), std::move(zeros)};
}

template <class Backend>
void min_max_scales_out(const Tensor &weight, int64_t group_rows, int64_t group_cols, StringHandle name,
                        const Tensor &scales, const Tensor &zeros)
{
    awq_error error;
    const awq_scale_mode mode = mode_of(name);
    const awq_view input = input_view(weight), scales_view = output_view(scales), zeros_view = output_view(zeros);
    int64_t sizes[AWQ_MAX_DIMS];
    require(awq_check_min_max(&input, group_rows, group_cols, AWQ_DTYPE_FLOAT32, sizes, &error), error);
    const awq_dtype dtype = float_dtype("min_max_scales", scalar_type(scales));
    require_same_device(weight, scales);
    require_same_device(weight, zeros);
    require(awq_check_out(&scales_view, dtype, sizes, &input, &error), error);
    require(awq_check_out(&zeros_view, AWQ_DTYPE_UINT8, sizes, &input, &error), error);
    require(awq_check_out(&zeros_view, AWQ_DTYPE_UINT8, sizes, &scales_view, &error), error);
    Backend::min_max(weight, {&input, nullptr, &scales_view, &zeros_view}, mode);
}

template <class Backend>
void implement_floats(torch::stable::detail::StableLibrary &library)
{
    library.impl("quantize", Boxed<&quantize<Backend>>::call);
    library.impl("quantize_out", Boxed<&quantize_out<Backend>>::call);
    library.impl("dequantize", Boxed<&dequantize<Backend>>::call);
    library.impl("dequantize_out", Boxed<&dequantize_out<Backend>>::call);
    library.impl("min_max_scales", Boxed<&min_max_scales<Backend>>::call);
    library.impl("min_max_scales_out", Boxed<&min_max_scales_out<Backend>>::call);
}

} // namespace awqpack

#endif

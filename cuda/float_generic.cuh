/* Weights and payload of any stride and any packing, one payload item a thread: correct for what the other kernels do
 * not take. */
#ifndef AWQPACK_CUDA_FLOAT_GENERIC_CUH
#define AWQPACK_CUDA_FLOAT_GENERIC_CUH

#include "float_codes.cuh"
#include "generic.cuh"

namespace awq_cuda {

/* The factor of one code after another: looked up again where the group is another one. */
class FactorWalk {
  public:
    __device__ __forceinline__ explicit FactorWalk(const FloatJob &job) : job_(job), source_(factor_source(job)) {}
    __device__ __forceinline__ const Factor &at(int64_t row, int64_t col)
    {
        const int64_t group_row = job_.group_rows.of_any(row), group_col = job_.group_cols.of_any(col);
        if (group_row != group_row_ || group_col != group_col_) {
            factor_ = group_factor(job_, source_, group_row, group_col);
            group_row_ = group_row, group_col_ = group_col;
        }
        return factor_;
    }

  private:
    const FloatJob &job_;
    FactorSource source_;
    Factor factor_;
    int64_t group_row_ = -1, group_col_ = -1;
};

template <awq_packing P, class T>
__global__ void __launch_bounds__(generic_threads)
    dequantize_generic(const __grid_constant__ FloatJob job, const uint32_t split)
{
    const Item item = generic_item<P>(job, split);
    if (!item.exists) {
        return;
    }
    const uint8_t *payload = job.payload + item_offset(job, item);
    uint8_t *weights = job.codes + blockIdx.y * job.codes_batch + item.row * job.codes_row + item.col * job.codes_col;
    const ItemOf<P> codes = __ldg(reinterpret_cast<const ItemOf<P> *>(payload));
    FactorWalk factors(job);
#pragma unroll
    for (int nibble = 0; nibble < item_codes<P>; nibble++) {
        const awq_place place = place_of<P>(nibble);
        const Factor factor = factors.at(item.row + place.row, item.col + place.col);
        *reinterpret_cast<T *>(weights + place.row * job.codes_row + place.col * job.codes_col) =
            round_one<T>(weight_of(static_cast<uint32_t>(codes >> (4 * nibble) & AWQ_CODE_MAX), 0, factor));
    }
}

template <awq_packing P, class T>
__device__ __forceinline__ void quantize_item(const FloatJob &job, const Item &item)
{
    uint8_t *payload = job.payload + item_offset(job, item);
    ItemOf<P> codes = 0;
#pragma unroll 1
    for (int nibble = 0; nibble < item_codes<P>; nibble++) {
        const awq_place place = place_of<P>(nibble);
        codes |= static_cast<ItemOf<P>>(careful_code<T>(job, item.row + place.row, item.col + place.col))
                 << (4 * nibble);
    }
    *reinterpret_cast<ItemOf<P> *>(payload) = codes;
}

template <awq_packing P, class T>
__global__ void __launch_bounds__(generic_threads)
    quantize_generic(const __grid_constant__ FloatJob job, const uint32_t split)
{
    const Item item = generic_item<P>(job, split);
    if (item.exists) {
        quantize_item<P, T>(job, item);
    }
    finish_check(job.fault);
}

/* The kernels by the dtype of weights and packing. */
template <class T>
struct FloatGeneric {
    template <awq_packing P>
    struct Dequantizer {
        static constexpr FloatKernel value = dequantize_generic<P, T>;
    };
    template <awq_packing P>
    struct Quantizer {
        static constexpr FloatKernel value = quantize_generic<P, T>;
    };
};
template <class T>
constexpr const FloatKernel *generic_dequantizers = ByPacking<FloatGeneric<T>::template Dequantizer>::table;
template <class T>
constexpr const FloatKernel *generic_quantizers = ByPacking<FloatGeneric<T>::template Quantizer>::table;

} // namespace awq_cuda

#endif

/* The kernels that quantize and dequantize, by the dtype of weights and by packing, and how each is configured. */
#ifndef AWQPACK_CUDA_FLOAT_TABLES_CUH
#define AWQPACK_CUDA_FLOAT_TABLES_CUH

#include "float_generic.cuh"
#include "float_marlin.cuh"
#include "float_rows.cuh"
#include "float_tile.cuh"

namespace awq_cuda {

/* Of those tried, the fastest or nearly so on an H100 and on an H200, whose memory is 1.4 times as fast. */
using DequantizeBelow = FloatRowConfig<Units::below, 4, 256, 5>;
using DequantizeColumns = FloatRowConfig<Units::columns, 4, 256, 6>;
using DequantizeWideColumns = FloatRowConfig<Units::columns, 4, 256, 5>;
static_assert(DequantizeWideColumns::down == DequantizeColumns::down, "the rows that share a factor");
template <class T>
using QuantizeAlong = FloatRowConfig<Units::along, along_units, sizeof(T) == 4 ? 256 : 128, sizeof(T) == 4 ? 4 : 10>;
template <class T>
using QuantizeBelow = FloatRowConfig<Units::below, 4, sizeof(T) == 4 ? 256 : 128, sizeof(T) == 4 ? 4 : 10>;
template <class T>
using QuantizeColumns = FloatRowConfig<Units::columns, 16 / sizeof(T), 64, 8, sizeof(T)>;
using QuantizeShortColumns = FloatRowConfig<Units::columns, 4, 128, 5>; /* groups of no whole sixteens of rows */
template <class T>
using DequantizeTile = FloatTileConfig<sizeof(T) == 4 ? 256 : 512, false, 2, 2, 1, sizeof(T) == 4 ? 5 : 3>;
template <class T>
using QuantizeTile = FloatTileConfig<256, true, 4, 2, 1, sizeof(T) == 4 ? 3 : 4>;
template <class T>
using QuantizeTileByRow = FloatTileConfig<sizeof(T) == 4 ? 128 : 256, true, 4, 2, 1, sizeof(T) == 4 ? 4 : 3>;

/* The kernels of a dtype of weights, each a table by packing. */
struct FloatKernels {
    const FloatRowKernel *along; /* or null */
    const FloatRowKernel *below, *columns, *short_columns;
    const TileWalks *tiles;
    FloatWalk marlin_rows;
    const FloatKernel *generic;
    int unit;                                         /* of rows */
    int below_rows, columns_rows, short_columns_rows; /* that a thread takes */
};

template <class T>
constexpr FloatKernels dequantizers = {nullptr,
                                       row_dequantizers<T, DequantizeBelow>,
                                       row_dequantizers<T, DequantizeColumns, DequantizeWideColumns>,
                                       row_dequantizers<T, DequantizeColumns, DequantizeWideColumns>,
                                       tile_walks<false, T, Division::uncorrected, DequantizeTile<T>>,
                                       marlin_row_dequantizer<T>,
                                       generic_dequantizers<T>,
                                       dequantized_unit<T>,
                                       DequantizeBelow::down,
                                       DequantizeColumns::down,
                                       DequantizeColumns::down};

template <class T, Division D>
constexpr FloatKernels quantizers = {row_quantizers<T, D, QuantizeAlong<T>>,
                                     row_quantizers<T, D, QuantizeBelow<T>>,
                                     row_quantizers<T, D, QuantizeColumns<T>>,
                                     row_quantizers<T, D, QuantizeShortColumns>,
                                     tile_walks<true, T, D, QuantizeTile<T>, QuantizeTileByRow<T>>,
                                     marlin_row_quantizer<T, D>,
                                     generic_quantizers<T>,
                                     quantized_unit,
                                     QuantizeBelow<T>::down,
                                     QuantizeColumns<T>::down,
                                     QuantizeShortColumns::down};

constexpr FloatKernels all_dequantizers[float_kinds] = {dequantizers<__half>, dequantizers<__nv_bfloat16>,
                                                        dequantizers<float>};

/* For scales of 16 bits, and for those of float32. */
constexpr FloatKernels narrow_quantizers[float_kinds] = {quantizers<__half, Division::uncorrected>,
                                                         quantizers<__nv_bfloat16, Division::uncorrected>,
                                                         quantizers<float, Division::corrected>};
constexpr FloatKernels wide_quantizers[float_kinds] = {quantizers<__half, Division::corrected>,
                                                       quantizers<__nv_bfloat16, Division::corrected>,
                                                       quantizers<float, Division::corrected>};

} // namespace awq_cuda

#endif

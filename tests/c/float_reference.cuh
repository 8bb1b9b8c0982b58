/* floats.h's arithmetic, slow and obvious, over tensors on the host that have a twin on the device: what kernels of floats
   are compared with. */
#ifndef FLOAT_REFERENCE_CUH
#define FLOAT_REFERENCE_CUH

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "awqpack_cuda.h"
#include "cuda_cases.cuh"

/* ---- the slow, obvious arithmetic ---- */

static const awq_dtype float_dtypes[] = {AWQ_DTYPE_FLOAT16, AWQ_DTYPE_BFLOAT16, AWQ_DTYPE_FLOAT32};
static const char *const float_names[] = {"float16", "bfloat16", "float32"};

struct FloatFormat {
    int64_t bytes;
    int fraction_bits, least_exponent; /* of a normal number */
    double largest;
};

static FloatFormat format_of(awq_dtype dtype)
{
    switch (dtype) {
    case AWQ_DTYPE_FLOAT16: return {2, 10, -14, 65504.0};
    case AWQ_DTYPE_BFLOAT16: return {2, 7, -126, ldexp(255.0, 120)};
    default: return {4, 23, -126, ldexp(16777215.0, 104)};
    }
}

/* The nearest number of a format, half to even; what is beyond the largest by half a step is infinite. */
static float round_to(awq_dtype dtype, float value)
{
    const FloatFormat f = format_of(dtype);
    if (dtype == AWQ_DTYPE_FLOAT32 || !std::isfinite(value) || value == 0) {
        return value;
    }
    const int exponent = std::max(ilogb(value), f.least_exponent);
    const double rounded = ldexp(nearbyint(ldexp(value, f.fraction_bits - exponent)), exponent - f.fraction_bits);
    return static_cast<float>(fabs(rounded) > f.largest ? copysign(INFINITY, value) : rounded);
}

static float load_float(awq_dtype dtype, const uint8_t *p)
{
    uint32_t bits = 0;
    memcpy(&bits, p, static_cast<size_t>(format_of(dtype).bytes));
    if (dtype == AWQ_DTYPE_FLOAT16) {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        const double magnitude = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                                 : exponent == 0 ? ldexp(fraction, -24)
                                                 : ldexp(1024 + fraction, exponent - 25);
        return static_cast<float>(bits >> 15 != 0 ? -magnitude : magnitude);
    }
    bits <<= dtype == AWQ_DTYPE_BFLOAT16 ? 16 : 0;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Stores a number of the format, of which it is one. */
static void store_float(awq_dtype dtype, uint8_t *p, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (dtype == AWQ_DTYPE_FLOAT16) {
        const uint32_t sign = bits >> 31 << 15;
        const double magnitude = fabs(value);
        if (std::isnan(value)) {
            bits = sign | 0x7e00;
        } else if (std::isinf(value)) {
            bits = sign | 0x7c00;
        } else if (magnitude < ldexp(1, -14)) {
            bits = sign | static_cast<uint32_t>(ldexp(magnitude, 24));
        } else {
            const int exponent = ilogb(magnitude);
            bits = sign | static_cast<uint32_t>(exponent + 15) << 10 |
                   (static_cast<uint32_t>(ldexp(magnitude, 10 - exponent)) & 1023);
        }
    } else if (dtype == AWQ_DTYPE_BFLOAT16) {
        bits >>= 16;
    }
    memcpy(p, &bits, static_cast<size_t>(format_of(dtype).bytes));
}

static int round_code(float value)
{
    return static_cast<int>(std::min(std::max(nearbyintf(value), 0.0f), 15.0f));
}

static int code_of(float weight, float scale, float zero)
{
    const volatile float quotient = scale == 0 ? 0 : weight / scale; /* volatile: rounded to float32 */
    const volatile float code = quotient + zero;
    return round_code(std::isnan(code) ? zero : code);
}

/* ---- tensors ---- */

/* Host bytes around element (0, ..., 0) of a plane, and their copy on the device. */
struct FloatBuffer {
    std::vector<uint8_t> host;
    int64_t origin = 0, element = 1;
    uint8_t *device = nullptr;

    /* Random bytes that hold a plane of sizes (batch..., rows, cols), `offset` elements from alignment to 32 bytes. */
    FloatBuffer(const awq_float_geometry &g, awq_plane *plane, int64_t rows, int64_t cols, int64_t element_,
                int64_t offset)
        : element(element_)
    {
        int64_t lowest = 0, highest = 0;
        const auto step = [&](int64_t size, int64_t stride) {
            (stride < 0 ? lowest : highest) += size > 0 ? (size - 1) * stride * element : 0;
        };
        step(rows, plane->row_stride);
        step(cols, plane->col_stride);
        for (int i = 0; i < g.batch_dims; i++) {
            step(g.batch_sizes[i], plane->batch_strides[i]);
        }
        const int64_t guard = 64;
        origin = (guard - lowest + 31) / 32 * 32 + offset * element;
        host.resize(static_cast<size_t>(origin + highest + element + guard));
        for (uint8_t &b : host) {
            b = static_cast<uint8_t>(rng());
        }
        CUDA(cudaMalloc(&device, host.size()));
        plane->data = device + origin;
    }
    ~FloatBuffer() { CUDA(cudaFree(device)); }
    FloatBuffer(const FloatBuffer &) = delete;
    FloatBuffer &operator=(const FloatBuffer &) = delete;

    uint8_t *at(int64_t index) { return host.data() + origin + index * element; }
    void upload() { CUDA(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice)); }
    bool same_on_device() const
    {
        std::vector<uint8_t> now(host.size());
        CUDA(cudaMemcpy(now.data(), device, now.size(), cudaMemcpyDeviceToHost));
        return now == host;
    }
};

/* Calls visit(offsets of the matrix in each plane, linear number of the matrix) for every matrix of a batch. */
struct MatrixOffsets {
    int64_t weight, payload, scales, zeros, number;
};

static std::vector<MatrixOffsets> float_matrices(const awq_float_geometry &g)
{
    std::vector<MatrixOffsets> all = {{0, 0, 0, 0, 0}};
    for (int i = 0; i < g.batch_dims; i++) {
        std::vector<MatrixOffsets> next;
        for (const MatrixOffsets &m : all) {
            for (int64_t k = 0; k < g.batch_sizes[i]; k++) {
                next.push_back({m.weight + k * g.weight.batch_strides[i], m.payload + k * g.payload.batch_strides[i],
                                m.scales + k * g.scales.batch_strides[i], m.zeros + k * g.zeros.batch_strides[i],
                                m.number * g.batch_sizes[i] + k});
            }
        }
        all = next;
    }
    return all;
}

struct Tensors {
    FloatBuffer &weight, &payload, &scales, &zeros;
};

static int64_t plane_index(const awq_plane &plane, int64_t row, int64_t col)
{
    return row * plane.row_stride + col * plane.col_stride;
}

/* Calls visit(matrix, row, col, byte of the payload, shift of the nibble, scale, zero) for every code. */
template <class Visit>
static void for_each_code(const awq_float_geometry &g, Tensors t, Visit visit)
{
    const awq_packing_traits &traits = awq_packings[g.packing];
    const int nibbles = traits.block_rows * traits.block_cols;
    for (const MatrixOffsets &m : float_matrices(g)) {
        for (int64_t row = 0; row < g.rows; row += traits.block_rows) {
            for (int64_t col = 0; col < g.cols; col += traits.block_cols) {
                const int64_t block =
                    m.payload + awq_block_offset(&traits, g.payload.row_stride, g.payload.col_stride, row, col);
                for (int i = 0; i < nibbles; i++) {
                    const awq_place place = awq_place_of(&traits, i);
                    const int64_t n = row + place.row, k = col + place.col, item = i / (2 * traits.item_bytes);
                    const int64_t r = n / g.group_rows, c = k / g.group_cols;
                    const float scale = load_float(g.scale_dtype, t.scales.at(m.scales + plane_index(g.scales, r, c)));
                    const float zero = g.zeros.data == nullptr ? 8 : *t.zeros.at(m.zeros + plane_index(g.zeros, r, c));
                    visit(m, n, k, t.payload.at(block + item * g.payload.col_stride) + i / 2 % traits.item_bytes,
                          4 * (i % 2), scale, zero);
                }
            }
        }
    }
}

static void reference_dequantize(const awq_float_geometry &g, Tensors t)
{
    for_each_code(
        g, t,
        [&](const MatrixOffsets &m, int64_t n, int64_t k, const uint8_t *byte, int shift, float scale, float zero) {
            const volatile float product = (static_cast<float>(*byte >> shift & 15) - zero) * scale;
            store_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)),
                        round_to(g.weight_dtype, product));
        });
}

static uint64_t fault_of(awq_cuda_fault_tensor tensor, int64_t index)
{
    return static_cast<uint64_t>(tensor) << AWQ_CUDA_FAULT_TENSOR_SHIFT | static_cast<uint64_t>(index);
}

static uint64_t reference_quantize(const awq_float_geometry &g, Tensors t)
{
    uint64_t fault = AWQ_CUDA_NO_FAULT;
    for_each_code(
        g, t, [&](const MatrixOffsets &m, int64_t n, int64_t k, uint8_t *byte, int shift, float scale, float zero) {
            const float weight = load_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)));
            *byte = static_cast<uint8_t>((*byte & ~(15 << shift)) | code_of(weight, scale, zero) << shift);
            const int64_t across = g.cols / g.group_cols, down = g.rows / g.group_rows;
            const int64_t group = (m.number * down + n / g.group_rows) * across + k / g.group_cols;
            if (!(scale >= 0) || std::isinf(scale)) {
                fault = std::min(fault, fault_of(AWQ_CUDA_FAULT_SCALE, group));
            } else if (zero > 15) {
                fault = std::min(fault, fault_of(AWQ_CUDA_FAULT_ZERO, group));
            } else if (!std::isfinite(weight)) {
                fault = std::min(fault, fault_of(AWQ_CUDA_FAULT_WEIGHT, (m.number * g.rows + n) * g.cols + k));
            }
        });
    return fault;
}

static uint64_t reference_min_max(const awq_float_geometry &g, awq_scale_mode mode, Tensors t)
{
    static const float steps[] = {15, 15, 7, 7.5, 8};
    uint64_t fault = AWQ_CUDA_NO_FAULT;
    for (const MatrixOffsets &m : float_matrices(g)) {
        const int64_t down = g.rows / g.group_rows, across = g.cols / g.group_cols;
        for (int64_t group = 0; group < down * across; group++) {
            const int64_t r = group / across, c = group % across;
            float low = INFINITY, high = -INFINITY;
            for (int64_t n = r * g.group_rows; n < (r + 1) * g.group_rows; n++) {
                for (int64_t k = c * g.group_cols; k < (c + 1) * g.group_cols; k++) {
                    const float weight =
                        load_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)));
                    low = weight < low ? weight : low;
                    high = weight > high ? weight : high;
                    if (!std::isfinite(weight)) {
                        fault = std::min(fault, fault_of(AWQ_CUDA_FAULT_WEIGHT, (m.number * g.rows + n) * g.cols + k));
                    }
                }
            }
            if (mode == AWQ_SCALES_WITH_ZERO) {
                low = std::min(low, 0.0f);
                high = std::max(high, 0.0f);
            }
            const bool symmetric = mode >= AWQ_SCALES_ABSMAX_7;
            const volatile float range = symmetric ? std::max(-low, high) : high - low;
            const volatile float exact = range > 0 ? range / steps[mode] : 0;
            const float scale = round_to(g.scale_dtype, exact);
            const volatile float zero = -low / scale;
            store_float(g.scale_dtype, t.scales.at(m.scales + plane_index(g.scales, r, c)), scale);
            *t.zeros.at(m.zeros + plane_index(g.zeros, r, c)) = static_cast<uint8_t>(symmetric    ? 8
                                                                                     : scale == 0 ? (low < 0 ? 15 : 0)
                                                                                                  : round_code(zero));
            if (!std::isfinite(scale)) {
                fault = std::min(fault, fault_of(AWQ_CUDA_FAULT_RANGE, m.number * down * across + group));
            }
        }
    }
    return fault;
}

#endif

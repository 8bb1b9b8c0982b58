/*
 * Compares the CUDA kernels of floats with floats.h's formulas, over packings, dtypes, groups, strides, batches and
 * alignments; every byte of every buffer is compared, so that a write outside the tensor fails too. check_cuda_floats
 * [--quick]   checks; --quick is small enough for compute-sanitizer check_cuda_floats --bench     times beside
 * device-to-device copies that move the same bytes
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "awqpack_cuda.h"
#include "bench_cuda.cuh"
#include "cuda_cases.cuh"
#include "float_common.cuh"

static long passed, failed;

static void expect(bool ok, const char *what, const char *part)
{
    ok ? passed++ : failed++;
    if (!ok && failed <= 40) {
        printf("FAILED %s: %s\n", what, part);
    }
}

static int64_t random_below(int64_t n)
{
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
}

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

/* ---- cases ---- */

enum ScalesKind { SCALES_DENSE, SCALES_TRANSPOSED, SCALES_PITCH, NO_ZEROS, SCALES_KINDS };
static const char *const scales_names[] = {"dense", "transposed", "pitch", "dense, no zeros"};

/* A geometry of cuda_cases.cuh with scales beside it. */
static awq_float_geometry float_geometry(const awq_geometry &g, awq_dtype weight_dtype, awq_dtype scale_dtype,
                                         int64_t group_rows, int64_t group_cols, ScalesKind kind)
{
    awq_float_geometry f = {};
    const int64_t down = g.rows / group_rows, across = g.cols / group_cols, pitch = kind == SCALES_PITCH ? 8 : 0;
    f.packing = g.packing;
    f.weight_dtype = weight_dtype;
    f.scale_dtype = scale_dtype;
    f.batch_dims = g.batch_dims;
    f.rows = g.rows, f.cols = g.cols;
    f.group_rows = group_rows, f.group_cols = group_cols;
    f.weight.row_stride = g.codes_row_stride, f.weight.col_stride = g.codes_col_stride;
    f.payload.row_stride = g.payload_row_stride, f.payload.col_stride = g.payload_col_stride;
    for (awq_plane *plane : {&f.scales, &f.zeros}) {
        plane->row_stride = kind == SCALES_TRANSPOSED ? 1 : across + pitch;
        plane->col_stride = kind == SCALES_TRANSPOSED ? down : 1;
    }
    int64_t step = down * (across + pitch) + (kind == SCALES_PITCH ? 3 : 0);
    for (int i = 0; i < g.batch_dims; i++) {
        f.batch_sizes[i] = g.batch_sizes[i];
        f.weight.batch_strides[i] = g.codes_batch_strides[i];
        f.payload.batch_strides[i] = g.payload_batch_strides[i];
        f.scales.batch_strides[i] = f.zeros.batch_strides[i] = step;
        step *= std::max<int64_t>(g.batch_sizes[i], 1);
    }
    return f;
}

/* A scale of the dtype: mostly of usual size, now and then of any. */
static float random_scale(awq_dtype dtype)
{
    const FloatFormat f = format_of(dtype);
    const double mantissa = 1 + static_cast<double>(rng() % (1u << 23)) / (1u << 23);
    const int64_t kind = random_below(40);
    const int top = ilogb(f.largest), bottom = f.least_exponent - f.fraction_bits;
    const int64_t exponent = kind == 0 ? bottom + random_below(top - bottom) : -9 + random_below(6);
    return kind == 1 ? 0 : round_to(dtype, static_cast<float>(ldexp(mantissa, static_cast<int>(exponent))));
}

/* A weight near half a code, of any size, a zero of either sign, or a multiple of the scale. */
static float random_weight(awq_dtype dtype, float scale)
{
    const int64_t kind = random_below(16);
    const double steps = kind < 8 ? (static_cast<double>(random_below(80)) - 40) / 2
                                  : (static_cast<double>(rng() % (1u << 24)) / (1u << 24) - 0.5) * 40;
    const FloatFormat f = format_of(dtype);
    float weight = static_cast<float>(steps * scale);
    if (kind == 14) {
        weight =
            static_cast<float>(ldexp(steps, static_cast<int>(f.least_exponent - f.fraction_bits + random_below(40))));
    } else if (kind == 15) {
        weight = random_below(2) != 0 ? -0.0f : static_cast<float>(copysign(f.largest, steps));
    }
    weight = round_to(dtype, weight);
    return std::isfinite(weight) ? weight : 1.0f;
}

static void fill_factors(const awq_float_geometry &g, Tensors t)
{
    for (const MatrixOffsets &m : float_matrices(g)) {
        for (int64_t r = 0; r < g.rows / g.group_rows; r++) {
            for (int64_t c = 0; c < g.cols / g.group_cols; c++) {
                store_float(g.scale_dtype, t.scales.at(m.scales + plane_index(g.scales, r, c)),
                            random_scale(g.scale_dtype));
                *t.zeros.at(m.zeros + plane_index(g.zeros, r, c)) = static_cast<uint8_t>(random_below(16));
            }
        }
    }
}

static void upload_all(Tensors t)
{
    t.weight.upload();
    t.payload.upload();
    t.scales.upload();
    t.zeros.upload();
}

static bool all_same(Tensors t)
{
    return t.weight.same_on_device() && t.payload.same_on_device() && t.scales.same_on_device() &&
           t.zeros.same_on_device();
}

static float odd_value(int64_t kind)
{
    return kind == 0 ? NAN : kind == 1 ? INFINITY : -INFINITY;
}

/* Puts NaN or an infinity at a random place of the weight. */
static void spoil_weight(const awq_float_geometry &g, Tensors t)
{
    const std::vector<MatrixOffsets> all = float_matrices(g);
    const MatrixOffsets &m = all[static_cast<size_t>(random_below(static_cast<int64_t>(all.size())))];
    store_float(g.weight_dtype,
                t.weight.at(m.weight + plane_index(g.weight, random_below(g.rows), random_below(g.cols))),
                odd_value(random_below(3)));
}

static void spoil_factor(const awq_float_geometry &g, Tensors t)
{
    const std::vector<MatrixOffsets> all = float_matrices(g);
    const MatrixOffsets &m = all[static_cast<size_t>(random_below(static_cast<int64_t>(all.size())))];
    const int64_t r = random_below(g.rows / g.group_rows), c = random_below(g.cols / g.group_cols);
    const int64_t kind = random_below(5);
    if (kind == 4) {
        *t.zeros.at(m.zeros + plane_index(g.zeros, r, c)) = static_cast<uint8_t>(16 + random_below(240));
    } else {
        store_float(g.scale_dtype, t.scales.at(m.scales + plane_index(g.scales, r, c)),
                    kind == 3 ? -0.25f : odd_value(kind));
    }
}

static void check_quantize(const awq_float_geometry &g, Tensors t, const char *what)
{
    uint64_t found;
    for_each_code(g, t, [&](const MatrixOffsets &m, int64_t n, int64_t k, uint8_t *, int, float scale, float) {
        store_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)),
                    random_weight(g.weight_dtype, scale));
    });
    upload_all(t);
    CUDA(awq_cuda_quantize_checked(&g, nullptr, &found));
    const uint64_t expected = reference_quantize(g, t);
    expect(found == expected && expected == AWQ_CUDA_NO_FAULT && all_same(t), what, "quantize");
    if (g.rows * g.cols == 0 || float_matrices(g).empty()) {
        return;
    }
    for (int bad = 1; bad <= 16; bad *= 16) {
        for (int i = 0; i < bad; i++) {
            spoil_weight(g, t);
        }
        upload_all(t);
        CUDA(awq_cuda_quantize_checked(&g, nullptr, &found));
        const uint64_t wanted = reference_quantize(g, t);
        expect(found == wanted && wanted != AWQ_CUDA_NO_FAULT && all_same(t), what, "weights that are not finite");
    }
    t.payload.upload();
    CUDA(awq_cuda_quantize(&g, nullptr));
    CUDA(cudaDeviceSynchronize());
    expect(all_same(t), what, "unchecked quantize");
    spoil_factor(g, t);
    upload_all(t);
    CUDA(awq_cuda_quantize_checked(&g, nullptr, &found));
    expect(found == reference_quantize(g, t), what, "a bad scale or zero");
}

static void check_min_max(awq_float_geometry g, Tensors t, const char *what)
{
    if (g.zeros.data == nullptr || g.rows * g.cols == 0) {
        return;
    }
    uint64_t found;
    for_each_code(g, t, [&](const MatrixOffsets &m, int64_t n, int64_t k, uint8_t *, int, float, float) {
        const float one = static_cast<float>(1 + random_below(5)) / 100;
        float weight = random_weight(g.weight_dtype, one);
        weight = fabsf(weight) > 100 && random_below(64) != 0 ? one : weight;
        store_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)),
                    round_to(g.weight_dtype, weight));
    });
    for (int mode = 0; mode < AWQ_SCALES_MODE_COUNT; mode++) {
        upload_all(t);
        CUDA(awq_cuda_min_max_checked(&g, static_cast<awq_scale_mode>(mode), nullptr, &found));
        const uint64_t expected = reference_min_max(g, static_cast<awq_scale_mode>(mode), t);
        expect(found == expected && all_same(t), what, "min_max");
    }
    spoil_weight(g, t);
    upload_all(t);
    CUDA(awq_cuda_min_max_checked(&g, AWQ_SCALES_ASYMMETRIC, nullptr, &found));
    expect(found == reference_min_max(g, AWQ_SCALES_ASYMMETRIC, t), what, "min_max of a weight that is not finite");
}

static void check_float_case(const awq_geometry &shape, awq_dtype weight_dtype, awq_dtype scale_dtype,
                             int64_t group_rows, int64_t group_cols, ScalesKind kind, int64_t weight_offset,
                             int64_t payload_offset, const char *name)
{
    awq_float_geometry g = float_geometry(shape, weight_dtype, scale_dtype, group_rows, group_cols, kind);
    const awq_packing_traits &traits = awq_packings[g.packing];
    const int64_t across = g.cols / group_cols, down = g.rows / group_rows;
    const int64_t lines = traits.runs_down ? g.cols / traits.block_cols : g.rows / traits.block_rows;
    const int64_t items =
        (traits.runs_down ? g.rows / traits.block_rows : g.cols / traits.block_cols) * awq_block_items(&traits);
    const int64_t offset = kind == SCALES_PITCH ? 1 : 0;
    FloatBuffer weight(g, &g.weight, g.rows, g.cols, format_of(weight_dtype).bytes, weight_offset);
    FloatBuffer payload(g, &g.payload, lines, items, traits.item_bytes, payload_offset);
    FloatBuffer scales(g, &g.scales, down, across, format_of(scale_dtype).bytes, offset);
    FloatBuffer zeros(g, &g.zeros, down, across, 1, offset);
    const Tensors t = {weight, payload, scales, zeros};
    if (kind == NO_ZEROS) {
        g.zeros.data = nullptr;
    }
    char what[240];
    snprintf(what, sizeof what, "%s, %s from scales %s %s, groups %lldx%lld", name,
             float_names[weight_dtype - AWQ_DTYPE_FLOAT16], float_names[scale_dtype - AWQ_DTYPE_FLOAT16],
             scales_names[kind], static_cast<long long>(group_rows), static_cast<long long>(group_cols));
    fill_factors(g, t);
    upload_all(t);
    CUDA(awq_cuda_dequantize(&g, nullptr));
    CUDA(cudaDeviceSynchronize());
    reference_dequantize(g, t);
    expect(all_same(t), what, "dequantize");
    check_quantize(g, t, what);
    check_min_max(g, t, what);
}

/* Every dtype of weights and scales takes its turn over the cases of one shape, so do the groups and the scales'
 * strides. */
static void check_shape(awq_packing packing, int64_t rows, int64_t cols, const std::vector<int64_t> &batch, bool quick)
{
    static unsigned turn;
    const int64_t run = awq_packings[packing].block_cols;
    const int64_t groups[][2] = {{1, run},
                                 {1, cols},
                                 {rows, 1},
                                 {1, 1},
                                 {rows, cols},
                                 {1, 4},
                                 {rows % 16 == 0 ? 16 : 1, 1},
                                 {rows > 0 && rows % 8 == 0 ? 8 : std::max<int64_t>(rows, 1), 8},
                                 {rows % 2 == 0 ? 2 : 1, 2}};
    for (int codes = 0; codes < CODES_KINDS; codes++) {
        for (int payload = 0; payload < PAYLOAD_KINDS; payload++) {
            const bool large = rows * cols > 20000; /* the host's reference takes its time over one */
            if (codes == ROWS_MERGED || (large && payload != DENSE)) {
                continue;
            }
            const awq_geometry shape = make_geometry(packing, rows, cols, batch, static_cast<CodesKind>(codes),
                                                     static_cast<PayloadKind>(payload));
            const bool usual = payload == DENSE &&
                               (codes == ROWS || codes == COLUMNS || codes == ROWS_PITCH5 || codes == COLUMNS_PITCH5);
            const int cases = large ? 2 : usual ? (quick ? 9 : 27) : quick ? 1 : 3;
            for (int i = 0; i < cases; i++, turn++) {
                char name[160];
                snprintf(name, sizeof name, "%s %lldx%lld, %d batch dims, weight %s, payload %s",
                         packing_names[packing], static_cast<long long>(rows), static_cast<long long>(cols),
                         static_cast<int>(batch.size()), codes_names[codes], payload_names[payload]);
                const int64_t *group = groups[rows == 0 || cols == 0 ? 3 : turn % 9];
                check_float_case(shape, float_dtypes[turn / 9 % 3],
                                 float_dtypes[turn / 27 % 3 == 0 ? turn / 9 % 3 : turn % 3], group[0], group[1],
                                 static_cast<ScalesKind>(random_below(SCALES_KINDS)), i % 3 == 2 ? random_below(16) : 0,
                                 i % 3 == 1 ? random_below(8) : 0, name);
            }
        }
    }
}

static void check_floats(bool quick)
{
    using Shapes = std::vector<std::pair<int64_t, int64_t>>;
    const Shapes v1 = {{1, 8},     {3, 24},   {40, 264},  {128, 256}, {37, 1032},
                       {261, 520}, {1, 8200}, {272, 576}, {16, 0},    {0, 64}};
    const Shapes marlin = {{64, 16}, {128, 48}, {192, 272}, {256, 512}, {0, 16}};
    const Shapes v2 = {{4, 64}, {20, 192}, {128, 256}, {132, 320}, {4, 4160}, {260, 576}, {4, 0}, {0, 64}};
    const std::vector<std::vector<int64_t>> batches = {{}, {3}, {2, 1, 2}};
    for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
        const Shapes &shapes = packing == AWQ_PACKING_MARLIN ? marlin : packing == AWQ_PACKING_V2 ? v2 : v1;
        for (size_t s = 0; s < (quick ? 3 : shapes.size()); s++) {
            const bool large = shapes[s].first * shapes[s].second > 20000;
            for (size_t b = 0; b < (quick || large ? 1 : batches.size()); b++) {
                check_shape(static_cast<awq_packing>(packing), shapes[s].first, shapes[s].second,
                            batches[quick ? s % 2 : b], quick);
            }
        }
    }
    if (!quick) { /* more matrices than one grid holds */
        for (const CodesKind codes : {ROWS, COLUMNS, EVERY_THIRD}) {
            check_float_case(make_geometry(AWQ_PACKING_V1, 1, 8, {66000}, codes, DENSE), AWQ_DTYPE_FLOAT16,
                             AWQ_DTYPE_FLOAT16, 1, 8, SCALES_DENSE, 0, 0, "66000 matrices");
        }
    }
}

__global__ void count_wrong_reciprocals(int exponent, unsigned *wrong)
{
    const uint32_t fraction = blockIdx.x * blockDim.x + threadIdx.x;
    const float value = __uint_as_float(static_cast<uint32_t>(exponent) << 23 | fraction);
    if (awq_cuda::reciprocal_of(value) != __frcp_rn(value)) {
        atomicAdd(wrong, 1);
    }
}

/* Every significand, at both ends of the range in which reciprocals are taken so and in its middle. */
static void check_reciprocals()
{
    unsigned *wrong, count;
    CUDA(cudaMalloc(&wrong, sizeof *wrong));
    for (const int exponent : {27, 31, 126, 127, 227, 231}) {
        CUDA(cudaMemset(wrong, 0, sizeof *wrong));
        count_wrong_reciprocals<<<1 << 15, 1 << 8>>>(exponent, wrong);
        CUDA(cudaMemcpy(&count, wrong, sizeof count, cudaMemcpyDeviceToHost));
        expect(count == 0, "every significand", "reciprocal");
    }
    CUDA(cudaFree(wrong));
}

/* All codes come back from the weights that they make, for every zero and every float16 scale that is normal. */
static void check_all_scales()
{
    awq_geometry shape = make_geometry(AWQ_PACKING_V1, 30720, 16 * 16, {}, ROWS, DENSE);
    for (const awq_dtype dtype : {AWQ_DTYPE_FLOAT16, AWQ_DTYPE_FLOAT32}) {
        awq_float_geometry g = float_geometry(shape, dtype, AWQ_DTYPE_FLOAT16, 1, 16, SCALES_DENSE);
        FloatBuffer weight(g, &g.weight, g.rows, g.cols, format_of(dtype).bytes, 0);
        FloatBuffer payload(g, &g.payload, g.rows, g.cols / 8, 4, 0);
        FloatBuffer scales(g, &g.scales, g.rows, 16, 2, 0), zeros(g, &g.zeros, g.rows, 16, 1, 0);
        for (int64_t n = 0; n < g.rows; n++) {
            for (int64_t c = 0; c < 16; c++) {
                const uint16_t bits = static_cast<uint16_t>(1024 + n), low[2] = {0x3210, 0x7654},
                               high[2] = {0xba98, 0xfedc};
                memcpy(scales.at(n * 16 + c), &bits, 2);
                *zeros.at(n * 16 + c) = static_cast<uint8_t>(c);
                memcpy(payload.at((n * 16 + c) * 2), low, 4);
                memcpy(payload.at((n * 16 + c) * 2 + 1), high, 4);
            }
        }
        uint64_t found;
        upload_all({weight, payload, scales, zeros});
        CUDA(awq_cuda_dequantize(&g, nullptr));
        CUDA(cudaMemset(g.payload.data, 0, static_cast<size_t>(g.rows * g.cols / 2)));
        CUDA(awq_cuda_quantize_checked(&g, nullptr, &found));
        const bool overflows = dtype == AWQ_DTYPE_FLOAT16; /* 15 times the largest scales is infinite there */
        if (overflows) {
            CUDA(cudaMemcpy(payload.host.data(), payload.device, payload.host.size(), cudaMemcpyDeviceToHost));
            bool same = true;
            for (int64_t n = 0; n < g.rows; n++) {
                for (int64_t c = 0; c < 16 && load_float(AWQ_DTYPE_FLOAT16, scales.at(n * 16)) < 4096; c++) {
                    const uint16_t expected[4] = {0x3210, 0x7654, 0xba98, 0xfedc};
                    same = same && memcmp(payload.at((n * 16 + c) * 2), expected, 8) == 0;
                }
            }
            expect(same, "every normal float16 scale", "there and back by float16");
        } else {
            expect(found == AWQ_CUDA_NO_FAULT && payload.same_on_device(), "every normal float16 scale",
                   "there and back by float32");
        }
    }
}

/* ---- timing ---- */

#ifndef CHECK_ONLY

/* A matrix of float weights, a payload, scales and zeros, and two buffers for copies. */
static void bench_floats(int64_t rows, int64_t cols, int64_t group)
{
    const int64_t count = rows * cols;
    uint8_t *weight, *payload, *scales, *zeros, *from, *to;
    uint64_t found;
    const size_t copy_bytes = static_cast<size_t>(count) / 16 * 37;
    CUDA(cudaMalloc(&weight, static_cast<size_t>(count) * 4));
    CUDA(cudaMalloc(&payload, static_cast<size_t>(count / 2)));
    CUDA(cudaMalloc(&scales, static_cast<size_t>(count / group * 4)));
    CUDA(cudaMalloc(&zeros, static_cast<size_t>(count / group)));
    CUDA(cudaMalloc(&from, copy_bytes));
    CUDA(cudaMalloc(&to, copy_bytes));
    fill_codes(from, static_cast<int64_t>(copy_bytes), fill_period);
    std::vector<uint8_t> bytes(static_cast<size_t>(count / 2));
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        const uint64_t r = rng();
        memcpy(&bytes[i], &r, 8);
    }
    CUDA(cudaMemcpy(payload, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    bytes.resize(static_cast<size_t>(count / group));
    for (uint8_t &b : bytes) {
        b = static_cast<uint8_t>(rng() & 15);
    }
    CUDA(cudaMemcpy(zeros, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));

    struct Case {
        const char *name;
        CodesKind kind;
        bool by_row; /* groups run along rows of codes, as W's do beside its payload, or down, beside that of W.t() */
    };
    const Case cases[] = {{"rows, groups along them", ROWS, true},
                          {"rows, groups down", ROWS, false},
                          {"columns, groups down", COLUMNS, false},
                          {"columns, groups along rows", COLUMNS, true}};
    for (const awq_dtype dtype : float_dtypes) {
        const int64_t item = format_of(dtype).bytes;
        bytes.resize(static_cast<size_t>(count / group * item));
        for (int64_t i = 0; i < count / group; i++) {
            store_float(dtype, &bytes[static_cast<size_t>(i * item)],
                        round_to(dtype, 0.001f + static_cast<float>(rng() % 4096) / 500000));
        }
        CUDA(cudaMemcpy(scales, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
        for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
            for (const Case &c : cases) {
                if (dtype == AWQ_DTYPE_BFLOAT16 && packing != AWQ_PACKING_V1_REORDER) {
                    continue;
                }
                awq_float_geometry g =
                    float_geometry(make_geometry(static_cast<awq_packing>(packing), rows, cols, {}, c.kind, DENSE),
                                   dtype, dtype, c.by_row ? 1 : group, c.by_row ? group : 1, SCALES_DENSE);
                g.weight.data = weight, g.payload.data = payload, g.scales.data = scales, g.zeros.data = zeros;
                const int64_t moved = count / 2 + count * item + count / group * (item + 1);
                const auto report = [&](const char *op, int64_t total, auto work) {
                    const Times t = measure(to, from, total / 2, 15, work);
                    printf("%lldx%lld %-10s %-8s %-26s %-16s %8.4f ms  copy %8.4f ms %6.0f GB/s  ratio %.3f\n",
                           static_cast<long long>(rows), static_cast<long long>(cols), packing_names[packing],
                           float_names[dtype - AWQ_DTYPE_FLOAT16], c.name, op, t.ours_ms, t.copy_ms,
                           1e-6 * static_cast<double>(total) / t.copy_ms, t.copy_ms / t.ours_ms);
                };
                report("dequantize", moved, [&] { CUDA(awq_cuda_dequantize(&g, nullptr)); });
                report("quantize", moved, [&] { CUDA(awq_cuda_quantize(&g, nullptr)); });
                report("quantize checked", moved, [&] { CUDA(awq_cuda_quantize_checked(&g, nullptr, &found)); });
                if (packing == AWQ_PACKING_V1) {
                    awq_float_geometry s = g;
                    s.scales.data = to, s.zeros.data = from; /* as the scales stay for the next ones */
                    report("min_max", moved - count / 2,
                           [&] { CUDA(awq_cuda_min_max(&s, AWQ_SCALES_ASYMMETRIC, nullptr)); });
                }
            }
        }
    }
    for (void *p : {static_cast<void *>(weight), static_cast<void *>(payload), static_cast<void *>(scales),
                    static_cast<void *>(zeros), static_cast<void *>(from), static_cast<void *>(to)}) {
        CUDA(cudaFree(p));
    }
}

#endif

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
#ifndef CHECK_ONLY
    if (strcmp(mode, "--bench") == 0) {
        bench_floats(28672, 8192, 128);
        return 0;
    }
#endif
    const bool quick = strcmp(mode, "--quick") == 0;
    if (!quick && *mode != '\0') {
        fprintf(stderr, "usage: check_cuda_floats [--quick | --bench]\n");
        return 2;
    }
    check_floats(quick);
    if (!quick) {
        check_reciprocals();
        check_all_scales();
    }
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0;
}

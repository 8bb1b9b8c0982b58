/* What kernels of floats are tried on: geometries with scales beside them, weights around every code, values that are
   refused. */
#ifndef FLOAT_CASES_CUH
#define FLOAT_CASES_CUH

#include "float_reference.cuh"

static int64_t random_below(int64_t n)
{
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
}

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

/* Whether scales and weights are usual ones alone: one other takes a whole warp, or 64 codes, the slow way. */
static bool only_usual;

/* A scale of the dtype: mostly of usual size, now and then of any. */
static float random_scale(awq_dtype dtype)
{
    const FloatFormat f = format_of(dtype);
    const double mantissa = 1 + static_cast<double>(rng() % (1u << 23)) / (1u << 23);
    const int64_t kind = only_usual ? 2 : random_below(40);
    const int top = ilogb(f.largest), bottom = f.least_exponent - f.fraction_bits;
    const int64_t exponent = kind == 0 ? bottom + random_below(top - bottom) : -9 + random_below(6);
    return kind == 1 ? 0 : round_to(dtype, static_cast<float>(ldexp(mantissa, static_cast<int>(exponent))));
}

/* A weight near half a code, of any size, a zero of either sign, or a multiple of the scale. */
static float random_weight(awq_dtype dtype, float scale)
{
    const int64_t kind = random_below(only_usual ? 14 : 16);
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

#endif

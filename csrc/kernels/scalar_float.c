/* The float kernels in plain C, as floats.h words the arithmetic: what every other one is compared with. */
#include "float_bits.h"
#include "float_kernels.h"

static void dequantize(awq_dtype dtype, const uint8_t *restrict codes, void *restrict weight,
                       const awq_float_line *line, bool stream)
{
    (void)stream;
    const int64_t item = awq_dtype_bytes(dtype);
    uint8_t *to = weight;
    for (int64_t i = 0; i < line->count; i++) {
        const int64_t entry = (i + line->taken) / line->group;
        awq_float_store(dtype, to + i * item, ((float)codes[i] - line->zeros[entry]) * line->scales[entry]);
    }
}

static bool quantize(awq_dtype dtype, const void *restrict weight, uint8_t *restrict codes, const awq_float_line *line)
{
    const int64_t item = awq_dtype_bytes(dtype);
    const uint8_t *from = weight;
    bool is_finite = true;
    for (int64_t i = 0; i < line->count; i++) {
        const int64_t entry = (i + line->taken) / line->group;
        const float w = awq_float_load(dtype, from + i * item), scale = line->scales[entry], zero = line->zeros[entry];
        is_finite = is_finite && awq_is_finite(w);
        const float q = scale == 0 ? 0 : w / scale;
        codes[i] = awq_round_code(q != q ? zero : q + zero);
    }
    return is_finite;
}

static bool min_max(awq_dtype dtype, const void *restrict weight, int64_t count, int64_t group, int64_t taken,
                    float *restrict low, float *restrict high)
{
    const int64_t item = awq_dtype_bytes(dtype);
    const uint8_t *from = weight;
    bool is_finite = true;
    for (int64_t i = 0; i < count; i++) {
        const int64_t entry = (i + taken) / group;
        const float w = awq_float_load(dtype, from + i * item);
        is_finite = is_finite && awq_is_finite(w);
        low[entry] = w < low[entry] ? w : low[entry];
        high[entry] = w > high[entry] ? w : high[entry];
    }
    return is_finite;
}

static bool invert(const float *restrict scales, int64_t count, float least, float *restrict reciprocals)
{
    bool is_usual = true;
    for (int64_t i = 0; i < count; i++) {
        is_usual = is_usual && (scales[i] == 0 || (scales[i] >= least && scales[i] <= AWQ_FLOAT_MOST_SCALE));
        reciprocals[i] = scales[i] == 0 ? 0 : 1 / scales[i];
    }
    return is_usual;
}

static void widen(awq_dtype dtype, const void *restrict from, int64_t count, float *restrict to)
{
    const int64_t item = awq_dtype_bytes(dtype);
    for (int64_t i = 0; i < count; i++) {
        to[i] = awq_float_load(dtype, (const uint8_t *)from + i * item);
    }
}

static void narrow(awq_dtype dtype, const float *restrict from, int64_t count, void *restrict to)
{
    const int64_t item = awq_dtype_bytes(dtype);
    for (int64_t i = 0; i < count; i++) {
        awq_float_store(dtype, (uint8_t *)to + i * item, from[i]);
    }
}

const awq_float_kernels awq_float_scalar = {
    .dequantize = dequantize,
    .quantize = quantize,
    .min_max = min_max,
    .invert = invert,
    .widen = widen,
    .narrow = narrow,
};

/* Round-to-nearest's own scales and zeros: the least and the greatest weight of each group, in one pass. */
#include <stdalign.h>
#include <stddef.h>

#include "float_bits.h"
#include "float_walk.h"

enum {
    CHUNK = 1 << 14,       /* elements of a line of a unit, unless a group is longer */
    MOST_GROUPS = 1 << 11, /* whose extremes stay in the first-level cache from one line to the next */
};

void awq_float_job_init_min_max(awq_float_job *job, awq_scale_mode mode, const awq_kernels *kernels,
                                const awq_float_views *views)
{
    *job = (awq_float_job){.op = AWQ_MIN_MAX, .mode = mode};
    awq_float_geometry_init(&job->geometry, AWQ_PACKING_V1, views);
    awq_float_job_orient(job, kernels);
    const int64_t group = awq_group_along(job);
    const int64_t groups = awq_min(MOST_GROUPS, CHUNK / group);
    awq_float_job_cut(job, group * (groups > 0 ? groups : 1), awq_group_across(job));
}

/* clamp(rint(-low / scale), 0, 15); of a scale of 0, the end of the codes that the sign of low asks for. The sum with a
   large number rounds half to even, and compilers make vectors of it all. */
static void find_zeros(const float *low, const float *scales, int64_t count, uint8_t *zeros)
{
    for (int64_t i = 0; i < count; i++) {
        const float end = low[i] < 0 ? AWQ_CODE_MAX : 0;
        const float quotient = scales[i] == 0 ? end : -low[i] / scales[i];
        const float cut = quotient < 0 ? 0 : quotient > AWQ_CODE_MAX ? AWQ_CODE_MAX : quotient;
        zeros[i] = (uint8_t)(awq_bits_of(cut + 0x1p23f) & 31);
    }
}

/* Scales of groups, in float32: 0 instead of the range where that is 0, as its sign would tell which of the zeros came
   first. */
static void find_scales(awq_scale_mode mode, float *low, float *high, int64_t count)
{
    static const float steps[AWQ_SCALES_MODE_COUNT] = {15, 15, 7, 7.5f, 8};
    const float step = steps[mode];
    if (mode == AWQ_SCALES_WITH_ZERO) {
        for (int64_t i = 0; i < count; i++) {
            low[i] = low[i] < 0 ? low[i] : 0;
            high[i] = high[i] > 0 ? high[i] : 0;
        }
    }
    for (int64_t i = 0; i < count; i++) {
        const float range = mode < AWQ_SCALES_ABSMAX_7 ? high[i] - low[i] : -low[i] > high[i] ? -low[i] : high[i];
        high[i] = range > 0 ? range / step : 0;
    }
}

/* Writes the scales and zeros of a unit's groups, whose first entry is at `scales` and `zeros`. */
static unsigned store_groups(const awq_float_job *job, float *low, float *high, int64_t count, uint8_t *scales,
                             uint8_t *zeros)
{
    const awq_float_geometry *g = &job->geometry;
    const int64_t item = awq_dtype_bytes(g->scale_dtype);
    uint8_t narrow[MOST_GROUPS * sizeof(float)], codes[MOST_GROUPS];
    find_scales(job->mode, low, high, count);
    job->floats->narrow(g->scale_dtype, high, count, narrow);
    job->floats->widen(g->scale_dtype, narrow, count, high);
    int has_infinity = 0;
    for (int64_t i = 0; i < count; i++) {
        has_infinity |= !awq_is_finite(high[i]);
    }
    if (job->mode < AWQ_SCALES_ABSMAX_7) {
        find_zeros(low, high, count, codes);
    } else {
        memset(codes, AWQ_SYMMETRIC_ZERO, (size_t)count);
    }
    awq_copy_items(scales, awq_along(job, &g->scales), narrow, 1, count, item);
    awq_copy_items(zeros, awq_along(job, &g->zeros), codes, 1, count, 1);
    return has_infinity ? AWQ_FAULT_RANGE : 0;
}

/* The elements of one line that the unit's groups hold, in pieces where the line is not contiguous. */
static bool scan_line(const awq_float_job *job, const uint8_t *weight, int64_t count, float *low, float *high)
{
    const awq_float_geometry *g = &job->geometry;
    const int64_t item = awq_dtype_bytes(g->weight_dtype), stride = awq_along(job, &g->weight);
    const int64_t group = awq_group_along(job);
    if (job->is_contiguous) {
        return job->floats->min_max(g->weight_dtype, weight, count, group, 0, low, high);
    }
    uint8_t piece[AWQ_FLOAT_STRIDED * sizeof(float)];
    bool is_finite = true;
    for (int64_t done = 0; done < count; done += AWQ_FLOAT_STRIDED) {
        const int64_t part = awq_min(AWQ_FLOAT_STRIDED, count - done);
        awq_copy_items(piece, 1, weight + done * stride * item, stride, part, item);
        is_finite &= job->floats->min_max(g->weight_dtype, piece, part, group, done % group, low + done / group,
                                          high + done / group);
    }
    return is_finite;
}

unsigned awq_min_max_unit(const awq_float_job *job, int64_t unit)
{
    const awq_float_geometry *g = &job->geometry;
    const awq_float_chunk c = awq_float_chunk_at(job, unit);
    const int64_t item = awq_dtype_bytes(g->weight_dtype), scale_item = awq_dtype_bytes(g->scale_dtype);
    const int64_t group = awq_group_along(job), entries = c.count / group, entry = c.first / group;
    const int64_t scale_line = c.line / awq_group_across(job), step = awq_across(job, &g->weight) * item;
    const uint8_t *weight = awq_element_at(job, &g->weight, item, c.batch, c.line, c.first);
    alignas(AWQ_SCRATCH_ALIGNMENT) float low[MOST_GROUPS], high[MOST_GROUPS];
    unsigned faults = 0;
    for (int64_t e = 0; e < entries; e++) {
        low[e] = awq_float_of(0x7f800000u);
        high[e] = -low[e];
    }
    for (int64_t i = 0; i < c.lines; i++) {
        const uint8_t *at = weight + i * step;
        if (job->is_contiguous && i + 1 < c.lines) {
            awq_float_prefetch(at + step, c.count * item);
        }
        faults |= scan_line(job, at, c.count, low, high) ? 0 : AWQ_FAULT_WEIGHT;
    }
    return faults | store_groups(job, low, high, entries,
                                 awq_element_at(job, &g->scales, scale_item, c.batch, scale_line, entry),
                                 awq_element_at(job, &g->zeros, 1, c.batch, scale_line, entry));
}

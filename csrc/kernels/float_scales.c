/* Round-to-nearest's own scales and zeros: the least and the greatest weight of each group, in one pass. */
#include <stddef.h>

#include "float_bits.h"
#include "float_walk.h"

enum { CHUNK = 1 << 14 /* elements of a line of a unit, unless a group is longer */ };

void awq_float_job_init_min_max(awq_float_job *job, awq_scale_mode mode, const awq_kernels *kernels,
                                const awq_float_views *views)
{
    *job = (awq_float_job){.kernels = kernels, .op = AWQ_MIN_MAX, .mode = mode};
    awq_float_geometry_init(&job->geometry, AWQ_PACKING_V1, views);
    awq_float_job_orient(job);
    const int64_t group = awq_group_along(job);
    const int64_t groups = awq_float_min(AWQ_FLOAT_ENTRIES, CHUNK / group);
    awq_float_job_cut(job, group * (groups > 0 ? groups : 1), awq_group_across(job));
}

/* rint(-low / scale) as a code; of a scale of 0, the end of the codes that the sign of low asks for. */
static uint8_t zero_of(float low, float scale)
{
    return scale == 0 ? (low < 0 ? AWQ_CODE_MAX : 0) : awq_round_code(-low / scale);
}

/* Writes the scale and the zero of a group. */
static unsigned store_group(const awq_float_job *job, float low, float high, uint8_t *scale, uint8_t *zero)
{
    static const float steps[AWQ_SCALES_MODE_COUNT] = {15, 15, 7, 7.5f, 8};
    const awq_dtype dtype = job->geometry.scale_dtype;
    if (job->mode == AWQ_SCALES_WITH_ZERO) {
        low = low < 0 ? low : 0;
        high = high > 0 ? high : 0;
    }
    const bool is_symmetric = job->mode >= AWQ_SCALES_ABSMAX_7;
    const float range = is_symmetric ? (-low > high ? -low : high) : high - low;
    /* Not the range itself where it is 0: its sign would tell which of the zeros came first. */
    awq_float_store(dtype, scale, range > 0 ? range / steps[job->mode] : 0);
    const float stored = awq_float_load(dtype, scale);
    *zero = is_symmetric ? AWQ_SYMMETRIC_ZERO : zero_of(low, stored);
    return awq_is_finite(stored) ? 0 : AWQ_FAULT_RANGE;
}

/* The elements of one line that the unit's groups hold, in pieces where the line is not contiguous. */
static bool scan_line(const awq_float_job *job, const uint8_t *weight, int64_t count, float *low, float *high)
{
    const awq_float_geometry *g = &job->geometry;
    const awq_float_kernels *kernels = awq_float_kernels_of(job);
    const int64_t item = awq_dtype_bytes(g->weight_dtype), stride = awq_along(job, &g->weight);
    const int64_t group = awq_group_along(job);
    if (job->is_contiguous) {
        return kernels->min_max(g->weight_dtype, weight, count, group, 0, low, high);
    }
    uint8_t piece[AWQ_FLOAT_STRIDED * sizeof(float)];
    bool is_finite = true;
    for (int64_t done = 0; done < count; done += AWQ_FLOAT_STRIDED) {
        const int64_t part = awq_float_min(AWQ_FLOAT_STRIDED, count - done);
        awq_gather(piece, weight + done * stride * item, stride, part, item);
        is_finite &= kernels->min_max(g->weight_dtype, piece, part, group, done % group, low + done / group,
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
    const int64_t scale_line = c.line / awq_group_across(job);
    const uint8_t *weight = awq_plane_at(g, &g->weight, item, c.batch);
    uint8_t *scales = awq_plane_at(g, &g->scales, scale_item, c.batch);
    uint8_t *zeros = awq_plane_at(g, &g->zeros, 1, c.batch);
    float low[AWQ_FLOAT_ENTRIES], high[AWQ_FLOAT_ENTRIES];
    unsigned faults = 0;
    for (int64_t e = 0; e < entries; e++) {
        low[e] = awq_float_of(0x7f800000u);
        high[e] = -low[e];
    }
    for (int64_t i = 0; i < c.lines; i++) {
        const uint8_t *at = weight + ((c.line + i) * awq_across(job, &g->weight) + c.first * awq_along(job, &g->weight)) * item;
        faults |= scan_line(job, at, c.count, low, high) ? 0 : AWQ_FAULT_WEIGHT;
    }
    for (int64_t e = 0; e < entries; e++) {
        faults |= store_group(
            job, low[e], high[e],
            scales + (scale_line * awq_across(job, &g->scales) + (entry + e) * awq_along(job, &g->scales)) * scale_item,
            zeros + scale_line * awq_across(job, &g->zeros) + (entry + e) * awq_along(job, &g->zeros));
    }
    return faults;
}

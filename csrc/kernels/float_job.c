/* Walks weights of any strides beside payloads of any packing, a chunk at a time: its codes stay in the cache. */
#include "float_job.h"

#include <stdalign.h>
#include <stddef.h>

#include "float_bits.h"
#include "float_walk.h"

enum {
    PACKED_COLUMN = 1 << 9, /* codes packed at once: what packing keeps shares the second-level cache with the chunk */
    MOST_ASKED = 1 << 11,   /* bytes; the processor sees longer lines coming */
    STREAM_CODES = 1 << 22, /* from so many on, what is written is streamed past the cache */
};

/* All that a unit needs beside its tensors. What the packing's kernels ask for follows the chunk's codes. */
typedef struct scratch {
    float scales[AWQ_FLOAT_ENTRIES], zeros[AWQ_FLOAT_ENTRIES], reciprocals[AWQ_FLOAT_ENTRIES];
    alignas(float) uint8_t line[AWQ_FLOAT_STRIDED * sizeof(float)];
    alignas(AWQ_SCRATCH_ALIGNMENT) uint8_t codes[];
} scratch;

static int64_t chunk_bytes(const awq_float_job *job)
{
    return awq_round_up(job->chunk_across * awq_float_line_bytes(job), AWQ_SCRATCH_ALIGNMENT);
}

void awq_copy_items(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t count,
                    int64_t item)
{
    if (to_stride == 1 && from_stride == 1) {
        memcpy(to, from, (size_t)(count * item));
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        memcpy(to + i * to_stride * item, from + i * from_stride * item, (size_t)item);
    }
}

void awq_float_job_init(awq_float_job *job, awq_float_op op, awq_packing packing, const awq_kernels *kernels,
                        const awq_float_views *views, bool validate)
{
    *job = (awq_float_job){.op = op, .validate = validate};
    awq_float_geometry *g = &job->geometry;
    awq_float_geometry_init(g, packing, views);
    awq_float_job_orient(job, kernels);
    awq_float_job_cut_beside_payload(job);
    const bool is_large = awq_float_codes(g) >= STREAM_CODES;
    job->stream = op == AWQ_DEQUANTIZE && is_large;
    const awq_geometry part = {
        .packing = packing,
        .codes_row_stride = job->is_column_major ? 1 : awq_float_line_bytes(job),
        .codes_col_stride = job->is_column_major ? awq_float_line_bytes(job) : 1,
        .payload_row_stride = g->payload.row_stride,
        .payload_col_stride = g->payload.col_stride,
    };
    awq_job_init_part(&job->part, op == AWQ_QUANTIZE ? AWQ_PACK : AWQ_UNPACK, kernels, &part);
    job->part.matrix.stream = op == AWQ_QUANTIZE && is_large;
    job->scratch_bytes = sizeof(scratch) + (size_t)chunk_bytes(job) + job->part.scratch_bytes;
}

/* Widens a rectangle of scales: `lines` lines of `count` entries, side by side in `to`. Where scales lie across the
   lines they are taken so, through `spare`. */
static void widen_scales(const awq_float_job *job, const uint8_t *from, int64_t lines, int64_t count, float *to,
                         float *spare)
{
    const awq_float_geometry *g = &job->geometry;
    const int64_t item = awq_dtype_bytes(g->scale_dtype);
    const int64_t along = awq_along(job, &g->scales), across = awq_across(job, &g->scales);
    if (along == 1) {
        for (int64_t i = 0; i < lines; i++) {
            job->floats->widen(g->scale_dtype, from + i * across * item, count, to + i * count);
        }
        return;
    }
    for (int64_t e = 0; e < count; e++) {
        for (int64_t begin = 0; begin < lines; begin += AWQ_FLOAT_STRIDED) {
            const int64_t some = awq_min(AWQ_FLOAT_STRIDED, lines - begin);
            const uint8_t *at = from + (e * along + begin * across) * item;
            if (across == 1) {
                job->floats->widen(g->scale_dtype, at, some, spare);
            }
            for (int64_t i = 0; i < some; i++) {
                to[(begin + i) * count + e] =
                    across == 1 ? spare[i] : awq_float_load(g->scale_dtype, at + i * across * item);
            }
        }
    }
}

static void widen_zeros(const awq_float_job *job, const uint8_t *from, int64_t lines, int64_t count, float *to)
{
    const awq_plane *plane = &job->geometry.zeros;
    const int64_t along = awq_along(job, plane), across = awq_across(job, plane);
    if (from == NULL) {
        for (int64_t i = 0; i < lines * count; i++) {
            to[i] = AWQ_SYMMETRIC_ZERO;
        }
        return;
    }
    for (int64_t i = 0; i < lines && along == 1; i++) {
        for (int64_t e = 0; e < count; e++) {
            to[i * count + e] = from[i * across + e];
        }
    }
    for (int64_t e = 0; e < count && along != 1; e++) {
        for (int64_t i = 0; i < lines; i++) {
            to[i * count + e] = from[i * across + e * along];
        }
    }
}

/* How quotients are found: see AWQ_FLOAT_LEAST_SCALE and AWQ_FLOAT_BASE. */
typedef enum quotient { DIVIDED, CORRECTED, SHORT } quotient;

/* The fastest way that all of these scales allow. */
static quotient find_reciprocals(const awq_float_job *job, const float *scales, int64_t count, float *reciprocals)
{
    const awq_float_geometry *g = &job->geometry;
    const bool has_few_bits = g->weight_dtype != AWQ_DTYPE_FLOAT32 && g->scale_dtype != AWQ_DTYPE_FLOAT32;
    if (has_few_bits && job->floats->invert(scales, count, AWQ_FLOAT_LEAST_SHORT, reciprocals)) {
        return SHORT;
    }
    return job->floats->invert(scales, count, AWQ_FLOAT_LEAST_SCALE, reciprocals) ? CORRECTED : DIVIDED;
}

static void dequantize_line(const awq_float_job *job, scratch *s, const uint8_t *codes, uint8_t *weight,
                            const awq_float_line *line)
{
    const awq_float_geometry *g = &job->geometry;
    if (job->is_contiguous) {
        job->floats->dequantize(g->weight_dtype, codes, weight, line, job->stream);
        return;
    }
    job->floats->dequantize(g->weight_dtype, codes, s->line, line, false);
    awq_copy_items(weight, awq_along(job, &g->weight), s->line, 1, line->count, awq_dtype_bytes(g->weight_dtype));
}

static unsigned quantize_line(const awq_float_job *job, scratch *s, uint8_t *codes, const uint8_t *weight,
                              awq_float_line *line, quotient how)
{
    const awq_float_geometry *g = &job->geometry;
    const awq_float_kernels *kernels = how == DIVIDED ? &awq_float_scalar : job->floats;
    if (!job->is_contiguous) {
        awq_copy_items(s->line, 1, weight, awq_along(job, &g->weight), line->count, awq_dtype_bytes(g->weight_dtype));
        weight = s->line;
    }
    line->is_short = how == SHORT;
    if (kernels->quantize(g->weight_dtype, weight, codes, line)) {
        return 0;
    }
    line->is_short = false; /* which takes any weight that is finite */
    if (how == SHORT && kernels->quantize(g->weight_dtype, weight, codes, line)) {
        return 0;
    }
    if (!job->validate && how != DIVIDED) {
        (void)awq_float_scalar.quantize(g->weight_dtype, weight, codes, line);
    }
    return AWQ_FAULT_WEIGHT;
}

/* Lines of bytes that a chunk reads or writes. */
typedef struct chunk_part {
    uint8_t *first;
    int64_t stride, lines, bytes;
} chunk_part;

/* Lines are rows of the payload, or where blocks run down their parts. */
static chunk_part payload_of(const awq_float_job *job, const awq_float_chunk *c)
{
    const awq_float_geometry *g = &job->geometry;
    const awq_packing_traits *traits = &awq_packings[g->packing];
    const int64_t row = job->is_column_major ? c->first : c->line, col = job->is_column_major ? c->line : c->first;
    const int64_t rows = job->is_column_major ? c->count : c->lines, cols = job->is_column_major ? c->lines : c->count;
    const int64_t lines = traits->runs_down ? cols / traits->block_cols : rows / traits->block_rows;
    return (chunk_part){
        awq_plane_at(g, &g->payload, traits->item_bytes, c->batch) +
            traits->item_bytes * awq_block_offset(traits, g->payload.row_stride, g->payload.col_stride, row, col),
        g->payload.row_stride * traits->item_bytes,
        lines,
        lines > 0 ? rows * cols / 2 / lines : 0,
    };
}

static chunk_part weight_of(const awq_float_job *job, const awq_float_chunk *c)
{
    const awq_float_geometry *g = &job->geometry;
    const int64_t item = awq_dtype_bytes(g->weight_dtype);
    return (chunk_part){awq_element_at(job, &g->weight, item, c->batch, c->line, c->first),
                        awq_across(job, &g->weight) * item, c->lines, c->count * item};
}

/* What is read next, and asked for while the lines of this chunk are taken. */
typedef struct ahead {
    chunk_part next; /* of the next chunk: lines of payload, or of weights; no lines: none is asked for */
    int64_t taken, due;
    int64_t down; /* lines from a weight to the one that is asked for; 0: it is further on in the same line */
} ahead;

/* The entries of scales and zeros that a chunk needs. */
typedef struct chunk_groups {
    int64_t line, first, lines, count;
} chunk_groups;

static chunk_groups groups_of(const awq_float_job *job, const awq_float_chunk *c)
{
    const int64_t along = awq_group_along(job), across = awq_group_across(job);
    const int64_t line = c->line / across, first = c->first / along;
    const int64_t lines = (c->line + c->lines - 1) / across + 1 - line;
    return (chunk_groups){line, first, lines, (c->first + c->count - 1) / along + 1 - first};
}

/* A few entries lie in each of many places, where they are contiguous along lines or across them. */
static void ask_for_entries(const awq_float_job *job, const awq_plane *plane, int64_t item, const awq_float_chunk *c)
{
    const chunk_groups groups = groups_of(job, c);
    const bool is_along = awq_along(job, plane) == 1;
    const int64_t runs = is_along ? groups.lines : groups.count, run = is_along ? groups.count : groups.lines;
    const int64_t stride = (is_along ? awq_across(job, plane) : awq_along(job, plane)) * item;
    const uint8_t *at = awq_element_of(job, plane, item, c->batch, groups.line, groups.first);
    if (run * item > MOST_ASKED) {
        return;
    }
    for (int64_t i = 0; i < runs; i++) {
        awq_float_prefetch(at + i * stride, run * item);
    }
}

/* Asks for the next chunk's scales and zeros, and says what else there is to ask for. Chunks of one line follow each
   other in memory. Where lines are short the processor sees them coming, and asking made them slower; long ones ask
   further on in themselves. */
static ahead ahead_of(const awq_float_job *job, const awq_float_chunk *c, int64_t unit)
{
    const awq_float_geometry *g = &job->geometry;
    const bool is_payload = job->op == AWQ_DEQUANTIZE;
    ahead a = {.taken = c->lines, .down = AWQ_FLOAT_AHEAD / (c->count * awq_dtype_bytes(g->weight_dtype))};
    if (job->chunk_across == 1 || unit + 1 == job->units) {
        return a;
    }
    const awq_float_chunk following = awq_float_chunk_at(job, unit + 1);
    ask_for_entries(job, &g->scales, awq_dtype_bytes(g->scale_dtype), &following);
    if (g->zeros.data != NULL) {
        ask_for_entries(job, &g->zeros, 1, &following);
    }
    if (is_payload ? g->payload.col_stride == 1 : job->is_contiguous) {
        a.next = is_payload ? payload_of(job, &following) : weight_of(job, &following);
    }
    return a;
}

/* A payload is read at once: its lines are asked for as evenly as they go. */
static void ask_for_payload(ahead *a)
{
    if (a->next.bytes > MOST_ASKED) {
        return;
    }
    for (a->due += a->next.lines; a->due >= a->taken; a->due -= a->taken) {
        awq_float_prefetch(a->next.first, a->next.bytes);
        a->next.first += a->next.stride;
    }
}

/* Weights are read line by line: bytes from line i to what is asked for meanwhile, which is further on in it, or in a
   line below, here or in the next chunk; 0 where there is none. */
static int64_t weights_ahead(const ahead *a, const chunk_part *here, int64_t i)
{
    const int64_t below = i + a->down - here->lines; /* line of the next chunk */
    if (a->down == 0) {
        return AWQ_FLOAT_AHEAD;
    }
    if (below < 0) {
        return a->down * here->stride;
    }
    return below < a->next.lines ? a->next.first + below * a->next.stride - (here->first + i * here->stride) : 0;
}

/* The lines [begin, end) of a chunk, whose scales are ready from that of line `begin` on. */
static unsigned run_lines(const awq_float_job *job, scratch *s, const awq_float_chunk *c, ahead *next, int64_t begin,
                          int64_t end, int64_t entries, quotient how)
{
    const int64_t group_across = awq_group_across(job);
    const chunk_part weight = weight_of(job, c);
    awq_float_line line = {
        .count = c->count,
        .group = awq_group_along(job),
        .taken = c->first % awq_group_along(job),
        .scales = s->scales,
        .zeros = s->zeros,
        .reciprocals = s->reciprocals,
    };
    int64_t left = group_across - (c->line + begin) % group_across;
    unsigned faults = 0;
    for (int64_t i = begin; i < end; i++, left--) {
        if (left == 0) {
            left = group_across;
            line.scales += entries;
            line.zeros += entries;
            line.reciprocals += entries;
        }
        uint8_t *codes = s->codes + i * awq_float_line_bytes(job), *at = weight.first + i * weight.stride;
        if (job->op == AWQ_DEQUANTIZE) {
            ask_for_payload(next);
            dequantize_line(job, s, codes, at, &line);
        } else {
            line.ahead = job->is_contiguous ? weights_ahead(next, &weight, i) : 0;
            faults |= quantize_line(job, s, codes, at, &line, how);
        }
    }
    return faults;
}

/* Makes the scales ready for as many lines as it can at a time. */
static unsigned run_floats(const awq_float_job *job, scratch *s, const awq_float_chunk *c, ahead *next)
{
    const awq_float_geometry *g = &job->geometry;
    const chunk_groups groups = groups_of(job, c);
    const int64_t item = awq_dtype_bytes(g->scale_dtype), group_across = awq_group_across(job);
    const int64_t entry = groups.first, entries = groups.count;
    unsigned faults = 0;
    for (int64_t begin = 0; begin < c->lines;) {
        const int64_t ready = (c->line + begin) / group_across;
        const int64_t lines = awq_min(AWQ_FLOAT_ENTRIES / entries, groups.line + groups.lines - ready);
        const int64_t end = awq_min(c->lines, (ready + lines) * group_across - c->line);
        quotient how = CORRECTED;
        widen_scales(job, awq_element_of(job, &g->scales, item, c->batch, ready, entry), lines, entries, s->scales,
                     (float *)s->line);
        widen_zeros(job, awq_element_at(job, &g->zeros, 1, c->batch, ready, entry), lines, entries, s->zeros);
        if (job->op == AWQ_QUANTIZE) {
            how = find_reciprocals(job, s->scales, lines * entries, s->reciprocals);
        }
        faults |= run_lines(job, s, c, next, begin, end, entries, how);
        begin = end;
    }
    return faults;
}

/* Packs the chunk's codes, or unpacks them. */
static void move_codes(const awq_float_job *job, const awq_float_chunk *c, scratch *s)
{
    const bool packs_columns = job->op == AWQ_QUANTIZE && job->is_column_major;
    awq_float_chunk piece = *c;
    for (int64_t begin = 0; begin < c->count; begin += piece.count) {
        piece.first = c->first + begin;
        piece.count = packs_columns ? awq_min(PACKED_COLUMN, c->count - begin) : c->count;
        (void)awq_job_run_part(&job->part, s->codes + begin, payload_of(job, &piece).first,
                               job->is_column_major ? piece.count : piece.lines,
                               job->is_column_major ? piece.lines : piece.count, s->codes + chunk_bytes(job));
    }
}

static unsigned run_chunk(const awq_float_job *job, int64_t unit, scratch *s)
{
    const awq_float_chunk c = awq_float_chunk_at(job, unit);
    ahead next = ahead_of(job, &c, unit);
    if (job->op == AWQ_DEQUANTIZE) {
        move_codes(job, &c, s);
        return run_floats(job, s, &c, &next);
    }
    const unsigned faults = run_floats(job, s, &c, &next);
    move_codes(job, &c, s);
    return faults;
}

/* Apart, so that no arithmetic leaves the mode it needs. */
__attribute__((noinline)) static unsigned run_units(const awq_float_job *job, int64_t begin, int64_t end, void *scratch)
{
    unsigned faults = 0;
    for (int64_t unit = begin; unit < end; unit++) {
        faults |= job->op == AWQ_MIN_MAX ? awq_min_max_unit(job, unit) : run_chunk(job, unit, scratch);
    }
    return faults;
}

unsigned awq_float_job_run(const awq_float_job *job, int64_t begin, int64_t end, void *scratch)
{
    const awq_float_mode before = awq_float_mode_enter();
    const unsigned faults = run_units(job, begin, end, scratch);
    awq_float_mode_leave(before);
    if (job->stream || job->part.matrix.stream) {
        awq_stream_fence();
    }
    return faults;
}

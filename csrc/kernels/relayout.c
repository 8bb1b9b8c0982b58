/* Unpacks a chunk of codes that stays in the second-level cache, packs it in the other packing, and goes on to the
   next. Words of V1 that cross need no codes. */
#include "relayout.h"

#include "sizes.h"

enum {
    LINE_CODES = 1 << 17, /* of a chunk between lines that run the same way: long runs of both payloads, ... */
    /* ... and its sides between lines that cross, one of which is read or written in panels: measured */
    LONG = 2048,
    SHORT = 256,
    PAD = 64,               /* codes that keep neighbouring lines of a chunk off each other's cache sets */
    TASK_CODES = 1 << 19,   /* as in job.c */
    STREAM_BYTES = 8 << 20, /* of a target that leaves no room for itself in the cache */
};

bool awq_check_relayout(const awq_view *payload, awq_packing source, awq_packing target, bool transpose,
                        int64_t *target_sizes, awq_error *error)
{
    int64_t sizes[AWQ_MAX_DIMS];
    if (!awq_check_payload(payload, source, sizes, error)) {
        return false;
    }
    const int64_t rows = sizes[payload->ndim - 2], cols = sizes[payload->ndim - 1];
    sizes[payload->ndim - 2] = transpose ? cols : rows;
    sizes[payload->ndim - 1] = transpose ? rows : cols;
    const awq_view codes = {.sizes = sizes, .ndim = payload->ndim, .dtype = AWQ_DTYPE_UINT8};
    return awq_check_codes(&codes, target, target_sizes, error);
}

/* Rows (or columns) of codes of a payload that has so many lines (or items in a line). */
static int64_t codes_along(const awq_packing_traits *traits, const awq_view *payload, bool is_rows)
{
    const int64_t lines = payload->sizes[payload->ndim - 2], items = payload->sizes[payload->ndim - 1];
    const int64_t blocks = is_rows == traits->runs_down ? items / awq_block_items(traits) : lines;
    return blocks * (is_rows ? traits->block_rows : traits->block_cols);
}

void awq_relayout_init(awq_relayout *relayout, awq_packing source, awq_packing target, bool transpose,
                       const awq_view *from, const awq_view *to)
{
    const int64_t last = from->ndim - 1;
    *relayout = (awq_relayout){
        .source = source,
        .target = target,
        .transpose = transpose,
        .rows = codes_along(&awq_packings[target], to, true),
        .cols = codes_along(&awq_packings[target], to, false),
        .source_row_stride = from->strides[last - 1],
        .source_col_stride = from->strides[last],
        .target_row_stride = to->strides[last - 1],
        .target_col_stride = to->strides[last],
    };
    for (int64_t d = 0; d < last - 1; d++) {
        if (from->sizes[d] != 1) {
            relayout->batch_sizes[relayout->batch_dims] = from->sizes[d];
            relayout->source_batch_strides[relayout->batch_dims] = from->strides[d];
            relayout->target_batch_strides[relayout->batch_dims++] = to->strides[d];
        }
    }
}

/* Rows (or columns) of the target's codes that a unit is a multiple of. Blocks' sides are powers of two. */
static int64_t unit_of(const awq_relayout *r, bool is_rows)
{
    const awq_packing_traits *source = &awq_packings[r->source], *target = &awq_packings[r->target];
    return awq_max(is_rows == r->transpose ? source->block_cols : source->block_rows,
                   is_rows ? target->block_rows : target->block_cols);
}

/* Whether a payload is viewed transposed. */
static bool is_turned(const awq_relayout *r)
{
    return (r->source_col_stride != 1 && r->source_row_stride == 1) ||
           (r->target_col_stride != 1 && r->target_row_stride == 1);
}

/* How a chunk's codes lie, in the target's rows and columns. */
typedef struct chunk {
    bool is_row_major;
    bool has_short_lines; /* lines of the target that are packed one by one */
    int64_t rows, cols, pitch;
} chunk;

static chunk chunk_of(const awq_relayout *r)
{
    const bool source_is_row_major = awq_packings[r->source].runs_down == r->transpose;
    const bool target_is_row_major = !awq_packings[r->target].runs_down;
    chunk c = {0};
    if (source_is_row_major != target_is_row_major) {
        /* Marlin's panels cost less than the others', and packing theirs less than unpacking them. */
        c.is_row_major = awq_packings[r->source].runs_down ? target_is_row_major : source_is_row_major;
        c.rows = c.is_row_major ? SHORT : LONG;
        c.cols = c.is_row_major ? LONG : SHORT;
        c.pitch = LONG + PAD;
        c.has_short_lines = c.is_row_major == target_is_row_major;
        return c;
    }
    c.is_row_major = target_is_row_major;
    const int64_t unit_along = unit_of(r, !c.is_row_major), unit = unit_of(r, c.is_row_major);
    const int64_t unit_across =
        is_turned(r) ? awq_max(unit, SHORT) : unit; /* a turned payload's runs cross the lines */
    const int64_t length = awq_max(c.is_row_major ? r->cols : r->rows, unit_along);
    const int64_t along = awq_min(length, LINE_CODES / unit_across / unit_along * unit_along);
    const int64_t across = awq_max(LINE_CODES / along / unit_across * unit_across, unit_across);
    c.rows = c.is_row_major ? across : along;
    c.cols = c.is_row_major ? along : across;
    c.pitch = along + PAD;
    return c;
}

/* Whether lines of words cross lines of words. */
static bool is_crossed(const awq_relayout *r)
{
    const int v1 = awq_packings[AWQ_PACKING_V1].number;
    return r->transpose && awq_packings[r->source].number == v1 && awq_packings[r->target].number == v1 &&
           r->source_col_stride == 1 && r->target_col_stride == 1;
}

void awq_relayout_job_init(awq_relayout_job *job, const awq_relayout *relayout, const awq_kernels *kernels,
                           const void *source, void *target)
{
    const awq_relayout *r = relayout;
    const chunk c = chunk_of(r);
    const int64_t row_stride = c.is_row_major ? c.pitch : 1, col_stride = c.is_row_major ? 1 : c.pitch;
    const awq_geometry from = {
        .packing = r->source,
        .codes_row_stride = r->transpose ? col_stride : row_stride,
        .codes_col_stride = r->transpose ? row_stride : col_stride,
        .payload_row_stride = r->source_row_stride,
        .payload_col_stride = r->source_col_stride,
    };
    const awq_geometry to = {
        .packing = r->target,
        .codes_row_stride = row_stride,
        .codes_col_stride = col_stride,
        .payload_row_stride = r->target_row_stride,
        .payload_col_stride = r->target_col_stride,
    };
    *job = (awq_relayout_job){
        .relayout = *r, .source = source, .target = target, .unit_rows = c.rows, .unit_cols = c.cols};
    job->cross = is_crossed(r) ? kernels->cross_v1 : NULL;
    awq_job_init_part(&job->unpack, AWQ_UNPACK, kernels, &from);
    awq_job_init_part(&job->pack, AWQ_PACK, kernels, &to);
    const int64_t batch = awq_count(r->batch_sizes, r->batch_dims);
    job->pack.matrix.stream = batch * r->rows * r->cols / 2 >= STREAM_BYTES && !c.has_short_lines;
    job->row_units = awq_ceil_div(r->rows, c.rows);
    job->col_units = awq_ceil_div(r->cols, c.cols);
    job->units = batch * job->row_units * job->col_units;
    job->units_per_task = awq_ceil_div(TASK_CODES, c.rows * c.cols);
    job->codes_bytes = (size_t)awq_round_up((c.is_row_major ? c.rows : c.cols) * c.pitch, AWQ_SCRATCH_ALIGNMENT);
    const size_t kernels_bytes =
        job->unpack.scratch_bytes > job->pack.scratch_bytes ? job->unpack.scratch_bytes : job->pack.scratch_bytes;
    job->scratch_bytes = job->codes_bytes + kernels_bytes;
}

/* A part of the target's codes. */
typedef struct part {
    int64_t batch, row, col;
    int64_t rows, cols;
} part;

static const uint8_t *source_of(const awq_relayout_job *job, const part *p)
{
    const awq_relayout *r = &job->relayout;
    const awq_packing_traits *from = &awq_packings[r->source];
    const int64_t items = awq_offset_of(p->batch, r->batch_sizes, r->source_batch_strides, r->batch_dims) +
                          awq_block_offset(from, r->source_row_stride, r->source_col_stride,
                                           r->transpose ? p->col : p->row, r->transpose ? p->row : p->col);
    return job->source + items * from->item_bytes;
}

static uint8_t *target_of(const awq_relayout_job *job, const part *p)
{
    const awq_relayout *r = &job->relayout;
    const awq_packing_traits *to = &awq_packings[r->target];
    const int64_t items = awq_offset_of(p->batch, r->batch_sizes, r->target_batch_strides, r->batch_dims) +
                          awq_block_offset(to, r->target_row_stride, r->target_col_stride, p->row, p->col);
    return job->target + items * to->item_bytes;
}

static void run_codes(const awq_relayout_job *job, const part *p, uint8_t *scratch)
{
    if (p->rows == 0 || p->cols == 0) {
        return;
    }
    const bool turns = job->relayout.transpose;
    uint8_t *payload = (uint8_t *)(uintptr_t)source_of(job, p); /* only read */
    uint8_t *kernels_scratch = scratch + job->codes_bytes;
    (void)awq_job_run_part(&job->unpack, scratch, payload, turns ? p->cols : p->rows, turns ? p->rows : p->cols,
                           kernels_scratch);
    (void)awq_job_run_part(&job->pack, scratch, target_of(job, p), p->rows, p->cols, kernels_scratch);
}

static void cross(const awq_relayout_job *job, const part *p)
{
    if (p->rows == 0 || p->cols == 0) {
        return;
    }
    const awq_relayout *r = &job->relayout;
    const awq_crossing crossing = {
        .source = r->source,
        .target = r->target,
        .stream = job->pack.matrix.stream,
        .from = source_of(job, p),
        .to = target_of(job, p),
        .rows = p->cols,
        .cols = p->rows,
        .source_stride = r->source_row_stride * AWQ_WORD_BYTES,
        .target_stride = r->target_row_stride * AWQ_WORD_BYTES,
    };
    job->cross(&crossing);
}

/* Where lines cross, a rim of rows below whole steps and one of columns beside them may remain. */
static void run_unit(const awq_relayout_job *job, const part *p, uint8_t *scratch)
{
    if (job->cross == NULL) {
        run_codes(job, p, scratch);
        return;
    }
    const int64_t rows = p->rows - p->rows % AWQ_CROSSED_CODES, cols = p->cols - p->cols % AWQ_CROSSED_CODES;
    const part whole = {p->batch, p->row, p->col, rows, cols};
    const part below = {p->batch, p->row + rows, p->col, p->rows - rows, p->cols};
    const part beside = {p->batch, p->row, p->col + cols, rows, p->cols - cols};
    cross(job, &whole);
    run_codes(job, &below, scratch);
    run_codes(job, &beside, scratch);
}

uint8_t awq_relayout_job_run(const awq_relayout_job *job, int64_t begin, int64_t end, void *scratch)
{
    const awq_relayout *r = &job->relayout;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t line = unit / job->col_units;
        part p = {.batch = line / job->row_units,
                  .row = line % job->row_units * job->unit_rows,
                  .col = unit % job->col_units * job->unit_cols};
        p.rows = awq_min(job->unit_rows, r->rows - p.row);
        p.cols = awq_min(job->unit_cols, r->cols - p.col);
        run_unit(job, &p, scratch);
    }
    if (job->pack.matrix.stream) {
        awq_stream_fence();
    }
    return 0;
}

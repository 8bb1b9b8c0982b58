/* Walks a tensor of any strides and hands the kernels the runs and panels they know. */
#include "job.h"
#include "kernels.h"

enum {
    RUN_CODES = 1 << 15,           /* codes of one unit of a row-major walk: long runs, yet enough units to share */
    TASK_CODES = 1 << 19, /* fewer codes than this take less time than a thread that wakes late on a busy machine */
    MIN_UNITS = 128,               /* panels shrink until there are this many, so that every thread gets some */
    PANEL_ROWS = 512,              /* of one unit of a column-major walk: a thread's units make few large panels */
    STAGE_ROWS = 64,               /* what passes through dense copies at once */
    STAGE_COLS = 128,
    /* Outputs from these sizes are streamed past the cache: measured, as they leave no room there for themselves. */
    STREAM_PACKED_ROWS = 8 << 20,
    STREAM_UNPACKED_ROWS = 32 << 20,
    STREAM_PACKED_PANELS = 1 << 20,
    STREAM_UNPACKED_PANELS = 4 << 20,
};

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static bool has_row_runs(const awq_geometry *g)
{
    return g->codes_col_stride == 1 && g->payload_col_stride == 1;
}

static bool has_panels(const awq_geometry *g)
{
    return g->codes_row_stride == 1 && g->payload_col_stride == 1;
}

void awq_job_init(awq_job *job, awq_direction direction, awq_packing packing, const awq_kernels *kernels,
                  const awq_view *codes, const awq_view *payload)
{
    *job = (awq_job){.kernels = kernels, .codes = codes->data, .payload = payload->data, .direction = direction};
    awq_geometry *g = &job->geometry;
    awq_geometry_init(g, packing, codes, payload);
    int64_t batch = 1;
    for (int32_t d = 0; d < g->batch_dims; d++) {
        batch *= g->batch_sizes[d];
    }
    const int64_t total = batch * g->rows * g->cols;
    if (has_row_runs(g)) {
        job->unit_rows = awq_packings[packing].block_rows;
        job->unit_cols = RUN_CODES / job->unit_rows;
    } else {
        job->unit_rows = PANEL_ROWS;
        job->unit_cols = AWQ_PANEL_COLS;
    }
    job->row_units = ceil_div(g->rows, job->unit_rows);
    job->col_units = ceil_div(g->cols, job->unit_cols);
    while (!has_row_runs(g) && batch * job->row_units * job->col_units < MIN_UNITS && job->unit_cols > STAGE_COLS) {
        if (job->unit_rows >= job->unit_cols) {
            job->unit_rows /= 2;
        } else {
            job->unit_cols /= 2;
        }
        job->row_units = ceil_div(g->rows, job->unit_rows);
        job->col_units = ceil_div(g->cols, job->unit_cols);
    }
    job->units = batch * job->row_units * job->col_units;
    job->units_per_task = job->units > 0 ? ceil_div(TASK_CODES, ceil_div(total, job->units)) : 1;
    if (direction == AWQ_PACK) {
        job->stream = total / 2 >= (has_row_runs(g) ? STREAM_PACKED_ROWS : STREAM_PACKED_PANELS);
    } else {
        job->stream = total >= (has_row_runs(g) ? STREAM_UNPACKED_ROWS : STREAM_UNPACKED_PANELS);
    }
}

/* Where one unit lies. */
typedef struct span {
    uint8_t *codes, *payload;
    int64_t rows, cols;
} span;

/* Of the block whose first code is (row, col). */
static uint8_t *payload_at(const awq_job *job, uint8_t *payload, int64_t row, int64_t col)
{
    const awq_geometry *g = &job->geometry;
    const awq_packing_traits *traits = &awq_packings[g->packing];
    return payload + traits->item_bytes *
                         awq_block_offset(traits, g->payload_row_stride, g->payload_col_stride, row, col);
}

static span span_of(const awq_job *job, int64_t batch, int64_t row, int64_t col)
{
    const awq_geometry *g = &job->geometry;
    int64_t codes_offset = 0, payload_offset = 0;
    for (int32_t d = g->batch_dims - 1; d >= 0; d--) {
        const int64_t index = batch % g->batch_sizes[d];
        batch /= g->batch_sizes[d];
        codes_offset += index * g->codes_batch_strides[d];
        payload_offset += index * g->payload_batch_strides[d];
    }
    return (span){
        .codes = job->codes + codes_offset + row * g->codes_row_stride + col * g->codes_col_stride,
        .payload = payload_at(job, job->payload + payload_offset * awq_packings[g->packing].item_bytes, row, col),
        .rows = min64(job->unit_rows, g->rows - row),
        .cols = min64(job->unit_cols, g->cols - col),
    };
}

static uint8_t run_rows(const awq_job *job, const span *s)
{
    const awq_geometry *g = &job->geometry;
    const awq_kernels *k = job->kernels;
    if (g->packing == AWQ_PACKING_V2) {
        const int64_t blocks = s->cols / AWQ_BLOCK_CODES;
        if (job->direction == AWQ_PACK) {
            return k->pack_v2(s->codes, g->codes_row_stride, s->payload, blocks, job->stream);
        }
        k->unpack_v2(s->payload, s->codes, g->codes_row_stride, blocks, job->stream);
        return 0;
    }
    const int64_t words = s->cols / AWQ_WORD_CODES;
    const bool reorder = g->packing == AWQ_PACKING_V1_REORDER;
    if (job->direction == AWQ_PACK) {
        return k->pack_v1(s->codes, s->payload, words, reorder, job->stream);
    }
    k->unpack_v1(s->payload, s->codes, words, reorder, job->stream);
    return 0;
}

static uint8_t run_panel(const awq_job *job, const span *s)
{
    const awq_geometry *g = &job->geometry;
    const awq_kernels *k = job->kernels;
    const int64_t stride = g->payload_row_stride * awq_packings[g->packing].item_bytes;
    if (job->direction == AWQ_PACK) {
        return k->pack_panel(g->packing, s->codes, g->codes_col_stride, s->payload, stride, s->rows, s->cols,
                             job->stream);
    }
    k->unpack_panel(g->packing, s->payload, stride, s->codes, g->codes_col_stride, s->rows, s->cols, job->stream);
    return 0;
}

static void copy_strided(uint8_t *to, int64_t to_row, int64_t to_col, const uint8_t *from, int64_t from_row,
                         int64_t from_col, int64_t rows, int64_t cols, int64_t item)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) {
            for (int64_t b = 0; b < item; b++) {
                to[r * to_row + c * to_col + b] = from[r * from_row + c * from_col + b];
            }
        }
    }
}

/* Any strides: codes and payload pass through dense copies small enough to stay in the first-level cache. */
static uint8_t run_staged(const awq_job *job, const span *s)
{
    const awq_geometry *g = &job->geometry;
    uint8_t codes[STAGE_ROWS * STAGE_COLS];
    uint8_t payload[STAGE_ROWS * STAGE_COLS / 2];
    const int64_t item = awq_packings[g->packing].item_bytes;
    const int64_t quad = awq_packings[g->packing].block_rows;
    const int64_t lines = s->rows / quad;
    const int64_t line_bytes = s->cols * quad / 2;
    const awq_job dense = {
        .geometry = {.packing = g->packing, .codes_row_stride = s->cols},
        .kernels = job->kernels,
        .direction = job->direction,
    };
    uint8_t seen = 0;
    if (job->direction == AWQ_PACK) {
        copy_strided(codes, s->cols, 1, s->codes, g->codes_row_stride, g->codes_col_stride, s->rows, s->cols, 1);
    } else {
        copy_strided(payload, line_bytes, item, s->payload, item * g->payload_row_stride, item * g->payload_col_stride,
                     lines, line_bytes / item, item);
    }
    for (int64_t i = 0; i < lines; i++) {
        const span line = {codes + i * quad * s->cols, payload + i * line_bytes, quad, s->cols};
        seen |= run_rows(&dense, &line);
    }
    if (job->direction == AWQ_PACK) {
        copy_strided(s->payload, item * g->payload_row_stride, item * g->payload_col_stride, payload, line_bytes, item,
                     lines, line_bytes / item, item);
    } else {
        copy_strided(s->codes, g->codes_row_stride, g->codes_col_stride, codes, s->cols, 1, s->rows, s->cols, 1);
    }
    return seen;
}

/* Consecutive units of one row are one run. */
static uint8_t walk_rows(const awq_job *job, int64_t begin, int64_t end)
{
    uint8_t seen = 0;
    while (begin < end) {
        const int64_t line = begin / job->col_units;
        const int64_t stop = min64(end, (line + 1) * job->col_units);
        const int64_t col = begin % job->col_units * job->unit_cols;
        span s = span_of(job, line / job->row_units, line % job->row_units * job->unit_rows, col);
        s.cols = min64((stop - line * job->col_units) * job->unit_cols, job->geometry.cols) - col;
        seen |= run_rows(job, &s);
        begin = stop;
    }
    return seen;
}

/* The part of a span that starts at `row`, `col` of it; both are whole blocks (V1: words) and fours of rows. */
static span part_of(const awq_job *job, const span *s, int64_t row, int64_t col, int64_t rows, int64_t cols)
{
    const awq_geometry *g = &job->geometry;
    return (span){
        .codes = s->codes + row * g->codes_row_stride + col * g->codes_col_stride,
        .payload = payload_at(job, s->payload, row, col),
        .rows = rows,
        .cols = cols,
    };
}

static uint8_t run_stages(const awq_job *job, const span *s)
{
    uint8_t seen = 0;
    for (int64_t row = 0; row < s->rows; row += STAGE_ROWS) {
        for (int64_t col = 0; col < s->cols; col += STAGE_COLS) {
            const span stage =
                part_of(job, s, row, col, min64(STAGE_ROWS, s->rows - row), min64(STAGE_COLS, s->cols - col));
            seen |= run_staged(job, &stage);
        }
    }
    return seen;
}

/* What fills whole steps is a panel; a rim of rows below it and one of columns beside it may remain. */
static uint8_t run_unit(const awq_job *job, const span *s)
{
    if (!has_panels(&job->geometry)) {
        return run_stages(job, s);
    }
    const int64_t rows = s->rows - s->rows % AWQ_PANEL_STEP, cols = s->cols - s->cols % AWQ_PANEL_STEP;
    const span panel = part_of(job, s, 0, 0, rows, cols);
    const span below = part_of(job, s, rows, 0, s->rows - rows, s->cols);
    const span beside = part_of(job, s, 0, cols, rows, s->cols - cols);
    uint8_t seen = rows > 0 && cols > 0 ? run_panel(job, &panel) : 0;
    seen |= run_stages(job, &below);
    return seen | run_stages(job, &beside);
}

/*
 * Packing: across the columns of some rows, then on to the rows below, so that threads write other rows and, where the
 * payload is new, no page twice. Rows taken from end to end are one panel: the taller it is, the longer are the reads.
 */
static uint8_t pack_panels(const awq_job *job, int64_t begin, int64_t end)
{
    uint8_t seen = 0;
    while (begin < end) {
        const int64_t line = begin / job->col_units, unit = begin % job->col_units;
        const int64_t below = job->row_units - line % job->row_units;
        const int64_t whole = unit == 0 ? min64((end - begin) / job->col_units, below) : 0;
        const int64_t stop = whole > 0 ? begin + whole * job->col_units : min64(end, (line + 1) * job->col_units);
        const int64_t row = line % job->row_units * job->unit_rows, col = unit * job->unit_cols;
        span s = span_of(job, line / job->row_units, row, col);
        s.rows = min64((whole > 0 ? whole : 1) * job->unit_rows, job->geometry.rows - row);
        s.cols = min64((stop - line * job->col_units) * job->unit_cols, job->geometry.cols) - col;
        seen |= run_unit(job, &s);
        begin = stop;
    }
    return seen;
}

/* Unpacking: down the rows of one group of columns, which is one panel, then on to the next. */
static void unpack_panels(const awq_job *job, int64_t begin, int64_t end)
{
    while (begin < end) {
        const int64_t group = begin / job->row_units;
        const int64_t stop = min64(end, (group + 1) * job->row_units);
        const int64_t row = begin % job->row_units * job->unit_rows;
        span s = span_of(job, group / job->col_units, row, group % job->col_units * job->unit_cols);
        s.rows = min64((stop - group * job->row_units) * job->unit_rows, job->geometry.rows) - row;
        (void)run_unit(job, &s);
        begin = stop;
    }
}

uint8_t awq_job_run(const awq_job *job, int64_t begin, int64_t end)
{
    if (has_row_runs(&job->geometry)) {
        return walk_rows(job, begin, end);
    }
    if (job->direction == AWQ_PACK) {
        return pack_panels(job, begin, end);
    }
    unpack_panels(job, begin, end);
    return 0;
}

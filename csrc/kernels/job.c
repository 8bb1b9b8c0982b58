/* Walks a tensor of any strides and hands the kernels the runs and panels they know. */
#include "job.h"

enum {
    RUN_CODES = 1 << 15,  /* codes of one unit of a row-major walk: long runs, yet enough units to share */
    TASK_CODES = 1 << 19, /* fewer codes than this take less time than a thread that wakes late on a busy machine */
    MIN_UNITS = 128,      /* panels shrink until there are this many, so that every thread gets some */
    PANEL_ROWS = 512,     /* of one unit of a column-major walk: a thread's units make few large panels */
    STAGE_ROWS = 64,      /* what passes through dense copies at once */
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

static bool has_row_runs(const awq_job *job)
{
    return job->matrix.col_stride == 1 && job->item_stride == awq_packings[job->matrix.packing].item_bytes;
}

static bool has_panels(const awq_job *job)
{
    return job->matrix.row_stride == 1 && job->item_stride == awq_packings[job->matrix.packing].item_bytes;
}

/* The matrix in lines: where blocks run down it is turned. */
static void turn(awq_job *job)
{
    const awq_geometry *g = &job->geometry;
    const awq_packing_traits *traits = &awq_packings[g->packing];
    awq_panel *m = &job->matrix;
    m->packing = g->packing;
    m->is_turned = traits->runs_down;
    m->rows = m->is_turned ? g->cols : g->rows;
    m->cols = m->is_turned ? g->rows : g->cols;
    m->row_stride = m->is_turned ? g->codes_col_stride : g->codes_row_stride;
    m->col_stride = m->is_turned ? g->codes_row_stride : g->codes_col_stride;
    m->line_stride = g->payload_row_stride * traits->item_bytes;
    job->item_stride = g->payload_col_stride * traits->item_bytes;
}

/* Fills in how the matrix is cut. */
static void cut(awq_job *job, int64_t batch)
{
    const awq_panel *m = &job->matrix;
    const bool is_rows = has_row_runs(job);
    job->unit_rows = is_rows ? awq_line_rows(m) : PANEL_ROWS;
    job->unit_cols = is_rows ? RUN_CODES / job->unit_rows : AWQ_PANEL_COLS;
    job->row_units = ceil_div(m->rows, job->unit_rows);
    job->col_units = ceil_div(m->cols, job->unit_cols);
    while (!is_rows && batch * job->row_units * job->col_units < MIN_UNITS && job->unit_cols > STAGE_COLS) {
        if (job->unit_rows >= job->unit_cols) {
            job->unit_rows /= 2;
        } else {
            job->unit_cols /= 2;
        }
        job->row_units = ceil_div(m->rows, job->unit_rows);
        job->col_units = ceil_div(m->cols, job->unit_cols);
    }
    job->units = batch * job->row_units * job->col_units;
}

void awq_job_init_part(awq_job *job, awq_direction direction, const awq_kernels *kernels, const awq_geometry *geometry)
{
    static const awq_walks none;
    const awq_walks *walks = kernels->of[geometry->packing] == NULL ? &none : kernels->of[geometry->packing];
    const bool is_pack = direction == AWQ_PACK;
    awq_kernel *any = is_pack ? awq_pack_blocks : awq_unpack_blocks;
    awq_kernel *rows = is_pack ? walks->pack_rows : walks->unpack_rows;
    awq_kernel *panel = is_pack ? walks->pack_panel : walks->unpack_panel;
    *job = (awq_job){.geometry = *geometry,
                     .direction = direction,
                     .run_rows = rows == NULL ? any : rows,
                     .run_panel = panel == NULL ? any : panel};
    turn(job);
    job->scratch_bytes = !has_row_runs(job) && has_panels(job) ? kernels->scratch_bytes : 0;
}

void awq_job_init(awq_job *job, awq_direction direction, awq_packing packing, const awq_kernels *kernels,
                  const awq_view *codes, const awq_view *payload)
{
    awq_geometry geometry;
    awq_geometry_init(&geometry, packing, codes, payload);
    awq_job_init_part(job, direction, kernels, &geometry);
    job->matrix.codes = codes->data;
    job->matrix.payload = payload->data;
    int64_t batch = 1;
    for (int32_t d = 0; d < job->geometry.batch_dims; d++) {
        batch *= job->geometry.batch_sizes[d];
    }
    cut(job, batch);
    const int64_t total = batch * job->matrix.rows * job->matrix.cols;
    const bool is_rows = has_row_runs(job);
    job->units_per_task = job->units > 0 ? ceil_div(TASK_CODES, ceil_div(total, job->units)) : 1;
    if (direction == AWQ_PACK) {
        job->matrix.stream = total / 2 >= (is_rows ? STREAM_PACKED_ROWS : STREAM_PACKED_PANELS);
    } else {
        job->matrix.stream = total >= (is_rows ? STREAM_UNPACKED_ROWS : STREAM_UNPACKED_PANELS);
    }
}

/* The part of a panel that starts at `row`, `col` of it: whole lines and blocks. */
static awq_panel part_of(const awq_job *job, const awq_panel *panel, int64_t row, int64_t col, int64_t rows,
                         int64_t cols)
{
    awq_panel part = *panel;
    part.codes += row * panel->row_stride + col * panel->col_stride;
    part.payload += awq_panel_offset(panel, job->item_stride, row, col);
    part.rows = rows;
    part.cols = cols;
    return part;
}

/* One unit, of one matrix of the batch. */
static awq_panel unit_of(const awq_job *job, int64_t batch, int64_t row, int64_t col, void *scratch)
{
    const awq_geometry *g = &job->geometry;
    awq_panel matrix = job->matrix;
    int64_t codes_offset = 0, payload_offset = 0;
    for (int32_t d = g->batch_dims - 1; d >= 0; d--) {
        const int64_t index = batch % g->batch_sizes[d];
        batch /= g->batch_sizes[d];
        codes_offset += index * g->codes_batch_strides[d];
        payload_offset += index * g->payload_batch_strides[d];
    }
    matrix.codes += codes_offset;
    matrix.payload += payload_offset * awq_packings[g->packing].item_bytes;
    matrix.scratch = scratch;
    return part_of(job, &matrix, row, col, min64(job->unit_rows, matrix.rows - row),
                   min64(job->unit_cols, matrix.cols - col));
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
static uint8_t run_staged(const awq_job *job, const awq_panel *s)
{
    uint8_t codes[STAGE_ROWS * STAGE_COLS];
    uint8_t payload[STAGE_ROWS * STAGE_COLS / 2];
    const int64_t item = awq_packings[s->packing].item_bytes, line_rows = awq_line_rows(s);
    const int64_t lines = s->rows / line_rows, line_bytes = s->cols * line_rows / 2;
    awq_panel line = {.packing = s->packing,
                      .is_turned = s->is_turned,
                      .codes = codes,
                      .payload = payload,
                      .rows = line_rows,
                      .cols = s->cols,
                      .row_stride = s->cols,
                      .col_stride = 1};
    uint8_t seen = 0;
    if (job->direction == AWQ_PACK) {
        copy_strided(codes, s->cols, 1, s->codes, s->row_stride, s->col_stride, s->rows, s->cols, 1);
    } else {
        copy_strided(payload, line_bytes, item, s->payload, s->line_stride, job->item_stride, lines, line_bytes / item,
                     item);
    }
    for (int64_t i = 0; i < lines; i++, line.codes += line_rows * s->cols, line.payload += line_bytes) {
        seen |= job->run_rows(&line);
    }
    if (job->direction == AWQ_PACK) {
        copy_strided(s->payload, s->line_stride, job->item_stride, payload, line_bytes, item, lines, line_bytes / item,
                     item);
    } else {
        copy_strided(s->codes, s->row_stride, s->col_stride, codes, s->cols, 1, s->rows, s->cols, 1);
    }
    return seen;
}

/* Consecutive units of one line are one run. */
static uint8_t walk_rows(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    uint8_t seen = 0;
    while (begin < end) {
        const int64_t line = begin / job->col_units;
        const int64_t stop = min64(end, (line + 1) * job->col_units);
        const int64_t col = begin % job->col_units * job->unit_cols;
        awq_panel run = unit_of(job, line / job->row_units, line % job->row_units * job->unit_rows, col, scratch);
        run.cols = min64((stop - line * job->col_units) * job->unit_cols, job->matrix.cols) - col;
        seen |= job->run_rows(&run);
        begin = stop;
    }
    return seen;
}

static uint8_t run_stages(const awq_job *job, const awq_panel *s)
{
    uint8_t seen = 0;
    for (int64_t row = 0; row < s->rows; row += STAGE_ROWS) {
        for (int64_t col = 0; col < s->cols; col += STAGE_COLS) {
            const awq_panel stage =
                part_of(job, s, row, col, min64(STAGE_ROWS, s->rows - row), min64(STAGE_COLS, s->cols - col));
            seen |= run_staged(job, &stage);
        }
    }
    return seen;
}

/* What fills whole steps is a panel; a rim of rows below it and one of columns beside it may remain. */
static uint8_t run_unit(const awq_job *job, const awq_panel *s)
{
    if (!has_panels(job)) {
        return run_stages(job, s);
    }
    const int64_t rows = s->rows - s->rows % AWQ_PANEL_STEP, cols = s->cols - s->cols % AWQ_PANEL_STEP;
    const awq_panel panel = part_of(job, s, 0, 0, rows, cols);
    const awq_panel below = part_of(job, s, rows, 0, s->rows - rows, s->cols);
    const awq_panel beside = part_of(job, s, 0, cols, rows, s->cols - cols);
    uint8_t seen = rows > 0 && cols > 0 ? job->run_panel(&panel) : 0;
    seen |= run_stages(job, &below);
    return seen | run_stages(job, &beside);
}

/*
 * Packing: across the columns of some rows, then on to the rows below, so that threads write other rows and, where the
 * payload is new, no page twice. Rows taken from end to end are one panel: the taller it is, the longer are the reads.
 */
static uint8_t pack_panels(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    uint8_t seen = 0;
    while (begin < end) {
        const int64_t line = begin / job->col_units, unit = begin % job->col_units;
        const int64_t below = job->row_units - line % job->row_units;
        const int64_t whole = unit == 0 ? min64((end - begin) / job->col_units, below) : 0;
        const int64_t stop = whole > 0 ? begin + whole * job->col_units : min64(end, (line + 1) * job->col_units);
        const int64_t row = line % job->row_units * job->unit_rows, col = unit * job->unit_cols;
        awq_panel s = unit_of(job, line / job->row_units, row, col, scratch);
        s.rows = min64((whole > 0 ? whole : 1) * job->unit_rows, job->matrix.rows - row);
        s.cols = min64((stop - line * job->col_units) * job->unit_cols, job->matrix.cols) - col;
        seen |= run_unit(job, &s);
        begin = stop;
    }
    return seen;
}

/* Unpacking: down the rows of one group of columns, which is one panel, then on to the next. */
static void unpack_panels(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    while (begin < end) {
        const int64_t group = begin / job->row_units;
        const int64_t stop = min64(end, (group + 1) * job->row_units);
        const int64_t row = begin % job->row_units * job->unit_rows;
        const int64_t col = group % job->col_units * job->unit_cols;
        awq_panel s = unit_of(job, group / job->col_units, row, col, scratch);
        s.rows = min64((stop - group * job->row_units) * job->unit_rows, job->matrix.rows) - row;
        (void)run_unit(job, &s);
        begin = stop;
    }
}

uint8_t awq_job_run(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    if (has_row_runs(job)) {
        return walk_rows(job, begin, end, scratch);
    }
    if (job->direction == AWQ_PACK) {
        return pack_panels(job, begin, end, scratch);
    }
    unpack_panels(job, begin, end, scratch);
    return 0;
}

uint8_t awq_job_run_part(const awq_job *job, uint8_t *codes, uint8_t *payload, int64_t rows, int64_t cols,
                         void *scratch)
{
    awq_panel all = job->matrix;
    all.codes = codes;
    all.payload = payload;
    all.rows = all.is_turned ? cols : rows;
    all.cols = all.is_turned ? rows : cols;
    all.scratch = scratch;
    if (!has_row_runs(job)) {
        return run_unit(job, &all);
    }
    const int64_t line_rows = awq_line_rows(&all);
    uint8_t seen = 0;
    for (int64_t row = 0; row < all.rows; row += line_rows) {
        const awq_panel line = part_of(job, &all, row, 0, line_rows, all.cols);
        seen |= job->run_rows(&line);
    }
    return seen;
}

/* Walks a tensor of any strides and hands the kernels the runs and panels they know. */
#include "job.h"

#include "sizes.h"

enum {
    RUN_CODES = 1 << 15,  /* codes of one unit of a row-major walk: long runs, yet enough units to share */
    TASK_CODES = 1 << 19, /* fewer codes than this take less time than a thread that wakes late on a busy machine */
    MIN_UNITS = 128,      /* panels shrink until there are this many, so that every thread gets some */
    PANEL_ROWS = 512,     /* of one unit of a column-major walk: a thread's units make few large panels */
    LEAST_COLS = 128,
    /* Outputs from these sizes are streamed past the cache: measured, as they leave no room there for themselves. */
    STREAM_PACKED_ROWS = 8 << 20,
    STREAM_UNPACKED_ROWS = 32 << 20,
    STREAM_PACKED_PANELS = 1 << 20,
    STREAM_UNPACKED_PANELS = 4 << 20,
};

/* The matrix in lines: where blocks run down it is turned. */
static void turn(awq_job *job)
{
    const awq_geometry *g = &job->geometry;
    const awq_packing_traits *traits = &awq_packings[g->packing];
    const bool turns = traits->runs_down;
    awq_panel *m = &job->matrix;
    m->packing = g->packing;
    m->rows = turns ? g->cols : g->rows;
    m->cols = turns ? g->rows : g->cols;
    m->row_stride = turns ? g->codes_col_stride : g->codes_row_stride;
    m->col_stride = turns ? g->codes_row_stride : g->codes_col_stride;
    m->line_stride = g->payload_row_stride * traits->item_bytes;
    m->item_stride = g->payload_col_stride * traits->item_bytes;
}

/* Fills in which kernels run it. */
static void choose(awq_job *job, const awq_kernels *kernels)
{
    static const awq_walks none;
    const awq_panel *m = &job->matrix;
    const awq_walks *w = kernels->of[m->packing] == NULL ? &none : kernels->of[m->packing];
    const int64_t item = awq_packings[m->packing].item_bytes;
    const bool is_pack = job->direction == AWQ_PACK, is_turned = m->item_stride != item && m->line_stride == item;
    job->run_blocks = is_pack ? awq_pack_blocks : awq_unpack_blocks;
    if (m->item_stride == item && m->col_stride == 1) {
        job->run_line = is_pack ? w->pack_rows : w->unpack_rows;
        job->has_lines = w->has_lines;
    } else if (m->item_stride == item && m->row_stride == 1) {
        job->run_panel = is_pack ? w->pack_panel : w->unpack_panel;
        job->scratch_bytes = kernels->scratch_bytes;
    } else if (is_turned && (m->col_stride == 1 || m->row_stride == 1)) {
        job->run_panel = is_pack ? w->pack_turned : w->unpack_turned;
    }
    job->step_cols = is_turned && m->col_stride == 1 ? AWQ_TURNED_COLS : AWQ_PANEL_STEP; /* as pack_turned chooses */
    /* Threads write other rows of the output, unless they can read whole columns. */
    const bool has_columns = m->row_stride == 1 && m->col_stride != 1;
    const bool is_tall = awq_packings[m->packing].runs_down && m->rows > AWQ_TALL_ROWS;
    job->goes_down = is_pack ? is_turned || (has_columns && is_tall) : has_columns;
}

/* Fills in how the matrix is cut. */
static void cut(awq_job *job, int64_t batch)
{
    const awq_panel *m = &job->matrix;
    const bool is_rows = job->run_line != NULL;
    job->unit_rows = is_rows ? awq_line_rows(m) : PANEL_ROWS;
    job->unit_cols = is_rows ? RUN_CODES / job->unit_rows : AWQ_PANEL_COLS;
    job->row_units = awq_ceil_div(m->rows, job->unit_rows);
    job->col_units = awq_ceil_div(m->cols, job->unit_cols);
    while (!is_rows && batch * job->row_units * job->col_units < MIN_UNITS && job->unit_cols > LEAST_COLS) {
        if (job->unit_rows >= job->unit_cols) {
            job->unit_rows /= 2;
        } else {
            job->unit_cols /= 2;
        }
        job->row_units = awq_ceil_div(m->rows, job->unit_rows);
        job->col_units = awq_ceil_div(m->cols, job->unit_cols);
    }
    job->units = batch * job->row_units * job->col_units;
}

void awq_job_init_part(awq_job *job, awq_direction direction, const awq_kernels *kernels, const awq_geometry *geometry)
{
    *job = (awq_job){.geometry = *geometry, .direction = direction};
    turn(job);
    choose(job, kernels);
}

void awq_job_init(awq_job *job, awq_direction direction, awq_packing packing, const awq_kernels *kernels,
                  const awq_view *codes, const awq_view *payload)
{
    *job = (awq_job){.direction = direction};
    awq_geometry_init(&job->geometry, packing, codes, payload);
    turn(job);
    choose(job, kernels);
    job->matrix.codes = codes->data;
    job->matrix.payload = payload->data;
    const int64_t batch = awq_count(job->geometry.batch_sizes, job->geometry.batch_dims);
    cut(job, batch);
    const int64_t total = batch * job->matrix.rows * job->matrix.cols;
    const bool is_rows = job->run_line != NULL;
    job->units_per_task = job->units > 0 ? awq_ceil_div(TASK_CODES, awq_ceil_div(total, job->units)) : 1;
    if (direction == AWQ_PACK) {
        job->matrix.stream = total / 2 >= (is_rows ? STREAM_PACKED_ROWS : STREAM_PACKED_PANELS);
    } else {
        job->matrix.stream = total >= (is_rows ? STREAM_UNPACKED_ROWS : STREAM_UNPACKED_PANELS);
    }
}

/* The part of a panel that starts at `row`, `col` of it: whole lines and blocks. */
static awq_panel part_of(const awq_panel *panel, int64_t row, int64_t col, int64_t rows, int64_t cols)
{
    awq_panel part = *panel;
    part.codes += row * panel->row_stride + col * panel->col_stride;
    part.payload += awq_panel_offset(panel, row, col);
    part.rows = rows;
    part.cols = cols;
    return part;
}

/* One unit, of one matrix of the batch. */
static awq_panel unit_of(const awq_job *job, int64_t batch, int64_t row, int64_t col, void *scratch)
{
    const awq_geometry *g = &job->geometry;
    awq_panel matrix = job->matrix;
    matrix.codes += awq_offset_of(batch, g->batch_sizes, g->codes_batch_strides, g->batch_dims);
    matrix.payload += awq_offset_of(batch, g->batch_sizes, g->payload_batch_strides, g->batch_dims) *
                      awq_packings[g->packing].item_bytes;
    matrix.scratch = scratch;
    return part_of(&matrix, row, col, awq_min(job->unit_rows, matrix.rows - row),
                   awq_min(job->unit_cols, matrix.cols - col));
}

/* Line by line. */
static uint8_t run_lines(const awq_job *job, const awq_panel *s)
{
    const int line_rows = awq_line_rows(s);
    awq_panel line = *s;
    line.rows = line_rows;
    uint8_t seen = 0;
    for (int64_t row = 0; row < s->rows; row += line_rows) {
        seen |= job->run_line(&line);
        line.codes += line_rows * s->row_stride;
        line.payload += s->line_stride;
    }
    return seen;
}

static uint8_t run_any(awq_kernel *kernel, const awq_panel *s)
{
    return s->rows > 0 && s->cols > 0 ? kernel(s) : 0;
}

/* What fills whole steps is a panel; a rim of rows below it and one of columns beside it may remain. */
static uint8_t run_unit(const awq_job *job, const awq_panel *s)
{
    if (job->run_line != NULL) {
        return job->has_lines ? job->run_line(s) : run_lines(job, s);
    }
    if (job->run_panel == NULL) {
        return job->run_blocks(s);
    }
    const int64_t rows = s->rows - s->rows % AWQ_PANEL_STEP, cols = s->cols - s->cols % job->step_cols;
    const awq_panel panel = part_of(s, 0, 0, rows, cols);
    const awq_panel below = part_of(s, rows, 0, s->rows - rows, s->cols);
    const awq_panel beside = part_of(s, 0, cols, rows, s->cols - cols);
    uint8_t seen = run_any(job->run_panel, &panel);
    seen |= run_any(job->run_blocks, &below);
    return seen | run_any(job->run_blocks, &beside);
}

/*
 * Across the columns of some rows, then on to the rows below, so that threads write other rows and, where the output is
 * new, no page twice. Rows taken from end to end are one panel: the taller it is, the longer are the reads.
 */
static uint8_t go_across(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    uint8_t seen = 0;
    while (begin < end) {
        const int64_t line = begin / job->col_units, unit = begin % job->col_units;
        const int64_t below = job->row_units - line % job->row_units;
        const int64_t whole = unit == 0 ? awq_min((end - begin) / job->col_units, below) : 0;
        const int64_t stop = whole > 0 ? begin + whole * job->col_units : awq_min(end, (line + 1) * job->col_units);
        const int64_t row = line % job->row_units * job->unit_rows, col = unit * job->unit_cols;
        awq_panel s = unit_of(job, line / job->row_units, row, col, scratch);
        s.rows = awq_min((whole > 0 ? whole : 1) * job->unit_rows, job->matrix.rows - row);
        s.cols = awq_min((stop - line * job->col_units) * job->unit_cols, job->matrix.cols) - col;
        seen |= run_unit(job, &s);
        begin = stop;
    }
    return seen;
}

/* Where the output's rows run down: down the rows of one group of columns, which is one panel, then on to the next. */
static uint8_t go_down(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    uint8_t seen = 0;
    while (begin < end) {
        const int64_t group = begin / job->row_units;
        const int64_t stop = awq_min(end, (group + 1) * job->row_units);
        const int64_t row = begin % job->row_units * job->unit_rows;
        const int64_t col = group % job->col_units * job->unit_cols;
        awq_panel s = unit_of(job, group / job->col_units, row, col, scratch);
        s.rows = awq_min((stop - group * job->row_units) * job->unit_rows, job->matrix.rows) - row;
        seen |= run_unit(job, &s);
        begin = stop;
    }
    return seen;
}

uint8_t awq_job_run(const awq_job *job, int64_t begin, int64_t end, void *scratch)
{
    const uint8_t seen = job->goes_down ? go_down(job, begin, end, scratch) : go_across(job, begin, end, scratch);
    if (job->matrix.stream) {
        awq_stream_fence();
    }
    return seen;
}

uint8_t awq_job_run_part(const awq_job *job, uint8_t *codes, uint8_t *payload, int64_t rows, int64_t cols,
                         void *scratch)
{
    const bool turns = awq_packings[job->matrix.packing].runs_down;
    awq_panel all = job->matrix;
    all.codes = codes;
    all.payload = payload;
    all.rows = turns ? cols : rows;
    all.cols = turns ? rows : cols;
    all.scratch = scratch;
    return run_unit(job, &all);
}

/* Walks a tensor of any strides and hands the kernels the runs and tiles they know. */
#include "job.h"
#include "kernels.h"

enum {
    RUN_CODES = 1 << 15,           /* codes of one unit of a row-major walk: long runs, yet enough units to share */
    TASK_CODES = 1 << 16,          /* fewer codes than this are not worth waking a thread */
    STREAM_BYTES = 8 << 20,        /* outputs from this size leave no room for themselves in the cache */
};

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t payload_item_bytes(awq_layout layout)
{
    return layout == AWQ_LAYOUT_V2 ? 2 : 4;
}

static bool has_row_runs(const awq_geometry *g)
{
    return g->codes_col_stride == 1 && g->payload_col_stride == 1;
}

static bool has_tiles(const awq_geometry *g)
{
    return g->codes_row_stride == 1 && g->payload_col_stride == 1;
}

void awq_job_init(awq_job *job, awq_direction direction, awq_layout layout, const awq_kernels *kernels,
                  const awq_view *codes, const awq_view *payload)
{
    *job = (awq_job){.kernels = kernels, .codes = codes->data, .payload = payload->data, .direction = direction};
    awq_geometry *g = &job->geometry;
    awq_geometry_init(g, layout, codes, payload);
    if (has_row_runs(g)) {
        job->unit_rows = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
        job->unit_cols = RUN_CODES / job->unit_rows;
    } else {
        job->unit_rows = AWQ_TILE_ROWS;
        job->unit_cols = AWQ_TILE_COLS;
    }
    job->row_units = ceil_div(g->rows, job->unit_rows);
    job->col_units = ceil_div(g->cols, job->unit_cols);
    job->units = job->row_units * job->col_units;
    int64_t total = g->rows * g->cols;
    for (int32_t d = 0; d < g->batch_dims; d++) {
        job->units *= g->batch_sizes[d];
        total *= g->batch_sizes[d];
    }
    job->units_per_task = job->units > 0 ? ceil_div(TASK_CODES, ceil_div(total, job->units)) : 1;
    job->stream = (direction == AWQ_PACK ? total / 2 : total) >= STREAM_BYTES;
}

/* Where one unit lies. */
typedef struct span {
    uint8_t *codes, *payload;
    int64_t rows, cols;
} span;

static uint8_t *payload_at(const awq_job *job, uint8_t *payload, int64_t row, int64_t col)
{
    const awq_geometry *g = &job->geometry;
    if (g->layout == AWQ_LAYOUT_V2) {
        /* Codes of row n start AWQ_BLOCK_BYTES further inside each group of four rows' blocks. */
        const int64_t item = col / AWQ_BLOCK_CODES * AWQ_BLOCK_CODES + row % AWQ_QUAD_ROWS * (AWQ_BLOCK_BYTES / 2);
        return payload + 2 * (row / AWQ_QUAD_ROWS * g->payload_row_stride + item * g->payload_col_stride);
    }
    return payload + 4 * (row * g->payload_row_stride + col / AWQ_WORD_CODES * g->payload_col_stride);
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
        .payload = payload_at(job, job->payload + payload_offset * payload_item_bytes(g->layout), row, col),
        .rows = min64(job->unit_rows, g->rows - row),
        .cols = min64(job->unit_cols, g->cols - col),
    };
}

static uint8_t run_rows(const awq_job *job, const span *s)
{
    const awq_geometry *g = &job->geometry;
    const awq_kernels *k = job->kernels;
    if (g->layout == AWQ_LAYOUT_V2) {
        const int64_t blocks = s->cols / AWQ_BLOCK_CODES;
        if (job->direction == AWQ_PACK) {
            return k->pack_v2(s->codes, g->codes_row_stride, s->payload, blocks, job->stream);
        }
        k->unpack_v2(s->payload, s->codes, g->codes_row_stride, blocks, job->stream);
        return 0;
    }
    const int64_t words = s->cols / AWQ_WORD_CODES;
    const bool reorder = g->layout == AWQ_LAYOUT_V1_REORDER;
    if (job->direction == AWQ_PACK) {
        return k->pack_v1(s->codes, s->payload, words, reorder, job->stream);
    }
    k->unpack_v1(s->payload, s->codes, words, reorder, job->stream);
    return 0;
}

static uint8_t run_tile(const awq_job *job, const span *s)
{
    const awq_geometry *g = &job->geometry;
    const awq_kernels *k = job->kernels;
    const int64_t line = g->payload_row_stride * payload_item_bytes(g->layout);
    const bool is_v2 = g->layout == AWQ_LAYOUT_V2;
    const int64_t row_stride = is_v2 ? AWQ_BLOCK_BYTES : line;
    const int64_t quad_stride = is_v2 ? line : AWQ_QUAD_ROWS * line;
    const int64_t block_stride = is_v2 ? AWQ_QUAD_BLOCK_BYTES : AWQ_BLOCK_BYTES;
    const int blocks = (int)(s->cols / AWQ_BLOCK_CODES);
    if (job->direction == AWQ_PACK) {
        return k->pack_tile(g->layout, s->codes, g->codes_col_stride, s->payload, row_stride, quad_stride,
                            block_stride, blocks, job->stream);
    }
    k->unpack_tile(g->layout, s->payload, row_stride, quad_stride, block_stride, s->codes, g->codes_col_stride,
                   blocks, job->stream);
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
    uint8_t codes[AWQ_TILE_ROWS * AWQ_TILE_COLS];
    uint8_t payload[AWQ_TILE_ROWS * AWQ_TILE_COLS / 2];
    const int64_t item = payload_item_bytes(g->layout);
    const int64_t quad = g->layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t lines = s->rows / quad;
    const int64_t line_bytes = s->cols * quad / 2;
    const awq_job dense = {
        .geometry = {.layout = g->layout, .codes_row_stride = s->cols},
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

/* Down the rows of one group of columns, then on to the next: a column's cache lines are read in order. */
static uint8_t walk_tiles(const awq_job *job, int64_t begin, int64_t end)
{
    const bool is_tiled = has_tiles(&job->geometry);
    uint8_t seen = 0;
    for (int64_t unit = begin; unit < end; unit++) {
        const int64_t group = unit / job->row_units;
        const span s = span_of(job, group / job->col_units, unit % job->row_units * job->unit_rows,
                               group % job->col_units * job->unit_cols);
        const bool is_whole = s.rows == AWQ_TILE_ROWS && s.cols % AWQ_BLOCK_CODES == 0;
        seen |= is_tiled && is_whole ? run_tile(job, &s) : run_staged(job, &s);
    }
    return seen;
}

uint8_t awq_job_run(const awq_job *job, int64_t begin, int64_t end)
{
    return has_row_runs(&job->geometry) ? walk_rows(job, begin, end) : walk_tiles(job, begin, end);
}

/* How a tensor of weights is cut into chunks: which way its lines run, and how many of how many elements are taken. */
#include "cpu.h"
#include "float_walk.h"

/* Measured, for memory to be read and written in runs, and codes to stay in the caches. */
enum {
    EACH_CODES = 1 << 17,   /* of lines with a scale for each code, which is made ready once for a group's lines */
    SHARED_CODES = 1 << 15, /* of lines that share scales of several columns */
    BLOCK_CODES = 1 << 13,  /* of lines of blocks, unless one block takes more */
    LINE_CODES = 1 << 12,   /* of several lines ... */
    MOST_ALONG = 1 << 13,   /* ... and of one: in the first-level cache */
    BLOCK_ALONG = 1 << 10,
    PAGE_ALONG = 1 << 11, /* a page of float16, two of float32 */
    ALONG_STEP = 128,     /* a cache line of payload */
    MOST_LINES = 256,
    TASK = 1 << 17, /* fewer elements are not worth a thread */
};

/* Of each column. Where pages are preferred MOST_LINES half fill the second-level cache; small matrices are cut smaller,
   into units for as many threads as there may be. */
enum {
    QUANTIZED_COLUMN = PAGE_ALONG,
    DEQUANTIZED_COLUMN = 1 << 10,
    LEAST_COLUMN = 1 << 9,
    ENOUGH_UNITS = 64,
};

void awq_float_job_orient(awq_float_job *job, const awq_kernels *kernels)
{
    const awq_float_geometry *g = &job->geometry;
    job->floats = kernels->floats != NULL ? kernels->floats : &awq_float_scalar;
    job->is_column_major = g->weight.col_stride != 1 && g->weight.row_stride == 1;
    job->along = job->is_column_major ? g->rows : g->cols;
    job->across = job->is_column_major ? g->cols : g->rows;
    job->is_contiguous = awq_along(job, &g->weight) == 1;
}

void awq_float_job_cut(awq_float_job *job, int64_t chunk_along, int64_t chunk_across)
{
    const awq_float_geometry *g = &job->geometry;
    job->chunk_along = chunk_along;
    job->chunk_across = chunk_across;
    job->along_units = awq_ceil_div(job->along, chunk_along);
    job->across_units = awq_ceil_div(job->across, chunk_across);
    job->units = awq_count(g->batch_sizes, g->batch_dims) * job->along_units * job->across_units;
    job->units_per_task = awq_ceil_div(TASK, chunk_along * chunk_across);
}

/* Elements that a chunk takes at most of a column, or of a row whose payload runs down. */
static int64_t most_of_column(const awq_float_job *job)
{
    const bool quantizes = job->op == AWQ_QUANTIZE;
    if (!awq_cpu_prefers_pages() || !(quantizes || job->is_column_major)) {
        return LEAST_COLUMN;
    }
    int64_t most = quantizes ? QUANTIZED_COLUMN : DEQUANTIZED_COLUMN;
    while (most > LEAST_COLUMN && most * MOST_LINES * ENOUGH_UNITS > awq_float_codes(&job->geometry)) {
        most /= 2;
    }
    return most;
}

void awq_float_job_cut_beside_payload(awq_float_job *job)
{
    const awq_float_geometry *g = &job->geometry;
    const awq_packing_traits *traits = &awq_packings[g->packing];
    const int64_t block_across = job->is_column_major ? traits->block_cols : traits->block_rows;
    const bool has_lines = !job->is_column_major && g->payload.col_stride == 1, has_blocks = block_across > 1;
    const int64_t most_of_blocks = awq_cpu_prefers_pages() ? PAGE_ALONG : BLOCK_ALONG;
    const int64_t most = !has_lines ? most_of_column(job) : has_blocks ? most_of_blocks : MOST_ALONG;
    const int64_t parts = awq_ceil_div(job->along, most); /* equal ones of a line, which may have no element */
    int64_t along = parts == 0 ? most : awq_round_up(awq_ceil_div(job->along, parts), ALONG_STEP);
    along = awq_min(along, AWQ_FLOAT_ENTRIES / 2 * awq_group_along(job));
    along = awq_min(along, job->is_contiguous ? along : AWQ_FLOAT_STRIDED);
    along -= along % AWQ_BLOCK_CODES;
    const int64_t codes = !has_lines                   ? MOST_LINES * along
                          : awq_group_along(job) == 1  ? EACH_CODES
                          : awq_group_across(job) != 1 ? SHARED_CODES
                          : has_blocks                 ? BLOCK_CODES
                                                       : LINE_CODES;
    const int64_t lines = awq_min(codes / along, MOST_LINES);
    awq_float_job_cut(job, along, lines < block_across ? block_across : lines / block_across * block_across);
}

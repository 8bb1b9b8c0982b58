/* What the walks over floats share: which way lines run, and where one is. */
#ifndef AWQPACK_FLOAT_WALK_H
#define AWQPACK_FLOAT_WALK_H

#include "float_job.h"
#include "float_kernels.h"
#include "kernels.h"

enum {
    AWQ_FLOAT_ENTRIES = 4096, /* scales that are ready at once */
    AWQ_FLOAT_STRIDED = 2048, /* elements of a line that is not contiguous, at most: they pass through a copy */
    AWQ_FLOAT_GAP = 64,       /* bytes between the lines of a chunk's codes */
};

/* Codes of the whole batch. */
static inline int64_t awq_float_codes(const awq_float_geometry *g)
{
    return awq_count(g->batch_sizes, g->batch_dims) * g->rows * g->cols;
}

static inline int64_t awq_along(const awq_float_job *job, const awq_plane *plane)
{
    return job->is_column_major ? plane->row_stride : plane->col_stride;
}

static inline int64_t awq_across(const awq_float_job *job, const awq_plane *plane)
{
    return job->is_column_major ? plane->col_stride : plane->row_stride;
}

static inline int64_t awq_group_along(const awq_float_job *job)
{
    return job->is_column_major ? job->geometry.group_rows : job->geometry.group_cols;
}

static inline int64_t awq_group_across(const awq_float_job *job)
{
    return job->is_column_major ? job->geometry.group_cols : job->geometry.group_rows;
}

/* Element (0, 0) of the matrix of that number in the batch. */
static inline uint8_t *awq_plane_at(const awq_float_geometry *g, const awq_plane *plane, int64_t item, int64_t batch)
{
    const int64_t offset = awq_offset_of(batch, g->batch_sizes, plane->batch_strides, g->batch_dims);
    return (uint8_t *)plane->data + offset * item;
}

/* An element of a line of that matrix, of a plane that is there. */
static inline uint8_t *awq_element_of(const awq_float_job *job, const awq_plane *plane, int64_t item, int64_t batch,
                                      int64_t line, int64_t element)
{
    return awq_plane_at(&job->geometry, plane, item, batch) +
           (line * awq_across(job, plane) + element * awq_along(job, plane)) * item;
}

/* The same; NULL where there is no plane. */
static inline uint8_t *awq_element_at(const awq_float_job *job, const awq_plane *plane, int64_t item, int64_t batch,
                                      int64_t line, int64_t element)
{
    return plane->data == NULL ? NULL : awq_element_of(job, plane, item, batch, line, element);
}

/* A unit: its first line and element, and how many there are. */
typedef struct awq_float_chunk {
    int64_t batch, line, first, lines, count;
} awq_float_chunk;

static inline awq_float_chunk awq_float_chunk_at(const awq_float_job *job, int64_t unit)
{
    const int64_t row = unit / job->along_units;
    const int64_t line = row % job->across_units * job->chunk_across,
                  first = unit % job->along_units * job->chunk_along;
    return (awq_float_chunk){row / job->across_units, line, first, awq_min(job->chunk_across, job->across - line),
                             awq_min(job->chunk_along, job->along - first)};
}

/* From a line of a chunk's codes to the next: off a power of two, so that they lie in different sets of the cache. */
static inline int64_t awq_float_line_bytes(const awq_float_job *job)
{
    return job->chunk_along + AWQ_FLOAT_GAP;
}

/* Asks for bytes that are read soon, where lines are too short for the processor to see them coming. */
static inline void awq_float_prefetch(const uint8_t *from, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += AWQ_FLOAT_ASKED) {
        awq_float_ask(from, i);
    }
}

/* Sets what is the same for every op, once the geometry is known: the way lines run, and their kernels. */
void awq_float_job_orient(awq_float_job *job, const awq_kernels *kernels);

/* Cuts the matrices into chunks of this size. */
void awq_float_job_cut(awq_float_job *job, int64_t chunk_along, int64_t chunk_across);

/* The same, into whole blocks of the packing, with no more scales along a line than are ready at once. */
void awq_float_job_cut_beside_payload(awq_float_job *job);

/* Copies items that lie so many items apart on either side. */
void awq_copy_items(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t count,
                    int64_t item);

unsigned awq_min_max_unit(const awq_float_job *job, int64_t unit);

#endif

/* A pack or an unpack of one tensor, cut into units that any number of threads may take. */
#ifndef AWQPACK_JOB_H
#define AWQPACK_JOB_H

#include "awqpack/view.h"
#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum awq_direction { AWQ_PACK, AWQ_UNPACK } awq_direction;

typedef struct awq_job {
    awq_geometry geometry;
    awq_panel matrix; /* the first of the batch, in lines */
    awq_direction direction;
    awq_kernel *run_line; /* a line of row-major codes, or any number where has_lines; else NULL */
    bool has_lines;
    awq_kernel *run_panel;  /* a panel of whole steps; NULL where there is nothing for it */
    awq_kernel *run_blocks; /* whatever remains */
    int step_cols;          /* of a panel */
    bool goes_down;         /* from a unit to the one below, not to the one beside */
    /* How the matrix is cut: a unit is unit_rows x unit_cols codes, smaller at the far edges. */
    int64_t unit_rows, unit_cols;
    int64_t row_units, col_units;
    int64_t units;          /* how many there are in all, batch included */
    int64_t units_per_task; /* the fewest that are worth a thread */
    size_t scratch_bytes;   /* what awq_job_run needs */
} awq_job;

/* The views' shapes must have passed awq_check_codes or awq_check_payload. */
void awq_job_init(awq_job *job, awq_direction direction, awq_packing packing, const awq_kernels *kernels,
                  const awq_view *codes, const awq_view *payload);

/* Does the units [begin, end); returns the OR of the codes packed (0 when unpacking). Safe from any thread that brings
   a scratch of its own: scratch_bytes, aligned to AWQ_SCRATCH_ALIGNMENT. */
uint8_t awq_job_run(const awq_job *job, int64_t begin, int64_t end, void *scratch);

/* A job whose codes lie elsewhere than in one tensor: of `geometry` it heeds packing and strides, not the batch. */
void awq_job_init_part(awq_job *job, awq_direction direction, const awq_kernels *kernels, const awq_geometry *geometry);

/* Does it for `rows` x `cols` codes beside the payload of their first block: whole blocks; of codes that lie column by
   column up to AWQ_PANEL_COLS columns (or, where lines are W's columns, of those that lie row by row as many rows).
   Returns the OR of the codes packed; scratch is as for awq_job_run, and awq_stream_fence is the caller's. */
uint8_t awq_job_run_part(const awq_job *job, uint8_t *codes, uint8_t *payload, int64_t rows, int64_t cols,
                         void *scratch);

#ifdef __cplusplus
}
#endif

#endif

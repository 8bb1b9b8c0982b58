/* A relayout of one tensor, cut into units that any number of threads may take. */
#ifndef AWQPACK_RELAYOUT_JOB_H
#define AWQPACK_RELAYOUT_JOB_H

#include "awqpack/relayout.h"
#include "job.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct awq_relayout_job {
    awq_relayout relayout;
    const uint8_t *source;
    uint8_t *target;
    awq_job unpack, pack;    /* of the codes of a unit, which stay in the cache */
    awq_cross_kernel *cross; /* does without codes where whole lines cross; NULL where none do */
    /* A unit is unit_rows x unit_cols of the target's codes, smaller at the far edges. */
    int64_t unit_rows, unit_cols;
    int64_t row_units, col_units;
    int64_t units;          /* how many there are in all, batch included */
    int64_t units_per_task; /* the fewest that are worth a thread */
    size_t codes_bytes;     /* of a unit: the first part of the scratch */
    size_t scratch_bytes;   /* what awq_relayout_job_run needs */
} awq_relayout_job;

/* The payloads' shapes must have passed awq_check_relayout. */
void awq_relayout_job_init(awq_relayout_job *job, const awq_relayout *relayout, const awq_kernels *kernels,
                           const void *source, void *target);

/* Does the units [begin, end); returns 0. Safe from any thread that brings a scratch of its own. */
uint8_t awq_relayout_job_run(const awq_relayout_job *job, int64_t begin, int64_t end, void *scratch);

#ifdef __cplusplus
}
#endif

#endif

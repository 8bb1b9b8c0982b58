/* A dequantize, quantize or min_max of one tensor, cut into units that any number of threads may take. */
#ifndef AWQPACK_FLOAT_JOB_H
#define AWQPACK_FLOAT_JOB_H

#include "awqpack/floats.h"
#include "job.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum awq_float_op { AWQ_DEQUANTIZE, AWQ_QUANTIZE, AWQ_MIN_MAX } awq_float_op;

/* What a unit may come upon. */
enum { AWQ_FAULT_WEIGHT = 1 /* not finite */, AWQ_FAULT_RANGE = 2 /* a scale that its dtype cannot hold */ };

/*
 * The weight is seen as lines: along its contiguous dimension (any, where none is), and across it. A unit is a chunk of
 * some lines, whose codes stay in the cache between the packing's own kernels and those for floats.
 */
typedef struct awq_float_job {
    awq_float_geometry geometry;
    const struct awq_float_kernels *floats; /* see float_kernels.h */
    awq_float_op op;
    awq_scale_mode mode; /* of min_max */
    bool validate;
    bool is_column_major; /* lines are columns */
    bool is_contiguous;   /* elements of a line lie side by side */
    bool stream;
    awq_job part;                      /* pack or unpack between a chunk's codes and the payload */
    int64_t along, across;             /* elements of a line, lines of a matrix */
    int64_t chunk_along, chunk_across; /* of a unit, smaller at the far edges */
    int64_t along_units, across_units;
    int64_t units, units_per_task; /* as in awq_job */
    size_t scratch_bytes;          /* as there */
} awq_float_job;

/* The views have passed awq_check_quantize, _dequantize or _min_max. Without validate, quantize reports no weight. */
void awq_float_job_init(awq_float_job *job, awq_float_op op, awq_packing packing, const awq_kernels *kernels,
                        const awq_float_views *views, bool validate);

/* The same for min_max. */
void awq_float_job_init_min_max(awq_float_job *job, awq_scale_mode mode, const awq_kernels *kernels,
                                const awq_float_views *views);

/* Does the units [begin, end); returns AWQ_FAULT_ bits. Safe from any thread that brings a scratch of its own, as for
   awq_job_run. */
unsigned awq_float_job_run(const awq_float_job *job, int64_t begin, int64_t end, void *scratch);

#ifdef __cplusplus
}
#endif

#endif

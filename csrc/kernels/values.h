/* Whether scales and zeros are as they must be, cut into units that any number of threads may take. */
#ifndef AWQPACK_VALUES_H
#define AWQPACK_VALUES_H

#include "awqpack/floats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* zeros NULL: none. Elements that lie side by side are looked at in memory's order, others all in one unit. */
typedef struct awq_scale_check {
    const awq_view *scales, *zeros;
    int64_t total;                 /* elements of each, 0 where they do not lie side by side */
    int64_t units, units_per_task; /* as in awq_job */
    size_t scratch_bytes;          /* none */
} awq_scale_check;

void awq_scale_check_init(awq_scale_check *check, const awq_view *scales, const awq_view *zeros);

/* Looks at the units [begin, end). Not 0 when some value is not as it must be: awq_check_scale_values names it. */
unsigned awq_scale_check_run(const awq_scale_check *check, int64_t begin, int64_t end, void *scratch);

#ifdef __cplusplus
}
#endif

#endif

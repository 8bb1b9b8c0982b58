/* What the C layers may ask of libtorch. Implemented in shim.cpp, the only C++ of awqpack. */
#ifndef AWQPACK_SHIM_H
#define AWQPACK_SHIM_H

#include "awqpack/error.h"
#include "kernels/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs every unit of the job on torch's own thread pool (torch.set_num_threads rules); *seen becomes the OR of the codes
   packed. False when libtorch fails. */
bool awq_parallel_run(const awq_job *job, uint8_t *seen, awq_error *error);

/* The kernels in use: the fastest of this CPU, or those named by AWQPACK_CPU when awqpack was loaded. NULL, with an error,
   when that names none that this CPU can run. */
const awq_kernels *awq_active_kernels(awq_error *error);

#ifdef __cplusplus
}
#endif

#endif

/* What the C layers may ask of libtorch. Implemented in shim.cpp and shim_cuda.cpp, with ops.hpp the only C++ of
   awqpack. */
#ifndef AWQPACK_SHIM_H
#define AWQPACK_SHIM_H

#include <stddef.h>

#include "awqpack/error.h"
#include "kernels/job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs every unit of the job on torch's own thread pool (torch.set_num_threads rules); *seen becomes the OR of the
   codes packed. False when there is no memory for a thread's scratch, or libtorch fails. */
bool awq_parallel_run(const awq_job *job, uint8_t *seen, awq_error *error);

/* The kernels in use: the fastest of this CPU, or those named by AWQPACK_CPU when awqpack was loaded. NULL, with an
   error, when that names none that this CPU can run. */
const awq_kernels *awq_active_kernels(awq_error *error);

/* The last error of this thread that an op raised and that is no RuntimeError, AWQ_OK before the first: what tells such
   an error from others where torch makes RuntimeError of all of them. */
const awq_error *awq_last_error(void);

/* A new contiguous tensor of int16 or int32 in torch's memory, on a CUDA device or, where that is -1, on the host: a
   handle that the caller owns, and its data. False when torch makes none. */
bool awq_tensor_new(int32_t ndim, const int64_t *sizes, int bits, int32_t cuda_device, void **tensor, void **data);
void awq_tensor_delete(void *tensor);

/* Sends CUDA tensors to the kernels of cuda/, and back to the portable ones. False when this build has none. */
bool awq_cuda_register(void);
void awq_cuda_unregister(void);
bool awq_cuda_is_registered(void);

/* Copies bytes within the memory of one CUDA device, on torch's current stream there, and does not wait for it. */
bool awq_cuda_copy_on(int device, void *target, const void *source, size_t bytes, awq_error *error);

/* Whether the kernels of cuda/ run on this device; if not, `error` says why. */
bool awq_cuda_can_run(int device, awq_error *error);

/* The architectures that cuda/ was compiled for, separated by spaces or semicolons; "" without CUDA. */
const char *awq_cuda_arch_list(void);

#ifdef __cplusplus
}
#endif

#endif

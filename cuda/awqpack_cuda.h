/* The CUDA kernels behind plain C: device pointers, strides, a stream. No CUDA type crosses this line. */
#ifndef AWQPACK_CUDA_H
#define AWQPACK_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "awqpack/floats.h"
#include "awqpack/packing.h"
#include "awqpack/relayout.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Conventions:
 *  - a returned int is a cudaError_t, 0 being success; the error a call causes is cleared from the runtime's
 *    last-error state, one that others left there is neither reported nor cleared;
 *  - `stream` is a cudaStream_t; work runs on the current device, which the caller has made the stream's;
 *  - pointers are those of element (0, ..., 0); codes may have any alignment, payloads that of their element
 *    (int32 for V1, int16 for V2); strides may be negative;
 *  - source and destination do not overlap, and distinct destination elements are distinct bytes;
 *  - nothing waits for the device but what checks values, or fetches them.
 */

/* Packs codes into payload; only the low nibble of a code is packed. */
int awq_cuda_pack(const awq_geometry *geometry, const void *codes, void *payload, void *stream);

/*
 * The same, then waits until all codes were looked at, which the stream must not be captured for. `fault` receives
 * AWQ_CUDA_NO_FAULT or (linear index << 8 | code) of the first code above 15, in row-major order of
 * (batch..., row, column).
 */
int awq_cuda_pack_checked(const awq_geometry *geometry, const void *codes, void *payload, void *stream,
                          uint64_t *fault);
#define AWQ_CUDA_NO_FAULT UINT64_MAX

/* Unpacks payload into codes. */
int awq_cuda_unpack(const awq_geometry *geometry, const void *payload, void *codes, void *stream);

/* From one payload to another, of the same codes or of the transposed ones. */
int awq_cuda_relayout(const awq_relayout *relayout, const void *source, void *target, void *stream);

/* Dequantizes payload into weight. No value of scales and zeros is looked at. */
int awq_cuda_dequantize(const awq_float_geometry *geometry, void *stream);

/* Quantizes weight into payload; takes scales and zeros of weight. With NULL for `fault` no value is looked at. Else they
   wait until all were, as awq_cuda_pack_checked does: `fault` receives AWQ_CUDA_NO_FAULT, or which tensor holds a value
   that is none (of several, the first of these), above the linear index of the first such value. */
int awq_cuda_quantize(const awq_float_geometry *geometry, void *stream, uint64_t *fault);
int awq_cuda_min_max(const awq_float_geometry *geometry, awq_scale_mode mode, void *stream, uint64_t *fault);
#define AWQ_CUDA_FAULT_TENSOR_SHIFT 56
typedef enum awq_cuda_fault_tensor {
    AWQ_CUDA_FAULT_SCALE,  /* quantize: not finite, or negative */
    AWQ_CUDA_FAULT_ZERO,   /* quantize: above 15 */
    AWQ_CUDA_FAULT_WEIGHT, /* not finite */
    AWQ_CUDA_FAULT_RANGE   /* min_max: a scale that its dtype cannot hold */
} awq_cuda_fault_tensor;

/* Waits for the stream and fetches bytes of device memory, which the stream must not be captured for. */
int awq_cuda_fetch(void *host, const void *device, size_t bytes, void *stream);

/* Copies bytes between two places of the current device's memory, which must not overlap. */
int awq_cuda_copy(void *target, const void *source, size_t bytes, void *stream);

/* Success when the kernels run on `device`; else why they do not, such as no code for its architecture. */
int awq_cuda_probe(int device);

/* Tells whether the stream is being captured into a graph, when nothing may wait for it. */
int awq_cuda_is_capturing(void *stream, bool *is_capturing);

/* Makes `device` current and tells which one was, for awq_cuda_leave_device. */
int awq_cuda_enter_device(int device, int *previous);
int awq_cuda_leave_device(int previous);

/* Writes CUDA's own "name: description" of an error into text, cut to size bytes; returns text. */
const char *awq_cuda_error_text(int code, char *text, size_t size);

/* The architectures this was compiled for, as the build named them; "" if it did not. */
const char *awq_cuda_archs(void);

/* CUDART_VERSION of the runtime linked in: 13000 for 13.0. */
int awq_cuda_runtime_version(void);

#ifdef __cplusplus
}
#endif

#endif

/* What awqpack asks of DLPack 1.x: the C interface behind torch.Tensor.__dlpack_c_exchange_api__, by which a tensor
   tells where its memory is and how it lies without a call of Python. torch's copy of dlpack.h may not be included
   beside its stable ABI. */
#ifndef AWQPACK_DLPACK_H
#define AWQPACK_DLPACK_H

#include <stdint.h>

#define AWQPACK_DLPACK_MAJOR 1
#define AWQPACK_DLPACK_CAPSULE "dlpack_exchange_api"

enum { AWQPACK_DLPACK_CPU = 1, AWQPACK_DLPACK_CUDA = 2 }; /* devices */
enum { AWQPACK_DLPACK_INT = 0 };                          /* type codes */

/* DLTensor: what it points to belongs to the tensor. */
typedef struct awqpack_dlpack_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    const int64_t *shape;
    const int64_t *strides; /* in elements; NULL before 1.2 where contiguous */
    uint64_t byte_offset;
} awqpack_dlpack_tensor;

/* DLPackExchangeAPI, up to the one function that is used; it lives as long as the process. */
typedef struct awqpack_dlpack_exchange {
    uint32_t major, minor;
    const void *previous;
    void (*allocate)(void);
    void (*from_object)(void);
    void (*to_object)(void);
    int (*describe)(void *object, awqpack_dlpack_tensor *tensor); /* -1 with an exception */
} awqpack_dlpack_exchange;

#endif

/* What a payload must be, and where it is. */
#ifndef AWQPACK_PAYLOAD_H
#define AWQPACK_PAYLOAD_H

#include "dlpack.h"
#include "state.h"

typedef enum awqpack_device_kind {
    AWQPACK_OTHER_DEVICE = 0,
    AWQPACK_HOST,
    AWQPACK_CUDA, /* CUDA and XPU are the devices on which a packed weight works packed */
    AWQPACK_XPU,
    AWQPACK_META, /* no values, so none to unpack */
} awqpack_device_kind;
/* An awqpack_device_kind, or -1 with an exception. */
int awqpack_device_kind_of(PyObject *device);
/* True when a packed tensor moved between devices of these kinds stays packed. */
int awqpack_stays_packed(int from, int to);
/* Describes the memory of a tensor by torch's C interface. 0, without an exception, where either has none: on meta, for
   one. */
int awqpack_describe(PyObject *tensor, awqpack_dlpack_tensor *memory);
/* True when data is a dense tensor of the packing's dtype; an exception otherwise. */
int awqpack_check_payload(PyObject *data, PyObject *packing);
/* 1 when the values of a tensor are not its bytes, -1 with an exception. */
int awqpack_is_negated(PyObject *tensor);
/* -1 with an exception for a payload in host memory that has none, and for one that is not what its bytes say. */
int awqpack_refuse_without_values(PyObject *payload);

#endif

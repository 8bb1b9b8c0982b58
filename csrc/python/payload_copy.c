/* The copy of a payload on its own device, past torch's ops, which cost more than a small copy. */
#include "moves.h"

#include <string.h>

#include "payload.h"
#include "torch/shim.h"

/* What torch itself leaves to one thread. It copies larger ones with all its threads. */
enum { one_thread_bytes = 128 * 1024 };

/* Bytes of a tensor without gaps, in row-major order; 0 for others and for an empty one. */
static size_t contiguous_bytes(const awqpack_dlpack_tensor *memory)
{
    int64_t count = 1;
    for (int32_t d = memory->ndim - 1; d >= 0; d--) {
        if (memory->strides != NULL && memory->shape[d] != 1 && memory->strides[d] != count) {
            return 0;
        }
        count *= memory->shape[d];
    }
    return (size_t)count * memory->type_bits / 8;
}

/* 1 and the tensor object of a handle, which it takes over; 0 where torch cannot make it; -1 with an exception. torch's
   function for one handle, unlike that for a list, leaks it. */
static int tensor_of_handle(void *handle, PyObject **tensor)
{
    PyObject *capsule = PyCapsule_New(handle, NULL, NULL);
    PyObject *handles = capsule == NULL ? NULL : PyList_New(1);
    *tensor = NULL;
    if (handles == NULL) {
        awq_tensor_delete(handle);
        Py_XDECREF(capsule);
        return -1;
    }
    (void)PyList_SetItem(handles, 0, capsule);
    PyObject *tensors = PyObject_CallFunctionObjArgs(awqpack.adopt_tensors, handles, NULL);
    /* other arguments; nothing was taken */
    const int is_refused = tensors == NULL && PyErr_ExceptionMatches(PyExc_TypeError);
    if (is_refused) {
        PyErr_Clear();
        awq_tensor_delete(handle);
    }
    *tensor = tensors == NULL ? NULL : Py_XNewRef(PyList_GetItem(tensors, 0));
    Py_XDECREF(tensors);
    Py_DECREF(handles);
    return is_refused ? 0 : *tensor == NULL ? -1 : 1;
}

/* An int16 or int32 tensor without gaps where we can copy, which torch would not do with several threads. */
static int can_copy(const awqpack_dlpack_tensor *source, size_t bytes)
{
    const int is_payload = source->type_code == AWQPACK_DLPACK_INT && source->type_lanes == 1 &&
                           (source->type_bits == 16 || source->type_bits == 32);
    const int is_here = source->device_type == AWQPACK_DLPACK_CPU    ? bytes <= one_thread_bytes
                        : source->device_type == AWQPACK_DLPACK_CUDA ? awq_cuda_is_registered()
                                                                     : 0;
    return is_payload && is_here && bytes > 0;
}

/* Both 1 and the copy; 0 where torch makes no tensor: it will say why when it is asked for the copy; -1 with an
   exception. */
static int host_copy(const awqpack_dlpack_tensor *source, size_t bytes, PyObject **copy)
{
    void *handle, *target;
    if (!awq_tensor_new(source->ndim, source->shape, source->type_bits, -1, &handle, &target)) {
        return 0;
    }
    memcpy(target, source->data, bytes);
    return tensor_of_handle(handle, copy);
}

static int cuda_copy(const awqpack_dlpack_tensor *source, size_t bytes, PyObject **copy)
{
    void *handle, *target;
    awq_error error;
    bool is_made, is_copied = false;
    Py_BEGIN_ALLOW_THREADS /* a full queue blocks, and what empties it may need the interpreter */
    is_made = awq_tensor_new(source->ndim, source->shape, source->type_bits, source->device_id, &handle, &target);
    if (is_made) {
        is_copied = awq_cuda_copy_on(source->device_id, target, source->data, bytes, &error);
    }
    Py_END_ALLOW_THREADS
    if (is_made && !is_copied) {
        awq_tensor_delete(handle);
        awqpack_raise(&error);
        return -1;
    }
    return is_made ? tensor_of_handle(handle, copy) : 0;
}

int awqpack_payload_copy(PyObject *payload, PyObject **copy)
{
    awqpack_dlpack_tensor source;
    *copy = NULL;
    if (Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type || !awqpack_describe(payload, &source) ||
        source.data == NULL || source.byte_offset != 0) {
        return 0;
    }
    const size_t bytes = contiguous_bytes(&source);
    const int is_negated = can_copy(&source, bytes) ? awqpack_is_negated(payload) : 1;
    if (is_negated != 0) {
        return is_negated < 0 ? -1 : 0;
    }
    return source.device_type == AWQPACK_DLPACK_CPU ? host_copy(&source, bytes, copy) : cuda_copy(&source, bytes, copy);
}

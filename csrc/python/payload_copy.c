/* The copy of a payload on its own device, past torch's ops, which cost more than a small copy. */
#include "moves.h"

#include <string.h>

#include "dlpack.h"
#include "payload.h"
#include "torch/shim.h"

/* What torch itself leaves to one thread. It copies larger ones with all its threads. */
enum { one_thread_bytes = 128 * 1024 };

/* Describes the memory of a tensor. 0, without an exception, when it has none. */
static int describe(PyObject *tensor, awqpack_dlpack_tensor *memory)
{
    if (awqpack.dlpack->describe(tensor, memory) != 0) {
        PyErr_Clear();
        return 0;
    }
    return memory->data != NULL && memory->byte_offset == 0;
}

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

/* The tensor object of a handle, which it takes over; NULL without an exception where torch cannot make it. torch's function
   for one handle, unlike that for a list, leaks it. */
static PyObject *adopt(void *tensor)
{
    PyObject *capsule = PyCapsule_New(tensor, NULL, NULL);
    PyObject *handles = capsule == NULL ? NULL : PyList_New(1);
    if (handles == NULL) {
        awq_tensor_delete(tensor);
        Py_XDECREF(capsule);
        return NULL;
    }
    (void)PyList_SetItem(handles, 0, capsule);
    PyObject *tensors = PyObject_CallFunctionObjArgs(awqpack.adopt_tensors, handles, NULL);
    PyObject *result = tensors == NULL ? NULL : PyList_GetItem(tensors, 0);
    Py_XINCREF(result);
    if (tensors == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) { /* it wants other arguments and took nothing */
        PyErr_Clear();
        awq_tensor_delete(tensor);
    }
    Py_XDECREF(tensors);
    Py_DECREF(handles);
    return result;
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

/* NULL, without an exception, where torch makes no tensor: it will say why when it is asked for the copy. */
static PyObject *copy_on_host(const awqpack_dlpack_tensor *source, size_t bytes)
{
    void *tensor, *target;
    if (!awq_tensor_new(source->ndim, source->shape, source->type_bits, -1, &tensor, &target)) {
        return NULL;
    }
    memcpy(target, source->data, bytes);
    return adopt(tensor);
}

static PyObject *copy_on_cuda(const awqpack_dlpack_tensor *source, size_t bytes)
{
    void *tensor, *target;
    awq_error error;
    bool is_made, is_copied = false;
    Py_BEGIN_ALLOW_THREADS /* a full queue blocks, and what empties it may need the interpreter */
    is_made = awq_tensor_new(source->ndim, source->shape, source->type_bits, source->device_id, &tensor, &target);
    if (is_made) {
        is_copied = awq_cuda_copy_on(source->device_id, target, source->data, bytes, &error);
    }
    Py_END_ALLOW_THREADS
    if (is_made && !is_copied) {
        awq_tensor_delete(tensor);
        return awqpack_raise(&error);
    }
    return is_made ? adopt(tensor) : NULL;
}

PyObject *awqpack_copy_payload(PyObject *payload)
{
    awqpack_dlpack_tensor source;
    if (awqpack.dlpack == NULL || Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type || !describe(payload, &source)) {
        return NULL;
    }
    const size_t bytes = contiguous_bytes(&source);
    if (!can_copy(&source, bytes) || awqpack_is_negated(payload) != 0) {
        return NULL;
    }
    return source.device_type == AWQPACK_DLPACK_CPU ? copy_on_host(&source, bytes) : copy_on_cuda(&source, bytes);
}

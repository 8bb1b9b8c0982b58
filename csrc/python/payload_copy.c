/* Where a payload is, and its copy on the same device past torch's ops, which cost more than a small copy. */
#include "state.h"

#include <string.h>

#include "dlpack.h"
#include "torch/shim.h"

/* What torch itself leaves to one thread. It copies larger ones with all its threads. */
enum { one_thread_bytes = 128 * 1024 };

static int read_device_kind(PyObject *device)
{
    if ((PyObject *)Py_TYPE(device) != awqpack.device_type) {
        PyErr_Format(PyExc_TypeError, "device expects a torch.device; got %R", (PyObject *)Py_TYPE(device));
        return -1;
    }
    PyObject *type = PyObject_GetAttr(device, awqpack.names.type);
    if (type == NULL) {
        return -1;
    }
    const int kind = PyUnicode_CompareWithASCIIString(type, "cpu") == 0    ? AWQPACK_HOST
                     : PyUnicode_CompareWithASCIIString(type, "cuda") == 0 ? AWQPACK_CUDA
                     : PyUnicode_CompareWithASCIIString(type, "xpu") == 0  ? AWQPACK_XPU
                     : PyUnicode_CompareWithASCIIString(type, "meta") == 0 ? AWQPACK_META
                                                                           : AWQPACK_OTHER_DEVICE;
    Py_DECREF(type);
    return kind;
}

int awqpack_device_kind_of(PyObject *device)
{
    /* Asked of torch once for each device: it builds device.type through a C++ stream, which takes as long as a wrapper. */
    PyObject *known = PyDict_GetItemWithError(awqpack.device_kinds, device);
    if (known != NULL) {
        return (int)PyLong_AsLong(known);
    }
    const int kind = PyErr_Occurred() ? -1 : read_device_kind(device);
    PyObject *number = kind < 0 ? NULL : PyLong_FromLong(kind);
    const int status = number == NULL ? -1 : PyDict_SetItem(awqpack.device_kinds, device, number);
    Py_XDECREF(number);
    return status < 0 ? -1 : kind;
}

int awqpack_stays_packed(int from, int to)
{
    return to == AWQPACK_CUDA || to == AWQPACK_XPU || to == AWQPACK_META || (from == AWQPACK_HOST && to == AWQPACK_HOST);
}

/* question(), without the detour through the type where the question is a C function. */
static PyObject *ask(PyObject *question)
{
    return PyCFunction_CheckExact(question) && PyCFunction_GetFlags(question) == METH_NOARGS
               ? PyCFunction_GetFunction(question)(PyCFunction_GetSelf(question), NULL)
               : PyObject_CallNoArgs(question);
}

/* 1 when all of the questions are answered with nothing. */
static int all_say_no(PyObject *const *questions, size_t count)
{
    int result = 1;
    for (size_t i = 0; result == 1 && i < count; i++) {
        PyObject *answer = ask(questions[i]);
        result = answer == NULL ? -1 : PyObject_Not(answer);
        Py_XDECREF(answer);
    }
    return result;
}

int awqpack_is_unmoded(void)
{
    PyObject *const questions[] = {awqpack.dispatch_depth, awqpack.function_depth, awqpack.is_inference_on,
                                   awqpack.functorch_level};
    return all_say_no(questions, sizeof questions / sizeof questions[0]);
}

int awqpack_is_unwatched(void)
{
    const int is_unmoded = awqpack_is_unmoded();
    return is_unmoded == 1 ? all_say_no(&awqpack.is_tracing, 1) : is_unmoded;
}

/* Describes the memory of a tensor. 0, without an exception, when it has none. */
static int describe(PyObject *tensor, awqpack_dlpack_tensor *memory)
{
    if (awqpack.dlpack->describe(tensor, memory) != 0) {
        PyErr_Clear();
        return 0;
    }
    return memory->data != NULL && memory->byte_offset == 0;
}

/* 1 when the values of a payload are not its bytes, -1 with an exception. */
static int is_negated(PyObject *payload)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(awqpack.tensor_is_neg, payload, NULL);
    const int result = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return result;
}

int awqpack_refuse_without_values(PyObject *payload)
{
    awqpack_dlpack_tensor memory;
    if (Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type) {
        return 0;
    }
    const int negated = is_negated(payload);
    if (negated > 0) {
        PyErr_SetString(PyExc_ValueError,
                        "AWQPackedTensor expects a payload with values of its own; got a negated view: clone() it first");
    }
    if (negated != 0 || awqpack.dlpack == NULL) {
        return negated == 0 ? 0 : -1;
    }
    if (awqpack.dlpack->describe(payload, &memory) != 0) { /* on meta, for one */
        PyErr_Clear();
        return 0;
    }
    int is_empty = memory.data != NULL || memory.device_type != AWQPACK_DLPACK_CPU;
    for (int32_t d = 0; d < memory.ndim; d++) {
        is_empty |= memory.shape[d] == 0;
    }
    if (!is_empty) {
        PyErr_SetString(PyExc_ValueError,
                        "AWQPackedTensor expects a payload with values of its own; got one without memory (a zero tensor, or a "
                        "storage that was freed)");
    }
    return is_empty ? 0 : -1;
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
    if (!can_copy(&source, bytes) || is_negated(payload) != 0) {
        return NULL;
    }
    return source.device_type == AWQPACK_DLPACK_CPU ? copy_on_host(&source, bytes) : copy_on_cuda(&source, bytes);
}

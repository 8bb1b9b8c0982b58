/* Where a payload is, and its copy on the same device without torch's dispatcher, which costs more than a small copy. */
#include "awqpackmodule.h"

#include <string.h>

#include "torch/shim.h"

/* What torch itself leaves to one thread. It copies larger ones with all its threads. */
enum { one_thread_bytes = 128 * 1024 };

static int read_device_kind(PyObject *device)
{
    PyObject *type = PyObject_GetAttr(device, awqpack.names.type);
    if (type == NULL) {
        return -1;
    }
    const int kind = PyUnicode_CompareWithASCIIString(type, "cpu") == 0    ? AWQPACK_HOST
                     : PyUnicode_CompareWithASCIIString(type, "cuda") == 0 ? AWQPACK_CUDA
                     : PyUnicode_CompareWithASCIIString(type, "xpu") == 0  ? AWQPACK_XPU
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
    return to == AWQPACK_CUDA || to == AWQPACK_XPU || (from == AWQPACK_HOST && to == AWQPACK_HOST);
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

/* Whether method(payload) is value; -1 with an exception. */
static int answers(PyObject *method, PyObject *payload, PyObject *value)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(method, payload, NULL);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : answer == value;
}

/* Address of the first element; NULL with an exception, and without one for a tensor that has no memory. */
static void *address_of(PyObject *payload)
{
    PyObject *number = PyObject_CallFunctionObjArgs(awqpack.tensor_data_ptr, payload, NULL);
    void *address = number == NULL ? NULL : PyLong_AsVoidPtr(number);
    Py_XDECREF(number);
    return address;
}

/* Bytes of a payload that lies in memory as it would be copied; 0 when torch must copy it, -1 with an exception. */
static Py_ssize_t plain_bytes(PyObject *payload)
{
    const int is_contiguous = answers(awqpack.tensor_is_contiguous, payload, Py_True);
    const int is_plain = is_contiguous <= 0 ? is_contiguous : answers(awqpack.tensor_is_neg, payload, Py_False);
    PyObject *number = is_plain <= 0 ? NULL : PyObject_GetAttr(payload, awqpack.names.nbytes);
    const Py_ssize_t bytes = number == NULL ? is_plain : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return PyErr_Occurred() ? -1 : bytes;
}

static int copy_on_cuda(PyObject *device, void *target, const void *source, size_t bytes)
{
    awq_error error;
    bool done;
    PyObject *number = PyObject_GetAttr(device, awqpack.names.index);
    const long index = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    if (PyErr_Occurred()) {
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS /* a full queue blocks, and what empties it may need the interpreter */
    done = awq_cuda_copy_on((int)index, target, source, bytes, &error);
    Py_END_ALLOW_THREADS
    if (!done) {
        awqpack_raise(&error);
    }
    return done ? 0 : -1;
}

PyObject *awqpack_copy_payload(PyObject *payload, PyObject *device, int kind)
{
    const int is_cuda = kind == AWQPACK_CUDA && awq_cuda_is_registered();
    if (Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type || (kind != AWQPACK_HOST && !is_cuda)) {
        return NULL;
    }
    const Py_ssize_t bytes = plain_bytes(payload);
    const void *source = bytes <= 0 || (!is_cuda && bytes > one_thread_bytes) ? NULL : address_of(payload);
    PyObject *copy = source == NULL ? NULL : PyObject_CallFunctionObjArgs(awqpack.empty_like, payload, NULL);
    void *target = copy == NULL ? NULL : address_of(copy);
    if (target != NULL && !is_cuda) {
        memcpy(target, source, (size_t)bytes);
    } else if (target == NULL || copy_on_cuda(device, target, source, (size_t)bytes) < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

/* What a payload must be, and where it is. */
#include "payload.h"

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
    /* Asked of torch once for each device: it builds device.type through a C++ stream, which takes as long as a
       wrapper. */
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
    return to == AWQPACK_CUDA || to == AWQPACK_XPU || to == AWQPACK_META ||
           (from == AWQPACK_HOST && to == AWQPACK_HOST);
}

int awqpack_check_payload(PyObject *data, PyObject *packing)
{
    if (!PyObject_TypeCheck(data, (PyTypeObject *)awqpack.tensor_type)) {
        PyErr_Format(PyExc_TypeError, "AWQPackedTensor expects its payload as a torch.Tensor; got %R",
                     (PyObject *)Py_TYPE(data));
        return 0;
    }
    PyObject *dtype = PyObject_GetAttr(data, awqpack.names.dtype);
    PyObject *layout = dtype == NULL ? NULL : PyObject_GetAttr(data, awqpack.names.layout);
    int ok = layout != NULL;
    PyObject *expected = awqpack_payload_dtype(packing);
    if (ok && layout != awqpack.strided) {
        PyErr_Format(PyExc_ValueError, "AWQPackedTensor expects a dense payload; got layout %R", layout);
        ok = 0;
    } else if (ok && dtype != expected) {
        PyErr_Format(PyExc_ValueError, "AWQPackedTensor of %S expects a payload of dtype %S; got %S", packing, expected,
                     dtype);
        ok = 0;
    }
    Py_XDECREF(dtype);
    Py_XDECREF(layout);
    return ok;
}

int awqpack_is_negated(PyObject *tensor)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(awqpack.tensor_is_neg, tensor, NULL);
    const int result = answer == NULL ? -1 : answer == Py_True;
    Py_XDECREF(answer);
    return result;
}

int awqpack_describe(PyObject *tensor, awqpack_dlpack_tensor *memory)
{
    if (awqpack.dlpack != NULL && awqpack.dlpack->describe(tensor, memory) != 0) {
        PyErr_Clear();
        return 0;
    }
    return awqpack.dlpack != NULL;
}

int awqpack_refuse_without_values(PyObject *payload)
{
    awqpack_dlpack_tensor memory;
    if (Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type) {
        return 0;
    }
    const int negated = awqpack_is_negated(payload);
    if (negated > 0) {
        PyErr_SetString(
            PyExc_ValueError,
            "AWQPackedTensor expects a payload with values of its own; got a negated view: clone() it first");
    }
    if (negated != 0 || !awqpack_describe(payload, &memory)) {
        return negated == 0 ? 0 : -1;
    }
    int is_empty = memory.data != NULL || memory.device_type != AWQPACK_DLPACK_CPU;
    for (int32_t d = 0; d < memory.ndim; d++) {
        is_empty |= memory.shape[d] == 0;
    }
    if (!is_empty) {
        PyErr_SetString(
            PyExc_ValueError,
            "AWQPackedTensor expects a payload with values of its own; got one without memory (a zero tensor, or a "
            "storage that was freed)");
    }
    return is_empty ? 0 : -1;
}

/* detach and to without torch's dispatcher, which costs more than they do. Both give what __torch_dispatch__ would give, and
   are left to it wherever somebody could see the difference: a mode, a transform, a trace, a subclass, a fake payload. */
#include "awqpackmodule.h"

/* 1 when no mode, transform or trace is on. */
static int is_unwatched(void)
{
    PyObject *const questions[] = {awqpack.dispatch_depth, awqpack.function_depth, awqpack.functorch_level,
                                   awqpack.tracing_state, awqpack.is_inference_on};
    int result = 1;
    for (size_t i = 0; result == 1 && i < sizeof questions / sizeof questions[0]; i++) {
        PyObject *answer = PyObject_CallNoArgs(questions[i]);
        result = answer == NULL ? -1 : PyObject_Not(answer);
        Py_XDECREF(answer);
    }
    return result;
}

/* 1 and the fields when `self` may be worked on directly, 0 when torch's own method must be called, -1 with an exception. */
static int open_directly(PyObject *self, packed_fields *fields)
{
    if ((PyObject *)Py_TYPE(self) != awqpack.packed_type) {
        return 0;
    }
    const int unwatched = is_unwatched();
    if (unwatched <= 0 || packed_fields_get(self, fields) < 0) {
        return unwatched == 0 ? 0 : -1;
    }
    if ((PyObject *)Py_TYPE(fields->payload) != awqpack.tensor_type) {
        packed_fields_clear(fields);
        return 0;
    }
    return 1;
}

/* A wrapper like `self` that shares its version counter, and its storage, which holds nothing and says so when asked. */
static PyObject *twin(PyObject *self, PyObject *payload, PyObject *meta)
{
    PyObject *guard = PyObject_CallNoArgs(awqpack.dispatch_off);
    PyObject *result =
        guard == NULL ? NULL : PyObject_CallFunctionObjArgs(awqpack.make_subclass, (PyObject *)Py_TYPE(self), self, NULL);
    Py_XDECREF(guard);
    if (result != NULL && (PyObject_SetAttr(result, awqpack.names._data, payload) < 0 ||
                           PyObject_SetAttr(result, awqpack.names._meta, meta) < 0)) {
        Py_CLEAR(result);
    }
    return result;
}

PyObject *packed_detach(PyObject *self, PyObject *Py_UNUSED(unused))
{
    packed_fields fields;
    const int is_direct = open_directly(self, &fields);
    if (is_direct <= 0) {
        return is_direct < 0 ? NULL : PyObject_CallFunctionObjArgs(awqpack.tensor_detach, self, NULL);
    }
    /* The payload holds ints, which have no gradient to be detached from: a tensor of its own would say nothing more. */
    PyObject *result = twin(self, fields.payload, fields.meta);
    packed_fields_clear(&fields);
    return result;
}

/* The device a caller named as a torch.device or by its name: a new reference; None when it is anything else. */
static PyObject *read_device(PyObject *given)
{
    if ((PyObject *)Py_TYPE(given) == awqpack.device_type) {
        Py_INCREF(given);
        return given;
    }
    return PyUnicode_CheckExact(given) ? PyObject_CallFunctionObjArgs(awqpack.device_type, given, NULL) : Py_BuildValue("");
}

/* True when a packed tensor moved from one device to the other stays packed, and torch would say so too. */
static int stays_packed(PyObject *from, PyObject *to)
{
    const int to_compute = awqpack_is_compute_device(to);
    return to_compute != 0 ? to_compute : awqpack_is_host_copy(from, to);
}

/* to(device, dtype, non_blocking, copy) in any of its usual forms, NULL without an exception for all others. */
static PyObject *move_directly(PyObject *self, const packed_fields *fields, PyObject *args, PyObject *kwargs)
{
    PyObject *const names[] = {awqpack.names.device, awqpack.names.dtype, awqpack.names.non_blocking, awqpack.names.copy};
    PyObject *values[] = {NULL, Py_None, Py_False, Py_False};
    const Py_ssize_t count = PyTuple_Size(args);
    Py_ssize_t named = 0;
    PyObject *source = NULL, *device = NULL, *payload = NULL, *result = NULL;
    for (Py_ssize_t i = 0; i < 4; i++) {
        PyObject *value = kwargs == NULL ? NULL : PyDict_GetItemWithError(kwargs, names[i]);
        named += value != NULL;
        if (value != NULL && i < count) {
            return NULL;
        }
        values[i] = i < count ? PyTuple_GetItem(args, i) : value != NULL ? value : values[i];
    }
    if (PyErr_Occurred() || count > 4 || values[0] == NULL || (kwargs != NULL && PyDict_Size(kwargs) != named) ||
        (values[1] != Py_None && values[1] != awqpack.uint8) || !PyBool_Check(values[2]) || !PyBool_Check(values[3])) {
        return NULL;
    }
    device = read_device(values[0]);
    source = device == NULL || device == Py_None ? NULL : PyObject_GetAttr(fields->payload, awqpack.names.device);
    if (source != NULL && stays_packed(source, device) > 0) {
        payload = PyObject_CallFunctionObjArgs(awqpack.tensor_to, fields->payload, device, Py_None, values[2], values[3], NULL);
    }
    if (payload == fields->payload) {
        Py_INCREF(self);
        result = self;
    } else if (payload != NULL) {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields->meta);
    }
    Py_XDECREF(device);
    Py_XDECREF(source);
    Py_XDECREF(payload);
    return result;
}

/* torch.Tensor.to(self, *args, **kwargs). */
static PyObject *move_by_torch(PyObject *self, PyObject *args, PyObject *kwargs)
{
    PyObject *first = PyTuple_Pack(1, self);
    PyObject *all = first == NULL ? NULL : PySequence_Concat(first, args);
    PyObject *result = all == NULL ? NULL : PyObject_Call(awqpack.tensor_to, all, kwargs);
    Py_XDECREF(first);
    Py_XDECREF(all);
    return result;
}

PyObject *packed_to(PyObject *self, PyObject *args, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *result = NULL;
    const int is_direct = open_directly(self, &fields);
    if (is_direct > 0) {
        result = move_directly(self, &fields, args, kwargs);
        packed_fields_clear(&fields);
    }
    return result != NULL || PyErr_Occurred() ? result : move_by_torch(self, args, kwargs);
}

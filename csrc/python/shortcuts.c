/* detach and to without torch's dispatcher, which costs more than they do. Both give what __torch_dispatch__ would give, and
   are left to it wherever somebody could see the difference: a mode, a transform, a trace, a subclass, a fake payload. */
#include "moves.h"

#include "modes.h"
#include "payload.h"
#include "tensors.h"

/* 1 and the fields when nobody watches and `self` may be worked on directly, 0 when torch's own method must be called, -1 with
   an exception. */
static int open_directly(PyObject *self, int (*nobody_watches)(void), packed_fields *fields)
{
    if ((PyObject *)Py_TYPE(self) != awqpack.packed_type) {
        return 0;
    }
    const int unwatched = nobody_watches();
    if (unwatched <= 0 || packed_fields_get(self, fields) < 0) {
        return unwatched == 0 ? 0 : -1;
    }
    if ((PyObject *)Py_TYPE(fields->payload) != awqpack.tensor_type) {
        packed_fields_clear(fields);
        return 0;
    }
    return 1;
}

PyObject *packed_detach(PyObject *self, PyObject *Py_UNUSED(unused))
{
    packed_fields fields;
    /* packed_twin() is an op that a trace sees. */
    const int is_direct = open_directly(self, awqpack_is_unmoded, &fields);
    if (is_direct <= 0) {
        return is_direct < 0 ? NULL : PyObject_CallFunctionObjArgs(awqpack.tensor_detach, self, NULL);
    }
    /* The payload holds ints, which have no gradient to be detached from: a tensor of its own would say nothing more. */
    PyObject *result = packed_twin(self, fields.payload, fields.meta);
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

/* `self` with its payload on `device`, itself when that is there and no copy is wanted. NULL without an exception where the
   codes leave the packed form. */
static PyObject *move_packed(PyObject *self, const packed_fields *fields, PyObject *device, PyObject *non_blocking,
                             PyObject *copy)
{
    PyObject *payload = NULL, *result = NULL;
    PyObject *source = PyObject_GetAttr(fields->payload, awqpack.names.device);
    const int is_same = source == NULL ? -1 : PyObject_RichCompareBool(source, device, Py_EQ);
    const int from = is_same < 0 ? -1 : awqpack_device_kind_of(source);
    const int to = is_same == 0 ? awqpack_device_kind_of(device) : from;
    if (from < 0 || to < 0 || !awqpack_stays_packed(from, to)) {
        goto done;
    }
    if (is_same && copy == Py_False) {
        Py_INCREF(self);
        result = self;
        goto done;
    }
    payload = is_same ? awqpack_copy_payload(fields->payload) : NULL;
    if (payload == NULL && !PyErr_Occurred()) {
        payload = PyObject_CallFunctionObjArgs(awqpack.tensor_to, fields->payload, device, Py_None, non_blocking, copy, NULL);
    }
    if (payload == fields->payload) {
        Py_INCREF(self);
        result = self;
    } else if (payload != NULL && is_same) {
        result = packed_new_on((PyObject *)Py_TYPE(self), payload, fields->meta, source);
    } else if (payload != NULL) {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields->meta);
    }
done:
    Py_XDECREF(source);
    Py_XDECREF(payload);
    return result;
}

/* to(device, dtype, non_blocking, copy) in any of its usual forms, NULL without an exception for all others. */
static PyObject *move_directly(PyObject *self, const packed_fields *fields, PyObject *args, PyObject *kwargs)
{
    PyObject *const names[] = {awqpack.names.device, awqpack.names.dtype, awqpack.names.non_blocking, awqpack.names.copy};
    PyObject *values[] = {NULL, Py_None, Py_False, Py_False};
    const Py_ssize_t count = PyTuple_Size(args);
    Py_ssize_t named = 0;
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
    PyObject *device = read_device(values[0]);
    PyObject *result =
        device == NULL || device == Py_None ? NULL : move_packed(self, fields, device, values[2], values[3]);
    Py_XDECREF(device);
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
    const int is_direct = open_directly(self, awqpack_is_unwatched, &fields);
    if (is_direct > 0) {
        result = move_directly(self, &fields, args, kwargs);
        packed_fields_clear(&fields);
    }
    return result != NULL || PyErr_Occurred() ? result : move_by_torch(self, args, kwargs);
}

/* payload.to(device), or a copy in pinned memory. */
static PyObject *move_payload(PyObject *payload, PyObject *device, int pin_memory, PyObject *non_blocking)
{
    PyObject *result = NULL, *args = NULL, *kwargs = NULL, *torch = NULL, *empty = NULL;
    if (!pin_memory) {
        args = PyTuple_Pack(1, device);
        kwargs = Py_BuildValue("{sO}", "non_blocking", non_blocking);
        PyObject *to = kwargs == NULL ? NULL : PyObject_GetAttr(payload, awqpack.names.to);
        result = to == NULL || args == NULL ? NULL : PyObject_Call(to, args, kwargs);
        Py_XDECREF(to);
        goto done;
    }
    torch = PyImport_ImportModule("torch");
    empty = torch == NULL ? NULL : PyObject_GetAttrString(torch, "empty_like");
    args = empty == NULL ? NULL : PyTuple_Pack(1, payload);
    kwargs = args == NULL ? NULL : Py_BuildValue("{sOsO}", "device", device, "pin_memory", Py_True);
    result = kwargs == NULL ? NULL : PyObject_Call(empty, args, kwargs);
    PyObject *copied = result == NULL ? NULL : PyObject_CallMethodObjArgs(result, awqpack.names.copy_, payload, non_blocking, NULL);
    if (copied == NULL) {
        Py_CLEAR(result);
    }
    Py_XDECREF(copied);
done:
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(torch);
    Py_XDECREF(empty);
    return result;
}

PyObject *packed_offload(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"device", "pin_memory", "non_blocking", NULL};
    PyObject *device = NULL, *non_blocking = Py_False, *result = NULL;
    int pin_memory = 0;
    packed_fields fields;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O$pO!:offload", keywords, &device, &pin_memory, &PyBool_Type,
                                     &non_blocking) ||
        packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *target = device == NULL ? PyObject_CallFunction(awqpack.device_type, "s", "cpu")
                                      : PyObject_CallFunctionObjArgs(awqpack.device_type, device, NULL);
    PyObject *payload = target == NULL ? NULL : move_payload(fields.payload, target, pin_memory, non_blocking);
    if (payload == fields.payload) {
        Py_INCREF(self);
        result = self;
    } else if (payload != NULL) {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields.meta);
    }
    Py_XDECREF(target);
    Py_XDECREF(payload);
    packed_fields_clear(&fields);
    return result;
}

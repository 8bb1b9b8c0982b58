/* detach and to without torch's dispatcher, which costs more than they do. Both give what __torch_dispatch__ would
   give, and are left to it wherever somebody could see the difference: a mode, a transform, a trace, a subclass, a fake
   payload. */
#include "moves.h"

#include "modes.h"
#include "payload.h"
#include "tensors.h"

/* 1 and the fields when nobody watches and `self` may be worked on directly, 0 when torch's own method must be called,
   -1 with an exception. */
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
    /* The payload holds ints, which have no gradient to be detached from: a tensor of its own would say nothing
       more. */
    PyObject *result = packed_twin(self, fields.payload, fields.meta);
    packed_fields_clear(&fields);
    return result;
}

/* 1 and the device that a caller named as a torch.device or by its name, 0 for anything else, -1 with an exception. */
static int read_device(PyObject *given, PyObject **device)
{
    const int is_device = (PyObject *)Py_TYPE(given) == awqpack.device_type;
    if (!is_device && !PyUnicode_CheckExact(given)) {
        *device = NULL;
        return 0;
    }
    *device = is_device ? Py_NewRef(given) : PyObject_CallFunctionObjArgs(awqpack.device_type, given, NULL);
    return *device == NULL ? -1 : 1;
}

/* A packed tensor around payload.to(device, copy=copy), `self` where that is its payload. `source` is where that is
   now. */
static PyObject *packed_around_moved(PyObject *self, const packed_fields *fields, PyObject *source, PyObject *device,
                                     PyObject *non_blocking, PyObject *copy)
{
    PyObject *payload = NULL, *result = NULL;
    const int is_same = device == source;
    const int is_copied = is_same ? awqpack_payload_copy(fields->payload, &payload) : 0;
    if (is_copied == 0) {
        payload =
            PyObject_CallFunctionObjArgs(awqpack.tensor_to, fields->payload, device, Py_None, non_blocking, copy, NULL);
    }
    if (payload != NULL) {
        result = payload == fields->payload ? Py_NewRef(self)
                 : is_same                  ? packed_new_on((PyObject *)Py_TYPE(self), payload, fields->meta, source)
                                            : packed_new((PyObject *)Py_TYPE(self), payload, fields->meta);
    }
    Py_XDECREF(payload);
    return result;
}

/* 1 and `self` with its payload on `device`, itself when that is there and no copy is wanted; 0 where the codes leave
   the packed form; -1 with an exception. */
static int packed_on_device(PyObject *self, const packed_fields *fields, PyObject *device, PyObject *non_blocking,
                            PyObject *copy, PyObject **result)
{
    PyObject *source = PyObject_GetAttr(fields->payload, awqpack.names.device);
    const int is_same = source == NULL ? -1 : PyObject_RichCompareBool(source, device, Py_EQ);
    const int from = is_same < 0 ? -1 : awqpack_device_kind_of(source);
    const int to = from >= 0 && !is_same ? awqpack_device_kind_of(device) : from;
    int status = to < 0 ? -1 : awqpack_stays_packed(from, to);
    if (status == 1) {
        *result = is_same && copy == Py_False
                      ? Py_NewRef(self)
                      : packed_around_moved(self, fields, source, is_same ? source : device, non_blocking, copy);
        status = *result == NULL ? -1 : 1;
    }
    Py_XDECREF(source);
    return status;
}

/* 1 and the result of to(device, dtype, non_blocking, copy) in any of its usual forms, 0 for all others, -1 with an
   exception. */
static int packed_by_shortcut(PyObject *self, const packed_fields *fields, PyObject *args, PyObject *kwargs,
                              PyObject **result)
{
    PyObject *const names[] = {awqpack.names.device, awqpack.names.dtype, awqpack.names.non_blocking,
                               awqpack.names.copy};
    PyObject *values[] = {NULL, Py_None, Py_False, Py_False};
    const Py_ssize_t count = PyTuple_Size(args);
    Py_ssize_t named = 0;
    for (Py_ssize_t i = 0; i < 4; i++) {
        PyObject *value = kwargs == NULL ? NULL : PyDict_GetItemWithError(kwargs, names[i]);
        if (value == NULL ? PyErr_Occurred() != NULL : i < count) {
            return value == NULL ? -1 : 0;
        }
        named += value != NULL;
        values[i] = i < count ? PyTuple_GetItem(args, i) : value != NULL ? value : values[i];
    }
    if (count > 4 || values[0] == NULL || (kwargs != NULL && PyDict_Size(kwargs) != named) ||
        (values[1] != Py_None && values[1] != awqpack.uint8) || !PyBool_Check(values[2]) || !PyBool_Check(values[3])) {
        return 0;
    }
    PyObject *device;
    int status = read_device(values[0], &device);
    if (status == 1) {
        status = packed_on_device(self, fields, device, values[2], values[3], result);
        Py_DECREF(device);
    }
    return status;
}

/* torch.Tensor.to(self, *args, **kwargs). */
static PyObject *result_of_torch(PyObject *self, PyObject *args, PyObject *kwargs)
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
    int status = open_directly(self, awqpack_is_unwatched, &fields);
    if (status == 1) {
        status = packed_by_shortcut(self, &fields, args, kwargs, &result);
        packed_fields_clear(&fields);
    }
    return status != 0 ? result : result_of_torch(self, args, kwargs);
}

/* A copy of the payload in pinned memory. */
static PyObject *pinned_copy(PyObject *payload, PyObject *device, PyObject *non_blocking)
{
    PyObject *empty = awqpack_look_up("torch", "empty_like");
    PyObject *args = empty == NULL ? NULL : PyTuple_Pack(1, payload);
    PyObject *kwargs = args == NULL ? NULL : Py_BuildValue("{sOsO}", "device", device, "pin_memory", Py_True);
    PyObject *result = kwargs == NULL ? NULL : PyObject_Call(empty, args, kwargs);
    PyObject *copied =
        result == NULL ? NULL : PyObject_CallMethodObjArgs(result, awqpack.names.copy_, payload, non_blocking, NULL);
    if (copied == NULL) {
        Py_CLEAR(result);
    }
    Py_XDECREF(empty);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(copied);
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
    PyObject *payload = target == NULL ? NULL
                        : pin_memory   ? pinned_copy(fields.payload, target, non_blocking)
                                       : PyObject_CallMethodObjArgs(fields.payload, awqpack.names.to, target, Py_None,
                                                                    non_blocking, NULL);
    if (payload != NULL) {
        result =
            payload == fields.payload ? Py_NewRef(self) : packed_new((PyObject *)Py_TYPE(self), payload, fields.meta);
    }
    Py_XDECREF(target);
    Py_XDECREF(payload);
    packed_fields_clear(&fields);
    return result;
}

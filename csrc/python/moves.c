/* detach and the ops that move or copy a packed tensor, inside dispatch: they work on its payload where it can stay
   packed. */
#include "moves.h"

#include "modes.h"
#include "payload.h"
#include "plain.h"
#include "tensors.h"

PyObject *packed_alias(PyObject *self)
{
    packed_fields fields;
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    /* Ints have no gradient to be detached from: a tensor of its own would say nothing more, but to a trace. */
    PyObject *payload = Py_TYPE(fields.payload) == (PyTypeObject *)awqpack.tensor_type
                            ? Py_NewRef(fields.payload)
                            : PyObject_CallMethodObjArgs(fields.payload, awqpack.names.detach, NULL);
    PyObject *result = payload == NULL ? NULL : packed_twin(self, payload, fields.meta);
    Py_XDECREF(payload);
    packed_fields_clear(&fields);
    return result;
}

/* A borrowed value of kwargs, or NULL when it is absent or None. */
static PyObject *given(PyObject *kwargs, PyObject *name)
{
    PyObject *value = kwargs == NULL ? NULL : PyDict_GetItem(kwargs, name);
    return value == Py_None ? NULL : value;
}

/* The payload that func gives of a payload, without the arguments that speak of the codes. */
static PyObject *payload_from_op(PyObject *func, PyObject *payload, PyObject *kwargs)
{
    PyObject *const of_codes[] = {awqpack.names.dtype, awqpack.names.memory_format};
    PyObject *args = PyTuple_Pack(1, payload);
    PyObject *kept = args == NULL ? NULL : kwargs == NULL ? PyDict_New() : PyDict_Copy(kwargs);
    int status = kept == NULL ? -1 : 0;
    for (size_t i = 0; status == 0 && i < sizeof of_codes / sizeof of_codes[0]; i++) {
        status = PyDict_GetItem(kept, of_codes[i]) == NULL ? 0 : PyDict_DelItem(kept, of_codes[i]);
    }
    PyObject *result = status < 0 ? NULL : PyObject_Call(func, args, kept);
    Py_XDECREF(args);
    Py_XDECREF(kept);
    return result;
}

/* The payload on a device on which it stays packed. */
static PyObject *payload_on_device(PyObject *func, PyObject *payload, PyObject *kwargs, PyObject *source,
                                   PyObject *device)
{
    const int is_pinned = given(kwargs, awqpack.names.pin_memory) == Py_True;
    const int is_same = is_pinned ? 0 : PyObject_RichCompareBool(source, device, Py_EQ);
    const int is_direct = is_same <= 0 ? is_same : awqpack_is_unwatched();
    PyObject *copy = NULL;
    const int is_copied = is_direct <= 0 ? is_direct : awqpack_payload_copy(payload, &copy);
    return is_copied != 0 ? copy : payload_from_op(func, payload, kwargs);
}

/* A packed tensor around a payload that was moved, with contiguous strides when the caller asked for them. Steals
   it. */
static PyObject *packed_around(PyObject *self, const packed_fields *fields, PyObject *kwargs, PyObject *payload)
{
    PyObject *result = NULL;
    if (payload == NULL) {
        return NULL;
    }
    if (given(kwargs, awqpack.names.memory_format) == awqpack.contiguous_format && fields->order != Py_None) {
        PyObject *stride = awqpack_ordered_strides(fields->size, Py_None);
        result = stride == NULL ? NULL
                                : packed_new_with_meta((PyObject *)Py_TYPE(self), payload, fields->packing,
                                                       fields->reorder, Py_None, fields->size, stride);
        Py_XDECREF(stride);
    } else {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields->meta);
    }
    Py_DECREF(payload);
    return result;
}

/* Plain codes on another device: half the bytes travel when the payload is copied first, but a copy that does not block
   must be the last step. */
static PyObject *codes_on_device(PyObject *func, const packed_fields *fields, PyObject *kwargs, int from_compute)
{
    PyObject *result = NULL;
    PyObject *non_blocking = given(kwargs, awqpack.names.non_blocking);
    if (from_compute && non_blocking != Py_True && given(kwargs, awqpack.names.pin_memory) != Py_True) {
        PyObject *payload = payload_from_op(func, fields->payload, kwargs);
        if (payload != NULL) {
            packed_fields moved = *fields;
            moved.payload = payload;
            result = packed_unpack_fields(&moved);
            Py_DECREF(payload);
        }
        return result;
    }
    PyObject *codes = packed_unpack_fields(fields);
    PyObject *args = codes == NULL ? NULL : PyTuple_Pack(1, codes);
    result = args == NULL ? NULL : PyObject_Call(func, args, kwargs);
    Py_XDECREF(codes);
    Py_XDECREF(args);
    return result;
}

/* 1 when the arguments ask for nothing that a payload cannot follow: a dense tensor, in its own order or contiguous. */
static int has_plain_layout(PyObject *kwargs)
{
    PyObject *layout = given(kwargs, awqpack.names.layout);
    PyObject *format = given(kwargs, awqpack.names.memory_format);
    return (layout == NULL || layout == awqpack.strided) &&
           (format == NULL || format == awqpack.preserve_format || format == awqpack.contiguous_format);
}

PyObject *packed_to_copy(PyObject *func, PyObject *self, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *result = NULL, *source = NULL, *device = NULL;
    PyObject *dtype = given(kwargs, awqpack.names.dtype);
    if (dtype != NULL && dtype != awqpack.uint8) {
        return PyErr_Format(PyExc_ValueError,
                            "AWQPackedTensor holds torch.uint8 codes and cannot become %S; convert its codes: "
                            "p.unpack().to(%S), or (p + 0).to(%S) where a transform such as vmap hides unpack",
                            dtype, dtype, dtype);
    }
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    source = PyObject_GetAttr(fields.payload, awqpack.names.device);
    if (source == NULL) {
        goto done;
    }
    device = given(kwargs, awqpack.names.device);
    device = Py_NewRef(device == NULL ? source : device);
    const int from = awqpack_device_kind_of(source), to = from < 0 ? -1 : awqpack_device_kind_of(device);
    if (to < 0) {
        goto done;
    }
    const int from_compute = from == AWQPACK_CUDA || from == AWQPACK_XPU;
    const int is_plain = has_plain_layout(kwargs);
    if (awqpack_stays_packed(from, to) && is_plain) {
        result = packed_around(self, &fields, kwargs, payload_on_device(func, fields.payload, kwargs, source, device));
    } else {
        const int keeps_order = given(kwargs, awqpack.names.memory_format) != awqpack.contiguous_format;
        result = codes_on_device(func, &fields, kwargs, from_compute && is_plain && keeps_order);
    }
done:
    Py_XDECREF(source);
    Py_XDECREF(device);
    packed_fields_clear(&fields);
    return result;
}

PyObject *packed_run_on_payload(PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *payload = PyObject_GetAttr(PyTuple_GetItem(args, 0), awqpack.names._data);
    PyObject *payload_args = payload == NULL ? NULL : plain_with_argument(args, 0, payload);
    PyObject *result = payload_args == NULL ? NULL : PyObject_Call(func, payload_args, kwargs);
    Py_XDECREF(payload);
    Py_XDECREF(payload_args);
    return result;
}

PyObject *packed_pin(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *result = NULL;
    PyObject *payload = packed_run_on_payload(func, args, kwargs);
    if (payload != NULL && packed_fields_get(self, &fields) == 0) {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields.meta);
        packed_fields_clear(&fields);
    }
    Py_XDECREF(payload);
    return result;
}

PyObject *packed_empty_like(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *dtype = given(kwargs, awqpack.names.dtype);
    if ((dtype != NULL && dtype != awqpack.uint8) || !has_plain_layout(kwargs)) {
        return plain_run(func, args, kwargs);
    }
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *result = packed_around(self, &fields, kwargs, payload_from_op(func, fields.payload, kwargs));
    packed_fields_clear(&fields);
    return result;
}

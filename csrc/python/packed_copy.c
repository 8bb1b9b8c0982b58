/* copy_ into a packed tensor, and the storing of a new payload that every other write ends in too. */
#include "awqpackmodule.h"

/* Moves the version counter of a tensor that was written below autograd. Traced tensors and inference tensors have none. */
static int mark_written(PyObject *tensor, PyObject *payload)
{
    if (Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type) {
        return 0;
    }
    PyObject *is_inference = PyObject_CallMethodObjArgs(tensor, awqpack.names.is_inference, NULL);
    if (is_inference == Py_False) {
        PyObject *marked = PyObject_CallFunctionObjArgs(awqpack.increment_version, tensor, NULL);
        Py_DECREF(is_inference);
        is_inference = marked;
    }
    Py_XDECREF(is_inference);
    return is_inference == NULL ? -1 : 0;
}

int packed_store_payload(PyObject *packed, PyObject *source, PyObject *non_blocking)
{
    PyObject *payload = PyObject_GetAttr(packed, awqpack.names._data);
    PyObject *copied = payload == NULL ? NULL
                                       : PyObject_CallMethodObjArgs(payload, awqpack.names.copy_, source, non_blocking, NULL);
    const int status = copied == NULL || mark_written(payload, payload) < 0 || mark_written(packed, payload) < 0 ? -1 : 0;
    Py_XDECREF(payload);
    Py_XDECREF(copied);
    return status;
}

/* The codes to store for copy_(source): a uint8 tensor of the shape and device of packed; a new reference. */
static PyObject *codes_to_copy(PyObject *packed, PyObject *payload, PyObject *source)
{
    PyObject *codes = NULL, *moved = NULL, *expanded = NULL;
    PyObject *shape = PyObject_GetAttr(packed, awqpack.names.shape);
    PyObject *device = shape == NULL ? NULL : PyObject_GetAttr(payload, awqpack.names.device);
    if (device != NULL) {
        codes = awqpack_is_packed(source) ? packed_unpack(source, NULL) : (Py_INCREF(source), source);
    }
    moved = codes == NULL ? NULL : PyObject_CallMethodObjArgs(codes, awqpack.names.to, device, awqpack.uint8, NULL);
    expanded = moved == NULL ? NULL : PyObject_CallMethod(moved, "expand", "O", shape);
    Py_XDECREF(shape);
    Py_XDECREF(device);
    Py_XDECREF(codes);
    Py_XDECREF(moved);
    return expanded;
}

/* True when the source's payload can stand for the target's as it is. */
static int has_same_payload_layout(PyObject *target, const packed_fields *fields, PyObject *source,
                                   const packed_fields *other)
{
    if (awqpack_packing_of(fields->packing, fields->reorder) != awqpack_packing_of(other->packing, other->reorder)) {
        return 0;
    }
    PyObject *shape = PyObject_GetAttr(target, awqpack.names.shape);
    PyObject *source_shape = shape == NULL ? NULL : PyObject_GetAttr(source, awqpack.names.shape);
    const int result = source_shape == NULL ? -1 : PyObject_RichCompareBool(shape, source_shape, Py_EQ);
    Py_XDECREF(shape);
    Py_XDECREF(source_shape);
    return result;
}

PyObject *packed_copy_into(PyObject *packed, PyObject *source, PyObject *non_blocking)
{
    packed_fields fields, other = {0};
    PyObject *payload = NULL;
    int status = -1;
    if (packed_fields_get(packed, &fields) < 0) {
        return NULL;
    }
    const int is_packed = awqpack_is_packed(source);
    if (is_packed && packed_fields_get(source, &other) < 0) {
        goto done;
    }
    const int is_same = is_packed ? has_same_payload_layout(packed, &fields, source, &other) : 0;
    if (is_same > 0) {
        payload = other.payload;
        Py_INCREF(payload);
    } else if (is_same == 0) {
        PyObject *codes = codes_to_copy(packed, fields.payload, source);
        payload = codes == NULL ? NULL
                                : PyObject_CallFunctionObjArgs(awqpack.op_pack, codes,
                                                               awqpack_packing_number(fields.packing), fields.reorder,
                                                               Py_True, NULL);
        Py_XDECREF(codes);
    }
    status = payload == NULL ? -1 : packed_store_payload(packed, payload, non_blocking);
done:
    packed_fields_clear(&fields);
    packed_fields_clear(&other);
    Py_XDECREF(payload);
    if (status < 0) {
        return NULL;
    }
    Py_INCREF(packed);
    return packed;
}

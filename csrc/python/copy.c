/* copy_ into a packed tensor, and changes of its codes that end in one. */
#include "writes.h"

#include "claims.h"
#include "fields.h"
#include "plain.h"
#include "store.h"

/* A claim to the memory of a payload: *claim is NULL where it has none at hand. */
static int claim_payload(PyObject *payload, memory_claim **claim)
{
    memory_layout layout;
    const int has_memory = memory_of(payload, &layout);
    *claim = has_memory > 0 ? claim_memory(&layout.span, 1) : NULL;
    return has_memory < 0 || (has_memory > 0 && *claim == NULL) ? -1 : 0;
}

/* The codes to store for copy_(source): a uint8 tensor of the shape and device of packed; a new reference. */
static PyObject *codes_to_copy(PyObject *packed, PyObject *payload, PyObject *source)
{
    PyObject *codes = NULL, *moved = NULL, *expanded = NULL;
    PyObject *shape = PyObject_GetAttr(packed, awqpack.names.shape);
    PyObject *device = shape == NULL ? NULL : PyObject_GetAttr(payload, awqpack.names.device);
    if (device != NULL) {
        codes = awqpack_is_packed(source) ? packed_unpack(source, NULL) : Py_NewRef(source);
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

/* What payload.copy_ is to be given for packed.copy_(source): a new reference. */
static PyObject *payload_to_copy(PyObject *packed, const packed_fields *fields, PyObject *source)
{
    packed_fields other;
    PyObject *payload = NULL;
    if (awqpack_is_packed(source)) {
        if (packed_fields_get(source, &other) < 0) {
            return NULL;
        }
        const int is_same = has_same_payload_layout(packed, fields, source, &other);
        payload = is_same > 0 ? Py_NewRef(other.payload) : NULL;
        packed_fields_clear(&other);
        if (is_same != 0) {
            return payload;
        }
    }
    PyObject *codes = codes_to_copy(packed, fields->payload, source);
    payload = codes == NULL
                  ? NULL
                  : PyObject_CallFunctionObjArgs(awqpack.op_pack, codes, awqpack_packing_number(fields->packing),
                                                 fields->reorder, Py_True, NULL);
    Py_XDECREF(codes);
    return payload;
}

PyObject *copy_into_packed(PyObject *packed, PyObject *source, PyObject *non_blocking)
{
    packed_fields fields;
    memory_claim *claim;
    int status = -1;
    if (packed_fields_get(packed, &fields) < 0) {
        return NULL;
    }
    if (claim_payload(fields.payload, &claim) == 0) {
        payload_store store = {packed, fields.payload, payload_to_copy(packed, &fields, source), NULL};
        status = store.source == NULL ? -1 : store_payloads(&store, 1, non_blocking);
        Py_XDECREF(store.source);
        Py_XDECREF(store.before);
        release_memory(claim);
    }
    packed_fields_clear(&fields);
    return status < 0 ? NULL : Py_NewRef(packed);
}

PyObject *awqpack_edit_codes(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *packed, *change, *copied = NULL;
    packed_fields fields;
    memory_claim *claim;
    if (!PyArg_ParseTuple(args, "O!O:edit_codes", (PyTypeObject *)awqpack.packed_type, &packed, &change) ||
        packed_fields_get(packed, &fields) < 0) {
        return NULL;
    }
    if (claim_payload(fields.payload, &claim) == 0) {
        PyObject *codes = packed_unpack_fields(&fields);
        PyObject *done = codes == NULL ? NULL : PyObject_CallFunctionObjArgs(change, codes, NULL);
        copied = done == NULL ? NULL : PyObject_CallMethodObjArgs(packed, awqpack.names.copy_, codes, NULL);
        Py_XDECREF(codes);
        Py_XDECREF(done);
        release_memory(claim);
    }
    packed_fields_clear(&fields);
    Py_XDECREF(copied);
    return copied == NULL ? NULL : Py_NewRef(Py_None);
}

/* repr: shape, packing, reorder, device and the first codes, without touching values that are not there. */
#include "class.h"

#include "fields.h"

enum { SHOWN_CODES = 8 };

/* A real payload with no tracing or fake mode active; torch <= 2.11 calls repr() while compiling. */
static int has_readable_values(PyObject *payload)
{
    if (Py_TYPE(payload) != (PyTypeObject *)awqpack.tensor_type) {
        return 0;
    }
    PyObject *is_meta = PyObject_GetAttrString(payload, "is_meta");
    PyObject *depth = is_meta == NULL ? NULL : PyObject_CallFunctionObjArgs(awqpack.dispatch_depth, NULL);
    const int readable = depth != NULL && is_meta == Py_False && PyObject_IsTrue(depth) == 0;
    Py_XDECREF(is_meta);
    Py_XDECREF(depth);
    return readable;
}

/* "0, 1, 2, ..." of the first row, or NULL: a repr shows what it can and never raises for want of values. */
static PyObject *first_codes(const packed_fields *fields)
{
    PyObject *corner = NULL, *codes = NULL, *list = NULL, *shown = NULL, *text = NULL, *result = NULL;
    PyObject *flat = PyObject_CallMethod(fields->payload, "flatten", "ii", 0, -2);
    if (flat == NULL) {
        goto done;
    }
    const int items = awq_block_items(&awq_packings[awqpack_packing_of(fields->packing, fields->reorder)]);
    PyObject *rows = PyObject_CallMethod(flat, "narrow", "iii", 0, 0, 1);
    corner = rows == NULL ? NULL : PyObject_CallMethod(rows, "narrow", "iii", 1, 0, items);
    Py_XDECREF(rows);
    if (corner == NULL) {
        goto done;
    }
    codes = PyObject_CallFunctionObjArgs(awqpack.op_unpack, corner, awqpack_packing_number(fields->packing),
                                         fields->reorder, NULL);
    PyObject *row = codes == NULL ? NULL : PyObject_CallMethod(codes, "select", "ii", 0, 0);
    list = row == NULL ? NULL : PyObject_CallMethod(row, "tolist", NULL);
    Py_XDECREF(row);
    shown = list == NULL ? NULL : PyList_GetSlice(list, 0, SHOWN_CODES);
    text = shown == NULL ? NULL : PyObject_Repr(shown);
    result = text == NULL ? NULL : PyUnicode_Substring(text, 1, PyUnicode_GetLength(text) - 1);
done:
    Py_XDECREF(flat);
    Py_XDECREF(corner);
    Py_XDECREF(codes);
    Py_XDECREF(list);
    Py_XDECREF(shown);
    Py_XDECREF(text);
    if (result == NULL) {
        PyErr_Clear();
    }
    return result;
}

/* What torch's own nn.Parameter writes before its values, "" for other tensors; NULL with an exception. */
static const char *parameter_prefix(PyObject *self)
{
    PyObject *is_param = PyObject_GetAttr(self, awqpack.names._is_param);
    if (is_param == NULL && !PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return NULL;
    }
    const int is_parameter = is_param == Py_True;
    PyErr_Clear();
    Py_XDECREF(is_param);
    return is_parameter ? "Parameter containing:\n" : "";
}

PyObject *packed_repr(PyObject *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    packed_fields fields;
    const char *prefix = parameter_prefix(self);
    PyObject *device = NULL, *name = NULL, *codes = NULL, *result = NULL;
    if (prefix == NULL || packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    device = PyObject_GetAttr(fields.payload, awqpack.names.device);
    name = device == NULL ? NULL : PyObject_GetAttr(fields.packing, awqpack.names.name);
    if (name == NULL) {
        goto done;
    }
    codes = has_readable_values(fields.payload) ? first_codes(&fields) : NULL;
    PyErr_Clear();
    if (codes == NULL) {
        result = PyUnicode_FromFormat("%sAWQPackedTensor(shape=%R, packing=%S, reorder=%R, device='%S')", prefix,
                                      fields.size, name, fields.reorder, device);
    } else {
        result =
            PyUnicode_FromFormat("%sAWQPackedTensor(shape=%R, packing=%S, reorder=%R, device='%S', codes=[%U, ...])",
                                 prefix, fields.size, name, fields.reorder, device, codes);
    }
done:
    packed_fields_clear(&fields);
    Py_XDECREF(device);
    Py_XDECREF(name);
    Py_XDECREF(codes);
    return result;
}

/* What tracing takes a packed tensor apart into, and puts together again. */
#include "tensors.h"

#include "payload.h"

/* Stride order as text: metadata of plain ints, bools and strings compares and serializes everywhere. */
static PyObject *order_to_text(PyObject *order)
{
    if (order == Py_None) {
        return PyUnicode_FromString("");
    }
    PyObject *text = PyUnicode_FromFormat("%R", order);
    PyObject *stripped = text == NULL ? NULL : PyObject_CallMethod(text, "strip", "s", "()");
    Py_XDECREF(text);
    return stripped;
}

static PyObject *order_from_text(PyObject *text)
{
    if (PyUnicode_GetLength(text) == 0) {
        return Py_NewRef(Py_None);
    }
    PyObject *comma = PyUnicode_FromString(",");
    PyObject *parts = comma == NULL ? NULL : PyUnicode_Split(text, comma, AWQ_MAX_DIMS);
    Py_XDECREF(comma);
    PyObject *order = parts == NULL ? NULL : PyTuple_New(PyList_Size(parts));
    for (Py_ssize_t i = 0; order != NULL && i < PyList_Size(parts); i++) {
        PyObject *index = PyNumber_Long(PyList_GetItem(parts, i));
        if (index == NULL || PyTuple_SetItem(order, i, index) < 0) {
            Py_CLEAR(order);
        }
    }
    Py_XDECREF(parts);
    return order;
}

PyObject *packed_flatten(PyObject *self, PyObject *Py_UNUSED(unused))
{
    packed_fields fields;
    PyObject *result = NULL;
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *order = order_to_text(fields.order);
    if (order != NULL) {
        result = Py_BuildValue("([s]{sOsOsO})", "_data", "packing", awqpack_packing_number(fields.packing), "reorder",
                               fields.reorder, "stride_order", order);
    }
    Py_XDECREF(order);
    packed_fields_clear(&fields);
    return result;
}

/* An entry of the arguments of __tensor_unflatten__: a new reference, NULL with an exception. */
static PyObject *entry(PyObject *dict, const char *name)
{
    PyObject *value = PyDict_GetItemString(dict, name);
    if (value == NULL) {
        return PyErr_Format(PyExc_ValueError, "__tensor_unflatten__ expects %s; got %R", name, dict);
    }
    return Py_NewRef(value);
}

/* The packing of a number that must be an int: borrowed, NULL with an exception. */
static PyObject *member_of(PyObject *number)
{
    if (!PyLong_Check(number)) {
        return PyErr_Format(PyExc_TypeError, "packing expects an int; got %R", number);
    }
    const long long value = PyLong_AsLongLong(number);
    return value == -1 && PyErr_Occurred() ? NULL : awqpack_packing_member(value);
}

PyObject *packed_unflatten(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"inner_tensors", "metadata", "outer_size", "outer_stride", NULL};
    PyObject *inner, *metadata, *outer_size, *outer_stride, *order = NULL, *dense = NULL, *result = NULL;
    int64_t sizes[AWQ_MAX_DIMS];
    Py_ssize_t ndim;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OO:__tensor_unflatten__", keywords, &PyDict_Type, &inner,
                                     &PyDict_Type, &metadata, &outer_size, &outer_stride)) {
        return NULL;
    }
    PyObject *payload = entry(inner, "_data");
    PyObject *number = payload == NULL ? NULL : entry(metadata, "packing");
    PyObject *reorder = number == NULL ? NULL : entry(metadata, "reorder");
    PyObject *text = reorder == NULL ? NULL : entry(metadata, "stride_order");
    PyObject *size = text == NULL ? NULL : PySequence_Tuple(outer_size); /* read once: it may be anything */
    PyObject *packing = size == NULL ? NULL : member_of(number);
    if (packing == NULL || !awqpack_check_bool("reorder", reorder) || !awqpack_check_payload(payload, packing) ||
        awqpack_refuse_without_values(payload) < 0) {
        goto done;
    }
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_ValueError, "stride_order expects a str; got %R", text);
        goto done;
    }
    /* The order says all: torch <= 2.11 passes outer strides with the wrong symbols in them. */
    order = packed_check_size(payload, packing, size, sizes, &ndim) < 0 ? NULL : order_from_text(text);
    dense = order == NULL ? NULL : awqpack_ordered_strides(size, order);
    if (dense != NULL) {
        result = packed_new_with_meta(awqpack.packed_type, payload, packing, reorder, order, size, dense);
    }
done:
    Py_XDECREF(payload);
    Py_XDECREF(number);
    Py_XDECREF(reorder);
    Py_XDECREF(text);
    Py_XDECREF(size);
    Py_XDECREF(order);
    Py_XDECREF(dense);
    return result;
}

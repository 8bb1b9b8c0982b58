/* What a packed tensor records. */
#include "fields.h"

int awqpack_is_packed(PyObject *object)
{
    return PyObject_TypeCheck(object, (PyTypeObject *)awqpack.packed_type);
}

void packed_fields_clear(packed_fields *fields)
{
    Py_CLEAR(fields->payload);
    Py_CLEAR(fields->meta);
}

int packed_fields_get(PyObject *self, packed_fields *fields)
{
    *fields = (packed_fields){.payload = PyObject_GetAttr(self, awqpack.names._data)};
    fields->meta = fields->payload == NULL ? NULL : PyObject_GetAttr(self, awqpack.names._meta);
    if (fields->meta == NULL) {
        packed_fields_clear(fields);
        return -1;
    }
    PyObject **slots[] = {&fields->packing, &fields->reorder, &fields->order, &fields->size, &fields->stride};
    const Py_ssize_t count = PyTuple_CheckExact(fields->meta) ? PyTuple_Size(fields->meta) : 0;
    for (Py_ssize_t i = 0; count == 5 && i < 5; i++) {
        *slots[i] = PyTuple_GetItem(fields->meta, i);
    }
    if (count != 5 || !awqpack_is_packing(fields->packing) || !PyBool_Check(fields->reorder) ||
        (fields->order != Py_None && !PyTuple_CheckExact(fields->order)) || !PyTuple_CheckExact(fields->size) ||
        !PyTuple_CheckExact(fields->stride)) {
        PyErr_Format(PyExc_ValueError, "AWQPackedTensor expects its _meta as it was made; got %R", fields->meta);
        packed_fields_clear(fields);
        return -1;
    }
    return 0;
}

int packed_fields_set(PyObject *self, PyObject *payload, PyObject *meta)
{
    return PyObject_SetAttr(self, awqpack.names._data, payload) < 0 ? -1
                                                                    : PyObject_SetAttr(self, awqpack.names._meta, meta);
}

PyObject *packed_meta_new(PyObject *packing, PyObject *reorder, PyObject *order, PyObject *size, PyObject *stride)
{
    PyObject *meta = NULL, *sizes = NULL, *strides = NULL;
    /* Through lists: a torch.Size would stay one, and plain tuples are what weights_only loading knows. */
    PyObject *size_list = PySequence_List(size);
    PyObject *stride_list = size_list == NULL ? NULL : PySequence_List(stride);
    if (stride_list != NULL) {
        sizes = PyList_AsTuple(size_list);
        strides = sizes == NULL ? NULL : PyList_AsTuple(stride_list);
    }
    if (strides != NULL) {
        meta = PyTuple_Pack(5, packing, reorder, order, sizes, strides);
    }
    Py_XDECREF(size_list);
    Py_XDECREF(stride_list);
    Py_XDECREF(sizes);
    Py_XDECREF(strides);
    return meta;
}

int awqpack_check_bool(const char *name, PyObject *value)
{
    if (!PyBool_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s expects True or False; got %R", name, value);
    }
    return PyBool_Check(value);
}

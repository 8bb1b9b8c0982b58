/* The construction of a packed tensor, and what tracing takes apart and puts together again. */
#include "awqpackmodule.h"

/* packed_new around metadata that is not a tuple yet. */
static PyObject *new_with_meta(PyObject *cls, PyObject *payload, PyObject *packing, PyObject *reorder, PyObject *order,
                               PyObject *size, PyObject *stride)
{
    PyObject *meta = packed_meta_new(packing, reorder, order, size, stride);
    PyObject *self = meta == NULL ? NULL : packed_new(cls, payload, meta);
    Py_XDECREF(meta);
    return self;
}

/* True when data.dtype is the packing's and data is strided; an exception otherwise. */
int packed_check_payload(PyObject *data, PyObject *packing)
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

/* Checks sizes and strides against the payload; on success *shape, *order and *dense are new references. Symbolic sizes,
   which tracing brings, come from a tensor that was checked when it was made: they are kept as they are. */
static int read_geometry(PyObject *data, PyObject *packing, PyObject *size, PyObject *stride, PyObject **shape,
                         PyObject **order, PyObject **dense)
{
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS], payload_sizes[AWQ_MAX_DIMS], expected[AWQ_MAX_DIMS];
    Py_ssize_t ndim, stride_count, payload_ndim;
    awq_error error;
    PyObject *payload_shape = PyObject_GetAttr(data, awqpack.names.shape);
    if (payload_shape == NULL) {
        return -1;
    }
    const int is_plain_payload = awqpack_read_ints(payload_shape, "payload", payload_sizes, &payload_ndim);
    Py_DECREF(payload_shape);
    const int is_plain_size = is_plain_payload < 0 ? -1 : awqpack_read_ints(size, "size", sizes, &ndim);
    const int is_plain_stride = is_plain_size < 0 ? -1 : awqpack_read_ints(stride, "stride", strides, &stride_count);
    if (is_plain_stride < 0) {
        return -1;
    }
    if (!is_plain_payload || !is_plain_size || !is_plain_stride) {
        Py_INCREF(size);
        *shape = size;
        return awqpack_symbolic_strides(size, stride, order, dense);
    }
    const awq_packing row = awqpack_packing_of(packing, Py_False); /* an order of columns changes no size */
    const awq_view payload = {NULL, payload_sizes, NULL, payload_ndim, awq_payload_dtype(row), ""};
    if (!awq_check_payload(&payload, row, expected, &error)) {
        awqpack_raise(&error);
        return -1;
    }
    int is_same = ndim == payload_ndim;
    for (Py_ssize_t d = 0; is_same && d < ndim; d++) {
        is_same = sizes[d] == expected[d];
    }
    if (!is_same) {
        char shape_text[160], payload_text[160];
        awq_format_shape(expected, payload_ndim, shape_text, sizeof shape_text);
        awq_format_shape(payload_sizes, payload_ndim, payload_text, sizeof payload_text);
        PyErr_Format(PyExc_ValueError, "AWQPackedTensor expects size %s with an %S payload of shape %s; got %R", shape_text,
                     packing, payload_text, size);
        return -1;
    }
    *order = stride_count == ndim ? awqpack_stride_order(sizes, strides, ndim) : NULL;
    if (*order == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError,
                         "AWQPackedTensor expects the strides of a dense tensor of size %R, in any dimension order; got %R",
                         size, stride);
        }
        return -1;
    }
    *dense = awqpack_dense_strides(sizes, ndim, *order);
    *shape = awqpack_int_tuple(sizes, ndim);
    return *dense == NULL || *shape == NULL ? -1 : 0;
}

PyObject *packed_construct(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"", "data", "packing", "reorder", "size", "stride", "requires_grad", NULL};
    PyObject *cls, *data, *packing, *reorder, *size, *stride;
    PyObject *shape = NULL, *order = NULL, *dense = NULL, *self = NULL;
    int requires_grad = 0;
    if (packed_is_again(args, kwargs)) {
        return packed_again(args, kwargs);
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO!OO|p:AWQPackedTensor", keywords, &cls, &data, &packing,
                                     &PyBool_Type, &reorder, &size, &stride, &requires_grad)) {
        return NULL;
    }
    if (!awqpack_check_packing(packing) || !packed_check_payload(data, packing) || packed_refuse_gradient(requires_grad) < 0) {
        return NULL;
    }
    /* A parameter would be a second owner of its module's place; the tensor below it is what is wrapped. */
    if ((PyObject *)Py_TYPE(data) == awqpack.parameter_type) {
        data = PyObject_CallMethodObjArgs(data, awqpack.names.detach, NULL);
    } else {
        Py_INCREF(data);
    }
    if (data != NULL && read_geometry(data, packing, size, stride, &shape, &order, &dense) == 0) {
        self = new_with_meta(cls, data, packing, reorder, order, shape, dense);
    }
    Py_XDECREF(data);
    Py_XDECREF(shape);
    Py_XDECREF(order);
    Py_XDECREF(dense);
    return self;
}

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
    PyObject *order = NULL, *result = NULL;
    PyObject *parts = PyObject_CallMethod(text, "split", "s", ",");
    const Py_ssize_t count = parts == NULL ? -1 : PyList_Size(parts);
    if (count < 0) {
        goto done;
    }
    if (PyUnicode_GetLength(text) == 0) {
        Py_INCREF(Py_None);
        result = Py_None;
        goto done;
    }
    order = PyTuple_New(count);
    if (order == NULL) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *index = PyNumber_Long(PyList_GetItem(parts, i));
        if (index == NULL || PyTuple_SetItem(order, i, index) < 0) {
            goto done;
        }
    }
    result = order;
    order = NULL;
done:
    Py_XDECREF(order);
    Py_XDECREF(parts);
    return result;
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

PyObject *packed_unflatten(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"inner_tensors", "metadata", "outer_size", "outer_stride", NULL};
    PyObject *inner, *metadata, *size, *stride, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OO:__tensor_unflatten__", keywords, &PyDict_Type, &inner,
                                     &PyDict_Type, &metadata, &size, &stride)) {
        return NULL;
    }
    PyObject *payload = PyDict_GetItemString(inner, "_data");
    PyObject *packing = PyDict_GetItemString(metadata, "packing");
    PyObject *reorder = PyDict_GetItemString(metadata, "reorder");
    PyObject *text = PyDict_GetItemString(metadata, "stride_order");
    if (payload == NULL || packing == NULL || reorder == NULL || text == NULL || !PyUnicode_Check(text)) {
        return PyErr_Format(PyExc_ValueError,
                            "__tensor_unflatten__ expects _data, packing, reorder and stride_order; got %R and %R",
                            inner, metadata);
    }
    const long long number = PyLong_AsLongLong(packing);
    PyObject *member = number == -1 && PyErr_Occurred() ? NULL : awqpack_packing_member(number);
    if (member == NULL) {
        return NULL;
    }
    if (!PyBool_Check(reorder)) {
        return PyErr_Format(PyExc_TypeError, "reorder expects True or False; got %R", reorder);
    }
    PyObject *order = packed_check_payload(payload, member) ? order_from_text(text) : NULL;
    /* The order says all: torch <= 2.11 passes outer strides with the wrong symbols in them. */
    PyObject *dense = order == NULL ? NULL : awqpack_ordered_strides(size, order);
    if (dense != NULL) {
        result = new_with_meta(awqpack.packed_type, payload, member, reorder, order, size, dense);
    }
    Py_XDECREF(dense);
    Py_XDECREF(order);
    return result;
}

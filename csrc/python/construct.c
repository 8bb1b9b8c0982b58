/* The construction of a packed tensor, and what tracing takes apart and puts together again. */
#include "state.h"

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

/* 1 when a size fits the payload, and its ints; 0 when it or the payload's is symbolic: tracing brings sizes of tensors that were
   checked when they were made. -1 with an exception. */
static int check_size(PyObject *data, PyObject *packing, PyObject *size, int64_t *sizes, Py_ssize_t *ndim)
{
    int64_t payload_sizes[AWQ_MAX_DIMS], expected[AWQ_MAX_DIMS];
    Py_ssize_t payload_ndim;
    awq_error error;
    PyObject *payload_shape = PyObject_GetAttr(data, awqpack.names.shape);
    const int is_plain_payload =
        payload_shape == NULL ? -1 : awqpack_read_ints(payload_shape, "payload", payload_sizes, &payload_ndim);
    const int is_plain = is_plain_payload < 0 ? -1 : awqpack_read_ints(size, "size", sizes, ndim);
    Py_XDECREF(payload_shape);
    if (is_plain <= 0 || is_plain_payload == 0) {
        return is_plain < 0 ? -1 : 0;
    }
    const awq_packing row = awqpack_packing_of(packing, Py_False); /* an order of columns changes no size */
    const awq_view payload = {NULL, payload_sizes, NULL, payload_ndim, awq_payload_dtype(row), ""};
    if (!awq_check_payload(&payload, row, expected, &error)) {
        awqpack_raise(&error);
        return -1;
    }
    int is_same = *ndim == payload_ndim;
    for (Py_ssize_t d = 0; is_same && d < payload_ndim; d++) {
        is_same = sizes[d] == expected[d];
    }
    if (!is_same) {
        char shape_text[160], payload_text[160];
        awq_format_shape(expected, payload_ndim, shape_text, sizeof shape_text);
        awq_format_shape(payload_sizes, payload_ndim, payload_text, sizeof payload_text);
        PyErr_Format(PyExc_ValueError, "AWQPackedTensor expects size %s with an %S payload of shape %s; got %R", shape_text,
                     packing, payload_text, size);
    }
    return is_same ? 1 : -1;
}

/* Checks sizes and strides against the payload; on success *shape, *order and *dense are new references. */
static int read_geometry(PyObject *data, PyObject *packing, PyObject *size, PyObject *stride, PyObject **shape,
                         PyObject **order, PyObject **dense)
{
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    Py_ssize_t ndim, stride_count;
    const int is_plain_size = check_size(data, packing, size, sizes, &ndim);
    const int is_plain = is_plain_size < 0 ? -1 : awqpack_read_ints(stride, "stride", strides, &stride_count);
    if (is_plain < 0) {
        return -1;
    }
    if (!is_plain_size || !is_plain) {
        *shape = PySequence_Tuple(size);
        return *shape == NULL ? -1 : awqpack_symbolic_strides(*shape, stride, order, dense);
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

/* A packed tensor of the arguments that the class was called with, which are borrowed. */
static PyObject *construct(PyObject *cls, PyObject *data, PyObject *packing, PyObject *reorder, PyObject *size,
                           PyObject *stride)
{
    PyObject *shape = NULL, *order = NULL, *dense = NULL, *self = NULL;
    if (!awqpack_check_packing(packing) || !awqpack_check_bool("reorder", reorder) || !packed_check_payload(data, packing)) {
        return NULL;
    }
    /* A parameter would be a second owner of its module's place; the tensor below it is what is wrapped. */
    data = (PyObject *)Py_TYPE(data) == awqpack.parameter_type ? PyObject_CallMethodObjArgs(data, awqpack.names.detach, NULL)
                                                               : Py_NewRef(data);
    if (data != NULL && awqpack_refuse_without_values(data) == 0 &&
        read_geometry(data, packing, size, stride, &shape, &order, &dense) == 0) {
        self = new_with_meta(cls, data, packing, reorder, order, shape, dense);
    }
    Py_XDECREF(data);
    Py_XDECREF(shape);
    Py_XDECREF(order);
    Py_XDECREF(dense);
    return self;
}

PyObject *packed_construct(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"data", "packing", "reorder", "size", "stride", "requires_grad", NULL};
    PyObject *data, *packing, *reorder, *size, *stride;
    int requires_grad = 0;
    PyObject *cls = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : Py_None;
    if (!PyType_Check(cls) || !PyType_IsSubtype((PyTypeObject *)cls, (PyTypeObject *)awqpack.packed_type)) {
        return PyErr_Format(PyExc_TypeError, "AWQPackedTensor.__new__ expects a subclass of AWQPackedTensor; got %R", cls);
    }
    if (packed_is_again(args, kwargs)) {
        return packed_again(args, kwargs);
    }
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_Size(args)); /* as a caller counts them */
    PyObject *self = NULL;
    if (rest != NULL &&
        PyArg_ParseTupleAndKeywords(rest, kwargs, "OOOOO|p:AWQPackedTensor", keywords, &data, &packing, &reorder, &size,
                                    &stride, &requires_grad) &&
        packed_refuse_gradient(requires_grad) == 0) {
        self = construct(cls, data, packing, reorder, size, stride);
    }
    Py_XDECREF(rest);
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
    PyObject *comma = PyUnicode_FromString(",");
    PyObject *parts = comma == NULL ? NULL : PyUnicode_Split(text, comma, AWQ_MAX_DIMS);
    const Py_ssize_t count = parts == NULL ? -1 : PyList_Size(parts);
    Py_XDECREF(comma);
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
    if (packing == NULL || !awqpack_check_bool("reorder", reorder) || !packed_check_payload(payload, packing) ||
        awqpack_refuse_without_values(payload) < 0) {
        goto done;
    }
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_ValueError, "stride_order expects a str; got %R", text);
        goto done;
    }
    /* The order says all: torch <= 2.11 passes outer strides with the wrong symbols in them. */
    order = check_size(payload, packing, size, sizes, &ndim) < 0 ? NULL : order_from_text(text);
    dense = order == NULL ? NULL : awqpack_ordered_strides(size, order);
    if (dense != NULL) {
        result = new_with_meta(awqpack.packed_type, payload, packing, reorder, order, size, dense);
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

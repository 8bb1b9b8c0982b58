/* The construction of packed tensors: around a payload, and from codes. */
#include "tensors.h"

#include "payload.h"

PyObject *packed_new_with_meta(PyObject *cls, PyObject *payload, PyObject *packing, PyObject *reorder, PyObject *order,
                               PyObject *size, PyObject *stride)
{
    PyObject *meta = packed_meta_new(packing, reorder, order, size, stride);
    PyObject *self = meta == NULL ? NULL : packed_new(cls, payload, meta);
    Py_XDECREF(meta);
    return self;
}

int packed_check_size(PyObject *data, PyObject *packing, PyObject *size, int64_t *sizes, Py_ssize_t *ndim)
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
        PyErr_Format(PyExc_ValueError, "AWQPackedTensor expects size %s with an %S payload of shape %s; got %R",
                     awq_shape_text(expected, payload_ndim).chars, packing,
                     awq_shape_text(payload_sizes, payload_ndim).chars, size);
    }
    return is_same ? 1 : -1;
}

/* Checks sizes and strides against the payload; on success *shape, *order and *dense are new references. */
static int read_geometry(PyObject *data, PyObject *packing, PyObject *size, PyObject *stride, PyObject **shape,
                         PyObject **order, PyObject **dense)
{
    int64_t sizes[AWQ_MAX_DIMS];
    Py_ssize_t ndim;
    const int is_plain = packed_check_size(data, packing, size, sizes, &ndim);
    *shape = is_plain < 0 ? NULL : is_plain ? awqpack_int_tuple(sizes, ndim) : PySequence_Tuple(size);
    const int is_dense = *shape == NULL ? -1 : awqpack_record_strides(*shape, stride, "stride", order, dense);
    if (is_dense == 0) {
        PyErr_Format(PyExc_ValueError,
                     "AWQPackedTensor expects the strides of a dense tensor of size %R, in any dimension order; got %R",
                     size, stride);
    }
    return is_dense > 0 ? 0 : -1;
}

/* A packed tensor of the arguments that the class was called with, which are borrowed. */
static PyObject *construct(PyObject *cls, PyObject *data, PyObject *packing, PyObject *reorder, PyObject *size,
                           PyObject *stride)
{
    PyObject *shape = NULL, *order = NULL, *dense = NULL, *self = NULL;
    if (!awqpack_check_packing(packing) || !awqpack_check_bool("reorder", reorder) ||
        !awqpack_check_payload(data, packing)) {
        return NULL;
    }
    /* A parameter would be a second owner of its module's place; the tensor below it is what is wrapped. */
    data = (PyObject *)Py_TYPE(data) == awqpack.parameter_type
               ? PyObject_CallMethodObjArgs(data, awqpack.names.detach, NULL)
               : Py_NewRef(data);
    if (data != NULL && awqpack_refuse_without_values(data) == 0 &&
        read_geometry(data, packing, size, stride, &shape, &order, &dense) == 0) {
        self = packed_new_with_meta(cls, data, packing, reorder, order, shape, dense);
    }
    Py_XDECREF(data);
    Py_XDECREF(shape);
    Py_XDECREF(order);
    Py_XDECREF(dense);
    return self;
}

static int check_gradient(int requires_grad)
{
    if (requires_grad > 0) {
        PyErr_SetString(PyExc_ValueError,
                        "AWQPackedTensor expects requires_grad=False; uint8 codes carry no gradient, got True");
    }
    return requires_grad == 0 ? 0 : -1;
}

/* AWQPackedTensor(packed, requires_grad=False), by which libraries rebuild a parameter: awqpack.rebuilt.again. */
static PyObject *construct_again(PyObject *args, PyObject *kwargs)
{
    PyObject *requires_grad = kwargs == NULL ? NULL : PyDict_GetItem(kwargs, awqpack.names.requires_grad);
    if (requires_grad != NULL && check_gradient(PyObject_IsTrue(requires_grad)) < 0) {
        return NULL;
    }
    PyObject *again = awqpack_look_up("awqpack.rebuilt", "again");
    PyObject *self = again == NULL ? NULL : PyObject_Call(again, args, kwargs);
    Py_XDECREF(again);
    return self;
}

PyObject *packed_construct(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"data", "packing", "reorder", "size", "stride", "requires_grad", NULL};
    PyObject *data, *packing, *reorder, *size, *stride;
    int requires_grad = 0;
    PyObject *cls = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : Py_None;
    if (!PyType_Check(cls) || !PyType_IsSubtype((PyTypeObject *)cls, (PyTypeObject *)awqpack.packed_type)) {
        return PyErr_Format(PyExc_TypeError, "AWQPackedTensor.__new__ expects a subclass of AWQPackedTensor; got %R",
                            cls);
    }
    if (PyTuple_Size(args) == 2 && awqpack_is_packed(PyTuple_GetItem(args, 1)) &&
        (kwargs == NULL || PyDict_GetItem(kwargs, awqpack.names.packing) == NULL)) {
        return construct_again(args, kwargs);
    }
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_Size(args)); /* as a caller counts them */
    PyObject *self = NULL;
    if (rest != NULL &&
        PyArg_ParseTupleAndKeywords(rest, kwargs, "OOOOO|p:AWQPackedTensor", keywords, &data, &packing, &reorder, &size,
                                    &stride, &requires_grad) &&
        check_gradient(requires_grad) == 0) {
        self = construct(cls, data, packing, reorder, size, stride);
    }
    Py_XDECREF(rest);
    return self;
}

PyObject *packed_pack(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *cls, *t, *packing, *reorder, *validate;
    PyObject *order = NULL, *dense = NULL, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOOO:pack", &cls, &t, &packing, &reorder, &validate)) {
        return NULL;
    }
    if (!PyObject_TypeCheck(t, (PyTypeObject *)awqpack.tensor_type)) {
        return PyErr_Format(PyExc_TypeError, "AWQPackedTensor.pack expects a torch.Tensor; got %R",
                            (PyObject *)Py_TYPE(t));
    }
    if (!awqpack_check_packing(packing) || !awqpack_check_bool("reorder", reorder) ||
        !awqpack_check_bool("validate", validate)) {
        return NULL;
    }
    PyObject *payload =
        PyObject_CallFunctionObjArgs(awqpack.op_pack, t, awqpack_packing_number(packing), reorder, validate, NULL);
    PyObject *shape = payload == NULL ? NULL : PyObject_GetAttr(t, awqpack.names.shape);
    PyObject *stride = shape == NULL ? NULL : PyObject_CallMethodObjArgs(t, awqpack.names.stride, NULL);
    const int is_dense = stride == NULL ? -1 : awqpack_record_strides(shape, stride, "pack", &order, &dense);
    if (is_dense == 0) { /* unpack() gives contiguous codes then */
        order = Py_NewRef(Py_None);
        dense = awqpack_ordered_strides(shape, order);
    }
    if (dense != NULL) {
        result = packed_new_with_meta(cls, payload, packing, reorder, order, shape, dense);
    }
    Py_XDECREF(payload);
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    Py_XDECREF(order);
    Py_XDECREF(dense);
    return result;
}

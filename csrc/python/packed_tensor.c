/* AWQPackedTensor: the class, its construction, and what tracing and copying take apart and put together again. */
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

static PyObject *packed_construct(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
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

static PyObject *packed_flatten(PyObject *self, PyObject *Py_UNUSED(unused))
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

static PyObject *packed_unflatten(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
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

static PyObject *get_payload(PyObject *self, void *Py_UNUSED(closure))
{
    return PyObject_GetAttr(self, awqpack.names._data);
}

/* The getters below say which field of the metadata they are through their closure. */
static PyObject *get_meta(PyObject *self, void *closure)
{
    PyObject *meta = PyObject_GetAttr(self, awqpack.names._meta);
    PyObject *value = meta == NULL ? NULL : PyTuple_GetItem(meta, (Py_ssize_t)(intptr_t)closure);
    Py_XINCREF(value);
    Py_XDECREF(meta);
    return value;
}

static PyObject *get_data(PyObject *self, void *Py_UNUSED(closure))
{
    return PyObject_CallMethod(awqpack.data_descriptor, "__get__", "OO", self, (PyObject *)Py_TYPE(self));
}

/* A packed tensor of plain uint8 codes, packed as `self` is. */
static PyObject *pack_alike(PyObject *self, PyObject *codes)
{
    packed_fields fields;
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *args = Py_BuildValue("(OOOOO)", (PyObject *)Py_TYPE(self), codes, fields.packing, fields.reorder, Py_True);
    PyObject *result = args == NULL ? NULL : packed_pack(NULL, args);
    Py_XDECREF(args);
    packed_fields_clear(&fields);
    return result;
}

/* torch would exchange size, stride and device, which it keeps, and lose the payload, which it does not know. Plain codes
   come from nn.Module.cpu(), which moves a parameter by assigning the moved one: they are packed again where they are. */
static int set_data(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    packed_fields fields;
    PyObject *dtype = NULL, *packed = NULL, *done = NULL;
    int status = -1;
    if (value != NULL && awqpack_is_packed(value)) {
        Py_INCREF(value);
        packed = value;
    } else if (value != NULL && PyObject_TypeCheck(value, (PyTypeObject *)awqpack.tensor_type)) {
        dtype = PyObject_GetAttr(value, awqpack.names.dtype);
        packed = dtype == awqpack.uint8 ? pack_alike(self, value) : NULL;
    }
    if (packed == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError, "the data of an AWQPackedTensor expects an AWQPackedTensor or uint8 codes; got %R",
                         dtype == NULL ? (PyObject *)(value == NULL ? Py_None : (PyObject *)Py_TYPE(value)) : dtype);
        }
    } else if (packed_fields_get(packed, &fields) == 0) {
        done = PyObject_CallMethod(awqpack.data_descriptor, "__set__", "OO", self, packed);
        status = done == NULL ? -1 : packed_fields_set(self, fields.payload, fields.meta);
        packed_fields_clear(&fields);
    }
    Py_XDECREF(dtype);
    Py_XDECREF(packed);
    Py_XDECREF(done);
    return status;
}

static PyGetSetDef packed_getters[] = {
    {"data", get_data, set_data, "As torch.Tensor.data; uint8 codes that are assigned are packed.", NULL},
    {"payload", get_payload, NULL, "The int32 (V1) or int16 (V2) tensor that AWQ kernels read.", NULL},
    {"packing", get_meta, NULL, "AWQPacking.V1 or AWQPacking.V2.", (void *)0},
    {"reorder", get_meta, NULL, "Whether V1 words hold their columns in AutoAWQ's gemm order.", (void *)1},
    {"_packing", get_meta, NULL, "packing, under the name that optimum-quanto uses.", (void *)0},
    {"_reorder", get_meta, NULL, "reorder, under the name that optimum-quanto uses.", (void *)1},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef flatten_method = {"__tensor_flatten__", packed_flatten, METH_NOARGS,
                                     "Names of the inner tensors, and the metadata that rebuilds the rest."};
static PyMethodDef construct_function = {"__new__", (PyCFunction)(void (*)(void))packed_construct,
                                         METH_VARARGS | METH_KEYWORDS, NULL};
static PyMethodDef unflatten_function = {"__tensor_unflatten__", (PyCFunction)(void (*)(void))packed_unflatten,
                                         METH_VARARGS | METH_KEYWORDS, "The inverse of __tensor_flatten__."};
static PyMethodDef dispatch_function = {"__torch_dispatch__", (PyCFunction)(void (*)(void))packed_torch_dispatch,
                                        METH_FASTCALL | METH_KEYWORDS, NULL};

/* Puts decorator(function) into the namespace, decorator being staticmethod or classmethod. */
static int add_wrapped(PyObject *namespace, const char *decorator, PyMethodDef *function)
{
    int status = -1;
    PyObject *builtins = PyImport_ImportModule("builtins");
    PyObject *wrapper = builtins == NULL ? NULL : PyObject_GetAttrString(builtins, decorator);
    PyObject *callable = wrapper == NULL ? NULL : PyCFunction_New(function, NULL);
    PyObject *wrapped = callable == NULL ? NULL : PyObject_CallFunctionObjArgs(wrapper, callable, NULL);
    if (wrapped != NULL) {
        status = PyDict_SetItemString(namespace, function->ml_name, wrapped);
    }
    Py_XDECREF(builtins);
    Py_XDECREF(wrapper);
    Py_XDECREF(callable);
    Py_XDECREF(wrapped);
    return status;
}

static int add_descriptor(PyObject *type, const char *name, PyObject *descriptor)
{
    const int status = descriptor == NULL ? -1 : PyObject_SetAttrString(type, name, descriptor);
    Py_XDECREF(descriptor);
    return status;
}

static PyObject *create_type(PyObject *doc)
{
    PyObject *type = NULL, *meta = (PyObject *)Py_TYPE(awqpack.tensor_type);
    PyObject *c_module = PyImport_ImportModule("torch._C");
    PyObject *no_function = c_module == NULL ? NULL : PyObject_GetAttrString(c_module, "_disabled_torch_function_impl");
    PyObject *namespace = no_function == NULL ? NULL : Py_BuildValue("{sssOsOs(OO)}", "__module__", "awqpack", "__doc__", doc,
                                                                    "__torch_function__", no_function, "__slots__",
                                                                    awqpack.names._data, awqpack.names._meta);
    if (namespace != NULL && add_wrapped(namespace, "staticmethod", &construct_function) == 0 &&
        add_wrapped(namespace, "staticmethod", &unflatten_function) == 0 &&
        add_wrapped(namespace, "classmethod", &dispatch_function) == 0) {
        type = PyObject_CallFunction(meta, "s(O)O", "AWQPackedTensor", awqpack.tensor_type, namespace);
    }
    Py_XDECREF(c_module);
    Py_XDECREF(no_function);
    Py_XDECREF(namespace);
    return type;
}

PyObject *awqpack_create_class(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *packing_type, *rebuild, *doc;
    if (!PyArg_ParseTuple(args, "OOO:create_class", &packing_type, &rebuild, &doc)) {
        return NULL;
    }
    if (awqpack.packed_type != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "AWQPackedTensor was already created");
        return NULL;
    }
    PyObject *type = awqpack_set_packings(packing_type) < 0 ? NULL : create_type(doc);
    if (type == NULL) {
        return NULL;
    }
    int status = add_descriptor(type, flatten_method.ml_name, PyDescr_NewMethod((PyTypeObject *)type, &flatten_method));
    for (PyMethodDef *method = packed_methods; status == 0 && method->ml_name != NULL; method++) {
        status = add_descriptor(type, method->ml_name, PyDescr_NewMethod((PyTypeObject *)type, method));
    }
    for (PyGetSetDef *getter = packed_getters; status == 0 && getter->name != NULL; getter++) {
        status = add_descriptor(type, getter->name, PyDescr_NewGetSet((PyTypeObject *)type, getter));
    }
    if (status < 0) {
        Py_DECREF(type);
        return NULL;
    }
    Py_INCREF(rebuild);
    awqpack.rebuild = rebuild;
    awqpack.packed_type = type;
    Py_INCREF(type);
    return type;
}

/* What C adds to the class that awqpack/tensor.py states: fields, methods, construction and dispatch. */
#include "class.h"

#include "dispatch.h"
#include "fields.h"
#include "tensors.h"

static PyObject *get_payload(PyObject *self, void *Py_UNUSED(closure))
{
    return PyObject_GetAttr(self, awqpack.names._data);
}

/* The getters below say which field of the metadata they are through their closure. */
static PyObject *get_meta(PyObject *self, void *closure)
{
    packed_fields fields;
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *value = Py_NewRef(PyTuple_GetItem(fields.meta, (Py_ssize_t)(intptr_t)closure));
    packed_fields_clear(&fields);
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
    PyObject *args =
        Py_BuildValue("(OOOOO)", (PyObject *)Py_TYPE(self), codes, fields.packing, fields.reorder, Py_True);
    PyObject *result = args == NULL ? NULL : packed_pack(NULL, args);
    Py_XDECREF(args);
    packed_fields_clear(&fields);
    return result;
}

/* The packed tensor that is assigned to the data of `self`: plain codes come from nn.Module.cpu(), which moves a
   parameter by assigning the moved one, and are packed again where they are. */
static PyObject *packed_value(PyObject *self, PyObject *value)
{
    if (value != NULL && awqpack_is_packed(value)) {
        return Py_NewRef(value);
    }
    const int is_tensor = value != NULL && PyObject_TypeCheck(value, (PyTypeObject *)awqpack.tensor_type);
    PyObject *kind = is_tensor ? PyObject_GetAttr(value, awqpack.names.dtype)
                               : Py_NewRef(value == NULL ? Py_None : (PyObject *)Py_TYPE(value));
    PyObject *packed = is_tensor && kind == awqpack.uint8 ? pack_alike(self, value) : NULL;
    if (kind != NULL && kind != awqpack.uint8) {
        PyErr_Format(PyExc_TypeError,
                     "the data of an AWQPackedTensor expects an AWQPackedTensor or uint8 codes; got %R", kind);
    }
    Py_XDECREF(kind);
    return packed;
}

/* torch would exchange size, stride and device, which it keeps, and lose the payload, which it does not know. */
static int set_data(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    packed_fields fields;
    int status = -1;
    PyObject *packed = packed_value(self, value);
    if (packed != NULL && packed_fields_get(packed, &fields) == 0) {
        PyObject *done = PyObject_CallMethod(awqpack.data_descriptor, "__set__", "OO", self, packed);
        status = done == NULL ? -1 : packed_fields_set(self, fields.payload, fields.meta);
        Py_XDECREF(done);
        packed_fields_clear(&fields);
    }
    Py_XDECREF(packed);
    return status;
}

static PyGetSetDef packed_getters[] = {
    {"data", get_data, set_data, "As torch.Tensor.data; uint8 codes that are assigned are packed.", NULL},
    {"payload", get_payload, NULL, "The tensor that kernels read: int32 for V1 and Marlin, int16 for V2.", NULL},
    {"packing", get_meta, NULL, "How the payload is packed, an AWQPacking.", (void *)0},
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

/* Gives the class decorator(function), decorator being staticmethod or classmethod. */
static int add_wrapped(PyObject *type, const char *decorator, PyMethodDef *function)
{
    int status = -1;
    PyObject *wrapper = awqpack_look_up("builtins", decorator);
    PyObject *callable = wrapper == NULL ? NULL : PyCFunction_New(function, NULL);
    PyObject *wrapped = callable == NULL ? NULL : PyObject_CallFunctionObjArgs(wrapper, callable, NULL);
    if (wrapped != NULL) {
        status = PyObject_SetAttrString(type, function->ml_name, wrapped);
    }
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

static int add_to_class(PyObject *type)
{
    PyTypeObject *class = (PyTypeObject *)type;
    int status = add_wrapped(type, "staticmethod", &construct_function) < 0 ||
                         add_wrapped(type, "staticmethod", &unflatten_function) < 0 ||
                         add_wrapped(type, "classmethod", &dispatch_function) < 0
                     ? -1
                     : add_descriptor(type, flatten_method.ml_name, PyDescr_NewMethod(class, &flatten_method));
    for (PyMethodDef *method = packed_methods; status == 0 && method->ml_name != NULL; method++) {
        status = add_descriptor(type, method->ml_name, PyDescr_NewMethod(class, method));
    }
    for (PyGetSetDef *getter = packed_getters; status == 0 && getter->name != NULL; getter++) {
        status = add_descriptor(type, getter->name, PyDescr_NewGetSet(class, getter));
    }
    return status;
}

PyObject *awqpack_install(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *type, *packing_type, *old = awqpack.packed_type;
    if (!PyArg_ParseTuple(args, "O!O:install", &PyType_Type, &type, &packing_type) ||
        awqpack_set_packings(packing_type) < 0 || add_to_class(type) < 0) {
        return NULL;
    }
    awqpack.packed_type = Py_NewRef(type);
    Py_XDECREF(old); /* that of an import that was interrupted */
    Py_RETURN_NONE;
}

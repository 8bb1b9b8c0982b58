/* The constructor around a packed tensor alone: how libraries rebuild a parameter, as nn.Parameter allows. */
#include "tensors.h"

int packed_is_again(PyObject *args, PyObject *kwargs)
{
    return PyTuple_Size(args) == 2 && awqpack_is_packed(PyTuple_GetItem(args, 1)) &&
           (kwargs == NULL || PyDict_GetItem(kwargs, awqpack.names.packing) == NULL);
}

int packed_refuse_gradient(int requires_grad)
{
    if (requires_grad > 0) {
        PyErr_SetString(PyExc_ValueError,
                        "AWQPackedTensor expects requires_grad=False; uint8 codes carry no gradient, got True");
    }
    return requires_grad == 0 ? 0 : -1;
}

/* 0 when the keywords say nothing that is new here: requires_grad=False, or all of a parameter's __dict__, whose
   entries become attributes. */
static int check_keywords(PyObject *kwargs)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    const int is_dict = kwargs != NULL && PyDict_GetItem(kwargs, awqpack.names._is_param) != NULL;
    while (kwargs != NULL && PyDict_Next(kwargs, &position, &key, &value)) {
        const int is_gradient = PyUnicode_Compare(key, awqpack.names.requires_grad) == 0;
        if (is_gradient && packed_refuse_gradient(PyObject_IsTrue(value)) < 0) {
            return -1;
        }
        if (!is_gradient && !is_dict) {
            PyErr_Format(PyExc_TypeError,
                         "AWQPackedTensor of a packed tensor expects no argument but requires_grad; got %R", key);
            return -1;
        }
    }
    return 0;
}

/* Sets what the keywords say as attributes; a caller who names requires_grad means a parameter. */
static int set_attributes(PyObject *self, PyObject *kwargs)
{
    PyObject *attributes = kwargs == NULL ? NULL : PyDict_Copy(kwargs);
    PyObject *dict = attributes == NULL ? NULL : PyObject_GenericGetDict(self, NULL);
    int status = kwargs == NULL || dict != NULL ? 0 : -1;
    if (dict != NULL && PyDict_GetItem(attributes, awqpack.names.requires_grad) != NULL) {
        status = PyDict_DelItem(attributes, awqpack.names.requires_grad) < 0
                     ? -1
                     : PyDict_SetItem(attributes, awqpack.names._is_param, Py_True);
    }
    if (status == 0 && dict != NULL) {
        status = PyDict_Update(dict, attributes);
    }
    Py_XDECREF(attributes);
    Py_XDECREF(dict);
    return status;
}

/* Gives a rebuilt parameter on meta the class that knows its packing: awqpack.rebuilt.remember_packing. */
static int remember_packing(PyObject *self)
{
    PyObject *is_meta = PyObject_GetAttrString(self, "is_meta");
    PyObject *module = is_meta == Py_True ? PyImport_ImportModule("awqpack.rebuilt") : NULL;
    PyObject *done = module == NULL ? NULL : PyObject_CallMethod(module, "remember_packing", "O", self);
    const int status = is_meta == Py_False || done != NULL ? 0 : -1;
    Py_XDECREF(is_meta);
    Py_XDECREF(module);
    Py_XDECREF(done);
    return status;
}

PyObject *packed_again(PyObject *args, PyObject *kwargs)
{
    PyObject *cls = PyTuple_GetItem(args, 0), *packed = PyTuple_GetItem(args, 1);
    if (!PyType_Check(cls)) {
        return PyErr_Format(PyExc_TypeError, "AWQPackedTensor.__new__ expects a class; got %R", cls);
    }
    if (check_keywords(kwargs) < 0) {
        return NULL;
    }
    PyObject *result = PyObject_CallMethodObjArgs(packed, awqpack.names.detach, NULL);
    const int is_cls = result == NULL || PyType_IsSubtype(Py_TYPE(result), (PyTypeObject *)cls);
    if (!is_cls && PyObject_SetAttrString(result, "__class__", cls) < 0) {
        Py_CLEAR(result);
    }
    if (result != NULL && (set_attributes(result, kwargs) < 0 || remember_packing(result) < 0)) {
        Py_CLEAR(result);
    }
    return result;
}

/* The tensors that stand for codes: new ones around a payload, and twins of one, which share its storage. */
#include "tensors.h"

#include "modes.h"
#include "payload.h"

/* The class of a new tensor like one of `cls`: a class of meta's (awqpack/rebuilt.py) does not leave it. NULL with an
   exception; borrowed. */
static PyObject *class_on(PyObject *cls, PyObject *device)
{
    if (cls == awqpack.packed_type || !PyObject_HasAttrString(cls, "_is_of_meta")) {
        return cls;
    }
    const int kind = awqpack_device_kind_of(device);
    return kind < 0 ? NULL : kind == AWQPACK_META ? cls : awqpack.packed_type;
}

PyObject *packed_new_on(PyObject *cls, PyObject *payload, PyObject *meta, PyObject *device)
{
    PyObject *order = PyTuple_GetItem(meta, 2), *size = PyTuple_GetItem(meta, 3), *stride = PyTuple_GetItem(meta, 4);
    const int is_plain = Py_TYPE(payload) == (PyTypeObject *)awqpack.tensor_type;
    cls = class_on(cls, device);
    if (order == NULL || size == NULL || stride == NULL || cls == NULL) {
        return NULL;
    }
    /* By position, which torch parses faster: the Nones are the storage offset and the memory format. Contiguous
       strides it computes faster than it reads them. */
    stride = is_plain && order == Py_None ? Py_None : stride;
    PyObject *self = PyObject_CallFunctionObjArgs(awqpack.make_wrapper, cls, size, stride, Py_None, Py_None,
                                                  awqpack.uint8, awqpack.strided, device, NULL);
    if (self != NULL && packed_fields_set(self, payload, meta) < 0) {
        Py_CLEAR(self);
    }
    /* The wrapper's own data pointer is null: torch code that goes past dispatch must raise there, not crash. */
    if (self != NULL && is_plain) {
        PyObject *done = PyObject_CallFunctionObjArgs(awqpack.forbid_data_ptr, self, NULL);
        if (done == NULL) {
            Py_CLEAR(self);
        }
        Py_XDECREF(done);
    }
    return self;
}

PyObject *packed_new(PyObject *cls, PyObject *payload, PyObject *meta)
{
    PyObject *device = PyObject_GetAttr(payload, awqpack.names.device);
    PyObject *self = device == NULL ? NULL : packed_new_on(cls, payload, meta, device);
    Py_XDECREF(device);
    return self;
}

PyObject *packed_twin(PyObject *self, PyObject *payload, PyObject *meta)
{
    PyObject *guard = awqpack_turn_dispatch_off();
    PyObject *args = guard == NULL ? NULL : PyTuple_Pack(2, (PyObject *)Py_TYPE(self), self);
    PyObject *result = args == NULL ? NULL : PyObject_Call(awqpack.make_subclass, args, NULL);
    Py_XDECREF(args);
    Py_XDECREF(guard);
    if (result != NULL && packed_fields_set(result, payload, meta) < 0) {
        Py_CLEAR(result);
    }
    return result;
}

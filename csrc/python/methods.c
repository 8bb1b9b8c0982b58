/* The methods that a user calls on a packed tensor. */
#include "class.h"

#include "moves.h"
#include "ndarray.h"
#include "payload.h"
#include "plain.h"

static PyObject *unpack_into(PyObject *self, PyObject *out)
{
    packed_fields fields;
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *unpack = awqpack_look_up("awqpack.functional", "unpack");
    PyObject *args = unpack == NULL ? NULL : PyTuple_Pack(3, fields.payload, fields.packing, fields.reorder);
    PyObject *kwargs = args == NULL ? NULL : Py_BuildValue("{sO}", "out", out);
    PyObject *result = kwargs == NULL ? NULL : PyObject_Call(unpack, args, kwargs);
    Py_XDECREF(unpack);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    packed_fields_clear(&fields);
    return result;
}

/* unpack(self, *, out=None) */
static PyObject *packed_unpack_method(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count == 0 && names == NULL) {
        return packed_unpack(self, NULL);
    }
    if (count != 0 || PyTuple_Size(names) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "out") != 0) {
        return PyErr_Format(PyExc_TypeError,
                            "unpack expects no argument but out=; got %zd by position and the names %R", count,
                            names == NULL ? Py_None : names);
    }
    return args[0] == Py_None ? packed_unpack(self, NULL) : unpack_into(self, args[0]);
}

static int read_view(PyObject *payload, awq_packing packing, int64_t *sizes, int64_t *strides, awq_view *view)
{
    Py_ssize_t ndim = 0, count;
    int status = -1;
    PyObject *shape = PyObject_GetAttr(payload, awqpack.names.shape);
    PyObject *stride = shape == NULL ? NULL : PyObject_CallMethodObjArgs(payload, awqpack.names.stride, NULL);
    PyObject *pointer = stride == NULL ? NULL : PyObject_CallMethodObjArgs(payload, awqpack.names.data_ptr, NULL);
    if (pointer != NULL && awqpack_read_ints(shape, "numpy", sizes, &ndim) > 0 &&
        awqpack_read_ints(stride, "numpy", strides, &count) > 0) {
        *view = (awq_view){PyLong_AsVoidPtr(pointer), sizes, strides, ndim, awq_payload_dtype(packing), ""};
        status = PyErr_Occurred() ? -1 : 0;
    }
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    Py_XDECREF(pointer);
    return status;
}

/* The codes of a payload in CPU memory, written by the kernel straight into a new array. */
static PyObject *host_array(const packed_fields *fields)
{
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS], order[AWQ_MAX_DIMS];
    awq_view view;
    const int is_contiguous = fields->order == Py_None;
    const awq_packing packing = awqpack_packing_of(fields->packing, fields->reorder);
    if (!awqpack_check_payload(fields->payload, fields->packing) ||
        read_view(fields->payload, packing, sizes, strides, &view) < 0 ||
        (!is_contiguous && awqpack_read_order(fields->order, (Py_ssize_t)view.ndim, order) < 0)) {
        return NULL;
    }
    return awqpack_unpack_to_array(&view, packing, is_contiguous ? NULL : order);
}

static PyObject *packed_numpy(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"force", NULL};
    int force = 0;
    packed_fields fields;
    PyObject *array = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:numpy", keywords, &force) ||
        packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    /* Half the bytes of the codes travel, and the kernel writes them straight into the array. */
    PyObject *copy = PyObject_CallMethodObjArgs(fields.payload, awqpack.names.cpu, NULL);
    PyObject *host = copy == NULL ? NULL : PyObject_CallMethod(copy, "resolve_neg", NULL);
    Py_XDECREF(copy);
    if (host != NULL && Py_TYPE(host) == (PyTypeObject *)awqpack.tensor_type) {
        PyObject *payload = fields.payload;
        fields.payload = host;
        host = payload;
        array = host_array(&fields);
    } else if (host != NULL) {
        PyErr_Format(PyExc_RuntimeError, "numpy() expects a payload with values; got %R", (PyObject *)Py_TYPE(host));
    }
    Py_XDECREF(host);
    packed_fields_clear(&fields);
    return array;
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

PyMethodDef packed_methods[] = {
    {"unpack", (PyCFunction)(void (*)(void))packed_unpack_method, METH_FASTCALL | METH_KEYWORDS,
     "unpack($self, *, out=None)\n--\n\n"
     "The codes as a plain uint8 tensor with the recorded size and stride, on the payload's device; or written into "
     "`out`,\n"
     "a uint8 tensor of that size and device, which is returned."},
    {"numpy", KEYWORDS(packed_numpy),
     "numpy($self, *, force=False)\n--\n\nThe codes as a new uint8 array, from any device."},
    {"offload", KEYWORDS(packed_offload),
     "offload($self, device='cpu', *, pin_memory=False, non_blocking=False)\n--\n\n"
     "Still packed, with the payload on `device`: how a packed weight rests in host memory."},
    {"detach", packed_detach, METH_NOARGS,
     "detach($self)\n--\n\nAs torch.Tensor.detach: packed, with a payload in the same memory."},
    {"to", KEYWORDS(packed_to),
     "to($self, *args, **kwargs)\n--\n\nAs torch.Tensor.to: packed on CUDA and XPU, plain codes elsewhere."},
    {NULL, NULL, 0, NULL},
};

/* The one place that makes a Python exception of an awq_error, and that keeps its type through torch. */
#include "state.h"

#include "torch/shim.h"

static PyObject *type_of(const awq_error *error)
{
    switch (error->kind) {
    case AWQ_ERROR_VALUE: return PyExc_ValueError;
    case AWQ_ERROR_MEMORY: return PyExc_MemoryError;
    default: return PyExc_RuntimeError;
    }
}

PyObject *awqpack_raise(const awq_error *error)
{
    PyErr_SetString(type_of(error), error->text);
    return NULL;
}

/* Gives a RuntimeError that is set the type of the error an op raised last, when its text is that one's. */
static void keep_type(void)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *text = type == PyExc_RuntimeError && value != NULL ? PyObject_Str(value) : NULL;
    const awq_error *ours = awq_last_error();
    const int is_ours = text != NULL && ours->kind != AWQ_OK && PyUnicode_CompareWithASCIIString(text, ours->text) == 0;
    if (is_ours) {
        PyErr_SetObject(type_of(ours), text);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(trace);
    } else {
        PyErr_Restore(type, value, trace); /* in place of what str() may have set */
    }
    Py_XDECREF(text);
}

static PyObject *call_op(PyObject *op, PyObject *args, PyObject *kwargs)
{
    PyObject *result = PyObject_Call(op, args, kwargs);
    if (result == NULL) {
        keep_type();
    }
    return result;
}

static PyMethodDef call_op_function = {"op", (PyCFunction)(void (*)(void))call_op, METH_VARARGS | METH_KEYWORDS, NULL};

PyObject *awqpack_keep_value_errors(PyObject *Py_UNUSED(module), PyObject *op)
{
    PyObject **const looked_up[] = {&awqpack.op_pack, &awqpack.op_unpack}; /* at import, before there was a keeper */
    PyObject *keeper = PyCFunction_New(&call_op_function, op);
    for (size_t i = 0; keeper != NULL && i < sizeof looked_up / sizeof looked_up[0]; i++) {
        if (*looked_up[i] == op) {
            *looked_up[i] = Py_NewRef(keeper);
            Py_DECREF(op);
        }
    }
    return keeper;
}

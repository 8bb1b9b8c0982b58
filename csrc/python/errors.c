#include "awqpackmodule.h"

PyObject *awqpack_raise(const awq_error *error)
{
    PyObject *type = PyExc_RuntimeError;
    switch (error->kind) {
    case AWQ_ERROR_VALUE:
        type = PyExc_ValueError;
        break;
    case AWQ_ERROR_MEMORY:
        return PyErr_NoMemory();
    default:
        break;
    }
    PyErr_SetString(type, error->text);
    return NULL;
}

#include "awqpackmodule.h"

PyObject *awqpack_raise(const awq_error *error)
{
    PyErr_SetString(error->kind == AWQ_ERROR_VALUE ? PyExc_ValueError : PyExc_RuntimeError, error->text);
    return NULL;
}

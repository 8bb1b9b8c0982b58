/* Ops that write into a packed tensor. */
#ifndef AWQPACK_WRITES_H
#define AWQPACK_WRITES_H

#include "plan.h"

/* func, whose plan says that it writes, with the writes kept: in every payload, or in none with an exception. */
PyObject *write_packed(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs);

#endif

/* __torch_dispatch__. */
#ifndef AWQPACK_DISPATCH_H
#define AWQPACK_DISPATCH_H

#include "state.h"

PyObject *packed_torch_dispatch(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names);

#endif

/* The roof: what C adds to the class that awqpack/tensor.py states. */
#ifndef AWQPACK_CLASS_H
#define AWQPACK_CLASS_H

#include "state.h"

/* class.c: what the module calls. */
PyObject *awqpack_install(PyObject *module, PyObject *args);

/* methods.c */
extern PyMethodDef packed_methods[];

#endif

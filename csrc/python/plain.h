/* The codes of packed tensors, and ops run on codes in their place. */
#ifndef AWQPACK_PLAIN_H
#define AWQPACK_PLAIN_H

#include "fields.h"

/* The codes that a packed tensor stands for, with its size and strides: a new plain tensor. */
PyObject *packed_unpack(PyObject *self, PyObject *unused);
PyObject *packed_unpack_fields(const packed_fields *fields);

/* What stands in the place of a tensor: a new reference, which may be to the tensor itself. */
typedef PyObject *(*plain_replacer)(void *state, PyObject *tensor);

/* A list, tuple or dict with every tensor in it, however deep, replaced: a new one where any was. Lists may change
   while the replacer runs: those that were in them when they were reached are replaced. */
PyObject *plain_replace(PyObject *value, plain_replacer replace, void *state);
/* 1 when a value is or holds a packed tensor, -1 with an exception. Runs no Python code. */
int plain_holds_packed(PyObject *value);
int plain_is_tensor(PyObject *object);
/* A tuple of arguments with this value in the place of one: a new one. */
PyObject *plain_with_argument(PyObject *args, Py_ssize_t position, PyObject *value);
/* func with every packed argument unpacked, nested ones too. */
PyObject *plain_run(PyObject *func, PyObject *args, PyObject *kwargs);

#endif

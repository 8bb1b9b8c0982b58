/* The making of packed tensors. */
#ifndef AWQPACK_TENSORS_H
#define AWQPACK_TENSORS_H

#include "fields.h"

/* wrap.c: makes instances, without checks. */
PyObject *packed_new(PyObject *cls, PyObject *payload, PyObject *meta);
/* packed_new for a caller who has the payload's device at hand. */
PyObject *packed_new_on(PyObject *cls, PyObject *payload, PyObject *meta, PyObject *device);
/* An alias of `self` around its payload, of its size and strides: it shares the storage, by which torch tells what
   aliases what and which holds nothing and says so when asked, and the version counter. */
PyObject *packed_twin(PyObject *self, PyObject *payload, PyObject *meta);

/* construct.c: with checks. */
PyObject *packed_construct(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *packed_pack(PyObject *module, PyObject *args);
/* packed_new around metadata that is not a tuple yet. */
PyObject *packed_new_with_meta(PyObject *cls, PyObject *payload, PyObject *packing, PyObject *reorder, PyObject *order,
                               PyObject *size, PyObject *stride);
/* 1 when a size fits the payload, and its ints; 0 when it or the payload's is symbolic: tracing brings sizes of tensors
   that were checked when they were made. -1 with an exception. */
int packed_check_size(PyObject *data, PyObject *packing, PyObject *size, int64_t *sizes, Py_ssize_t *ndim);

/* flatten.c: what tracing takes apart and puts together again. */
PyObject *packed_flatten(PyObject *self, PyObject *unused);
PyObject *packed_unflatten(PyObject *module, PyObject *args, PyObject *kwargs);

#endif

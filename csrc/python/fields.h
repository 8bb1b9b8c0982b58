/* What a packed tensor records: its payload, and a tuple that every copy shares. */
#ifndef AWQPACK_FIELDS_H
#define AWQPACK_FIELDS_H

#include "state.h"

/* fields.c */
typedef struct packed_fields {
    PyObject *payload; /* a strong reference, as is meta */
    PyObject *meta;    /* (packing, reorder, order, size, stride); the fields below are borrowed from it */
    PyObject *packing; /* an AWQPacking */
    PyObject *reorder; /* a bool */
    PyObject *order;   /* None when contiguous, else the stride order as a tuple of ints, outermost first */
    PyObject *size;
    PyObject *stride;
} packed_fields;

int awqpack_is_packed(PyObject *object);
int packed_fields_get(PyObject *self, packed_fields *fields);
void packed_fields_clear(packed_fields *fields);
/* Makes `self` record these. */
int packed_fields_set(PyObject *self, PyObject *payload, PyObject *meta);
/* The tuple that a packed tensor records beside its payload: a new reference. */
PyObject *packed_meta_new(PyObject *packing, PyObject *reorder, PyObject *order, PyObject *size, PyObject *stride);
/* False, with an exception that names the argument, unless value is a bool. */
int awqpack_check_bool(const char *name, PyObject *value);

/* strides.c: sizes and strides, and the order of dimensions that strides have. */
/* 1 and the sizes when `sequence` holds ndim plain ints, 0 when it holds symbolic ones, -1 with an exception. */
int awqpack_read_ints(PyObject *sequence, const char *what, int64_t *values, Py_ssize_t *count);
/* The ints of a stride order, which must be a tuple that permutes ndim dimensions. */
int awqpack_read_order(PyObject *order, Py_ssize_t ndim, int64_t *values);
/* Strides of a tuple of sizes that may be symbolic, in a stride order or None, as a tuple. */
PyObject *awqpack_ordered_strides(PyObject *size, PyObject *order);
/* A tuple of ints. */
PyObject *awqpack_int_tuple(const int64_t *values, Py_ssize_t count);
/* 1 and what to record of a tensor's sizes, a tuple, and strides: the stride order, None when contiguous, and the strides,
   new references; 0 when the strides are not dense; -1 with an exception, in which `what` names the strides. */
int awqpack_record_strides(PyObject *size, PyObject *stride, const char *what, PyObject **order, PyObject **dense);

#endif

/* The storing of new payloads: the end of every write into packed tensors. */
#ifndef AWQPACK_STORE_H
#define AWQPACK_STORE_H

#include "state.h"

typedef struct payload_store {
    PyObject *packed, *payload; /* the tensor written, and where its values go */
    PyObject *source;           /* those values: of the payload's shape and dtype */
    PyObject *before;           /* set by store_payloads where it may have to go back; the caller lets go of it */
} payload_store;
/* Stores all or, with an exception, none. Where no mode is on no Python code runs meanwhile, so that no signal comes
   between. The versions of the payloads and of the packed tensors move. */
int store_payloads(payload_store *stores, Py_ssize_t count, PyObject *non_blocking);

#endif

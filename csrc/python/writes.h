/* Ops that write into a packed tensor. */
#ifndef AWQPACK_WRITES_H
#define AWQPACK_WRITES_H

#include "claims.h"
#include "plan.h"

/* writes.c: func, whose plan says that it writes, with the writes kept: in every payload, or in none with an exception. */
PyObject *write_packed(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs);

/* copy.c: packed.copy_(source), which is payload.copy_(...): AOTAutograd forbids a copy_ into the unpacked intermediate.
   Returns packed. */
PyObject *copy_into_packed(PyObject *packed, PyObject *source, PyObject *non_blocking);
/* Changes the codes of a packed tensor: `change` is given them unpacked. No other write comes between. */
int edit_codes(PyObject *packed, int (*change)(void *state, PyObject *codes), void *state);

/* store.c: the end of every write. */
typedef struct payload_store {
    PyObject *packed, *payload; /* the tensor written, and where its values go */
    PyObject *source;           /* those values: of the payload's shape and dtype */
    PyObject *before;           /* set by store_payloads where it may have to go back; the caller lets go of it */
} payload_store;
/* Stores all or, with an exception, none. Where no mode is on no Python code runs meanwhile, so that no signal comes between. The
   versions of the payloads and of the packed tensors move. */
int store_payloads(payload_store *stores, Py_ssize_t count, PyObject *non_blocking);

#endif

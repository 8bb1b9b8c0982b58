/* detach, and what moves or copies a packed tensor: its payload moves, or its codes do where it cannot stay packed. */
#ifndef AWQPACK_MOVES_H
#define AWQPACK_MOVES_H

#include "fields.h"

/* payload_copy.c */
/* 1 and payload.to(its device, copy=True) without torch's dispatcher, for a caller who is unwatched; 0 when only torch
   can do it;
   -1 with an exception. */
int awqpack_payload_copy(PyObject *payload, PyObject **copy);

/* moves.c: the ops inside dispatch. */
/* `self` again, as detach gives it. */
PyObject *packed_alias(PyObject *self);
PyObject *packed_to_copy(PyObject *func, PyObject *self, PyObject *kwargs);
/* func with the payload in place of its first argument. */
PyObject *packed_run_on_payload(PyObject *func, PyObject *args, PyObject *kwargs);
/* A packed tensor around the payload that the op pinned. */
PyObject *packed_pin(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs);
/* A packed tensor of unspecified codes, which any payload holds; a plain one where it is to be no such codes. */
PyObject *packed_empty_like(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs);

/* shortcuts.c: the methods, without torch's dispatcher where nothing could see the difference. */
PyObject *packed_detach(PyObject *self, PyObject *unused);
PyObject *packed_to(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *packed_offload(PyObject *self, PyObject *args, PyObject *kwargs);

#endif

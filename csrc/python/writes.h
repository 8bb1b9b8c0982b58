/* Ops that write into a packed tensor. */
#ifndef AWQPACK_WRITES_H
#define AWQPACK_WRITES_H

#include "plan.h"

/* writes.c: func, whose plan says that it writes, with the writes kept: in every payload, or in none with an
   exception. */
PyObject *write_packed(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs);

/* copy.c: packed.copy_(source), which is payload.copy_(...): AOTAutograd forbids a copy_ into the unpacked
   intermediate. Returns packed. */
PyObject *copy_into_packed(PyObject *packed, PyObject *source, PyObject *non_blocking);
/* edit_codes(packed, change): change is called with the codes, which then go into the payload. No other write comes
   between. */
PyObject *awqpack_edit_codes(PyObject *module, PyObject *args);

#endif

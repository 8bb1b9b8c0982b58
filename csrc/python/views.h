/* View ops: what is all of a packed tensor stays packed, any other view is one of its codes. */
#ifndef AWQPACK_VIEWS_H
#define AWQPACK_VIEWS_H

#include "fields.h"

/* views.c */
/* A view op whose first argument is packed. */
PyObject *packed_run_view(PyObject *func, PyObject *args, PyObject *kwargs, int may_be_whole);

/* transforms.c */
/* 1 when one of torch.func's transforms has called what runs now, which only the call stack tells: torch puts a
   transform aside while it dispatches. -1 with an exception. */
int awqpack_is_transformed(void);
/* What a view op gives of `self`, its first argument: views that pass writes on, as long as awqpack_is_transformed. */
PyObject *awqpack_view_codes(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs);

#endif

/* torch's modes: which are on, and guards that turn some off. */
#ifndef AWQPACK_MODES_H
#define AWQPACK_MODES_H

#include "state.h"

/* 1 when no mode and no transform is on, -1 with an exception. */
int awqpack_is_unmoded(void);
/* The same, and no trace that should see what is done to a payload. */
int awqpack_is_unwatched(void);
/* A guard that keeps torch from __torch_dispatch__ while it lives. */
PyObject *awqpack_turn_dispatch_off(void);
/*
 * torch marks the result of detach and of every view op as a view of its argument. Under torch.inference_mode a new
 * tensor cannot be one of a tensor from outside, and all wrapper subclasses fail there: such ops run with the mode off.
 * Returns the guard to leave, None when there is none, NULL with an exception.
 */
PyObject *awqpack_enter_view_mode(PyObject *self);
/* Leaves the guard, keeping an exception that is set. Steals it. */
void awqpack_leave_view_mode(PyObject *guard);

#endif

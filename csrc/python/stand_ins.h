/* Codes in the place of packed tensors while an op runs that writes: those that share memory share codes as they do. */
#ifndef AWQPACK_STAND_INS_H
#define AWQPACK_STAND_INS_H

#include "memory.h"
#include "plan.h"

/* A tensor among the arguments. Codes stand in for a packed one; a plain one the op gets itself. */
typedef struct stand_in {
    PyObject *tensor;  /* a strong reference, as are the others */
    PyObject *payload; /* NULL for a plain tensor */
    PyObject *codes;   /* of a packed one; NULL until they are asked for */
    PyObject *before;  /* of a plain one that is written, a copy to go back to */
    awq_packing packing;
    int is_written;
    int has_memory; /* else nothing is known of what it shares */
    memory_layout memory;
    Py_ssize_t root; /* the stand-in that has its codes, of which these are a part from `starts` on; itself */
    int64_t starts[MEMORY_MAX_DIMS]; /* in the payload of root */
} stand_in;

typedef struct stand_ins {
    stand_in *items;
    Py_ssize_t count, room;
    Py_ssize_t write_count; /* a tensor that is given twice to be written is written twice */
} stand_ins;

/* Notes the tensors of a call and what they share; refuses what could not be kept apart. -1 with an exception. */
int stand_ins_collect(stand_ins *state, PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs);
/* func(*args, **kwargs) with codes in the place of packed tensors. */
PyObject *stand_ins_run(stand_ins *state, PyObject *func, PyObject *args, PyObject *kwargs);
/* Copies the plain tensors that the op will write; puts them back. What fails while they are put back is reported, not
   raised. */
int stand_ins_back_up(stand_ins *state);
void stand_ins_roll_back(const stand_ins *state);
void stand_ins_clear(stand_ins *state);

#endif

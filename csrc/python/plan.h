/* How each op treats packed arguments, found from its schema the first time it is seen. */
#ifndef AWQPACK_PLAN_H
#define AWQPACK_PLAN_H

#include "state.h"

typedef enum plan_kind {
    PLAN_READ = 0,     /* reads only */
    PLAN_VIEW,         /* reads only, and torch takes the result for a view of its argument */
    PLAN_PART,         /* such a view, with fewer dimensions: never all of its argument */
    PLAN_WRITE,        /* writes into an argument */
    PLAN_DECOMPOSE,    /* break the op up and dispatch its parts */
    PLAN_ON_PAYLOAD,   /* the question is about memory: ask the payload */
    PLAN_PIN,          /* a packed tensor around a payload moved by the op */
    PLAN_EMPTY,        /* a packed tensor around a payload without values */
    PLAN_DEQUANTIZE,   /* it would give codes for weights */
    PLAN_INCOMPATIBLE, /* no tensor of another kind can stand in a packed one's place, nor the other way round: False */
} plan_kind;

/* Why an op may not write into a packed tensor. */
typedef enum plan_refusal {
    REFUSE_NOTHING = 0,
    REFUSE_METADATA, /* it changes size, strides or storage */
    REFUSE_RECEIVE,  /* its Work can be waited for once only, and that is the caller's to do */
} plan_refusal;

/* How a collective says that it has ended. */
typedef enum plan_collective {
    NO_COLLECTIVE = 0,
    RETURNS_WORK, /* c10d: its result has wait() */
    WAIT_TENSOR,  /* _c10d_functional: wait_tensor of what it writes */
} plan_collective;

/* An argument that the op writes. */
typedef struct plan_argument {
    Py_ssize_t position;
    PyObject *name;
    PyObject *alias_set; /* what says which return it is; None for a collective's */
} plan_argument;

typedef struct op_plan {
    plan_kind kind;
    plan_refusal refusal;
    plan_collective collective;
    Py_ssize_t async_op; /* position of the argument of that name, or -1 */
    Py_ssize_t written_count, return_count;
    plan_argument *written;
    Py_ssize_t *sources; /* for each return, the index in `written` of the argument that it is, or -1 */
} op_plan;

/* Plans are kept for as long as the process runs. NULL with an exception. */
const op_plan *plan_of(PyObject *func);
/* The argument given for one that the plan names: borrowed from args or kwargs, NULL when it was left out. */
PyObject *plan_given(const plan_argument *argument, PyObject *args, PyObject *kwargs);

#endif

/* Which bytes a tensor lies in, and where in another one's it lies. */
#ifndef AWQPACK_MEMORY_H
#define AWQPACK_MEMORY_H

#include "state.h"

enum { MEMORY_MAX_DIMS = 8 }; /* of tensors whose places are compared; of others only the bytes are */

typedef struct memory_span {
    int device_type, device_id;
    uintptr_t begin, end; /* addresses of the first byte and of the one after the last */
} memory_span;

typedef struct memory_layout {
    memory_span span;
    int64_t item_bytes;
    int ndim;                                                 /* MEMORY_MAX_DIMS at most, -1 for more */
    int64_t sizes[MEMORY_MAX_DIMS], strides[MEMORY_MAX_DIMS]; /* strides in items */
} memory_layout;

typedef enum memory_relation {
    MEMORY_APART = 0,
    MEMORY_INSIDE, /* every item of one is an item of the other */
    MEMORY_MIXED,  /* neither, as far as can be told */
} memory_relation;

/* 1 and where a torch.Tensor or nn.Parameter lies; 0 for what has no bytes at hand: tensors of other classes, on meta,
   sparse, empty ones; -1 with an exception. Runs no Python code. */
int memory_of(PyObject *tensor, memory_layout *layout);
int memory_spans_overlap(const memory_span *a, const memory_span *b);
/* How `part` lies to `whole`; inside it, starts[d] is where it begins in dimension d. */
memory_relation memory_relate(const memory_layout *whole, const memory_layout *part, int64_t *starts);
/* 1 when two items of the tensor lie in the same bytes. */
int memory_is_expanded(const memory_layout *layout);

#endif

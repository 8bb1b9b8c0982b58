/* Threads take turns at payloads: reading the codes, changing them and storing them is one step for all others that
   write. */
#ifndef AWQPACK_CLAIMS_H
#define AWQPACK_CLAIMS_H

#include "memory.h"

/* A claim of the calling thread to some memory. */
typedef struct memory_claim memory_claim;

/* Waits, with the GIL let go, until no other thread has a claim to any of these bytes. A thread that has a claim to
   them already gets another. NULL with an exception: a signal's, or for a claim within a claim whose wait would never
   end. */
memory_claim *claim_memory(const memory_span *spans, Py_ssize_t count);
/* What NULL is given for is no claim. An exception that is set stays. */
void release_memory(memory_claim *claim);
/* Claims of other threads end in a forked child, where those threads are not. Called once, when the module is
   loaded. */
int claims_prepare_for_fork(void);

#endif

/* Threads take turns at payloads, first come, first served. All that is here is read and written under the GIL. */
#include "claims.h"

#include <pthread.h>
#include <string.h>

enum { signal_check_us = 50 * 1000, longest_chain = 64 };

struct memory_claim {
    memory_claim *next;
    unsigned long thread;
    int is_granted;
    /* its thread had another when it came: it does not stand in line behind those who wait for that */
    int is_nested;
    PyThread_type_lock wake; /* of a claim that waits; let go when it is granted */
    Py_ssize_t count;
    memory_span spans[];
};

static memory_claim *claims; /* in the order in which they came */

/* 1 when `claim` cannot be granted while `other` is there. */
static int stands_behind(const memory_claim *claim, const memory_claim *other, int is_earlier)
{
    if (other->thread == claim->thread || (!other->is_granted && (!is_earlier || claim->is_nested))) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < claim->count; i++) {
        for (Py_ssize_t j = 0; j < other->count; j++) {
            if (memory_spans_overlap(&claim->spans[i], &other->spans[j])) {
                return 1;
            }
        }
    }
    return 0;
}

static int can_be_granted(const memory_claim *claim)
{
    int is_earlier = 1;
    for (const memory_claim *other = claims; other != NULL; other = other->next) {
        if (other == claim) {
            is_earlier = 0;
        } else if (stands_behind(claim, other, is_earlier)) {
            return 0;
        }
    }
    return 1;
}

static void grant_what_can_be(void)
{
    for (memory_claim *claim = claims; claim != NULL; claim = claim->next) {
        if (!claim->is_granted && can_be_granted(claim)) {
            claim->is_granted = 1;
            PyThread_release_lock(claim->wake);
        }
    }
}

static void append(memory_claim *claim)
{
    memory_claim **end = &claims;
    for (; *end != NULL; end = &(*end)->next) {
        claim->is_nested |= (*end)->is_granted && (*end)->thread == claim->thread;
    }
    *end = claim;
}

void release_memory(memory_claim *claim)
{
    if (claim == NULL) {
        return;
    }
    for (memory_claim **at = &claims; *at != NULL; at = &(*at)->next) {
        if (*at == claim) {
            *at = claim->next;
            break;
        }
    }
    if (claim->wake != NULL) {
        PyThread_free_lock(claim->wake);
    }
    PyMem_Free(claim);
    if (claims != NULL) {
        grant_what_can_be();
    }
}

/* 1 when a thread that `claim` stands behind waits, through however many others, for `thread`. */
static int waits_for(const memory_claim *claim, unsigned long thread, int depth)
{
    for (const memory_claim *other = claims; depth < longest_chain && other != NULL; other = other->next) {
        if (!other->is_granted || !stands_behind(claim, other, 0)) {
            continue;
        }
        for (const memory_claim *wanted = claims; wanted != NULL; wanted = wanted->next) {
            if (wanted->is_granted || wanted->thread != other->thread) {
                continue;
            }
            for (const memory_claim *held = claims; held != NULL; held = held->next) {
                if (held->thread == thread && held->is_granted && stands_behind(wanted, held, 0)) {
                    return 1;
                }
            }
            if (waits_for(wanted, thread, depth + 1)) {
                return 1;
            }
        }
    }
    return 0;
}

/* Waits until the claim is granted. -1 with an exception. */
static int wait_in_line(memory_claim *claim)
{
    if (claim->is_nested && waits_for(claim, claim->thread, 0)) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "a write into an AWQPackedTensor, made while another write ran, would wait for ever for a thread that "
            "waits for this one");
        return -1;
    }
    claim->wake = PyThread_allocate_lock();
    if (claim->wake == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    PyThread_acquire_lock(claim->wake, NOWAIT_LOCK);
    while (!claim->is_granted) {
        Py_BEGIN_ALLOW_THREADS
        PyThread_acquire_lock_timed(claim->wake, signal_check_us, 0);
        Py_END_ALLOW_THREADS
        if (!claim->is_granted && PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
    return 0;
}

memory_claim *claim_memory(const memory_span *spans, Py_ssize_t count)
{
    memory_claim *claim = PyMem_Malloc(sizeof *claim + (size_t)count * sizeof *spans);
    if (claim == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    *claim = (memory_claim){.thread = PyThread_get_thread_ident(), .count = count};
    memcpy(claim->spans, spans, (size_t)count * sizeof *spans);
    append(claim);
    if (can_be_granted(claim)) {
        claim->is_granted = 1;
    } else if (wait_in_line(claim) < 0) {
        release_memory(claim);
        return NULL;
    }
    return claim;
}

static void forget_other_threads(void)
{
    const unsigned long thread = PyThread_get_thread_ident();
    for (memory_claim **at = &claims; *at != NULL;) {
        if ((*at)->thread == thread) {
            at = &(*at)->next;
        } else {
            *at = (*at)->next;
        }
    }
}

int claims_prepare_for_fork(void)
{
    if (pthread_atfork(NULL, NULL, forget_other_threads) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

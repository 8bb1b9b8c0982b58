/* The one way a C function says why it could not do its work: it fills an awq_error and returns false. */
#ifndef AWQPACK_ERROR_H
#define AWQPACK_ERROR_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum awq_error_kind {
    AWQ_OK = 0,
    AWQ_ERROR_VALUE,   /* an argument does not fit: Python's ValueError */
    AWQ_ERROR_RUNTIME, /* the device or a library failed: RuntimeError */
    AWQ_ERROR_MEMORY,  /* there is none left: MemoryError */
} awq_error_kind;

typedef struct awq_error {
    awq_error_kind kind;
    char text[504];
} awq_error;

/* Fills `error` with a printf-style sentence; returns false, so that callers can `return awq_fail(...)`. */
bool awq_fail(awq_error *error, awq_error_kind kind, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

#ifdef __cplusplus
}
#endif

#endif

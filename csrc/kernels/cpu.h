/* Which kernels this CPU can run, which of them is in use, and how it likes to read. */
#ifndef AWQPACK_CPU_H
#define AWQPACK_CPU_H

#include <stdbool.h>
#include <stddef.h>

#include "awqpack/error.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct awq_kernels awq_kernels;

/* The variant's name, as AWQPACK_CPU spells it. */
const char *awq_cpu_name(const awq_kernels *kernels);

/* The variant at `index` of those compiled in that this CPU supports, slowest first; NULL past the last. */
const awq_kernels *awq_cpu_variant(size_t index);

/* The variant called `name`, or the fastest when name is NULL or empty. NULL, with an error that lists what this CPU
   has, when it is unknown or unsupported. */
const awq_kernels *awq_cpu_choose(const char *name, awq_error *error);

/* Whether lines that lie apart are read faster by whole pages than by parts of them, and half a MiB of codes stays in a
   second-level cache. Measured: so on Zen 4, not on Sapphire Rapids; what AMD made since is taken for the former. */
bool awq_cpu_prefers_pages(void);

#ifdef __cplusplus
}
#endif

#endif

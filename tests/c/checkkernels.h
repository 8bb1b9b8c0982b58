/* What the checks and the benchmark of the kernels share. */
#ifndef AWQPACK_TESTS_CHECKKERNELS_H
#define AWQPACK_TESTS_CHECKKERNELS_H

#include "kernels.h"

#include <stddef.h>

/* The variant number `index` that this CPU can run, scalar first; NULL past the last one. */
const awq_kernels *variant_at(size_t index);

/* The packings as their formulas say, slowly: in formulas.c. */
extern const awq_kernels formulas;

typedef struct bench_options {
    const char *variant, *kernel; /* NULL: all of them */
    int64_t mebibytes;            /* of codes */
    int repeats, threads;
    int64_t panel_rows, panel_cols, offset; /* offset: bytes from a line at which every buffer starts */
} bench_options;

/* Times the kernels beside memcpy; returns the exit status. */
int bench(const bench_options *options);

#endif

/* What the checks and the benchmark of the kernels share. */
#ifndef AWQPACK_TESTS_CHECKKERNELS_H
#define AWQPACK_TESTS_CHECKKERNELS_H

#include "kernels.h"

#include <stddef.h>
#include <stdlib.h>

enum { VARIANTS = 4 };

/* The variant number `index` that this CPU can run, scalar first; NULL past the last one. */
static inline const awq_kernels *variant_at(size_t index)
{
    const awq_kernels *found[VARIANTS] = {&awq_kernels_scalar};
    size_t count = 1;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        found[count++] = &awq_kernels_avx2;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi")) {
        found[count++] = &awq_kernels_avx512;
    }
#elif defined(__aarch64__)
    found[count++] = &awq_kernels_neon;
#endif
    return index < count ? found[index] : NULL;
}

/* What the checks know of a packing by themselves: rows of codes in a line of the payload, columns of a block beside
   them, and whether those rows are columns of W. */
typedef struct packing_shape {
    int item_bytes, line_rows, step_cols;
    bool is_turned;
} packing_shape;

extern const packing_shape packing_shapes[AWQ_PACKING_COUNT];

/* The packings as their formulas say, slowly: in formulas.c. */
awq_kernel formula_pack, formula_unpack;

/* The kernels of a packing, those of a turned payload once for rows and once for columns of codes. */
typedef enum operation {
    PACK_ROWS,
    UNPACK_ROWS,
    PACK_PANEL,
    UNPACK_PANEL,
    PACK_TURNED,
    UNPACK_TURNED,
    PACK_TURNED_COLUMNS,
    UNPACK_TURNED_COLUMNS,
    OPERATIONS
} operation;

/* What a variant runs, which is the walk over blocks where it has nothing of its own. */
awq_kernel *kernel_of(const awq_kernels *kernels, awq_packing packing, operation op);

/* Compares the kernels for floats with plain C's, and adds to the counts. */
void check_floats(const awq_kernels *kernels, uint64_t seed, bool quick, int64_t *passed, int64_t *failed);

typedef struct bench_options {
    const char *variant, *kernel, *packing; /* NULL: all of them */
    int64_t mebibytes;                      /* of codes */
    int repeats, threads;
    int64_t panel_rows, panel_cols, offset; /* offset: bytes from a line at which every buffer starts */
} bench_options;

/* Times the kernels beside memcpy; returns the exit status. */
int bench(const bench_options *options);

#endif

/*
 * Runs packs, unpacks, relayouts and the ops on floats on several threads, each job's units taken by whoever is free, two jobs at
 * a time over one source, and compares the results with those of one thread of plain C. ThreadSanitizer (`make check-tsan`) and
 * memcheck (`make check-valgrind`) watch.
 */
#define _GNU_SOURCE
#include "cpu.h"
#include "float_job.h"
#include "relayout.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 2, ROWS = 192, COLS = 1344, GROUP = 64, THREADS = 4, BYTES = 8 * BATCH * ROWS * COLS };

typedef enum layout { ROW_MAJOR, COLUMN_MAJOR, EVERY_OTHER, LAYOUTS } layout;
typedef enum op { PACK, UNPACK, RELAYOUT, QUANTIZE, DEQUANTIZE, MIN_MAX, OPS } op;

static const char *const layout_names[LAYOUTS] = {"row-major", "column-major", "every other"};
static const char *const op_names[OPS] = {"pack", "unpack", "relayout", "quantize", "dequantize", "min_max"};

/* One of the three kinds of jobs. */
typedef struct job {
    op op;
    awq_job pack;
    awq_float_job floats;
    awq_relayout_job relayout;
} job;

static int64_t units_of(const job *j)
{
    return j->op == RELAYOUT ? j->relayout.units : j->op <= UNPACK ? j->pack.units : j->floats.units;
}

static size_t scratch_of(const job *j)
{
    return j->op == RELAYOUT ? j->relayout.scratch_bytes
           : j->op <= UNPACK ? j->pack.scratch_bytes
                             : j->floats.scratch_bytes;
}

static unsigned run_units(const job *j, int64_t begin, int64_t end, void *scratch)
{
    return j->op == RELAYOUT ? awq_relayout_job_run(&j->relayout, begin, end, scratch)
           : j->op <= UNPACK ? awq_job_run(&j->pack, begin, end, scratch)
                             : awq_float_job_run(&j->floats, begin, end, scratch);
}

/* Threads that take the units of two jobs, one at a time. */
typedef struct team {
    const job *jobs[2];
    atomic_llong next;
    atomic_uint seen;
} team;

static void *work(void *argument)
{
    team *t = argument;
    const int64_t first = units_of(t->jobs[0]), all = first + units_of(t->jobs[1]);
    const size_t bytes =
        scratch_of(t->jobs[0]) > scratch_of(t->jobs[1]) ? scratch_of(t->jobs[0]) : scratch_of(t->jobs[1]);
    void *scratch = aligned_alloc(AWQ_SCRATCH_ALIGNMENT, bytes + AWQ_SCRATCH_ALIGNMENT - bytes % AWQ_SCRATCH_ALIGNMENT);
    if (scratch == NULL) {
        exit(2);
    }
    for (int64_t unit; (unit = atomic_fetch_add(&t->next, 1)) < all;) {
        const job *j = t->jobs[unit >= first];
        const int64_t begin = unit >= first ? unit - first : unit;
        atomic_fetch_or(&t->seen, run_units(j, begin, begin + 1, scratch));
    }
    free(scratch);
    return NULL;
}

/* What the jobs return, run by as many threads. */
static unsigned run_on(int threads, const job *first, const job *second)
{
    team t = {.jobs = {first, second}};
    pthread_t ids[THREADS];
    for (int i = 1; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, &t) != 0) {
            exit(2);
        }
    }
    work(&t);
    for (int i = 1; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    return t.seen;
}

/* A view of (BATCH, rows, cols) items in a buffer. */
typedef struct tensor {
    awq_view view;
    int64_t sizes[3], strides[3];
} tensor;

static void describe(tensor *t, void *data, int64_t rows, int64_t cols, awq_dtype dtype, layout order)
{
    const int64_t step = order == EVERY_OTHER ? 2 : 1; /* neither rows nor columns are contiguous */
    const bool is_turned = order == COLUMN_MAJOR;
    *t = (tensor){.sizes = {BATCH, rows, cols},
                  .strides = {rows * cols * step, is_turned ? 1 : cols * step, is_turned ? rows : step}};
    t->view = (awq_view){data, t->sizes, t->strides, 3, dtype, awq_dtype_name(dtype)};
}

/* Buffers that every case takes: what is read, and a result for each of the two jobs and for one thread. */
typedef struct buffers {
    uint8_t *codes, *payload, *results[3];
    float *weight, *scales;
    uint8_t *zeros, *more_results[3];
} buffers;

typedef struct setting {
    op op;
    awq_packing packing, target;
    layout order;
    awq_dtype dtype; /* of weights */
} setting;

static void payload_sizes(awq_packing packing, int64_t rows, int64_t cols, int64_t *sizes)
{
    const int64_t codes_sizes[3] = {BATCH, rows, cols};
    const awq_view codes = {NULL, codes_sizes, NULL, 3, AWQ_DTYPE_UINT8, "uint8"};
    awq_error error;
    if (!awq_check_codes(&codes, packing, sizes, &error)) {
        fprintf(stderr, "%s\n", error.text);
        exit(2);
    }
}

static void describe_payload(tensor *t, void *data, awq_packing packing, int64_t rows, int64_t cols)
{
    int64_t sizes[AWQ_MAX_DIMS];
    payload_sizes(packing, rows, cols, sizes);
    describe(t, data, sizes[1], sizes[2], awq_payload_dtype(packing), ROW_MAJOR);
}

/* The job of a setting that writes its result into `out`, and min_max its zeros into `more`. */
static void prepare(job *j, const setting *s, const awq_kernels *kernels, const buffers *b, uint8_t *out, uint8_t *more)
{
    tensor codes, payload, target, weight, scales, zeros;
    j->op = s->op;
    describe(&codes, s->op == UNPACK ? out : b->codes, ROWS, COLS, AWQ_DTYPE_UINT8, s->order);
    describe_payload(&payload, s->op == PACK || s->op == QUANTIZE ? out : b->payload, s->packing, ROWS, COLS);
    const bool is_turned = s->op == RELAYOUT && s->order == COLUMN_MAJOR; /* the target is of the transposed codes */
    describe_payload(&target, out, s->target, is_turned ? COLS : ROWS, is_turned ? ROWS : COLS);
    describe(&weight, s->op == DEQUANTIZE ? (void *)out : b->weight, ROWS, COLS, s->dtype, s->order);
    describe(&scales, s->op == MIN_MAX ? (void *)out : b->scales, ROWS, COLS / GROUP, AWQ_DTYPE_FLOAT32, ROW_MAJOR);
    describe(&zeros, s->op == MIN_MAX ? more : b->zeros, ROWS, COLS / GROUP, AWQ_DTYPE_UINT8, ROW_MAJOR);
    const awq_float_views views = {&weight.view, s->op == MIN_MAX ? NULL : &payload.view, &scales.view, &zeros.view};
    if (s->op == RELAYOUT) {
        awq_relayout relayout;
        awq_relayout_init(&relayout, s->packing, s->target, s->order == COLUMN_MAJOR, &payload.view, &target.view);
        awq_relayout_job_init(&j->relayout, &relayout, kernels, payload.view.data, target.view.data);
    } else if (s->op <= UNPACK) {
        awq_job_init(&j->pack, s->op == PACK ? AWQ_PACK : AWQ_UNPACK, s->packing, kernels, &codes.view, &payload.view);
    } else if (s->op == MIN_MAX) {
        awq_float_job_init_min_max(&j->floats, AWQ_SCALES_ASYMMETRIC, kernels, &views);
    } else {
        awq_float_job_init(&j->floats, s->op == QUANTIZE ? AWQ_QUANTIZE : AWQ_DEQUANTIZE, s->packing, kernels, &views,
                           true);
    }
}

static int64_t passed, failed;

static void check(const setting *s, const awq_kernels *kernels, buffers *b)
{
    job two[2], alone;
    for (int i = 0; i < 3; i++) {
        memset(b->results[i], 0xa5, BYTES);
        memset(b->more_results[i], 0xa5, BYTES);
        prepare(i < 2 ? &two[i] : &alone, s, i < 2 ? kernels : awq_cpu_variant(0), b, b->results[i],
                b->more_results[i]);
    }
    const unsigned seen = run_on(THREADS, &two[0], &two[1]);
    job none = alone;
    none.pack.units = none.floats.units = none.relayout.units = 0;
    const unsigned expected = run_on(1, &alone, &none);
    bool is_right = seen == expected;
    for (int i = 0; i < 2; i++) {
        is_right = is_right && memcmp(b->results[i], b->results[2], BYTES) == 0 &&
                   memcmp(b->more_results[i], b->more_results[2], BYTES) == 0;
    }
    if (!is_right) {
        printf("FAIL %s %s packing %d to %d, %s, dtype %d: %d threads and one differ\n", awq_cpu_name(kernels),
               op_names[s->op], (int)s->packing, (int)s->target, layout_names[s->order], (int)s->dtype, THREADS);
    }
    passed += is_right;
    failed += !is_right;
}

/* Everything with one variant; every `step`-th case. */
static void check_variant(const awq_kernels *kernels, buffers *b, int step)
{
    static const awq_dtype dtypes[] = {AWQ_DTYPE_FLOAT16, AWQ_DTYPE_BFLOAT16, AWQ_DTYPE_FLOAT32};
    int number = 0;
    for (int op = 0; op < OPS; op++) {
        for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
            for (int order = 0; order < LAYOUTS; order++) {
                const int last = op == RELAYOUT ? AWQ_PACKING_COUNT : op <= UNPACK ? 1 : 3;
                for (int i = 0; i < last; i++) {
                    const setting s = {op, packing, op == RELAYOUT ? i : packing, order,
                                       op < QUANTIZE ? AWQ_DTYPE_FLOAT32 : dtypes[i]};
                    if (number++ % step == 0 && (op != RELAYOUT || order != EVERY_OTHER) &&
                        (op != MIN_MAX || packing == 0)) {
                        check(&s, kernels, b);
                    }
                }
            }
        }
    }
}

static void *room(void)
{
    void *result = aligned_alloc(64, BYTES);
    if (result == NULL) {
        exit(2);
    }
    memset(result, 0, BYTES);
    return result;
}

int main(int argc, char **argv)
{
    const bool is_quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    buffers b = {.codes = room(), .payload = room(), .weight = room(), .scales = room(), .zeros = room()};
    uint32_t random = 1;
    for (int i = 0; i < BYTES; i++) {
        random = random * 1664525 + 1013904223;
        b.codes[i] = (random >> 24) & 15;
        b.payload[i] = (uint8_t)(random >> 16);
        b.zeros[i] = (random >> 20) & 15;
        /* As float16, bfloat16 and float32 alike: finite, and not large. */
        ((uint8_t *)b.weight)[i] = i % 2 ? 0x38 | (uint8_t)(random >> 24 & 0x83) : (uint8_t)(random >> 24);
    }
    for (int i = 0; i < BATCH * ROWS * COLS / GROUP; i++) {
        b.scales[i] = 0.01f * (float)(1 + i % 100);
    }
    for (int i = 0; i < 3; i++) {
        b.results[i] = room();
        b.more_results[i] = room();
    }
    for (size_t i = 0; awq_cpu_variant(i) != NULL; i++) {
        check_variant(awq_cpu_variant(i), &b, is_quick ? 7 : 1);
    }
    for (int i = 0; i < 3; i++) {
        free(b.results[i]);
        free(b.more_results[i]);
    }
    free(b.codes);
    free(b.payload);
    free(b.weight);
    free(b.scales);
    free(b.zeros);
    printf("%lld passed, %lld failed on %d threads\n", (long long)passed, (long long)failed, THREADS);
    return failed > 0;
}

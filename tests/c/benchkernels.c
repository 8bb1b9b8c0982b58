/* Times the kernels beside memcpy moving the same number of bytes, turn by turn, with one thread and with all. */
#define _GNU_SOURCE
#include "checkkernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { MAX_THREADS = 256, MAX_REPEATS = 101, SLACK = 4096, SCRATCH = 1 << 20 };

static const char *const packings[] = {"v1", "v1_reorder", "v2", "marlin"};
_Static_assert(sizeof packings / sizeof packings[0] == AWQ_PACKING_COUNT, "a name each");

typedef struct work {
    const awq_kernels *kernels; /* NULL: memcpy */
    uint8_t *codes, *payload, *copy_from, *copy_to;
    int64_t rows, cols, panel_rows, panel_cols;
    awq_packing packing;
    bool is_pack, is_panel, stream;
    int threads, thread;
    uint8_t **scratch; /* of each thread */
} work;

static awq_panel panel_at(const work *w, int64_t row, int64_t col, int64_t rows, int64_t cols)
{
    const packing_shape *shape = &packing_shapes[w->packing];
    const int64_t line = w->cols * shape->line_rows / 2;
    const int64_t row_stride = w->is_panel ? 1 : w->cols, col_stride = w->is_panel ? w->rows : 1;
    return (awq_panel){
        .packing = w->packing,
        .stream = w->stream,
        .codes = w->codes + row * row_stride + col * col_stride,
        .payload = w->payload + row / shape->line_rows * line + col * shape->line_rows / 2,
        .rows = rows,
        .cols = cols,
        .row_stride = row_stride,
        .col_stride = col_stride,
        .line_stride = line,
        .item_stride = shape->item_bytes,
        .scratch = w->scratch[w->thread],
    };
}

/* The panels of a run of column groups, down the rows of one group and then of the next, as job.c walks them. */
static void run_panels(const work *w, int64_t begin, int64_t end)
{
    awq_kernel *kernel = kernel_of(w->kernels, w->packing, w->is_pack ? PACK_PANEL : UNPACK_PANEL);
    for (int64_t col = begin; col < end; col += w->panel_cols) {
        const int64_t cols = end - col < w->panel_cols ? end - col : w->panel_cols;
        for (int64_t r = 0; r < w->rows; r += w->panel_rows) {
            const awq_panel panel =
                panel_at(w, r, col, w->rows - r < w->panel_rows ? w->rows - r : w->panel_rows, cols);
            kernel(&panel);
        }
    }
}

/* Lines of one row are one run, as in job.c. */
static void run_rows(const work *w, int64_t begin, int64_t end)
{
    awq_kernel *kernel = kernel_of(w->kernels, w->packing, w->is_pack ? PACK_ROWS : UNPACK_ROWS);
    const int64_t line_rows = packing_shapes[w->packing].line_rows;
    const int64_t lines = line_rows == 1 ? 1 : (end - begin) / line_rows;
    for (int64_t i = 0; i < lines; i++) {
        const int64_t cols = line_rows == 1 ? (end - begin) * w->cols : w->cols;
        const awq_panel line = panel_at(w, begin + i * line_rows, 0, line_rows, cols);
        kernel(&line);
    }
}

static void *run_share(void *arg)
{
    const work *w = arg;
    const int64_t step = w->is_panel ? w->panel_cols : AWQ_PANEL_STEP;
    const int64_t units = ((w->is_panel ? w->cols : w->rows) + step - 1) / step;
    const int64_t begin = units * w->thread / w->threads, end = units * (w->thread + 1) / w->threads;
    if (w->kernels == NULL) {
        const int64_t bytes = w->rows * w->cols / 4 * 3;
        const int64_t at = bytes / w->threads * w->thread;
        memcpy(w->copy_to + at, w->copy_from + at, (size_t)(bytes / w->threads));
    } else if (w->is_panel) {
        run_panels(w, begin * step, end * step < w->cols ? end * step : w->cols);
    } else {
        run_rows(w, begin * step, end * step);
    }
    return NULL;
}

static double seconds(work w, int threads)
{
    work shares[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    struct timespec start, stop;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int t = 0; t < threads; t++) {
        shares[t] = w;
        shares[t].threads = threads;
        shares[t].thread = t;
        if (t > 0 && pthread_create(&ids[t], NULL, run_share, &shares[t]) != 0) {
            perror("pthread_create");
            exit(2);
        }
    }
    run_share(&shares[0]);
    for (int t = 1; t < threads; t++) {
        pthread_join(ids[t], NULL);
    }
    clock_gettime(CLOCK_MONOTONIC, &stop);
    return (double)(stop.tv_sec - start.tv_sec) + (double)(stop.tv_nsec - start.tv_nsec) * 1e-9;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench_one(work w, const char *what, int repeats, int threads)
{
    double kernel[MAX_REPEATS], copy[MAX_REPEATS];
    work memcpy_work = w;
    memcpy_work.kernels = NULL;
    for (int i = 0; i < repeats; i++) {
        copy[i] = seconds(memcpy_work, threads);
        kernel[i] = seconds(w, threads);
    }
    qsort(kernel, (size_t)repeats, sizeof kernel[0], compare);
    qsort(copy, (size_t)repeats, sizeof copy[0], compare);
    const double bytes = 1.5 * (double)(w.rows * w.cols);
    const double mine = kernel[repeats / 2], theirs = copy[repeats / 2];
    printf("%-7s %-11s %-10s stream %d threads %d: %7.2f GB/s, memcpy %7.2f GB/s, ratio %.3f\n", w.kernels->name, what,
           packings[w.packing], w.stream, threads, bytes / mine * 1e-9, bytes / theirs * 1e-9, theirs / mine);
    fflush(stdout);
}

/* Page-aligned as large allocations of tensors are, and touched. */
static uint8_t *touched(int64_t bytes)
{
    uint8_t *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    memset(p, 3, (size_t)bytes);
    return p;
}

static bool is_wanted(const char *wish, const char *name)
{
    return wish == NULL || strcmp(wish, name) == 0;
}

int bench(const bench_options *o)
{
    work w = {.cols = 16384, .panel_rows = o->panel_rows, .panel_cols = o->panel_cols};
    while (w.cols * w.cols > o->mebibytes << 20 && w.cols > 256) {
        w.cols /= 2;
    }
    w.rows = (o->mebibytes << 20) / w.cols / AWQ_PANEL_STEP * AWQ_PANEL_STEP;
    if (w.rows == 0 || o->repeats < 1 || o->repeats > MAX_REPEATS || o->threads < 1 || o->threads > MAX_THREADS ||
        o->panel_rows < 64 || o->panel_cols < 64 || o->panel_rows % 64 || o->panel_cols % 64 ||
        o->panel_cols > AWQ_PANEL_COLS || o->offset < 0 || o->offset > SLACK) {
        fprintf(stderr, "--mib, --repeats, --threads, --rows, --cols or --offset is out of range\n");
        return 2;
    }
    const int64_t bytes = w.rows * w.cols;
    w.codes = touched(bytes + SLACK) + o->offset;
    w.payload = touched(bytes / 2 + SLACK) + o->offset;
    uint8_t *scratch[MAX_THREADS];
    for (int t = 0; t < o->threads; t++) {
        scratch[t] = touched(SCRATCH);
    }
    w.scratch = scratch;
    w.copy_from = touched(bytes / 4 * 3);
    w.copy_to = touched(bytes / 4 * 3);
    printf("%lld x %lld codes\n", (long long)w.rows, (long long)w.cols);
    for (size_t v = 0; variant_at(v) != NULL; v++) {
        w.kernels = variant_at(v);
        if (o->variant == NULL ? v == 0 : strcmp(o->variant, w.kernels->name) != 0) {
            continue; /* scalar takes minutes and is measured only when named */
        }
        for (int threads = 1; threads <= o->threads; threads += threads < o->threads ? o->threads - threads : 1) {
            for (int i = 0; i < 8 * AWQ_PACKING_COUNT; i++) {
                w.stream = i % 2 == 0;
                w.is_pack = i / 2 % 2 == 0;
                w.packing = i / 4 % AWQ_PACKING_COUNT;
                w.is_panel = i / 4 >= AWQ_PACKING_COUNT;
                static const char *const names[2][2] = {{"unpack_rows", "pack_rows"}, {"unpack_panel", "pack_panel"}};
                const char *what = names[w.is_panel][w.is_pack];
                if (is_wanted(o->kernel, what) && is_wanted(o->packing, packings[w.packing])) {
                    bench_one(w, what, o->repeats, threads);
                }
            }
        }
    }
    return 0;
}

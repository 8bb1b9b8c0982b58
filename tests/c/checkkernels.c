/*
 * Compares every variant of the kernels with the scalar one, and the scalar one with the nibble formulas.
 *
 * Buffers end and start at inaccessible pages, or lie at every alignment with a margin that must stay as it was; under
 * AddressSanitizer every byte that a call has no business with is poisoned as well.
 */
#define _GNU_SOURCE
#include "checkkernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { MARGIN = 64, ALIGNMENTS = 64, ARENA_BYTES = 8 << 20 };
enum { TALLEST = 9216, WIDEST = 20 /* rows of a panel, and 64 columns of one */, SMALL = 16 };
enum { LINE_CODES = 1024 /* of the smallest lines */ };

/* The bytes a call may touch: `length` bytes at every sum of count[i] multiples of stride[i]. */
typedef struct footprint {
    int64_t count[3], stride[3], length;
} footprint;

static int64_t lowest(const footprint *f)
{
    int64_t low = 0;
    for (int i = 0; i < 3; i++) {
        low += f->stride[i] < 0 ? (f->count[i] - 1) * f->stride[i] : 0;
    }
    return low;
}

static int64_t highest(const footprint *f)
{
    int64_t high = f->length;
    for (int i = 0; i < 3; i++) {
        high += f->stride[i] > 0 ? (f->count[i] - 1) * f->stride[i] : 0;
    }
    return high;
}

static int64_t segments(const footprint *f)
{
    return f->length == 0 ? 0 : f->count[0] * f->count[1] * f->count[2];
}

static uint8_t *segment_at(const footprint *f, uint8_t *origin, int64_t index)
{
    for (int i = 0; i < 3; i++) {
        origin += index % f->count[i] * f->stride[i];
        index /= f->count[i];
    }
    return origin;
}

/* ARENA_BYTES between two inaccessible pages. */
static uint8_t *arena_new(void)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *p = mmap(NULL, ARENA_BYTES + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + page, ARENA_BYTES, PROT_READ | PROT_WRITE) != 0) {
        perror("mmap");
        exit(2);
    }
    return p + page;
}

typedef struct checker {
    const awq_kernels *kernels;
    bool is_scalar;               /* compared with the formulas, and not with scalar */
    uint8_t *source, *got, *want; /* arenas */
    uint8_t *scratch;
    uint64_t random;
    int64_t passed, failed;
    bool quick;
} checker;

static uint64_t next_random(checker *c)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random;
}

static int64_t below(checker *c, int64_t n)
{
    return (int64_t)(next_random(c) % (uint64_t)n);
}

/* Where a buffer lies: at an alignment, or with its first or last byte beside the inaccessible page. */
enum { AT_START = -1, AT_END = -2 };

static int64_t offset_of(const footprint *f, int place)
{
    switch (place) {
    case AT_START: return -lowest(f);
    case AT_END: return ARENA_BYTES - highest(f);
    default: return (MARGIN - lowest(f)) / 64 * 64 + 64 + place;
    }
}

static const char *const operation_names[OPERATIONS] = {"pack_rows",           "unpack_rows",          "pack_panel",
                                                        "unpack_panel",        "pack_turned",          "unpack_turned",
                                                        "pack_turned_columns", "unpack_turned_columns"};

awq_kernel *kernel_of(const awq_kernels *kernels, awq_packing packing, operation op)
{
    static const awq_walks none;
    const awq_walks *walks = kernels->of[packing] == NULL ? &none : kernels->of[packing];
    awq_kernel *const own[OPERATIONS] = {walks->pack_rows,    walks->unpack_rows,  walks->pack_panel,
                                         walks->unpack_panel, walks->pack_turned,  walks->unpack_turned,
                                         walks->pack_turned,  walks->unpack_turned};
    return own[op] != NULL ? own[op] : op % 2 == PACK_ROWS ? awq_pack_blocks : awq_unpack_blocks;
}

/* A kernel's call; rows and cols are those of its panel. */
typedef struct call {
    operation op;
    awq_packing packing;
    int64_t rows, cols;
    int64_t codes_stride, payload_stride;
    int source_place, target_place;
    bool stream;
} call;

static bool is_pack(const call *k)
{
    return k->op % 2 == PACK_ROWS;
}

static bool is_turned(const call *k)
{
    return k->op >= PACK_TURNED;
}

/* Columns of codes are contiguous. */
static bool has_columns(const call *k)
{
    return k->op == PACK_PANEL || k->op == UNPACK_PANEL || k->op >= PACK_TURNED_COLUMNS;
}

static footprint codes_footprint(const call *k)
{
    const int64_t runs = has_columns(k) ? k->cols : k->rows, length = has_columns(k) ? k->rows : k->cols;
    return (footprint){{runs, 1, 1}, {k->codes_stride}, length};
}

static footprint payload_footprint(const call *k)
{
    const int64_t line_rows = packing_shapes[k->packing].line_rows, item = packing_shapes[k->packing].item_bytes;
    const int64_t lines = k->rows / line_rows, bytes = k->cols * line_rows / 2;
    return is_turned(k) ? (footprint){{bytes / item, 1, 1}, {k->payload_stride}, lines * item}
                        : (footprint){{lines, 1, 1}, {k->payload_stride}, bytes};
}

static awq_panel panel_of(const checker *c, const call *k, uint8_t *source, uint8_t *target)
{
    const int64_t item = packing_shapes[k->packing].item_bytes;
    return (awq_panel){
        .packing = k->packing,
        .stream = k->stream,
        .codes = is_pack(k) ? source : target,
        .payload = is_pack(k) ? target : source,
        .rows = k->rows,
        .cols = k->cols,
        .row_stride = has_columns(k) ? 1 : k->codes_stride,
        .col_stride = has_columns(k) ? k->codes_stride : 1,
        .line_stride = is_turned(k) ? item : k->payload_stride,
        .item_stride = is_turned(k) ? k->payload_stride : item,
        .scratch = c->scratch,
    };
}

#define EACH_BYTE(value) (UINT64_C(0x0101010101010101) * (value))

/* All bits of the bytes of r that are odd, and none of the others. */
static uint64_t odd_bytes(uint64_t r)
{
    return (r & EACH_BYTE(1)) * 255;
}

/* Valid codes, or now and then one or some with high bits. */
static uint8_t fill_source(checker *c, const call *k, const footprint *f, uint8_t *origin)
{
    uint8_t seen = 0;
    const int64_t kind = below(c, 4);
    const int64_t count = segments(f);
    for (int64_t s = 0; s < count; s++) {
        uint8_t *p = segment_at(f, origin, s);
        for (int64_t i = 0; i < f->length; i += 8) {
            const uint64_t any = !is_pack(k) ? EACH_BYTE(255) : kind == 1 ? odd_bytes(next_random(c)) : 0;
            const uint64_t eight = next_random(c) & (any | (kind == 2 ? EACH_BYTE(8) : EACH_BYTE(15)));
            memcpy(p + i, &eight, (size_t)(f->length - i < 8 ? f->length - i : 8));
        }
    }
    if (is_pack(k) && kind == 3 && count > 0) {
        segment_at(f, origin, below(c, count))[below(c, f->length)] |= (uint8_t)(16 << below(c, 4));
    }
    for (int64_t s = 0; s < count && is_pack(k); s++) {
        const uint8_t *p = segment_at(f, origin, s);
        for (int64_t i = 0; i < f->length; i++) {
            seen |= p[i];
        }
    }
    return seen;
}

static void forbid_all_but(const footprint *f, uint8_t *arena, uint8_t *origin)
{
    ASAN_POISON_MEMORY_REGION(arena, ARENA_BYTES);
    for (int64_t s = 0; s < segments(f); s++) {
        ASAN_UNPOISON_MEMORY_REGION(segment_at(f, origin, s), (size_t)f->length);
    }
}

static void report(const awq_kernels *kernels, const call *k, const char *what, int64_t where)
{
    printf("FAIL %s %s packing %d rows %lld cols %lld strides %lld %lld places %d %d stream %d: %s (%lld)\n",
           kernels->name, operation_names[k->op], (int)k->packing, (long long)k->rows, (long long)k->cols,
           (long long)k->codes_stride, (long long)k->payload_stride, k->source_place, k->target_place, k->stream, what,
           (long long)where);
}

static void check_call(checker *c, const call *k)
{
    const footprint codes = codes_footprint(k), payload = payload_footprint(k);
    const footprint *from = is_pack(k) ? &codes : &payload;
    const footprint *to = is_pack(k) ? &payload : &codes;
    const int64_t from_at = offset_of(from, k->source_place), to_at = offset_of(to, k->target_place);
    const int64_t from_low = from_at + lowest(from), from_high = from_at + highest(from);
    const int64_t low = to_at + lowest(to) < MARGIN ? 0 : to_at + lowest(to) - MARGIN;
    const int64_t high = to_at + highest(to) + MARGIN > ARENA_BYTES ? ARENA_BYTES : to_at + highest(to) + MARGIN;

    /* What a kernel must not read looks like bad codes, and the target starts as anything but the answer. */
    const int64_t before = from_low < MARGIN ? 0 : from_low - MARGIN;
    const int64_t after = from_high + MARGIN > ARENA_BYTES ? ARENA_BYTES : from_high + MARGIN;
    memset(c->source + before, 0xff, (size_t)(after - before));
    const uint8_t seen = fill_source(c, k, from, c->source + from_at);
    memset(c->got + low, (int)below(c, 256), (size_t)(high - low));
    memcpy(c->want + low, c->got + low, (size_t)(high - low));

    awq_kernel *const slow[2][2] = {{awq_unpack_blocks, awq_pack_blocks}, {formula_unpack, formula_pack}};
    const awq_panel wanted = panel_of(c, k, c->source + from_at, c->want + to_at);
    const awq_panel panel = panel_of(c, k, c->source + from_at, c->got + to_at);
    const uint8_t expected = slow[c->is_scalar][is_pack(k)](&wanted);
    forbid_all_but(from, c->source, c->source + from_at);
    forbid_all_but(to, c->got, c->got + to_at);
    const uint8_t result = kernel_of(c->kernels, k->packing, k->op)(&panel);
    ASAN_UNPOISON_MEMORY_REGION(c->source, ARENA_BYTES);
    ASAN_UNPOISON_MEMORY_REGION(c->got, ARENA_BYTES);

    bool is_right = true;
    if (result != expected || result != seen) {
        report(c->kernels, k, "the OR of the codes is wrong", result);
        is_right = false;
    }
    if (memcmp(c->got + low, c->want + low, (size_t)(high - low)) != 0) {
        int64_t at = low;
        while (c->got[at] == c->want[at]) {
            at++;
        }
        report(c->kernels, k, "first wrong byte", at - to_at);
        is_right = false;
    }
    c->passed += is_right;
    c->failed += !is_right;
    if (c->failed > 20) {
        printf("%lld passed, %lld failed, stopped\n", (long long)c->passed, (long long)c->failed);
        exit(1);
    }
}

/* At least `least`, sometimes aligned to lines or words, sometimes odd, sometimes negative. */
static int64_t random_stride(checker *c, int64_t least)
{
    static const int64_t steps[] = {64, 64, 32, 16, 4, 1};
    const int64_t step = steps[below(c, 6)];
    const int64_t stride = (least + step - 1) / step * step + step * below(c, 8);
    return below(c, 2) ? stride : -stride;
}

static void random_strides(checker *c, call *k)
{
    k->codes_stride = random_stride(c, has_columns(k) ? k->rows : k->cols);
    k->payload_stride = random_stride(c, payload_footprint(k).length);
}

/* Kind 0 has more rows and kind 1 more columns than are packed at a time; SMALL ones are small, all others large. */
static void random_panel(checker *c, call *k, int64_t kind)
{
    const bool is_wide = kind == 1 && k->op == PACK_PANEL;
    k->cols = 64 * (1 + below(c, kind == 0 ? 4 : is_wide ? WIDEST : kind < SMALL ? AWQ_PANEL_COLS / 64 : 3));
    k->rows = 64 * (1 + below(c, kind == 0 ? TALLEST / 64 : is_wide ? 8 : kind < SMALL ? 24 : 2));
    if (is_turned(k) && !has_columns(k)) {
        k->cols = (k->cols + AWQ_TURNED_COLS - 1) / AWQ_TURNED_COLS * AWQ_TURNED_COLS;
    }
}

/* Up to `codes` codes of a line. */
static void random_line(checker *c, call *k, int64_t codes)
{
    const packing_shape *shape = &packing_shapes[k->packing];
    k->rows = shape->line_rows;
    k->cols = shape->step_cols * below(c, codes / (shape->line_rows * shape->step_cols));
}

static void random_shape(checker *c, call *k, int64_t scale)
{
    if (k->op >= PACK_PANEL) {
        random_panel(c, k, scale < 8 ? SMALL : below(c, SMALL));
    } else {
        random_line(c, k, LINE_CODES * scale);
    }
    random_strides(c, k);
}

static void check_operation(checker *c, operation op, awq_packing packing)
{
    call k = {.op = op, .packing = packing};
    awq_kernel *const kernel = kernel_of(c->kernels, packing, op);
    if (!c->is_scalar && (kernel == awq_pack_blocks || kernel == awq_unpack_blocks)) {
        return; /* scalar's own, which formulas check */
    }
    /* Plain C does not care how bytes are aligned, and the formulas are slow: a third of the pairs has every
       alignment. */
    const int step = c->quick ? 5 : c->is_scalar || is_turned(&k) ? 3 : 1;
    for (int pair = 0; pair < ALIGNMENTS * ALIGNMENTS; pair += step) {
        k.source_place = pair % ALIGNMENTS;
        k.target_place = pair / ALIGNMENTS;
        random_shape(c, &k, 1 + below(c, 4));
        for (int stream = 0; stream < 2; stream++) {
            k.stream = stream;
            check_call(c, &k);
        }
    }
    for (int i = 0; i < (c->quick ? 100 : 1000); i++) {
        k.source_place = below(c, 2) ? AT_START : AT_END;
        k.target_place = below(c, 2) ? AT_START : AT_END;
        random_shape(c, &k, 8);
        if (k.op < PACK_PANEL && packing_shapes[packing].line_rows == 1) {
            k.cols = packing_shapes[packing].step_cols * (i % 500);
            random_strides(c, &k);
        }
        k.stream = below(c, 2);
        check_call(c, &k);
    }
    for (int i = 0; i < (c->quick ? 4 : 16); i++) {
        k.source_place = (int)below(c, ALIGNMENTS);
        k.target_place = i % 2 ? 8 * (int)below(c, ALIGNMENTS / 8) : (int)below(c, ALIGNMENTS);
        random_shape(c, &k, 4000);
        k.stream = true;
        check_call(c, &k);
    }
}

/* A thread's whole work: everything with one variant. */
static void *check_variant(void *argument)
{
    checker *c = argument;
    c->source = arena_new();
    c->got = arena_new();
    c->want = arena_new();
    c->scratch = aligned_alloc(AWQ_SCRATCH_ALIGNMENT, c->kernels->scratch_bytes + AWQ_SCRATCH_ALIGNMENT);
    if (c->scratch == NULL) {
        perror("aligned_alloc");
        exit(2);
    }
    for (operation op = 0; op < OPERATIONS; op++) {
        for (awq_packing packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
            check_operation(c, op, packing);
        }
    }
    free(c->scratch);
    check_floats(c->kernels, c->random, c->quick, &c->passed, &c->failed);
    return NULL;
}

static const char *text_option(int argc, char **argv, const char *name)
{
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return argv[i + 1];
        }
    }
    return NULL;
}

static int64_t option(int argc, char **argv, const char *name, int64_t otherwise)
{
    const char *text = text_option(argc, argv, name);
    return text == NULL ? otherwise : atoll(text);
}

static bool flag(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    const char *only = text_option(argc, argv, "--variant");
    if (flag(argc, argv, "--bench")) {
        const bench_options options = {
            .variant = only,
            .kernel = text_option(argc, argv, "--kernel"),
            .packing = text_option(argc, argv, "--packing"),
            .mebibytes = option(argc, argv, "--mib", 256),
            .repeats = (int)option(argc, argv, "--repeats", 7),
            .threads = (int)option(argc, argv, "--threads", sysconf(_SC_NPROCESSORS_ONLN)),
            .panel_rows = option(argc, argv, "--rows", 16384),
            .panel_cols = option(argc, argv, "--cols", 512),
            .offset = option(argc, argv, "--offset", 0),
        };
        return bench(&options);
    }
    const uint64_t seed = (uint64_t)option(argc, argv, "--seed", 1);
    checker checkers[VARIANTS];
    pthread_t threads[VARIANTS];
    size_t count = 0;
    for (size_t i = 0; variant_at(i) != NULL; i++) {
        if (only == NULL || strcmp(only, variant_at(i)->name) == 0) {
            checkers[count] = (checker){.kernels = variant_at(i),
                                        .is_scalar = i == 0,
                                        .quick = flag(argc, argv, "--quick"),
                                        .random = seed * UINT64_C(0x9e3779b97f4a7c15) | 1};
            if (pthread_create(&threads[count], NULL, check_variant, &checkers[count]) != 0) {
                fputs("no thread could be started\n", stderr);
                return 2;
            }
            count++;
        }
    }
    int64_t passed = 0, failed = 0;
    for (size_t i = 0; i < count; i++) {
        const checker *c = &checkers[i];
        pthread_join(threads[i], NULL);
        printf("%-8s against %-8s: %lld passed, %lld failed\n", c->kernels->name, c->is_scalar ? "formulas" : "scalar",
               (long long)c->passed, (long long)c->failed);
        fflush(stdout);
        passed += c->passed;
        failed += c->failed;
    }
    printf("%lld passed, %lld failed\n", (long long)passed, (long long)failed);
    return failed > 0;
}

/* Compares a variant's kernels for floats with plain C, bit for bit: lines of any length, alignment and group, numbers
   of every kind. What they read or write past an end hits a page that is not there, or is seen beside the line. */
#define _DEFAULT_SOURCE
#include "checkkernels.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "float_bits.h"
#include "float_kernels.h"

enum { MOST = 600, ROOM = 8192, PAGE = 4096, GUARD = 0xa5 };

/* Memory of a line that ends, or starts `at` bytes after, a page that is not there. */
typedef struct arena {
    uint8_t *pages;
} arena;

enum { WEIGHTS, CODES, SCALES, ZEROS, RECIPROCALS, FIRST, SECOND, WANTED, ALSO_WANTED, ARENAS };

typedef struct float_checker {
    const awq_float_kernels *kernels;
    arena arenas[ARENAS];
    uint64_t random;
    int64_t passed, failed;
    const char *name;
} float_checker;

static uint64_t next(float_checker *c)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random;
}

static int64_t below(float_checker *c, int64_t n)
{
    return (int64_t)(next(c) % (uint64_t)n);
}

static arena arena_new(void)
{
    uint8_t *pages = mmap(NULL, ROOM + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages, PAGE, PROT_NONE) != 0 ||
        mprotect(pages + PAGE + ROOM, PAGE, PROT_NONE) != 0) {
        perror("mmap");
        exit(2);
    }
    return (arena){pages + PAGE};
}

/* `bytes` bytes, between guards or pages that are not there; a multiple of `item` bytes from these. */
static uint8_t *place(float_checker *c, int number, int64_t bytes, int64_t item)
{
    uint8_t *room = c->arenas[number].pages;
    memset(room, GUARD, ROOM);
    const int64_t rest = (ROOM - bytes) / item;
    const int64_t from_start = below(c, 2) * below(c, 64), from_end = below(c, 2) * below(c, 64);
    return below(c, 2) ? room + item * awq_min(from_start, rest) : room + ROOM - bytes - item * awq_min(from_end, rest);
}

static bool same(const float_checker *c, int one, int other)
{
    return memcmp(c->arenas[one].pages, c->arenas[other].pages, ROOM) == 0;
}

/* A finite number of the dtype, of any kind. */
static float any_float(float_checker *c, awq_dtype dtype)
{
    for (;;) {
        const uint32_t bits = (uint32_t)next(c);
        const float value = awq_float_load(dtype, &bits);
        if (awq_is_finite(value)) {
            return value;
        }
    }
}

/* Whether a line may have a weight. */
static bool fits(float weight, bool is_short)
{
    return is_short ? weight > -AWQ_FLOAT_MOST_SHORT && weight < AWQ_FLOAT_MOST_SHORT : awq_is_finite(weight);
}

/* A weight around half way between two codes, or of any kind. */
static void put_weight(float_checker *c, awq_dtype dtype, uint8_t *to, float scale, bool is_short)
{
    uint32_t bits = 0;
    awq_float_store(dtype, &bits, scale * (float)(below(c, 80) - 40) / 2);
    bits += (uint32_t)(below(c, 3) - 1);
    while (below(c, 4) == 0 || !fits(awq_float_load(dtype, &bits), is_short)) {
        awq_float_store(dtype, &bits, any_float(c, dtype));
    }
    memcpy(to, &bits, (size_t)awq_dtype_bytes(dtype));
}

static void expect(float_checker *c, bool ok, const char *what, awq_dtype dtype, const awq_float_line *line)
{
    ok ? c->passed++ : c->failed++;
    if (!ok && c->failed <= 20) {
        printf("FAILED %s: %s of %s, %lld in groups of %lld after %lld%s\n", c->name, what, awq_dtype_name(dtype),
               (long long)line->count, (long long)line->group, (long long)line->taken, line->is_short ? ", short" : "");
    }
}

/* Scales for which the kernels may multiply: see AWQ_FLOAT_LEAST_SCALE and AWQ_FLOAT_BASE. */
static float usual_scale(float_checker *c, awq_dtype scale, bool is_short)
{
    const float least = is_short ? AWQ_FLOAT_LEAST_SHORT : AWQ_FLOAT_LEAST_SCALE;
    for (;;) {
        float value = any_float(c, scale);
        value = value < 0 ? -value : value;
        if (below(c, 8) == 0 || (value >= least && value <= AWQ_FLOAT_MOST_SCALE)) {
            return value >= least && value <= AWQ_FLOAT_MOST_SCALE ? value : 0;
        }
    }
}

/* A short line has no such weight, which is quantized as those of other lines are. */
static void check_large_weight(float_checker *c, awq_dtype dtype, const awq_float_line *line, uint8_t *weights,
                               uint8_t *got, uint8_t *wanted)
{
    const float size = below(c, 2) ? AWQ_FLOAT_MOST_SHORT : 0x1.8p14f;
    awq_float_line other = *line;
    other.is_short = false;
    awq_float_store(dtype, weights + below(c, line->count) * awq_dtype_bytes(dtype), below(c, 2) ? size : -size);
    expect(c, !c->kernels->quantize(dtype, weights, got, line), "quantize of a large weight", dtype, line);
    (void)awq_float_scalar.quantize(dtype, weights, wanted, &other);
    expect(c, c->kernels->quantize(dtype, weights, got, &other) && same(c, FIRST, WANTED), "quantize", dtype, &other);
}

static void check_quantize(float_checker *c, awq_dtype dtype, awq_float_line *line, int64_t entries)
{
    const int64_t item = awq_dtype_bytes(dtype);
    const awq_dtype scale_dtype = (awq_dtype[]){AWQ_DTYPE_FLOAT16, AWQ_DTYPE_BFLOAT16, AWQ_DTYPE_FLOAT32}[below(c, 3)];
    line->is_short = dtype != AWQ_DTYPE_FLOAT32 && scale_dtype != AWQ_DTYPE_FLOAT32 && below(c, 4) != 0;
    float *scales = (float *)(void *)place(c, SCALES, 4 * entries, 4);
    float *reciprocals = (float *)(void *)place(c, RECIPROCALS, 4 * entries, 4);
    for (int64_t i = 0; i < entries; i++) {
        scales[i] = usual_scale(c, scale_dtype, line->is_short);
        reciprocals[i] = scales[i] == 0 ? 0 : 1 / scales[i];
    }
    line->scales = scales;
    line->reciprocals = reciprocals;
    uint8_t *weights = place(c, WEIGHTS, line->count * item, item);
    for (int64_t i = 0; i < line->count; i++) {
        put_weight(c, dtype, weights + i * item, scales[(i + line->taken) / line->group], line->is_short);
    }
    uint8_t *got = place(c, FIRST, line->count, 1);
    memset(c->arenas[WANTED].pages, GUARD, ROOM);
    uint8_t *wanted = c->arenas[WANTED].pages + (got - c->arenas[FIRST].pages);
    const bool is_finite = c->kernels->quantize(dtype, weights, got, line);
    (void)awq_float_scalar.quantize(dtype, weights, wanted, line);
    expect(c, is_finite && same(c, FIRST, WANTED), "quantize", dtype, line);
    if (line->count > 0 && line->is_short) {
        check_large_weight(c, dtype, line, weights, got, wanted);
    }
    if (line->count > 0) {
        const uint32_t infinity = dtype == AWQ_DTYPE_FLOAT16    ? 0xfc00
                                  : dtype == AWQ_DTYPE_BFLOAT16 ? 0xff80
                                                                : 0x7f800001;
        memcpy(weights + below(c, line->count) * item, &infinity, (size_t)item);
        expect(c, !c->kernels->quantize(dtype, weights, got, line), "quantize of what is not finite", dtype, line);
    }
}

static void check_dequantize(float_checker *c, awq_dtype dtype, awq_float_line *line, int64_t entries)
{
    const int64_t item = awq_dtype_bytes(dtype);
    float *scales = (float *)(void *)place(c, SCALES, 4 * entries, 4);
    for (int64_t i = 0; i < entries; i++) {
        const float scale = any_float(c, (awq_dtype[]){AWQ_DTYPE_FLOAT16, AWQ_DTYPE_FLOAT32}[below(c, 2)]);
        scales[i] = scale < 0 ? -scale : scale;
    }
    line->scales = scales;
    uint8_t *codes = place(c, CODES, line->count, 1);
    for (int64_t i = 0; i < line->count; i++) {
        codes[i] = (uint8_t)below(c, AWQ_CODE_MAX + 1);
    }
    uint8_t *got = place(c, FIRST, line->count * item, item);
    memset(c->arenas[WANTED].pages, GUARD, ROOM);
    c->kernels->dequantize(dtype, codes, got, line, below(c, 2) != 0);
    awq_stream_fence();
    awq_float_scalar.dequantize(dtype, codes, c->arenas[WANTED].pages + (got - c->arenas[FIRST].pages), line, false);
    expect(c, same(c, FIRST, WANTED), "dequantize", dtype, line);
}

static void check_min_max(float_checker *c, awq_dtype dtype, const awq_float_line *line, int64_t entries)
{
    const int64_t item = awq_dtype_bytes(dtype);
    uint8_t *weights = place(c, WEIGHTS, line->count * item, item);
    for (int64_t i = 0; i < line->count; i++) {
        awq_float_store(dtype, weights + i * item, any_float(c, dtype));
    }
    float *ends[4]; /* low and high, got and wanted */
    for (int k = 0; k < 4; k++) {
        ends[k] = (float *)(void *)place(c, (int[]){FIRST, SECOND, WANTED, ALSO_WANTED}[k], 4 * entries, 4);
        for (int64_t i = 0; i < entries; i++) {
            ends[k][i] = (k % 2 == 0 ? 1 : -1) * awq_float_of(0x7f800000u);
        }
    }
    const bool is_finite = c->kernels->min_max(dtype, weights, line->count, line->group, line->taken, ends[0], ends[1]);
    (void)awq_float_scalar.min_max(dtype, weights, line->count, line->group, line->taken, ends[2], ends[3]);
    bool is_same = is_finite;
    for (int64_t i = 0; i < entries; i++) { /* which of the zeros is less is nobody's business */
        is_same = is_same && ends[0][i] == ends[2][i] && ends[1][i] == ends[3][i];
    }
    expect(c, is_same, "min_max", dtype, line);
}

static void check_widths(float_checker *c, awq_dtype dtype, const awq_float_line *line)
{
    const int64_t item = awq_dtype_bytes(dtype), count = line->count;
    float *wide = (float *)(void *)place(c, FIRST, 4 * count, 4);
    uint8_t *narrow = place(c, SECOND, count * item, item), *weights = place(c, WEIGHTS, count * item, item);
    memset(c->arenas[WANTED].pages, GUARD, ROOM);
    memset(c->arenas[ALSO_WANTED].pages, GUARD, ROOM);
    for (int64_t i = 0; i < count; i++) {
        awq_float_store(dtype, weights + i * item, any_float(c, dtype));
    }
    float *also = (float *)(void *)(c->arenas[WANTED].pages + ((uint8_t *)wide - c->arenas[FIRST].pages));
    c->kernels->widen(dtype, weights, count, wide);
    awq_float_scalar.widen(dtype, weights, count, also);
    expect(c, same(c, FIRST, WANTED), "widen", dtype, line);
    for (int64_t i = 0; i < count; i++) {
        wide[i] = any_float(c, AWQ_DTYPE_FLOAT32) * (below(c, 2) ? 1 : 0x1p-100f);
    }
    c->kernels->narrow(dtype, wide, count, narrow);
    awq_float_scalar.narrow(dtype, wide, count, c->arenas[ALSO_WANTED].pages + (narrow - c->arenas[SECOND].pages));
    expect(c, same(c, SECOND, ALSO_WANTED), "narrow", dtype, line);
}

/* Scales of all kinds, and what is no scale. */
static void check_invert(float_checker *c, const awq_float_line *line)
{
    const int64_t count = line->count;
    const float least = below(c, 2) ? AWQ_FLOAT_LEAST_SHORT : AWQ_FLOAT_LEAST_SCALE;
    float *scales = (float *)(void *)place(c, SCALES, 4 * count, 4);
    for (int64_t i = 0; i < count; i++) {
        scales[i] = below(c, 50) ? usual_scale(c, AWQ_DTYPE_FLOAT16, least == AWQ_FLOAT_LEAST_SHORT)
                                 : any_float(c, AWQ_DTYPE_FLOAT32);
    }
    if (count > 0 && below(c, 4) == 0) {
        scales[below(c, count)] = (float[]){-1,    least / 2,        2 * AWQ_FLOAT_MOST_SCALE,
                                            -0.0f, __builtin_inff(), __builtin_nanf("")}[below(c, 6)];
    }
    float *got = (float *)(void *)place(c, FIRST, 4 * count, 4);
    memset(c->arenas[WANTED].pages, GUARD, ROOM);
    float *wanted = (float *)(void *)(c->arenas[WANTED].pages + ((uint8_t *)got - c->arenas[FIRST].pages));
    const bool is_usual = c->kernels->invert(scales, count, least, got);
    expect(c, is_usual == awq_float_scalar.invert(scales, count, least, wanted) && same(c, FIRST, WANTED), "invert",
           AWQ_DTYPE_FLOAT32, line);
}

void check_floats(const awq_kernels *kernels, uint64_t seed, bool quick, int64_t *passed, int64_t *failed)
{
    if (kernels->floats == NULL) {
        return;
    }
    float_checker c = {.kernels = kernels->floats, .random = seed, .name = kernels->name};
    for (int i = 0; i < ARENAS; i++) {
        c.arenas[i] = arena_new();
    }
    for (int i = 0; i < (quick ? 1500 : 15000); i++) {
        const awq_dtype dtype = (awq_dtype[]){AWQ_DTYPE_FLOAT16, AWQ_DTYPE_BFLOAT16, AWQ_DTYPE_FLOAT32}[i % 3];
        awq_float_line line = {.count = below(&c, i % 5 ? 100 : MOST),
                               .group = (int64_t[]){1, 1, 8, 32, 64, 128, 7, 1000}[i % 8]};
        line.taken = below(&c, line.group);
        const int64_t entries = (line.taken + line.count + line.group - 1) / line.group + (line.count == 0);
        float *zeros = (float *)(void *)place(&c, ZEROS, 4 * entries, 4);
        for (int64_t e = 0; e < entries; e++) {
            zeros[e] = (float)below(&c, AWQ_CODE_MAX + 1);
        }
        line.zeros = zeros;
        check_quantize(&c, dtype, &line, entries);
        check_dequantize(&c, dtype, &line, entries);
        check_min_max(&c, dtype, &line, entries);
        check_widths(&c, dtype, &line);
        check_invert(&c, &line);
    }
    for (int i = 0; i < ARENAS; i++) {
        munmap(c.arenas[i].pages - PAGE, ROOM + 2 * PAGE);
    }
    *passed += c.passed;
    *failed += c.failed;
}

/*
 * How lines of 64 bytes reach a target: through the cache or past it, wherever they start. Included at the end of avx2.h
 * and avx512.h, from which it takes shift_line(rest, v, shift), whether can_shift(shift), and load and put.
 */
#ifndef AWQPACK_LINES_H
#define AWQPACK_LINES_H

#include <stdalign.h>
#include <string.h>

/* STREAM_SHIFTED: past the cache, where each line of the target takes the end of one line and the start of the next. */
typedef enum way { PLAIN, STREAM, STREAM_SHIFTED } way;

/* Lines of one run follow each other; `rest` keeps the last one of each run, aligned. */
typedef struct writer {
    way way;
    bool is_first; /* the next lines are the first of their runs */
    int shift;     /* bytes of a line of the target before a line starts */
    uint8_t (*rest)[LINE];
} writer;

/* For runs that start at an address and at all multiples of a stride from it. */
static inline way way_of(bool stream, const uint8_t *target, int64_t stride)
{
    const int shift = (int)((uintptr_t)target % LINE);
    return !stream || stride % LINE != 0 || !can_shift(shift) ? PLAIN : shift == 0 ? STREAM : STREAM_SHIFTED;
}

/* What is empty has none. */
static inline way way_to(const awq_panel *p, const uint8_t *target, int64_t stride)
{
    return way_of(p->stream && p->rows > 0 && p->cols > 0, target, stride);
}

/* Calls walk(.., way) so that the compiler sees which way it is. */
#define BY_WAY(way, walk, ...)                                                                                         \
    switch (way) {                                                                                                     \
    case STREAM: walk(__VA_ARGS__, STREAM); break;                                                                     \
    case STREAM_SHIFTED: walk(__VA_ARGS__, STREAM_SHIFTED); break;                                                     \
    default: walk(__VA_ARGS__, PLAIN);                                                                                 \
    }

ALWAYS_INLINE writer writer_of(way way, const uint8_t *target, uint8_t (*rest)[LINE])
{
    return (writer){way, true, (int)((uintptr_t)target % LINE), rest};
}

ALWAYS_INLINE void put_line(uint8_t *to, const vector line[HALVES], bool stream)
{
    for (int h = 0; h < HALVES; h++) {
        put(to + VECTOR * h, line[h], stream);
    }
}

ALWAYS_INLINE void put_next(const writer *w, int run, uint8_t *to, const vector line[HALVES])
{
    if (w->way != STREAM_SHIFTED) {
        put_line(to, line, w->way == STREAM);
        return;
    }
    uint8_t *rest = w->rest[run];
    if (!w->is_first) {
        vector shifted[HALVES];
        shift_line(rest, line, w->shift, shifted);
        put_line(to - w->shift, shifted, true);
    }
    put_line(rest, line, false);
    if (w->is_first) {
        memcpy(to, rest, (size_t)(LINE - w->shift));
    }
}

/* Asks for the lines that runs of so many bytes, the first at base + offset, share with what is beside them: they are
   not streamed. Offsets may lie past the end of the target. */
ALWAYS_INLINE void ask_for_ends(const writer *w, int runs, const uint8_t *base, int64_t offset, int64_t stride,
                                int64_t bytes)
{
    for (int run = 0; run < runs && w->way == STREAM_SHIFTED; run++) {
        prefetch(base, offset + run * stride);
        prefetch(base, offset + run * stride + bytes - 1);
    }
}

/* What is left of a run, once its last line was put. */
ALWAYS_INLINE void put_rest(const writer *w, int run, uint8_t *end)
{
    if (w->way == STREAM_SHIFTED) {
        memcpy(end - w->shift, w->rest[run] + LINE - w->shift, (size_t)w->shift);
    }
}

/* Of runs whose ends lie `stride` apart. */
ALWAYS_INLINE void put_rests(const writer *w, int runs, uint8_t *end, int64_t stride)
{
    for (int run = 0; run < runs && w->way == STREAM_SHIFTED; run++) {
        put_rest(w, run, end + run * stride);
    }
}

/* Runs of cache lines to ask for, a few at a time; hints alone, so they may lie past the end of the source. */
typedef struct ahead {
    uintptr_t run;
    uintptr_t stride;
    int64_t runs;
    int64_t line, lines;
} ahead;

static inline ahead ahead_of(const uint8_t *from, int64_t offset, int64_t stride, int64_t runs, int64_t bytes)
{
    const int64_t lines = (bytes + LINE - 1) / LINE;
    return (ahead){(uintptr_t)from + (uintptr_t)offset, (uintptr_t)stride, runs, 0, lines};
}

static inline void ask(ahead *next, int64_t count)
{
    while (count > 0 && next->runs > 0) {
        const int64_t left = next->lines - next->line, n = count < left ? count : left;
        for (int64_t i = next->line; i < next->line + n; i++) {
            prefetch_far((const uint8_t *)next->run, LINE * i);
        }
        count -= n;
        next->line += n;
        if (n == left) {
            next->line = 0;
            next->run += next->stride;
            next->runs--;
        }
    }
}

#endif

/* What the column-major kernels of both x86 instruction sets share: which lines to ask for, which columns to join. */
#ifndef AWQPACK_PANEL_H
#define AWQPACK_PANEL_H

#include "kernels.h"

#include <immintrin.h>

enum {
    GROUP = 16,             /* payload bytes of a row that are transposed together ... */
    GROUP_COLS = 2 * GROUP, /* ... and the columns they hold */
    BLOCK_GROUPS = AWQ_BLOCK_BYTES / GROUP,
    TILE = AWQ_PANEL_STEP, /* rows that are transposed together: a line of a column */
    SLICE_ROWS = 512, /* of a panel that is unpacked at once */
    MAX_TILES = SLICE_ROWS / TILE,
    PANEL_LINE = 64,        /* bytes of a cache line */
    STRIP = 8,              /* payload bytes of a row that are packed together ... */
    STRIP_COLS = 2 * STRIP, /* ... from columns that are read side by side */
    PIECE = STRIP * TILE,   /* bytes of a strip of one tile */
};

/* Offsets of the columns that `bytes` payload bytes of a row hold from byte `first` on: low, high nibble of each in turn. */
static inline void find_columns(awq_layout layout, int64_t first, int64_t bytes, int64_t col_stride, int64_t *columns)
{
    for (int64_t i = 0; i < bytes; i++) {
        const int64_t at = first + i, block = at / AWQ_BLOCK_BYTES * AWQ_BLOCK_CODES;
        const int byte = (int)(at % AWQ_BLOCK_BYTES);
        columns[2 * i] = (block + awq_low_column(layout, byte)) * col_stride;
        columns[2 * i + 1] = (block + awq_high_column(layout, byte)) * col_stride;
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
    const int64_t lines = (bytes + PANEL_LINE - 1) / PANEL_LINE;
    return (ahead){(uintptr_t)from + (uintptr_t)offset, (uintptr_t)stride, runs, 0, lines};
}

/* Into the second-level cache, as the columns of a large matrix fall on the same few sets of the first. */
static inline void ask(ahead *next, int count)
{
    for (int i = 0; i < count && next->runs > 0; i++) {
        _mm_prefetch((const void *)(next->run + PANEL_LINE * (uintptr_t)next->line), _MM_HINT_T1);
        if (++next->line == next->lines) {
            next->line = 0;
            next->run += next->stride;
            next->runs--;
        }
    }
}

/* Bytes of a run before its first whole line. */
static inline int64_t bytes_to_line(const uint8_t *p, int64_t bytes)
{
    const int64_t head = (int64_t)(-(uintptr_t)p % PANEL_LINE);
    return head < bytes ? head : bytes;
}

/* A tile of pieces on its way to the payload. */
typedef struct outgoing {
    const uint8_t *pieces;
    const uint16_t *places; /* of the tile's pieces, strip by strip */
    int64_t strips;
    awq_panel_walk to;
    uint8_t *target;
    int64_t pair, strip; /* what is sent next: rows 16 * l + 2 * pair and the one below it, of each l, from that strip on */
} outgoing;

/* Past the strips that were sent; past the pairs too, once these were the last. */
static inline void go_on(outgoing *o, int64_t strips, int64_t pairs)
{
    o->strip += strips;
    if (o->strip >= o->strips) {
        o->strip = 0;
        o->pair += pairs;
    }
}

#endif

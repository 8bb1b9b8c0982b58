/* What the column-major kernels of both x86 instruction sets share: slices, which lines to ask for, which columns to join.
   Included below avx2.h or avx512.h, which say what a LINE is. */
#ifndef AWQPACK_PANEL_H
#define AWQPACK_PANEL_H

#include "kernels.h"
#include "walk.h"

#include <immintrin.h>

enum {
    GROUP = 16,             /* payload bytes of a row that are transposed together ... */
    GROUP_COLS = 2 * GROUP, /* ... and the columns they hold */
    BLOCK_GROUPS = AWQ_BLOCK_BYTES / GROUP,
    TILE = AWQ_PANEL_STEP, /* rows that are transposed together: a line of a column */
    SLICE_ROWS = 512, /* of a panel that is unpacked at once */
    MAX_TILES = SLICE_ROWS / TILE,
    STRIP = 8,              /* payload bytes of a row that are packed together ... */
    STRIP_COLS = 2 * STRIP, /* ... from columns that are read side by side */
    PIECE = STRIP * TILE,   /* bytes of a strip of one tile */
};

/*
 * How a column-major panel is packed. It is cut into slices of half a MiB of payload, measured to be best where the second-level
 * cache holds that and where it holds a little less. A slice is read column by column, in long runs as DRAM and the prefetchers
 * want it, and written row by row. What was read waits in pieces: 64 rows of a strip of payload bytes, already half turned.
 */

/*
 * What is packed: `tiles` tiles of each column, in slices of slice_cols columns at most that end with a span of span_tiles
 * tiles, a page of a column or a part of one: the processor sees reads coming within a page. The first tile is the lead-th of
 * its span.
 */
typedef struct extent {
    int64_t cols, tiles, lead;
    int64_t slice_cols, span_tiles;
} extent;

static inline extent extent_of(const uint8_t *codes, int64_t rows, int64_t cols, int64_t slice_cols, int64_t span_tiles)
{
    return (extent){cols, rows / TILE, (int64_t)((uintptr_t)codes / TILE % (uintptr_t)span_tiles), slice_cols, span_tiles};
}

/* Tiles first..first + tiles - 1 of `strips` strips from column `col`; none when tiles is 0. */
typedef struct slice {
    int64_t col, strips;
    int64_t first, tiles;
} slice;

/* A slice takes in the odd tile before or after its span. */
static inline slice slice_at(const extent *all, int64_t col, int64_t first)
{
    const int64_t rest = all->cols - col, left = all->tiles - first, most = all->span_tiles + 1;
    if (rest <= 0) {
        return (slice){.col = all->cols};
    }
    const int64_t span = all->span_tiles - (all->lead + first) % all->span_tiles;
    const int64_t whole = span == 1 ? most : span, tiles = left <= whole + 1 ? left : whole;
    return (slice){col, (rest < all->slice_cols ? rest : all->slice_cols) / STRIP_COLS, first, tiles < most ? tiles : most};
}

/* Down the tiles of some columns, then on to the next columns. */
static inline slice slice_after(const extent *all, const slice *s)
{
    const bool is_below = s->first + s->tiles < all->tiles;
    return slice_at(all, is_below ? s->col : s->col + all->slice_cols, is_below ? s->first + s->tiles : 0);
}

/* Offsets of the columns that `bytes` payload bytes of a row hold from byte `first` on: low, high nibble of each in turn. */
static inline void find_columns(awq_packing packing, int64_t first, int64_t bytes, int64_t col_stride, int64_t *columns)
{
    for (int64_t i = 0; i < bytes; i++) {
        const int64_t at = first + i, block = at / AWQ_BLOCK_BYTES * AWQ_BLOCK_CODES;
        const int byte = (int)(at % AWQ_BLOCK_BYTES);
        columns[2 * i] = (block + awq_low_column(packing, byte)) * col_stride;
        columns[2 * i + 1] = (block + awq_high_column(packing, byte)) * col_stride;
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

/* Into the second-level cache, as the columns of a large matrix fall on the same few sets of the first. */
static inline void ask(ahead *next, int count)
{
    for (int i = 0; i < count && next->runs > 0; i++) {
        _mm_prefetch((const void *)(next->run + LINE * (uintptr_t)next->line), _MM_HINT_T1);
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
    const int64_t head = (int64_t)(-(uintptr_t)p % LINE);
    return head < bytes ? head : bytes;
}

#endif

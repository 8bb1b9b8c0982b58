/* Column-major V1 and V2 for both x86 instruction sets: slices, pieces, transposes, and the half of unpacking that
   writes codes. Included below avx2.h or avx512.h, whose primitives it is made of. */
#ifndef AWQPACK_PANEL_H
#define AWQPACK_PANEL_H

#include "walk.h"

enum {
    GROUP = 16,             /* payload bytes of a row that are transposed together ... */
    GROUP_COLS = 2 * GROUP, /* ... and the columns they hold */
    BLOCK_GROUPS = AWQ_BLOCK_BYTES / GROUP,
    TILE = AWQ_PANEL_STEP, /* rows that are transposed together: a line of a column */
    SLICE_ROWS = 512,      /* of a panel that is unpacked at once */
    MAX_TILES = SLICE_ROWS / TILE,
    STRIP = 8,              /* payload bytes of a row that are packed together ... */
    STRIP_COLS = 2 * STRIP, /* ... from columns that are read side by side */
    PIECE = STRIP * TILE,   /* bytes of a strip of one tile */
};

/*
 * How a column-major panel is packed. It is cut into slices of half a MiB of payload, measured to be best where the
 * second-level cache holds that and where it holds a little less. A slice is read column by column, in long runs as
 * DRAM and the prefetchers want it, and written row by row. What was read waits in pieces: 64 rows of a strip of
 * payload bytes, already half turned.
 */

/*
 * What is packed: `tiles` tiles of each column, in slices of slice_cols columns at most that end with a span of
 * span_tiles tiles, a page of a column or a part of one: the processor sees reads coming within a page. The first tile
 * is the lead-th of its span.
 */
typedef struct extent {
    int64_t cols, tiles, lead;
    int64_t slice_cols, span_tiles;
} extent;

static inline extent extent_of(const uint8_t *codes, int64_t rows, int64_t cols, int64_t slice_cols, int64_t span_tiles)
{
    return (extent){cols, rows / TILE, (int64_t)((uintptr_t)codes / TILE % (uintptr_t)span_tiles), slice_cols,
                    span_tiles};
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
    return (slice){col, (rest < all->slice_cols ? rest : all->slice_cols) / STRIP_COLS, first,
                   tiles < most ? tiles : most};
}

/* Down the tiles of some columns, then on to the next columns. */
static inline slice slice_after(const extent *all, const slice *s)
{
    const bool is_below = s->first + s->tiles < all->tiles;
    return slice_at(all, is_below ? s->col : s->col + all->slice_cols, is_below ? s->first + s->tiles : 0);
}

/* Transposes the 16 x 16 bytes of each 128-bit lane: four perfect shuffles of sixteen vectors. */
static inline void transpose_lanes(vector v[16])
{
    vector t[16];
#pragma GCC unroll 2
    for (int pass = 0; pass < 2; pass++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            t[2 * i] = zip_low(v[i], v[i + 8]);
            t[2 * i + 1] = zip_high(v[i], v[i + 8]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            v[2 * i] = zip_low(t[i], t[i + 8]);
            v[2 * i + 1] = zip_high(t[i], t[i + 8]);
        }
    }
}

/*
 * A piece is lines 0..7: 16 bytes l of line j are those of rows 16l + 2j and 16l + 2j + 1. Three perfect shuffles of
 * eight vectors turn 8 columns by 16 rows of each 128-bit lane into that. Each line of codes is read at once: where
 * columns are a power of two apart, all sixteen fall on one set of the cache.
 */
static inline void join_piece(const uint8_t *restrict codes, const int64_t *columns, uint8_t *restrict piece,
                              vector *seen)
{
    vector halves[HALVES][STRIP], t[STRIP];
#pragma GCC unroll 8
    for (int i = 0; i < STRIP; i++) {
        const uint8_t *low = codes + columns[2 * i], *high = codes + columns[2 * i + 1];
#pragma GCC unroll 2
        for (int h = 0; h < HALVES; h++) {
            halves[h][i] = join(load(low + VECTOR * h), load(high + VECTOR * h), seen);
        }
    }
    for (int h = 0; h < HALVES; h++) {
        vector *v = halves[h];
#pragma GCC unroll 3
        for (int pass = 0; pass < 3; pass++) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                t[2 * i] = zip_low(v[i], v[i + 4]);
                t[2 * i + 1] = zip_high(v[i], v[i + 4]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < STRIP; i++) {
                v[i] = t[i];
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < STRIP; j++) {
            put(piece + LINE * j + VECTOR * h, v[j], false);
        }
    }
}

/* A part of a panel of at most SLICE_ROWS rows, from row `row` on. */
static inline awq_panel slice_of(const awq_panel *panel, int64_t row)
{
    awq_panel part = *panel;
    part.codes += row;
    part.payload += awq_panel_offset(panel, row, 0);
    part.rows = panel->rows - row < SLICE_ROWS ? panel->rows - row : SLICE_ROWS;
    return part;
}

/* Asks for the ends of the columns of a group, which are not streamed. */
static inline void ask_for_column_ends(const uint8_t *codes, const int64_t *columns, int64_t rows)
{
    for (int i = 0; i < GROUP_COLS; i++) {
        prefetch(codes, columns[i]);
        prefetch(codes, columns[i] + rows - 1);
    }
}

static inline void split_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, int shift, bool stream);

/* Writes a slice's columns of codes from its transposed payload bytes: byte b of row r at scratch[b * pitch + r]. */
static inline void write_columns(const awq_panel *part, const uint8_t *restrict scratch, int64_t pitch)
{
    const int64_t line_rows = awq_line_rows(part), lines = TILE / line_rows;
    const bool has_ends = part->stream && ((uintptr_t)part->codes | (uintptr_t)part->col_stride) % LINE != 0;
    ahead below = ahead_of(part->payload, part->rows / line_rows * part->line_stride, part->line_stride, lines,
                           part->cols / 2 * line_rows);
    int64_t all[AWQ_PANEL_COLS];
    awq_find_columns(part, part->cols, all);
    for (int64_t g = 0; g < part->cols / GROUP_COLS; g++) {
        const int64_t *columns = all + g * GROUP_COLS;
        if (has_ends) {
            ask_for_column_ends(part->codes, columns, part->rows);
        }
        for (int i = 0; i < GROUP; i++) {
            const uint8_t *bytes = scratch + (g * GROUP + i) * pitch;
            ask(&below, 1);
            split_run(part->codes + columns[2 * i], bytes, part->rows, 0, part->stream);
            split_run(part->codes + columns[2 * i + 1], bytes, part->rows, 4, part->stream);
        }
    }
}

#endif

/*
 * How a column-major panel is packed: included by the file of an instruction set, below its SEEN, PIECES, join_piece,
 * send_v1_unit and send_v2_unit.
 *
 * The panel is cut into slices, as many codes as the second-level cache has room for. One slice is read, column by column
 * in long runs as DRAM and the prefetchers want it, while the one before is written, row by row: a step of one and a step
 * of the other take turns. What was read waits in pieces: 64 rows of a strip of payload bytes, already half turned.
 */
#ifndef AWQPACK_PANEL_PACK_H
#define AWQPACK_PANEL_PACK_H

#include "panel.h"

#include <stdalign.h>

enum {
    SLICE_COLS = 256, /* V1 rows are written in runs of two cache lines, V2 rows in runs of eight */
    SLICE_STRIPS = SLICE_COLS / STRIP_COLS,
    SLICE_TILES = 64, /* at most: a column of them is a page, in which the processor sees reads coming */
    HEAD = 1,         /* lines of the next columns that are asked for, as it does not see those */
};

/* What is packed: `tiles` tiles of each column. */
typedef struct extent {
    int64_t cols, tiles;
} extent;

/* Tiles first..first + tiles - 1 of `strips` strips from column `col`; none when tiles is 0. */
typedef struct slice {
    int64_t col, strips;
    int64_t first, tiles;
} slice;

static inline slice slice_at(const extent *all, int64_t col, int64_t first)
{
    const int64_t rest = all->cols - col;
    if (rest <= 0) {
        return (slice){.col = all->cols};
    }
    const int64_t strips = (rest < SLICE_COLS ? rest : SLICE_COLS) / STRIP_COLS;
    const int64_t room = (PIECES - SLICE_STRIPS) / strips; /* as the pieces of one more tile are being written */
    const int64_t most = room < SLICE_TILES ? room : SLICE_TILES, tiles = all->tiles - first;
    return (slice){col, strips, first, tiles < most ? tiles : most};
}

/* Down the tiles of some columns, then on to the next columns. */
static inline slice slice_after(const extent *all, const slice *s)
{
    const bool is_below = s->first + s->tiles < all->tiles;
    return slice_at(all, is_below ? s->col : s->col + SLICE_COLS, is_below ? s->first + s->tiles : 0);
}

/* Asks for a line of each column of a strip; a hint alone, so it may lie past the end of the codes. */
static inline void ask_for_lines(const uint8_t *codes, const int64_t *columns, int64_t ahead)
{
    for (int i = 0; i < STRIP_COLS; i++) {
        _mm_prefetch((const void *)((uintptr_t)codes + (uintptr_t)(columns[i] + ahead)), _MM_HINT_T1);
    }
}

/* Inlined for a constant is_v2. */
static inline __attribute__((always_inline)) uint8_t
pack_slices(awq_layout layout, bool is_v2, const uint8_t *restrict codes, int64_t col_stride, uint8_t *restrict payload,
            int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    const extent all = {cols, rows / TILE};
    const int64_t quad = is_v2 ? AWQ_QUAD_ROWS : 1, tile_runs = TILE / quad; /* payload rows of a tile */
    const bool has_ends = stream && ((uintptr_t)payload | (uintptr_t)payload_stride) % PANEL_LINE != 0; /* not streamed */
    alignas(PANEL_LINE) uint8_t pieces[PIECES * PIECE];
    alignas(PANEL_LINE) uint8_t ready[TILE * (SLICE_COLS / 2 + PANEL_LINE)]; /* a tile with ends, before it is copied */
    uint16_t places[2][PIECES], unused[PIECES]; /* of the pieces of two slices, tile by tile; a ring of the other pieces */
    int64_t columns[SLICE_STRIPS][STRIP_COLS];
    int64_t taken = 0, freed = 0; /* positions in the ring */
    SEEN seen = {0};
    for (int i = 0; i < PIECES; i++) {
        unused[i] = (uint16_t)i;
    }
    for (int s = 0; s < SLICE_STRIPS; s++) {
        find_columns(layout, s * STRIP, STRIP, col_stride, columns[s]);
    }
    slice above = {0}, here = slice_at(&all, 0, 0);
    for (int turn = 0; above.tiles > 0 || here.tiles > 0; turn ^= 1) {
        const slice below = slice_after(&all, &here);
        const uint8_t *source = codes + here.col * col_stride + TILE * here.first;
        const int64_t to_next = (below.col - here.col) * col_stride + TILE * (below.first - here.first);
        const int64_t run = above.strips * STRIP * quad; /* bytes of a payload row */
        const int64_t reads = here.tiles * here.strips, rounds = above.tiles > 0 ? above.tiles : 1;
        const int64_t units = above.tiles == 0 ? 0 : is_v2 ? above.strips : STRIP * ((above.strips + 15) / 16);
        int64_t read = 0, tile = 0, strip = 0;
        for (int64_t t = 0; t < rounds; t++) { /* tile t of the slice above is written */
            const uint16_t *from = places[turn ^ 1] + t * above.strips;
            uint8_t *target = payload + (above.first + t) * tile_runs * payload_stride + above.col / 2 * quad;
            outgoing next = {.pieces = pieces,
                             .places = from,
                             .strips = above.strips,
                             .to = awq_panel_walk_of(layout, has_ends ? run + PANEL_LINE : payload_stride),
                             .target = has_ends ? ready : target};
            const int64_t count = reads * (t + 1) / rounds - read;
            int64_t sent = 0;
            for (int64_t i = 0; i < count || sent < units; i++) {
                if (i < count) {
                    const uint16_t place = unused[taken];
                    taken = taken + 1 == PIECES ? 0 : taken + 1;
                    places[turn][tile * here.strips + strip] = place;
                    if (tile + HEAD >= here.tiles) {
                        const bool is_last = strip + 1 == here.strips;
                        ask_for_lines(source + TILE * (tile + HEAD - here.tiles), columns[is_last ? 0 : strip + 1],
                                      is_last ? to_next : 0);
                    }
                    join_piece(source + TILE * tile, columns[strip], pieces + PIECE * place, &seen);
                    if (++tile == here.tiles) {
                        tile = 0;
                        strip++;
                    }
                }
                for (; sent < units && (i >= count || sent * count < units * (i + 1)); sent++) {
                    if (is_v2) {
                        send_v2_unit(&next, stream && !has_ends);
                    } else {
                        send_v1_unit(&next, stream && !has_ends);
                    }
                }
            }
            read += count;
            for (int64_t i = 0; i < above.strips; i++) {
                unused[freed] = from[i];
                freed = freed + 1 == PIECES ? 0 : freed + 1;
            }
            for (int64_t i = 0; i < tile_runs && has_ends && units > 0; i++) {
                copy_run(target + i * payload_stride, ready + i * (run + PANEL_LINE), run, true);
            }
        }
        above = here;
        here = below;
    }
    if (stream) {
        _mm_sfence();
    }
    return or_bytes(seen);
}

/* Two functions, so that the stack of one need not hold the scratch of both. */
static __attribute__((noinline)) uint8_t pack_v1_panel(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                                                       uint8_t *restrict payload, int64_t payload_stride, int64_t rows,
                                                       int64_t cols, bool stream)
{
    return pack_slices(layout, false, codes, col_stride, payload, payload_stride, rows, cols, stream);
}

static __attribute__((noinline)) uint8_t pack_v2_panel(const uint8_t *restrict codes, int64_t col_stride,
                                                       uint8_t *restrict payload, int64_t payload_stride, int64_t rows,
                                                       int64_t cols, bool stream)
{
    return pack_slices(AWQ_LAYOUT_V2, true, codes, col_stride, payload, payload_stride, rows, cols, stream);
}

static uint8_t pack_panel(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride, uint8_t *restrict payload,
                          int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    return layout == AWQ_LAYOUT_V2
               ? pack_v2_panel(codes, col_stride, payload, payload_stride, rows, cols, stream)
               : pack_v1_panel(layout, codes, col_stride, payload, payload_stride, rows, cols, stream);
}

#endif

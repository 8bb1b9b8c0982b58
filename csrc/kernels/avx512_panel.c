/*
 * Column-major panels for AVX-512. Packing: one slice is read while the one before is written, a step of one and a step
 * of the other in turn. Unpacking: in two phases with a slice's payload between them in the second-level cache, one of
 * which reads it in long runs and the other writes codes in long runs.
 */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"
#include "panel.h"

#include <stdalign.h>

enum {
    MAX_GROUPS = AWQ_PANEL_COLS / GROUP_COLS,
    /* of a panel that is packed at once: V1 rows are written in runs of two lines, V2 rows of eight */
    SLICE_COLS = 256,
    SLICE_STRIPS = SLICE_COLS / STRIP_COLS,
    SPAN_TILES = 64,
    /* of the longest slice, and of one tile of the slice that is read or written beside it */
    PIECES = SLICE_STRIPS * (SPAN_TILES + 2),
};

/* A tile of pieces on its way to the payload. */
typedef struct outgoing {
    const uint8_t *pieces;
    const uint16_t *places; /* of the tile's pieces, strip by strip */
    int64_t strips;
    awq_panel_walk to;
    uint8_t *target;
    /* what is sent next: rows 16 * l + 2 * pair and the one below it, of each l, from that strip on */
    int64_t pair, strip;
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

/* Sixteen bytes of the two rows that each lane of two strips' vectors holds. */
static inline void split_pair(const uint8_t *first, const uint8_t *second, vector *even, vector *odd)
{
    const vector a = load(first), b = load(second);
    *even = _mm512_unpacklo_epi64(a, b);
    *odd = _mm512_unpackhi_epi64(a, b);
}

/* Four rows of a block, 128 bytes, of each lane. */
static inline void send_v2_unit(outgoing *o, bool stream)
{
    const uint8_t *from = o->pieces + LINE * o->pair;
    const uint16_t *at = o->places + o->strip;
    uint8_t *to = o->target + o->strip / 4 * o->to.block + awq_panel_row(&o->to, 2 * o->pair);
    vector v[2][4]; /* lines of two rows */
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++, from += LINE) {
        split_pair(from + PIECE * at[0], from + PIECE * at[1], &v[k][0], &v[k][2]);
        split_pair(from + PIECE * at[2], from + PIECE * at[3], &v[k][1], &v[k][3]);
        transpose_four(v[k]);
    }
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++, to += GROUP / AWQ_QUAD_ROWS * o->to.quad) {
        put(to, v[0][l], stream);
        put(to + LINE, v[1][l], stream);
    }
    go_on(o, 4, 2);
}

/* Two lines, or the line and a half or less that are left, of two rows of each lane. */
static inline void send_v1_unit(outgoing *o, bool stream)
{
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * o->to.quad, rest = o->strips - o->strip;
    const uint8_t *from = o->pieces + LINE * o->pair;
    const uint16_t *at = o->places + o->strip;
    uint8_t *to = o->target + o->strip * STRIP + awq_panel_row(&o->to, 2 * o->pair);
    vector v[2][2][4]; /* [row][line][lane] */
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            const int strip = 8 * h + 2 * k;
            if (strip < rest) {
                split_pair(from + PIECE * at[strip], from + PIECE * at[strip + 1], &v[0][h][k], &v[1][h][k]);
            } else {
                v[0][h][k] = v[1][h][k] = _mm512_setzero_si512();
            }
        }
        transpose_four(v[0][h]);
        transpose_four(v[1][h]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        uint8_t *p = to + i % 4 * lane + i / 4 * o->to.row;
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            if (rest >= 8 * (h + 1)) {
                put(p + LINE * h, v[i / 4][h][i % 4], stream);
            } else if (rest > 8 * h) {
                _mm256_storeu_si256((void *)(p + LINE * h), _mm512_castsi512_si256(v[i / 4][h][i % 4]));
            }
        }
    }
    go_on(o, 16, 1);
}

/* What packing keeps between slices. */
typedef struct mill {
    const awq_panel *panel;
    bool has_ends; /* lines that are not streamed: a tile is made ready, then copied */
    uint8_t *pieces, *ready;
    uint16_t places[2][PIECES]; /* of the pieces of two slices, tile by tile */
    uint16_t unused[PIECES];    /* a ring of the other pieces, ... */
    int64_t taken, freed;       /* ... and positions in it */
    int64_t columns[SLICE_STRIPS][STRIP_COLS];
} mill;

static inline int64_t after(int64_t position)
{
    return position + 1 == PIECES ? 0 : position + 1;
}

static inline void start_mill(mill *m, const awq_panel *panel)
{
    m->panel = panel;
    m->has_ends = panel->stream && ((uintptr_t)panel->payload | (uintptr_t)panel->line_stride) % LINE != 0;
    m->pieces = panel->scratch;
    m->ready = panel->scratch + PIECES * PIECE;
    m->taken = m->freed = 0;
    for (int i = 0; i < PIECES; i++) {
        m->unused[i] = (uint16_t)i;
    }
    awq_find_columns(panel, SLICE_COLS, m->columns[0]);
}

/* A slice on its way in, strip by strip. */
typedef struct incoming {
    const uint8_t *source;
    uint16_t *places;
    int64_t tiles, strips, tile, strip;
} incoming;

ALWAYS_INLINE void read_piece(mill *m, incoming *in, vector *seen)
{
    const uint16_t place = m->unused[m->taken];
    m->taken = after(m->taken);
    in->places[in->tile * in->strips + in->strip] = place;
    join_piece(in->source + TILE * in->tile, m->columns[in->strip], m->pieces + PIECE * place, seen);
    if (++in->tile == in->tiles) {
        in->tile = 0;
        in->strip++;
    }
}

/* Where tile t of a slice goes, whose pieces wait at `places`. */
static inline outgoing outgoing_of(const mill *m, const slice *s, const uint16_t *places, uint8_t *target, int64_t run)
{
    return (outgoing){.pieces = m->pieces,
                      .places = places,
                      .strips = s->strips,
                      .to = awq_panel_walk_of(m->panel->packing, m->has_ends ? run + LINE : m->panel->line_stride),
                      .target = m->has_ends ? m->ready : target};
}

/* Reads `count` pieces and sends `units` units, in turn. */
ALWAYS_INLINE void read_and_send(mill *m, incoming *in, int64_t count, outgoing *out, int64_t units, bool is_v2,
                                 vector *seen)
{
    const bool stream = m->panel->stream && !m->has_ends;
    int64_t sent = 0;
    for (int64_t i = 0; i < count || sent < units; i++) {
        if (i < count) {
            read_piece(m, in, seen);
        }
        for (; sent < units && (i >= count || sent * count < units * (i + 1)); sent++) {
            if (is_v2) {
                send_v2_unit(out, stream);
            } else {
                send_v1_unit(out, stream);
            }
        }
    }
}

/* Reads one slice while the one above it is written. */
ALWAYS_INLINE void run_mill(mill *m, const slice *above, const slice *here, int turn, bool is_v2, vector *seen)
{
    const awq_panel *p = m->panel;
    const int64_t line_rows = is_v2 ? AWQ_QUAD_ROWS : 1, lines = TILE / line_rows; /* of a tile */
    const int64_t run = above->strips * STRIP * line_rows;                         /* bytes of a line */
    const int64_t reads = here->tiles * here->strips, rounds = above->tiles > 0 ? above->tiles : 1;
    const int64_t units = above->tiles == 0 ? 0 : is_v2 ? above->strips : STRIP * ((above->strips + 15) / 16);
    incoming in = {
        p->codes + here->col * p->col_stride + TILE * here->first, m->places[turn], here->tiles, here->strips, 0, 0};
    int64_t read = 0;
    for (int64_t t = 0; t < rounds; t++) { /* tile t of the slice above is written */
        const uint16_t *from = m->places[turn ^ 1] + t * above->strips;
        uint8_t *target = p->payload + (above->first + t) * lines * p->line_stride + above->col / 2 * line_rows;
        outgoing out = outgoing_of(m, above, from, target, run);
        const int64_t count = reads * (t + 1) / rounds - read;
        read_and_send(m, &in, count, &out, units, is_v2, seen);
        read += count;
        for (int64_t i = 0; i < above->strips; i++, m->freed = after(m->freed)) {
            m->unused[m->freed] = from[i];
        }
        for (int64_t i = 0; i < lines && m->has_ends && units > 0; i++) {
            copy_run(target + i * p->line_stride, m->ready + i * (run + LINE), run, true);
        }
    }
}

ALWAYS_INLINE uint8_t pack_slices(const awq_panel *panel, bool is_v2)
{
    const extent all = extent_of(panel->codes, panel->rows, panel->cols, SLICE_COLS, SPAN_TILES);
    mill m;
    vector seen = no_codes();
    start_mill(&m, panel);
    slice above = {0}, here = slice_at(&all, 0, 0);
    for (int turn = 0; above.tiles > 0 || here.tiles > 0; turn ^= 1) {
        run_mill(&m, &above, &here, turn, is_v2, &seen);
        above = here;
        here = slice_after(&all, &above);
    }
    return or_bytes(seen);
}

uint8_t awq_avx512_pack_v1_panel(const awq_panel *panel)
{
    return pack_slices(panel, false);
}

uint8_t awq_avx512_pack_v2_panel(const awq_panel *panel)
{
    return pack_slices(panel, true);
}

/* The mirror of a tile's units: groups of payload bytes of its rows, lane by lane. */
static inline void get_tile(const awq_panel *part, int64_t row, vector *tile, int groups, int pitch, ahead *next)
{
    const awq_panel_walk from = awq_panel_walk_of(part->packing, part->line_stride);
    const uint8_t *payload = part->payload + awq_panel_row(&from, row);
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * from.quad;
    const int step = awq_line_rows(part) == 1 ? 1 : 2; /* rows that a line of the cache holds */
    for (int j = 0; j < GROUP; j += step) {
        vector *first = tile + j * pitch;
        vector *second = step == 2 ? first + pitch : first + BLOCK_GROUPS;
        const uint8_t *source = payload + awq_panel_row(&from, j);
        for (int g = 0; g < groups; g += 4 / step) {
            const bool is_line = g + 4 / step <= groups;
            vector v[4];
            ask(next, 4);
            for (int l = 0; l < 4; l++) {
                const uint8_t *p = source + l * lane + g / BLOCK_GROUPS * from.block;
                v[l] = is_line ? load(p) : _mm512_castsi256_si512(_mm256_loadu_si256((const void *)p));
            }
            transpose_four(v);
            first[g] = v[0];
            first[g + 1] = v[1];
            if (is_line) {
                second[g] = v[2];
                second[g + 1] = v[3];
            }
        }
    }
}

/* One column of codes, from the bytes it shares with another. */
static inline void split_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, int shift, bool stream)
{
    const int64_t head = stream ? bytes_to_line(to, bytes) : 0;
    if (head > 0) {
        _mm512_mask_storeu_epi8(to, first_bytes(head),
                                nibbles(_mm512_maskz_loadu_epi8(first_bytes(head), from), shift));
    }
    int64_t i = head;
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, nibbles(load(from + i), shift), stream);
    }
    if (i < bytes) {
        const uint64_t rest = first_bytes(bytes - i);
        _mm512_mask_storeu_epi8(to + i, rest, nibbles(_mm512_maskz_loadu_epi8(rest, from + i), shift));
    }
}

/* Reads a slice's lines, and turns its bytes into scratch: see write_columns. */
static inline void read_lines(const awq_panel *part, vector *restrict scratch, int column_pitch)
{
    const int groups = (int)(part->cols / GROUP_COLS), tiles = (int)(part->rows / TILE), pitch = groups + 1;
    const int64_t line_rows = awq_line_rows(part), lines = TILE / line_rows;
    vector tile[GROUP * (MAX_GROUPS + 1)];
    ahead next = ahead_of(part->payload, lines * part->line_stride, part->line_stride, (tiles - 1) * lines,
                          part->cols / 2 * line_rows);
    for (int t = 0; t < tiles; t++) {
        get_tile(part, TILE * t, tile, groups, pitch, &next);
        for (int g = 0; g < groups; g++) {
            vector v[GROUP];
#pragma GCC unroll 16
            for (int j = 0; j < GROUP; j++) {
                v[j] = tile[j * pitch + g];
            }
            transpose_lanes(v);
#pragma GCC unroll 16
            for (int i = 0; i < GROUP; i++) {
                scratch[(g * GROUP + i) * column_pitch + t] = v[i];
            }
        }
    }
}

uint8_t awq_avx512_unpack_panel(const awq_panel *panel)
{
    for (int64_t row = 0; row < panel->rows; row += SLICE_ROWS) {
        const awq_panel part = slice_of(panel, row);
        const int pitch = (int)(part.rows / TILE) + 1; /* in vectors */
        read_lines(&part, (vector *)panel->scratch, pitch);
        write_columns(&part, panel->scratch, (int64_t)sizeof(vector) * pitch);
    }
    return 0;
}

TARGET_END
#endif

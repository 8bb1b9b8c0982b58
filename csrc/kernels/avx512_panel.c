/*
 * Column-major panels for AVX-512. Packing: one slice is read while the one before is written, a step of one and a step of
 * the other in turn. Unpacking: in two phases with a slice's payload between them in the second-level cache, one of which
 * reads it in long runs and the other writes codes in long runs.
 */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"
#include "panel.h"

#include <stdalign.h>

enum {
    MAX_GROUPS = AWQ_PANEL_COLS / GROUP_COLS,
    SLICE_COLS = 256, /* of a panel that is packed at once: V1 rows are written in runs of two lines, V2 rows of eight */
    SLICE_STRIPS = SLICE_COLS / STRIP_COLS,
    SPAN_TILES = 64,
    PIECES = SLICE_STRIPS * (SPAN_TILES + 2), /* of the longest slice, and of one tile of the slice that is read or written beside it */
};

/* Transposes the 16 x 16 bytes of each 128-bit lane: four perfect shuffles of sixteen vectors. */
static inline void transpose_lanes(__m512i v[16])
{
    __m512i t[16];
#pragma GCC unroll 2
    for (int pass = 0; pass < 2; pass++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            t[2 * i] = _mm512_unpacklo_epi8(v[i], v[i + 8]);
            t[2 * i + 1] = _mm512_unpackhi_epi8(v[i], v[i + 8]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            v[2 * i] = _mm512_unpacklo_epi8(t[i], t[i + 8]);
            v[2 * i + 1] = _mm512_unpackhi_epi8(t[i], t[i + 8]);
        }
    }
}

/* Transposes 4 x 4 lanes. */
static inline void transpose_four(__m512i v[4])
{
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    const __m512i d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

static inline void put(uint8_t *p, __m512i v, bool stream)
{
    if (stream) {
        _mm512_stream_si512((void *)p, v);
    } else {
        _mm512_storeu_si512(p, v);
    }
}

/* A run of a payload row that starts anywhere; only its whole lines are streamed. */
static inline void copy_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, bool stream)
{
    const int64_t head = stream ? bytes_to_line(to, bytes) : 0;
    _mm512_mask_storeu_epi8(to, first_bytes(head), _mm512_maskz_loadu_epi8(first_bytes(head), from));
    int64_t i = head;
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, load(from + i), stream);
    }
    const uint64_t rest = first_bytes(bytes - i);
    _mm512_mask_storeu_epi8(to + i, rest, _mm512_maskz_loadu_epi8(rest, from + i));
}

/*
 * A piece is vectors 0..7: lane l of vector j holds the bytes of rows 16l + 2j and 16l + 2j + 1.
 * Three perfect shuffles of eight vectors turn 8 columns by 16 rows of each lane into that.
 */
static inline void join_piece(const uint8_t *restrict codes, const int64_t *columns, uint8_t *restrict piece, __m512i *seen)
{
    const __m512i mask = _mm512_set1_epi8(AWQ_CODE_MAX);
    __m512i v[STRIP], t[STRIP];
#pragma GCC unroll 8
    for (int i = 0; i < STRIP; i++) {
        const __m512i low = load(codes + columns[2 * i]), high = load(codes + columns[2 * i + 1]);
        *seen = _mm512_ternarylogic_epi64(*seen, low, high, 0xfe);
        v[i] = _mm512_ternarylogic_epi64(mask, low, _mm512_slli_epi16(high, 4), 0xca);
    }
#pragma GCC unroll 3
    for (int pass = 0; pass < 3; pass++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            t[2 * i] = _mm512_unpacklo_epi8(v[i], v[i + 4]);
            t[2 * i + 1] = _mm512_unpackhi_epi8(v[i], v[i + 4]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < STRIP; i++) {
            v[i] = t[i];
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < STRIP; j++) {
        put(piece + LINE * j, v[j], false);
    }
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

/* Sixteen bytes of the two rows that each lane of two strips' vectors holds. */
static inline void split_pair(const uint8_t *first, const uint8_t *second, __m512i *even, __m512i *odd)
{
    const __m512i a = load(first), b = load(second);
    *even = _mm512_unpacklo_epi64(a, b);
    *odd = _mm512_unpackhi_epi64(a, b);
}

/* Four rows of a block, 128 bytes, of each lane. */
static inline void send_v2_unit(outgoing *o, bool stream)
{
    const uint8_t *from = o->pieces + LINE * o->pair;
    const uint16_t *at = o->places + o->strip;
    uint8_t *to = o->target + o->strip / 4 * o->to.block + awq_panel_row(&o->to, 2 * o->pair);
    __m512i v[2][4]; /* lines of two rows */
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
    __m512i v[2][2][4]; /* [row][line][lane] */
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

/* Inlined for a constant is_v2. */
static inline __attribute__((always_inline)) uint8_t pack_slices(bool is_v2, const awq_panel *panel)
{
    const awq_packing packing = panel->packing;
    const uint8_t *restrict codes = panel->codes;
    uint8_t *restrict payload = panel->payload;
    const int64_t col_stride = panel->col_stride, payload_stride = panel->line_stride;
    const int64_t rows = panel->rows, cols = panel->cols;
    const bool stream = panel->stream;
    const extent all = extent_of(codes, rows, cols, SLICE_COLS, SPAN_TILES);
    const int64_t quad = awq_packings[packing].block_rows, tile_runs = TILE / quad; /* payload rows of a tile */
    const bool has_ends = stream && ((uintptr_t)payload | (uintptr_t)payload_stride) % LINE != 0; /* not streamed */
    uint8_t *restrict pieces = panel->scratch;
    uint8_t *restrict ready = pieces + PIECES * PIECE; /* a tile with ends, before it is copied */
    uint16_t places[2][PIECES], unused[PIECES]; /* of the pieces of two slices, tile by tile; a ring of the other pieces */
    int64_t columns[SLICE_STRIPS][STRIP_COLS];
    int64_t taken = 0, freed = 0; /* positions in the ring */
    __m512i seen = _mm512_setzero_si512();
    for (int i = 0; i < PIECES; i++) {
        unused[i] = (uint16_t)i;
    }
    for (int s = 0; s < SLICE_STRIPS; s++) {
        find_columns(packing, s * STRIP, STRIP, col_stride, columns[s]);
    }
    slice above = {0}, here = slice_at(&all, 0, 0);
    for (int turn = 0; above.tiles > 0 || here.tiles > 0; turn ^= 1) {
        const uint8_t *source = codes + here.col * col_stride + TILE * here.first;
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
                             .to = awq_panel_walk_of(packing, has_ends ? run + LINE : payload_stride),
                             .target = has_ends ? ready : target};
            const int64_t count = reads * (t + 1) / rounds - read;
            int64_t sent = 0;
            for (int64_t i = 0; i < count || sent < units; i++) {
                if (i < count) {
                    const uint16_t place = unused[taken];
                    taken = taken + 1 == PIECES ? 0 : taken + 1;
                    places[turn][tile * here.strips + strip] = place;
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
                copy_run(target + i * payload_stride, ready + i * (run + LINE), run, true);
            }
        }
        above = here;
        here = slice_after(&all, &above);
    }
    if (stream) {
        _mm_sfence();
    }
    return or_bytes(seen);
}

static uint8_t pack_v1_panel(const awq_panel *panel)
{
    return pack_slices(false, panel);
}

static uint8_t pack_v2_panel(const awq_panel *panel)
{
    return pack_slices(true, panel);
}

uint8_t awq_avx512_pack_panel(const awq_panel *panel)
{
    return panel->packing == AWQ_PACKING_V2 ? pack_v2_panel(panel) : pack_v1_panel(panel);
}

/* The mirror of put_tile. */
static inline void get_tile(const uint8_t *payload, awq_packing packing, int64_t payload_stride, __m512i *tile,
                            int groups, int pitch, ahead *next)
{
    const awq_panel_walk from = awq_panel_walk_of(packing, payload_stride);
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * from.quad;
    const int step = packing == AWQ_PACKING_V2 ? 2 : 1;
    for (int j = 0; j < GROUP; j += step) {
        __m512i *row = tile + j * pitch;
        __m512i *second = packing == AWQ_PACKING_V2 ? row + pitch : row + BLOCK_GROUPS;
        const uint8_t *source = payload + awq_panel_row(&from, j);
        for (int g = 0; g < groups; g += 4 / step) {
            const bool is_line = g + 4 / step <= groups;
            __m512i v[4];
            ask(next, 4);
            for (int l = 0; l < 4; l++) {
                const uint8_t *p = source + l * lane + g / BLOCK_GROUPS * from.block;
                v[l] = is_line ? load(p) : _mm512_castsi256_si512(_mm256_loadu_si256((const void *)p));
            }
            transpose_four(v);
            row[g] = v[0];
            row[g + 1] = v[1];
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
    const __m512i mask = _mm512_set1_epi8(AWQ_CODE_MAX);
    const __m128i by = _mm_cvtsi32_si128(shift);
    const int64_t head = stream ? bytes_to_line(to, bytes) : 0;
    if (head > 0) {
        const __m512i v = _mm512_maskz_loadu_epi8(first_bytes(head), from);
        _mm512_mask_storeu_epi8(to, first_bytes(head), _mm512_and_si512(_mm512_srl_epi16(v, by), mask));
    }
    int64_t i = head;
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, _mm512_and_si512(_mm512_srl_epi16(load(from + i), by), mask), stream);
    }
    if (i < bytes) {
        const uint64_t rest = first_bytes(bytes - i);
        const __m512i v = _mm512_maskz_loadu_epi8(rest, from + i);
        _mm512_mask_storeu_epi8(to + i, rest, _mm512_and_si512(_mm512_srl_epi16(v, by), mask));
    }
}

static void unpack_slice(awq_packing packing, const uint8_t *restrict payload, int64_t payload_stride,
                         uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream,
                         __m512i *restrict scratch) /* [payload byte][tile]: a byte of 64 rows */
{
    const int groups = (int)(cols / GROUP_COLS), tiles = (int)(rows / TILE);
    const int pitch = groups + 1, column_pitch = tiles + 1;
    const awq_panel_walk from = awq_panel_walk_of(packing, payload_stride);
    const int64_t quad = awq_packings[packing].block_rows;
    const int64_t run = cols / 2 * quad;
    const int64_t tile_lines = TILE / quad; /* payload rows */
    __m512i tile[GROUP * (MAX_GROUPS + 1)];
    ahead next = ahead_of(payload, tile_lines * payload_stride, payload_stride, (tiles - 1) * tile_lines, run);
    for (int t = 0; t < tiles; t++) {
        get_tile(payload + awq_panel_row(&from, TILE * t), packing, payload_stride, tile, groups, pitch, &next);
        for (int g = 0; g < groups; g++) {
            __m512i v[GROUP];
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
    const bool has_ends = stream && ((uintptr_t)codes | (uintptr_t)col_stride) % LINE != 0; /* not streamed */
    const int64_t below = tiles * tile_lines * payload_stride; /* the next panel */
    next = ahead_of(payload, below, payload_stride, tile_lines, run);
    for (int g = 0; g < groups; g++) {
        int64_t columns[GROUP_COLS];
        find_columns(packing, g * GROUP, GROUP, col_stride, columns);
        for (int i = 0; i < GROUP && has_ends; i++) {
            prefetch(codes, columns[2 * i]);
            prefetch(codes, columns[2 * i] + rows - 1);
            prefetch(codes, columns[2 * i + 1]);
            prefetch(codes, columns[2 * i + 1] + rows - 1);
        }
        for (int i = 0; i < GROUP; i++) {
            const uint8_t *bytes = (const uint8_t *)(scratch + (g * GROUP + i) * column_pitch);
            ask(&next, 1);
            split_run(codes + columns[2 * i], bytes, rows, 0, stream);
            split_run(codes + columns[2 * i + 1], bytes, rows, 4, stream);
        }
    }
    if (stream) {
        _mm_sfence();
    }
}

uint8_t awq_avx512_unpack_panel(const awq_panel *panel)
{
    const awq_packing packing = panel->packing;
    uint8_t *restrict codes = panel->codes;
    const uint8_t *restrict payload = panel->payload;
    const int64_t col_stride = panel->col_stride, payload_stride = panel->line_stride;
    const int64_t rows = panel->rows, cols = panel->cols;
    const bool stream = panel->stream;
    const awq_panel_walk from = awq_panel_walk_of(packing, payload_stride);
    for (int64_t r = 0; r < rows; r += SLICE_ROWS) {
        unpack_slice(packing, payload + awq_panel_row(&from, r), payload_stride, codes + r, col_stride,
                     rows - r < SLICE_ROWS ? rows - r : SLICE_ROWS, cols, stream, (__m512i *)panel->scratch);
    }
    return 0;
}

#endif

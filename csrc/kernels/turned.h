/* V1 beside a payload viewed transposed, for both x86 instruction sets: words of a row lie item_stride apart, and those
   of rows side by side. Included below rows.h, whose primitives and those of avx2.h or avx512.h it is made of. */
#ifndef AWQPACK_TURNED_H
#define AWQPACK_TURNED_H

#include "walk.h"
#include "words.h"

#include <stdalign.h>

enum {
    SIDE = LINE / AWQ_WORD_BYTES, /* words of a line, and rows whose words make one of the payload */
    TURNED_ROWS = 64,             /* of row-major codes that are taken together: runs of four lines of payload, ... */
    SHIFTED_ROWS = 256,           /* ... or of sixteen where they are shifted: longer runs have fewer ends */
};
_Static_assert(AWQ_TURNED_COLS == SIDE * AWQ_WORD_CODES, "a step of columns makes a line of words");

/* SIDE lines of words, one of each row, to the payload, or back. */
ALWAYS_INLINE void put_words(const uint8_t (*lines)[LINE], const writer *w, uint8_t *to, int64_t item_stride)
{
    for (int h = 0; h < LINE / VECTOR; h++) {
        vector v[4][4];
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                v[g][i] = load(lines[4 * g + i] + VECTOR * h);
            }
            transpose_words(v[g]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vector words[4] = {v[0][i], v[1][i], v[2][i], v[3][i]}, lines_of[LANE_COUNT][HALVES];
            lines_of_lanes(words, lines_of);
#pragma GCC unroll 4
            for (int l = 0; l < LANE_COUNT; l++) {
                const int item = VECTOR / AWQ_WORD_BYTES * h + i + 4 * l;
                put_next(w, item, to + item * item_stride, lines_of[l]);
            }
        }
    }
}

static inline void get_words(const uint8_t *from, int64_t item_stride, uint8_t (*lines)[LINE])
{
    for (int h = 0; h < LINE / VECTOR; h++) {
        vector v[4][4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vector w[4];
            get_lanes(w, from + (VECTOR / AWQ_WORD_BYTES * h + i) * item_stride, 4 * item_stride);
            v[0][i] = w[0];
            v[1][i] = w[1];
            v[2][i] = w[2];
            v[3][i] = w[3];
        }
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            transpose_words(v[g]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                put(lines[4 * g + i] + VECTOR * h, v[g][i], false);
            }
        }
    }
}

ALWAYS_INLINE void pack_turned_rows(const awq_panel *p, vector *seen, way way)
{
    const row_keys keys = pack_keys(v1_packing(p));
    const int64_t most = way == STREAM_SHIFTED ? SHIFTED_ROWS : TURNED_ROWS;
    /* the rows that come next, whole: in pieces they take twice the time. A small matrix has narrower panels. */
    const bool asks = way != PLAIN && p->cols >= AWQ_PANEL_COLS;
    alignas(LINE) uint8_t rest[SIDE][LINE], lines[SIDE][LINE];
    writer w = writer_of(way, p->payload, rest);
    for (int64_t strip = 0; strip < p->rows; strip += most) {
        const int64_t end = p->rows - strip < most ? p->rows : strip + most;
        ahead next = ahead_of(p->codes, end * p->row_stride, p->row_stride, p->rows - end, p->cols);
        for (int64_t col = 0; col < p->cols; col += AWQ_TURNED_COLS) {
            ask_for_ends(&w, SIDE, p->payload, awq_panel_offset(p, strip, col + AWQ_TURNED_COLS), p->item_stride,
                         (end - strip) * AWQ_WORD_BYTES);
            for (int64_t row = strip; row < end; row += SIDE) {
                const uint8_t *codes = p->codes + row * p->row_stride + col;
                if (asks) {
                    ask(&next, SIDE * AWQ_TURNED_COLS / LINE);
                }
                for (int i = 0; i < SIDE; i++, codes += p->row_stride) {
                    vector line[HALVES];
                    pack_line(codes, codes + LINE, keys, seen, line);
                    put_line(lines[i], line, false);
                }
                w.is_first = row == strip;
                put_words(lines, &w, p->payload + awq_panel_offset(p, row, col), p->item_stride);
            }
            put_rests(&w, SIDE, p->payload + awq_panel_offset(p, end, col), p->item_stride);
        }
    }
}

ALWAYS_INLINE void unpack_turned_rows(const awq_panel *p, way way)
{
    const row_keys keys = unpack_keys(v1_packing(p));
    alignas(LINE) uint8_t rest[TURNED_ROWS][LINE], lines[SIDE][LINE];
    writer w = writer_of(way, p->codes, rest);
    for (int64_t strip = 0; strip < p->rows; strip += TURNED_ROWS) {
        for (int64_t col = 0; col < p->cols; col += AWQ_TURNED_COLS) {
            for (int row = 0; row < TURNED_ROWS; row += SIDE) {
                uint8_t *codes = p->codes + (strip + row) * p->row_stride + col;
                get_words(p->payload + awq_panel_offset(p, strip + row, col), p->item_stride, lines);
                for (int i = 0; i < SIDE; i++, codes += p->row_stride) {
                    vector first[HALVES], second[HALVES];
                    unpack_line(lines[i], keys, first, second);
                    w.is_first = col == 0;
                    put_next(&w, row + i, codes, first);
                    w.is_first = false;
                    put_next(&w, row + i, codes + LINE, second);
                }
            }
        }
        put_rests(&w, TURNED_ROWS, p->codes + strip * p->row_stride + p->cols, p->row_stride);
    }
}

/* Column-major codes: word by word of each row, along the rows. */
ALWAYS_INLINE void pack_turned_columns(const awq_panel *p, vector *seen, way way)
{
    alignas(LINE) uint8_t rest[1][LINE];
    writer w = writer_of(way, p->payload, rest);
    int64_t columns[AWQ_WORD_CODES];
    awq_find_columns(p, AWQ_WORD_CODES, columns);
    for (int64_t col = 0; col < p->cols; col += AWQ_WORD_CODES) {
        const uint8_t *codes = p->codes + col * p->col_stride;
        uint8_t *payload = p->payload + awq_panel_offset(p, 0, col);
        w.is_first = true;
        for (int64_t row = 0; row < p->rows; row += VECTOR, codes += VECTOR) {
            vector v[4], lines[LANE_COUNT][HALVES];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                prefetch(codes + columns[2 * i], PREFETCH);
                prefetch(codes + columns[2 * i + 1], PREFETCH);
                v[i] = join(load(codes + columns[2 * i]), load(codes + columns[2 * i + 1]), seen);
            }
            const vector a = zip_low(v[0], v[1]), b = zip_high(v[0], v[1]);
            const vector c = zip_low(v[2], v[3]), d = zip_high(v[2], v[3]);
            vector words[4] = {zip16_low(a, c), zip16_high(a, c), zip16_low(b, d), zip16_high(b, d)};
            lines_of_lanes(words, lines);
#pragma GCC unroll 4
            for (int l = 0; l < LANE_COUNT; l++, payload += LINE) {
                put_next(&w, 0, payload, lines[l]);
                w.is_first = false;
            }
        }
        put_rest(&w, 0, payload);
    }
}

ALWAYS_INLINE void unpack_turned_columns(const awq_panel *p, way way)
{
    const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    alignas(LINE) uint8_t rest[AWQ_WORD_CODES][LINE];
    writer w = writer_of(way, p->codes, rest);
    int64_t columns[AWQ_WORD_CODES];
    awq_find_columns(p, AWQ_WORD_CODES, columns);
    for (int64_t col = 0; col < p->cols; col += AWQ_WORD_CODES) {
        const uint8_t *payload = p->payload + awq_panel_offset(p, 0, col);
        uint8_t *codes = p->codes + col * p->col_stride;
        for (int64_t row = 0; row < p->rows; row += LINE, codes += LINE) {
            vector lines[AWQ_WORD_CODES][HALVES];
            for (int h = 0; h < HALVES; h++, payload += AWQ_WORD_BYTES * VECTOR) {
                vector v[4];
                prefetch(payload, PREFETCH);
                get_lanes(v, payload, LINE);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    v[i] = shuffle(v[i], by_byte);
                }
                transpose_words(v);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    lines[2 * i][h] = nibbles(v[i], 0);
                    lines[2 * i + 1][h] = nibbles(v[i], 4);
                }
            }
            w.is_first = row == 0;
#pragma GCC unroll 8
            for (int i = 0; i < AWQ_WORD_CODES; i++) {
                put_next(&w, i, codes + columns[i], lines[i]);
            }
        }
        for (int i = 0; i < AWQ_WORD_CODES; i++) {
            put_rest(&w, i, codes + columns[i]);
        }
    }
}

static uint8_t pack_turned(const awq_panel *panel)
{
    const way way = way_to(panel, panel->payload, panel->item_stride);
    vector seen = no_codes();
    if (panel->col_stride == 1) {
        BY_WAY(way, pack_turned_rows, panel, &seen)
    } else {
        BY_WAY(way, pack_turned_columns, panel, &seen)
    }
    return or_bytes(seen);
}

static uint8_t unpack_turned(const awq_panel *panel)
{
    if (panel->col_stride == 1) {
        BY_WAY(way_to(panel, panel->codes, panel->row_stride), unpack_turned_rows, panel)
    } else {
        BY_WAY(way_to(panel, panel->codes, panel->col_stride), unpack_turned_columns, panel)
    }
    return 0;
}

#endif

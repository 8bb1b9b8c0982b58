/* V1 beside a payload viewed transposed, for both x86 instruction sets: words of a row lie item_stride apart, and those
   of rows side by side. Included below rows.h, whose primitives and those of avx2.h or avx512.h it is made of. */
#ifndef AWQPACK_TURNED_H
#define AWQPACK_TURNED_H

#include "walk.h"
#include "words.h"

#include <stdalign.h>

enum {
    SIDE = LINE / AWQ_WORD_BYTES, /* words of a line, and rows whose words make one of the payload */
    TURNED_ROWS = 64,             /* of row-major codes that are taken together: runs of four lines of payload */
};
_Static_assert(AWQ_TURNED_COLS == SIDE * AWQ_WORD_CODES, "a step of columns makes a line of words");

/* SIDE lines of words, one of each row, to the payload, or back. */
static inline void put_words(const uint8_t (*lines)[LINE], uint8_t *to, int64_t item_stride, bool stream)
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
            vector w[4] = {v[0][i], v[1][i], v[2][i], v[3][i]};
            put_lanes(w, to + (VECTOR / AWQ_WORD_BYTES * h + i) * item_stride, 4 * item_stride, stream);
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

ALWAYS_INLINE void pack_turned_rows(const awq_panel *p, bool stream, vector *seen)
{
    const row_keys keys = pack_keys(v1_packing(p));
    for (int64_t strip = 0; strip < p->rows; strip += TURNED_ROWS) {
        for (int64_t col = 0; col < p->cols; col += AWQ_TURNED_COLS) {
            for (int64_t row = strip; row < strip + TURNED_ROWS; row += SIDE) {
                const uint8_t *codes = p->codes + row * p->row_stride + col;
                alignas(LINE) uint8_t lines[SIDE][LINE];
                for (int i = 0; i < SIDE; i++, codes += p->row_stride) {
                    prefetch(codes, PREFETCH);
                    prefetch(codes, PREFETCH + LINE);
                    pack_line(codes, codes + LINE, lines[i], keys, STORE_PLAIN, seen);
                }
                put_words(lines, p->payload + awq_panel_offset(p, row, col), p->item_stride, stream);
            }
        }
    }
}

ALWAYS_INLINE void unpack_turned_rows(const awq_panel *p, store_mode mode)
{
    const row_keys keys = unpack_keys(v1_packing(p));
    for (int64_t strip = 0; strip < p->rows; strip += TURNED_ROWS) {
        for (int64_t col = 0; col < p->cols; col += AWQ_TURNED_COLS) {
            for (int64_t row = strip; row < strip + TURNED_ROWS; row += SIDE) {
                uint8_t *codes = p->codes + row * p->row_stride + col;
                alignas(LINE) uint8_t lines[SIDE][LINE];
                get_words(p->payload + awq_panel_offset(p, row, col), p->item_stride, lines);
                for (int i = 0; i < SIDE; i++, codes += p->row_stride) {
                    unpack_line(lines[i], codes, codes + LINE, keys, mode);
                }
            }
        }
    }
}

/* Column-major codes: word by word of each row, along the rows. */
ALWAYS_INLINE void pack_turned_columns(const awq_panel *p, bool stream, vector *seen)
{
    int64_t columns[AWQ_WORD_CODES];
    awq_find_columns(p, AWQ_WORD_CODES, columns);
    for (int64_t col = 0; col < p->cols; col += AWQ_WORD_CODES) {
        const uint8_t *codes = p->codes + col * p->col_stride;
        uint8_t *payload = p->payload + awq_panel_offset(p, 0, col);
        for (int64_t row = 0; row < p->rows; row += VECTOR, codes += VECTOR, payload += AWQ_WORD_BYTES * VECTOR) {
            vector v[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                prefetch(codes + columns[2 * i], PREFETCH);
                prefetch(codes + columns[2 * i + 1], PREFETCH);
                v[i] = join(load(codes + columns[2 * i]), load(codes + columns[2 * i + 1]), seen);
            }
            const vector a = zip_low(v[0], v[1]), b = zip_high(v[0], v[1]);
            const vector c = zip_low(v[2], v[3]), d = zip_high(v[2], v[3]);
            vector words[4] = {zip16_low(a, c), zip16_high(a, c), zip16_low(b, d), zip16_high(b, d)};
            put_lanes(words, payload, LINE, stream);
        }
    }
}

ALWAYS_INLINE void unpack_turned_columns(const awq_panel *p, bool stream)
{
    const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    int64_t columns[AWQ_WORD_CODES];
    awq_find_columns(p, AWQ_WORD_CODES, columns);
    for (int64_t col = 0; col < p->cols; col += AWQ_WORD_CODES) {
        const uint8_t *payload = p->payload + awq_panel_offset(p, 0, col);
        uint8_t *codes = p->codes + col * p->col_stride;
        for (int64_t row = 0; row < p->rows; row += VECTOR, codes += VECTOR, payload += AWQ_WORD_BYTES * VECTOR) {
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
                put(codes + columns[2 * i], nibbles(v[i], 0), stream);
                put(codes + columns[2 * i + 1], nibbles(v[i], 4), stream);
            }
        }
    }
}

static uint8_t pack_turned(const awq_panel *panel)
{
    const bool stream = is_streamed(panel, panel->payload, panel->item_stride);
    vector seen = no_codes();
    if (panel->col_stride == 1) {
        stream ? pack_turned_rows(panel, true, &seen) : pack_turned_rows(panel, false, &seen);
    } else {
        stream ? pack_turned_columns(panel, true, &seen) : pack_turned_columns(panel, false, &seen);
    }
    return or_bytes(seen);
}

static uint8_t unpack_turned(const awq_panel *panel)
{
    const bool is_rows = panel->col_stride == 1;
    const bool stream = is_streamed(panel, panel->codes, is_rows ? panel->row_stride : panel->col_stride);
    if (is_rows) {
        stream ? unpack_turned_rows(panel, STORE_STREAM) : unpack_turned_rows(panel, STORE_PLAIN);
    } else {
        stream ? unpack_turned_columns(panel, true) : unpack_turned_columns(panel, false);
    }
    return 0;
}

#endif

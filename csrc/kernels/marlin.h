/*
 * Marlin for both x86 instruction sets, in lines: rows here are columns k of W, and columns here rows n of it. Below
 * these walks are the primitives of avx2.h or avx512.h and these of avx2_marlin.c or avx512_marlin.c:
 *   put_line(v, to, stream)               a line of 4 x 4 words that HALVES vectors hold transposed
 *   get_line(v, from)                     the way back
 *
 * A block is eight lines of cache, one for each n % 8. The bytes of such a line are [k / 2 % 4][n / 16 % 4][k % 2][n /
 * 8 % 2]; their low nibbles have k % 16 < 8, and their high ones the rest.
 */
#ifndef AWQPACK_MARLIN_H
#define AWQPACK_MARLIN_H

#include "words.h"

enum {
    BLOCK_ROWS = 16,
    BLOCK_COLS = 64,
    BLOCK_BYTES = BLOCK_ROWS * BLOCK_COLS / 2,
    LANES = VECTOR / 16,
    HALVES = LINE / VECTOR,
    TILE = LINE,       /* rows and columns of column-major codes that are packed together: four blocks */
    STRIP_ROWS = 256,  /* of a short panel: reads of four lines of a column, writes that go on line by line */
    PAIRS = TILE / 2,  /* of columns n and n + 8 */
    READ_AHEAD = 1024, /* bytes of row-major codes */
};

/* The two bytes of columns n and n + 8, for eight rows: apart, and pair by pair. */
static inline vector pair_up(vector v)
{
    return shuffle(v, _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
}

static inline vector part(vector v)
{
    return shuffle(v, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

/* A line of each of LANES blocks, from columns n, n + 8, .. n + 56. */
static inline void pack_group(const uint8_t *restrict codes, int64_t col_stride, uint8_t *restrict to,
                              int64_t line_stride, bool stream, vector *seen)
{
    vector v[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const vector a = load(codes + 16 * j * col_stride), b = load(codes + (16 * j + 8) * col_stride);
        v[j] = pair_up(join(zip64_low(a, b), zip64_high(a, b), seen));
    }
    transpose_words(v);
    put_lanes(v, to, line_stride, stream);
}

static inline void unpack_group(const uint8_t *restrict from, int64_t line_stride, vector columns[8])
{
    vector v[4];
    get_lanes(v, from, line_stride);
    transpose_words(v);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const vector bytes = part(v[j]), low = nibbles(bytes, 0), high = nibbles(bytes, 4);
        columns[2 * j] = zip64_low(low, high);
        columns[2 * j + 1] = zip64_high(low, high);
    }
}

/* Asks for the lines of codes of a tile; hints alone, so they may lie past the end. */
static inline void ask_for_codes(const uint8_t *codes, int64_t col_stride)
{
    for (int i = 0; i < TILE; i++) {
        prefetch_far(codes, i * col_stride);
    }
}

static inline void ask_for_blocks(const uint8_t *payload, int64_t line_stride)
{
    for (int i = 0; i < TILE / BLOCK_ROWS; i++) {
        for (int n = 0; n < 8; n++) {
            prefetch_far(payload, i * line_stride + LINE * n);
        }
    }
}

ALWAYS_INLINE void pack_tile(const awq_panel *p, int64_t row, int64_t col, bool stream, vector *seen)
{
    const uint8_t *codes = p->codes + col * p->col_stride + row;
    uint8_t *payload = p->payload + row / BLOCK_ROWS * p->line_stride + col / BLOCK_COLS * BLOCK_BYTES;
    ask_for_codes(codes + TILE * p->col_stride, p->col_stride);
    for (int n = 0; n < 8; n++) {
        for (int h = 0; h < HALVES; h++) {
            pack_group(codes + VECTOR * h + n * p->col_stride, p->col_stride,
                       payload + LANES * h * p->line_stride + LINE * n, p->line_stride, stream, seen);
        }
    }
}

ALWAYS_INLINE void unpack_tile(const awq_panel *p, int64_t row, int64_t col, bool stream)
{
    const uint8_t *payload = p->payload + row / BLOCK_ROWS * p->line_stride + col / BLOCK_COLS * BLOCK_BYTES;
    uint8_t *codes = p->codes + col * p->col_stride + row;
    ask_for_blocks(payload + TILE / BLOCK_ROWS * p->line_stride, p->line_stride);
    for (int n = 0; n < 8; n++) {
        vector columns[HALVES][8];
        for (int h = 0; h < HALVES; h++) {
            unpack_group(payload + LANES * h * p->line_stride + LINE * n, p->line_stride, columns[h]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < 8; m++) {
            for (int h = 0; h < HALVES; h++) {
                put(codes + (n + 8 * m) * p->col_stride + VECTOR * h, columns[h][m], stream);
            }
        }
    }
}

/* Strips of rows, and along each of them, of no more columns than the page tables' caches hold pages of. */
ALWAYS_INLINE void pack_tiles(const awq_panel *p, bool stream, vector *seen)
{
    for (int64_t first = 0; first < p->cols; first += AWQ_PANEL_COLS) {
        const int64_t last = p->cols - first < AWQ_PANEL_COLS ? p->cols : first + AWQ_PANEL_COLS;
        for (int64_t strip = 0; strip < p->rows; strip += STRIP_ROWS) {
            const int64_t end = p->rows - strip < STRIP_ROWS ? p->rows : strip + STRIP_ROWS;
            for (int64_t col = first; col < last; col += TILE) {
                for (int64_t row = strip; row < end; row += TILE) {
                    pack_tile(p, row, col, stream, seen);
                }
            }
        }
    }
}

/* Reads `rows` codes of TILE columns, whole columns at a time as DRAM and the prefetchers want it, into bytes of columns n
   and n + 8: pair p at p * pitch. */
static inline void read_pairs(const uint8_t *restrict codes, int64_t col_stride, int64_t rows, uint8_t *restrict to,
                              int64_t pitch, vector *seen)
{
    for (int pair = 0; pair < PAIRS; pair++, to += pitch) {
        const uint8_t *first = codes + (pair / 8 * 16 + pair % 8) * col_stride, *second = first + 8 * col_stride;
        for (int64_t row = 0; row < rows; row += VECTOR) {
            const vector a = load(first + row), b = load(second + row);
            put(to + row, pair_up(join(zip64_low(a, b), zip64_high(a, b), seen)), false);
        }
    }
}

/* Writes these pairs' blocks: a line of each of LANES of them at a time. */
ALWAYS_INLINE void write_blocks(const uint8_t *restrict pairs, int64_t pitch, int64_t rows, uint8_t *restrict to,
                                int64_t line_stride, bool stream)
{
    for (int64_t row = 0; row < rows; row += VECTOR, to += LANES * line_stride) {
        for (int n = 0; n < 8; n++) {
            vector v[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                v[j] = load(pairs + (8 * j + n) * pitch + row);
            }
            transpose_words(v);
            put_lanes(v, to + LINE * n, line_stride, stream);
        }
    }
}

/* Down some columns, in as few parts as scratch allows. */
ALWAYS_INLINE void pack_tall(const awq_panel *p, bool stream, vector *seen)
{
    const int64_t most = SCRATCH / PAIRS - LINE, parts = (p->rows + most - 1) / most;
    const int64_t rows = (p->rows + TILE * parts - 1) / (TILE * parts) * TILE;
    const int64_t pitch = (rows / LINE | 1) * LINE; /* an odd number of lines keeps pairs off each other's cache sets */
    for (int64_t col = 0; col < p->cols; col += TILE) {
        for (int64_t row = 0; row < p->rows; row += rows) {
            const int64_t count = p->rows - row < rows ? p->rows - row : rows;
            read_pairs(p->codes + col * p->col_stride + row, p->col_stride, count, p->scratch, pitch, seen);
            write_blocks(p->scratch, pitch, count, p->payload + awq_panel_offset(p, row, col), p->line_stride, stream);
        }
    }
}

/* Down some columns, whose codes are then written in runs, and on to the next. */
ALWAYS_INLINE void unpack_tiles(const awq_panel *p, bool stream)
{
    for (int64_t col = 0; col < p->cols; col += TILE) {
        for (int64_t row = 0; row < p->rows; row += TILE) {
            unpack_tile(p, row, col, stream);
        }
    }
}

ALWAYS_INLINE void pack_columns(const awq_panel *p, bool stream, vector *seen)
{
    if (p->rows > AWQ_TALL_ROWS) {
        pack_tall(p, stream, seen);
    } else {
        pack_tiles(p, stream, seen);
    }
}

static uint8_t pack_panel(const awq_panel *panel)
{
    vector seen = no_codes();
    if (is_streamed(panel, panel->payload, panel->line_stride)) {
        pack_columns(panel, true, &seen);
    } else {
        pack_columns(panel, false, &seen);
    }
    return or_bytes(seen);
}

static uint8_t unpack_panel(const awq_panel *panel)
{
    if (is_streamed(panel, panel->codes, panel->col_stride)) {
        unpack_tiles(panel, true);
    } else {
        unpack_tiles(panel, false);
    }
    return 0;
}

/* Words of bytes k % 2 of eight columns n: of four and four columns, for even and for odd k. */
static inline vector part_words(vector v)
{
    return shuffle(v, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}

/* A block of row-major codes. */
ALWAYS_INLINE void pack_block(const uint8_t *restrict codes, int64_t row_stride, uint8_t *restrict to, bool stream,
                              vector *seen)
{
    vector words[2][HALVES][4]; /* of four lines each: [k / 2 % 4], then [n % 4] */
    for (int h = 0; h < HALVES; h++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const uint8_t *even = codes + 2 * i * row_stride + VECTOR * h, *odd = even + row_stride;
            const vector a = pair_up(join(load(even), load(even + 8 * row_stride), seen));
            const vector b = pair_up(join(load(odd), load(odd + 8 * row_stride), seen));
            words[0][h][i] = zip16_low(a, b);
            words[1][h][i] = zip16_high(a, b);
        }
        transpose_words(words[0][h]);
        transpose_words(words[1][h]);
    }
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        vector line[HALVES];
        for (int h = 0; h < HALVES; h++) {
            line[h] = words[n / 4][h][n % 4];
        }
        put_line(line, to + LINE * n, stream);
    }
}

ALWAYS_INLINE void unpack_block(const uint8_t *restrict from, uint8_t *restrict codes, int64_t row_stride, bool stream)
{
    vector words[2][HALVES][4], bytes[8][HALVES];
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        vector line[HALVES];
        get_line(line, from + LINE * n);
        for (int h = 0; h < HALVES; h++) {
            words[n / 4][h][n % 4] = line[h];
        }
    }
    for (int h = 0; h < HALVES; h++) {
        transpose_words(words[0][h]);
        transpose_words(words[1][h]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const vector a = part_words(words[0][h][i]), b = part_words(words[1][h][i]);
            bytes[2 * i][h] = part(zip64_low(a, b));
            bytes[2 * i + 1][h] = part(zip64_high(a, b));
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < BLOCK_ROWS; k++) {
        for (int h = 0; h < HALVES; h++) {
            put(codes + k * row_stride + VECTOR * h, nibbles(bytes[k % 8][h], k < 8 ? 0 : 4), stream);
        }
    }
}

ALWAYS_INLINE void pack_blocks(const awq_panel *line, bool stream, vector *seen)
{
    for (int64_t col = 0; col < line->cols; col += BLOCK_COLS) {
        for (int k = 0; k < BLOCK_ROWS; k++) {
            prefetch(line->codes + col, k * line->row_stride + READ_AHEAD);
        }
        pack_block(line->codes + col, line->row_stride, line->payload + col / BLOCK_COLS * BLOCK_BYTES, stream, seen);
    }
}

static uint8_t pack_rows(const awq_panel *line)
{
    vector seen = no_codes();
    if (is_streamed(line, line->payload, 0)) {
        pack_blocks(line, true, &seen);
    } else {
        pack_blocks(line, false, &seen);
    }
    return or_bytes(seen);
}

ALWAYS_INLINE void unpack_blocks(const awq_panel *line, bool stream)
{
    for (int64_t col = 0; col < line->cols; col += BLOCK_COLS) {
        unpack_block(line->payload + col / BLOCK_COLS * BLOCK_BYTES, line->codes + col, line->row_stride, stream);
    }
}

static uint8_t unpack_rows(const awq_panel *line)
{
    if (is_streamed(line, line->codes, line->row_stride)) {
        unpack_blocks(line, true);
    } else {
        unpack_blocks(line, false);
    }
    return 0;
}

#endif

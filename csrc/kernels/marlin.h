/*
 * Marlin for both x86 instruction sets, in lines: rows here are columns k of W, and columns here rows n of it. Below
 * these walks are the primitives of avx2.h or avx512.h and these of avx2_marlin.c or avx512_marlin.c:
 *   join_line(v, line)      a line of 4 x 4 words that HALVES vectors hold transposed
 *   split_line(from, v)     the way back
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
    TILE = LINE,       /* rows and columns of column-major codes that are packed together: four blocks */
    STRIP_ROWS = 256,  /* of a short panel: reads of four lines of a column, writes that go on line by line */
    PAIRS = TILE / 2,  /* of columns n and n + 8 */
    TALL_TILES = 2,    /* of columns that are read together where lines are shifted: longer runs have fewer ends */
    RUN_ROWS = 256,    /* of columns that are streamed: lines that are streamed one by one take twice the time */
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

/* A line of each of LANE_COUNT blocks; v is what columns n, n + 8, .. n + 56 give. */
ALWAYS_INLINE void put_group(const writer *w, int run, vector v[4], uint8_t *to, int64_t line_stride)
{
    vector lines[LANE_COUNT][HALVES];
    transpose_words(v);
    lines_of_lanes(v, lines);
#pragma GCC unroll 4
    for (int l = 0; l < LANE_COUNT; l++) {
        put_next(w, run + l, to + l * line_stride, lines[l]);
    }
}

static inline void join_group(const uint8_t *restrict codes, int64_t col_stride, vector v[4], vector *seen)
{
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const vector a = load(codes + 16 * j * col_stride), b = load(codes + (16 * j + 8) * col_stride);
        v[j] = pair_up(join(zip64_low(a, b), zip64_high(a, b), seen));
    }
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

/* Asks for the lines of codes of the tile beside this one; hints alone, so they may lie past the end. */
static inline void ask_for_codes(const uint8_t *codes, int64_t col_stride)
{
    for (int i = TILE; i < 2 * TILE; i++) {
        prefetch_far(codes, i * col_stride);
    }
}

/* Runs are the lines of blocks. */
ALWAYS_INLINE void pack_tile(const awq_panel *p, int64_t row, int64_t col, writer *w, int run, vector *seen)
{
    const uint8_t *codes = p->codes + col * p->col_stride + row;
    uint8_t *payload = p->payload + awq_panel_offset(p, row, col);
    const bool is_first = w->is_first;
    ask_for_codes(codes, p->col_stride);
    for (int n = 0; n < 8; n++) {
        w->is_first = is_first && n == 0;
        for (int h = 0; h < HALVES; h++) {
            vector v[4];
            join_group(codes + VECTOR * h + n * p->col_stride, p->col_stride, v, seen);
            put_group(w, run + LANE_COUNT * h, v, payload + LANE_COUNT * h * p->line_stride + LINE * n, p->line_stride);
        }
    }
}

/* Strips of rows, and along each of them, of no more columns than the page tables' caches hold pages of. */
ALWAYS_INLINE void pack_tiles(const awq_panel *p, vector *seen, way way)
{
    alignas(LINE) uint8_t rest[STRIP_ROWS / BLOCK_ROWS][LINE];
    writer w = writer_of(way, p->payload, rest);
    for (int64_t first = 0; first < p->cols; first += AWQ_PANEL_COLS) {
        const int64_t last = p->cols - first < AWQ_PANEL_COLS ? p->cols : first + AWQ_PANEL_COLS;
        for (int64_t strip = 0; strip < p->rows; strip += STRIP_ROWS) {
            const int64_t rows = p->rows - strip < STRIP_ROWS ? p->rows - strip : STRIP_ROWS;
            for (int64_t col = first; col < last; col += TILE) {
                for (int64_t row = 0; row < rows; row += TILE) {
                    w.is_first = col == first;
                    pack_tile(p, strip + row, col, &w, (int)(row / BLOCK_ROWS), seen);
                }
            }
            put_rests(&w, (int)(rows / BLOCK_ROWS), p->payload + awq_panel_offset(p, strip, last), p->line_stride);
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

/* Writes the blocks of some tiles' pairs, tile by tile: a line of each of LANE_COUNT of them at a time. */
ALWAYS_INLINE void write_blocks(const uint8_t *restrict pairs, int64_t pitch, int64_t rows, int tiles, writer *w,
                                uint8_t *restrict to, int64_t line_stride)
{
    for (int64_t row = 0; row < rows; row += VECTOR, to += LANE_COUNT * line_stride) {
        ask_for_ends(w, LANE_COUNT, to, LANE_COUNT * line_stride, line_stride, tiles * BLOCK_BYTES);
        for (int n = 0; n < 8 * tiles; n++) {
            vector v[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                v[j] = load(pairs + (n / 8 * PAIRS + 8 * j + n % 8) * pitch + row);
            }
            w->is_first = n == 0;
            put_group(w, 0, v, to + LINE * n, line_stride);
        }
        put_rests(w, LANE_COUNT, to + tiles * BLOCK_BYTES, line_stride);
    }
}

/* Down some columns, in as few parts as scratch allows. */
ALWAYS_INLINE void pack_tall(const awq_panel *p, vector *seen, way way)
{
    alignas(LINE) uint8_t rest[LANE_COUNT][LINE];
    writer w = writer_of(way, p->payload, rest);
    const int most_tiles = way == STREAM_SHIFTED ? TALL_TILES : 1;
    const int64_t most = SCRATCH / PAIRS / most_tiles - LINE, parts = (p->rows + most - 1) / most;
    const int64_t rows = (p->rows + TILE * parts - 1) / (TILE * parts) * TILE;
    const int64_t pitch = (rows / LINE | 1) * LINE; /* an odd number of lines keeps pairs off each other's cache sets */
    for (int64_t col = 0; col < p->cols; col += TILE * most_tiles) {
        const int tiles = p->cols - col < TILE * most_tiles ? (int)((p->cols - col) / TILE) : most_tiles;
        for (int64_t row = 0; row < p->rows; row += rows) {
            const int64_t count = p->rows - row < rows ? p->rows - row : rows;
            for (int tile = 0; tile < tiles; tile++) {
                read_pairs(p->codes + (col + TILE * tile) * p->col_stride + row, p->col_stride, count,
                           p->scratch + tile * PAIRS * pitch, pitch, seen);
            }
            write_blocks(p->scratch, pitch, count, tiles, &w, p->payload + awq_panel_offset(p, row, col),
                         p->line_stride);
        }
    }
}

static uint8_t pack_panel(const awq_panel *panel)
{
    const way way = way_to(panel, panel->payload, panel->line_stride);
    vector seen = no_codes();
    if (panel->rows > AWQ_TALL_ROWS) {
        BY_WAY(way, pack_tall, panel, &seen)
    } else {
        BY_WAY(way, pack_tiles, panel, &seen)
    }
    return or_bytes(seen);
}

/* Some rows of TILE columns; runs are the columns. */
ALWAYS_INLINE void unpack_tiles(const uint8_t *payload, int64_t line_stride, int64_t rows, uint8_t *codes,
                                int64_t col_stride, writer *w)
{
    const bool is_first = w->is_first;
    for (int n = 0; n < 8; n++) {
        for (int64_t row = 0; row < rows; row += TILE) {
            const uint8_t *from = payload + row / BLOCK_ROWS * line_stride + LINE * n;
            vector columns[HALVES][8];
            for (int h = 0; h < HALVES; h++) {
                unpack_group(from + LANE_COUNT * h * line_stride, line_stride, columns[h]);
            }
            w->is_first = is_first && row == 0;
#pragma GCC unroll 8
            for (int m = 0; m < 8; m++) {
                vector line[HALVES];
                for (int h = 0; h < HALVES; h++) {
                    line[h] = columns[h][m];
                }
                put_next(w, n + 8 * m, codes + (n + 8 * m) * col_stride + row, line);
            }
        }
    }
}

/* Copies blocks to where they are side by side, as those of a large matrix fall on the same few sets of the cache, and
   asks for those below. */
static inline void gather_blocks(const uint8_t *restrict from, int64_t line_stride, int64_t blocks,
                                 uint8_t *restrict to)
{
    for (int64_t i = 0; i < blocks; i++) {
        for (int b = 0; b < BLOCK_BYTES; b += VECTOR) {
            prefetch_far(from + i * line_stride + b, blocks * line_stride);
            put(to + i * BLOCK_BYTES + b, load(from + i * line_stride + b), false);
        }
    }
}

/* Down some columns, whose codes are then written in runs, and on to the next. */
ALWAYS_INLINE void unpack_columns(const awq_panel *p, way way)
{
    alignas(LINE) uint8_t rest[TILE][LINE], blocks[RUN_ROWS / BLOCK_ROWS * BLOCK_BYTES];
    writer w = writer_of(way, p->codes, rest);
    const int64_t most = way == PLAIN ? TILE : RUN_ROWS;
    for (int64_t col = 0; col < p->cols; col += TILE) {
        uint8_t *codes = p->codes + col * p->col_stride;
        for (int64_t row = 0; row < p->rows; row += most) {
            const int64_t rows = p->rows - row < most ? p->rows - row : most;
            const uint8_t *from = p->payload + awq_panel_offset(p, row, col);
            w.is_first = row == 0;
            if (way == PLAIN) {
                unpack_tiles(from, p->line_stride, rows, codes + row, p->col_stride, &w);
            } else {
                gather_blocks(from, p->line_stride, rows / BLOCK_ROWS, blocks);
                unpack_tiles(blocks, BLOCK_BYTES, rows, codes + row, p->col_stride, &w);
            }
        }
        put_rests(&w, TILE, codes + p->rows, p->col_stride);
    }
}

static uint8_t unpack_panel(const awq_panel *panel)
{
    BY_WAY(way_to(panel, panel->codes, panel->col_stride), unpack_columns, panel)
    return 0;
}

/* Words of bytes k % 2 of eight columns n: of four and four columns, for even and for odd k. */
static inline vector part_words(vector v)
{
    return shuffle(v, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
}

/* A block of row-major codes; its lines are one run. */
ALWAYS_INLINE void pack_block(const uint8_t *restrict codes, int64_t row_stride, writer *w, uint8_t *restrict to,
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
        vector v[HALVES], line[HALVES];
        for (int h = 0; h < HALVES; h++) {
            v[h] = words[n / 4][h][n % 4];
        }
        join_line(v, line);
        put_next(w, 0, to + LINE * n, line);
        w->is_first = false;
    }
}

ALWAYS_INLINE void unpack_block(const uint8_t *restrict from, const writer *w, uint8_t *restrict codes,
                                int64_t row_stride)
{
    vector words[2][HALVES][4], bytes[8][HALVES];
#pragma GCC unroll 8
    for (int n = 0; n < 8; n++) {
        vector v[HALVES];
        split_line(from + LINE * n, v);
        for (int h = 0; h < HALVES; h++) {
            words[n / 4][h][n % 4] = v[h];
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
        vector line[HALVES];
        for (int h = 0; h < HALVES; h++) {
            line[h] = nibbles(bytes[k % 8][h], k < 8 ? 0 : 4);
        }
        put_next(w, k, codes + k * row_stride, line);
    }
}

ALWAYS_INLINE void pack_blocks(const awq_panel *line, vector *seen, way way)
{
    alignas(LINE) uint8_t rest[1][LINE];
    writer w = writer_of(way, line->payload, rest);
    for (int64_t col = 0; col < line->cols; col += BLOCK_COLS) {
        for (int k = 0; k < BLOCK_ROWS; k++) {
            prefetch(line->codes + col, k * line->row_stride + READ_AHEAD);
        }
        pack_block(line->codes + col, line->row_stride, &w, line->payload + col / BLOCK_COLS * BLOCK_BYTES, seen);
    }
    put_rest(&w, 0, line->payload + line->cols / BLOCK_COLS * BLOCK_BYTES);
}

static uint8_t pack_rows(const awq_panel *line)
{
    vector seen = no_codes();
    BY_WAY(way_to(line, line->payload, 0), pack_blocks, line, &seen)
    return or_bytes(seen);
}

ALWAYS_INLINE void unpack_blocks(const awq_panel *line, way way)
{
    alignas(LINE) uint8_t rest[BLOCK_ROWS][LINE];
    writer w = writer_of(way, line->codes, rest);
    for (int64_t col = 0; col < line->cols; col += BLOCK_COLS) {
        w.is_first = col == 0;
        unpack_block(line->payload + col / BLOCK_COLS * BLOCK_BYTES, &w, line->codes + col, line->row_stride);
    }
    put_rests(&w, BLOCK_ROWS, line->codes + line->cols, line->row_stride);
}

static uint8_t unpack_rows(const awq_panel *line)
{
    BY_WAY(way_to(line, line->codes, line->row_stride), unpack_blocks, line)
    return 0;
}

#endif

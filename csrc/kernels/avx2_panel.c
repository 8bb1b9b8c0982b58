/*
 * Column-major panels for AVX2. A slice is read, then written: streamed stores among others that miss the cache take
 * longer than one after the other does. Unpacking is as in avx512_panel.c.
 */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"
#include "panel.h"

#include <stdalign.h>

enum {
    /* Bytes that keep neighbouring rows of scratch off each other's cache sets. */
    PAD = VECTOR,
    /* of a panel that is packed at once: V1 rows are written in runs of four lines, V2 rows of eight; ... */
    V1_COLS = 512,
    V1_TILES = 32,
    V2_COLS = 256,
    V2_TILES = 64,                                /* ... the more columns, the fewer rows */
    V1_PITCH = (V1_TILES + 1) * PIECE + 3 * LINE, /* of the strips of a slice; as PAD */
    V2_PITCH = (V2_TILES + 1) * PIECE + 3 * LINE,
    PIECES_BYTES = V1_COLS / STRIP_COLS * V1_PITCH, /* of a slice */
    AHEAD = 2, /* tiles between the codes that are asked for and those that are joined */
};
_Static_assert(V2_COLS <= V1_COLS && V2_COLS / STRIP_COLS * V2_PITCH <= PIECES_BYTES, "a slice of V2 fits too");

/* Asks for a line of each column of a strip; a hint alone, so it may lie past the end of the codes. */
static inline void ask_for_lines(const uint8_t *codes, const int64_t *columns, int64_t row)
{
    for (int i = 0; i < STRIP_COLS; i++) {
        prefetch_far(codes, columns[i] + row);
    }
}

/* Reads a slice into pieces: strip s of tile t is at s * pitch + t * PIECE. */
static inline void read_slice(const uint8_t *restrict codes, const int64_t (*columns)[STRIP_COLS], const slice *s,
                              uint8_t *restrict pieces, int64_t pitch, vector *seen)
{
    for (int64_t strip = 0; strip < s->strips; strip++) {
        for (int64_t tile = 0; tile < s->tiles; tile++) {
            if (tile + AHEAD < s->tiles) {
                ask_for_lines(codes, columns[strip], TILE * (tile + AHEAD));
            } else if (strip + 1 < s->strips) {
                ask_for_lines(codes, columns[strip + 1], TILE * ((tile + AHEAD) % s->tiles));
            }
            join_piece(codes + TILE * tile, columns[strip], pieces + strip * pitch + tile * PIECE, seen);
        }
    }
}

/* Thirty-two bytes of two rows of each lane, from the four strips they are in: rows[2 * lane + which of the two]. */
static inline void split_rows(const uint8_t *from, int64_t pitch, vector rows[4])
{
    const vector a = load(from), b = load(from + pitch);
    const vector c = load(from + 2 * pitch), d = load(from + 3 * pitch);
    const vector even = _mm256_unpacklo_epi64(a, b), even_end = _mm256_unpacklo_epi64(c, d);
    const vector odd = _mm256_unpackhi_epi64(a, b), odd_end = _mm256_unpackhi_epi64(c, d);
    rows[0] = _mm256_permute2x128_si256(even, even_end, 0x20);
    rows[1] = _mm256_permute2x128_si256(odd, odd_end, 0x20);
    rows[2] = _mm256_permute2x128_si256(even, even_end, 0x31);
    rows[3] = _mm256_permute2x128_si256(odd, odd_end, 0x31);
}

/* Writes a tile of V1, each row's bytes at once: lines that are streamed one by one cost some CPUs twice the time. */
static inline void write_v1_tile(const uint8_t *restrict pieces, int64_t strips, uint8_t *restrict payload,
                                 int64_t payload_stride, bool stream)
{
    alignas(LINE) uint8_t runs[4][V1_COLS / 2 + PAD];
    for (int pair = 0; pair < STRIP; pair++) {
        for (int h = 0; h < HALVES; h++) {
            for (int64_t strip = 0; strip < strips; strip += 4) {
                vector v[4];
                split_rows(pieces + strip * V1_PITCH + LINE * pair + VECTOR * h, V1_PITCH, v);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    put(runs[i] + strip * STRIP, v[i], false);
                }
            }
            for (int i = 0; i < 4; i++) {
                const int row = VECTOR * h + GROUP * (i / 2) + 2 * pair + i % 2;
                copy_run(payload + row * payload_stride, runs[i], strips * STRIP, stream);
            }
        }
    }
}

/* Writes a tile of V2, each payload row's bytes at once. */
static inline void write_v2_tile(const uint8_t *restrict pieces, int64_t strips, uint8_t *restrict payload,
                                 int64_t payload_stride, bool stream)
{
    alignas(LINE) uint8_t runs[2][V2_COLS / 2 * AWQ_QUAD_ROWS + PAD];
    for (int quad = 0; quad < GROUP / AWQ_QUAD_ROWS; quad++) { /* of each lane: its rows 4 * quad .. 4 * quad + 3 */
        for (int h = 0; h < HALVES; h++) {
            for (int64_t strip = 0; strip < strips; strip += 4) {
                const uint8_t *from = pieces + strip * V2_PITCH + 2 * LINE * quad + VECTOR * h;
                vector v[2][4];
                split_rows(from, V2_PITCH, v[0]);
                split_rows(from + LINE, V2_PITCH, v[1]);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    put(runs[i / 4] + strip * STRIP * AWQ_QUAD_ROWS + VECTOR * (i % 4),
                        v[i / 2 % 2][2 * (i / 4) + i % 2], false);
                }
            }
            for (int l = 0; l < 2; l++) {
                const int row = (VECTOR * h + GROUP * l) / AWQ_QUAD_ROWS + quad;
                copy_run(payload + row * payload_stride, runs[l], strips * STRIP * AWQ_QUAD_ROWS, stream);
            }
        }
    }
}

/* Inlined for constants: whether it is V2, and the shape of a slice. */
ALWAYS_INLINE uint8_t pack_slices(const awq_panel *panel, bool is_v2, int64_t slice_cols, int64_t span_tiles,
                                  int64_t pitch)
{
    const int64_t line_rows = awq_line_rows(panel);
    const extent all = extent_of(panel->codes, panel->rows, panel->cols, slice_cols, span_tiles);
    uint8_t *restrict pieces = panel->scratch;
    int64_t columns[V1_COLS / STRIP_COLS][STRIP_COLS];
    vector seen = no_codes();
    awq_find_columns(panel, slice_cols, columns[0]);
    for (slice s = slice_at(&all, 0, 0); s.tiles > 0; s = slice_after(&all, &s)) {
        read_slice(panel->codes + s.col * panel->col_stride + TILE * s.first, columns, &s, pieces, pitch, &seen);
        for (int64_t t = 0; t < s.tiles; t++) {
            uint8_t *target = panel->payload + awq_panel_offset(panel, TILE * (s.first + t), 0) + s.col / 2 * line_rows;
            if (is_v2) {
                write_v2_tile(pieces + t * PIECE, s.strips, target, panel->line_stride, panel->stream);
            } else {
                write_v1_tile(pieces + t * PIECE, s.strips, target, panel->line_stride, panel->stream);
            }
        }
    }
    return or_bytes(seen);
}

uint8_t awq_avx2_pack_v1_panel(const awq_panel *panel)
{
    return pack_slices(panel, false, V1_COLS, V1_TILES, V1_PITCH);
}

uint8_t awq_avx2_pack_v2_panel(const awq_panel *panel)
{
    return pack_slices(panel, true, V2_COLS, V2_TILES, V2_PITCH);
}

/* One column of codes, from the bytes it shares with another. */
static inline void split_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, int shift, bool stream)
{
    alignas(VECTOR) uint8_t end[LINE];
    int64_t i = stream ? bytes_to_line(to, bytes) : 0;
    if (i > 0) {
        put(end, nibbles(load(from), shift), false);
        put(end + VECTOR, nibbles(load(from + VECTOR), shift), false);
        memcpy(to, end, (size_t)i);
    }
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, nibbles(load(from + i), shift), stream);
        put(to + i + VECTOR, nibbles(load(from + i + VECTOR), shift), stream);
    }
    if (i < bytes) {
        put(end, nibbles(load(from + bytes - LINE), shift), false);
        put(end + VECTOR, nibbles(load(from + bytes - VECTOR), shift), false);
        memcpy(to + i, end + LINE - (bytes - i), (size_t)(bytes - i));
    }
}

/* Reads a slice's lines, and turns its bytes into scratch: see write_columns. */
static inline void read_lines(const awq_panel *part, uint8_t *restrict scratch, int64_t pitch)
{
    const int64_t line_rows = awq_line_rows(part), lines = TILE / line_rows; /* of a tile */
    const int64_t run = part->cols / 2 * line_rows;
    const awq_panel_walk from = awq_panel_walk_of(part->packing, run + PAD);
    alignas(LINE) uint8_t tile[TILE * (AWQ_PANEL_COLS / 2 + PAD)];
    ahead next =
        ahead_of(part->payload, lines * part->line_stride, part->line_stride, part->rows / line_rows - lines, run);
    for (int64_t r = 0; r < part->rows; r += TILE) {
        for (int64_t i = 0; i < lines; i++) {
            ask(&next, (int)((run + LINE - 1) / LINE));
            copy_run(tile + i * (run + PAD), part->payload + (r / line_rows + i) * part->line_stride, run, false);
        }
        for (int64_t g = 0; g < part->cols / GROUP_COLS; g++) {
            const uint8_t *block = tile + g / BLOCK_GROUPS * from.block + g % BLOCK_GROUPS * GROUP;
            for (int h = 0; h < HALVES; h++) {
                vector v[GROUP];
#pragma GCC unroll 16
                for (int j = 0; j < GROUP; j++) {
                    v[j] = _mm256_loadu2_m128i((const void *)(block + awq_panel_row(&from, VECTOR * h + GROUP + j)),
                                               (const void *)(block + awq_panel_row(&from, VECTOR * h + j)));
                }
                transpose_lanes(v);
                for (int i = 0; i < GROUP; i++) {
                    put(scratch + (g * GROUP + i) * pitch + r + VECTOR * h, v[i], false);
                }
            }
        }
    }
}

uint8_t awq_avx2_unpack_panel(const awq_panel *panel)
{
    for (int64_t row = 0; row < panel->rows; row += SLICE_ROWS) {
        const awq_panel part = slice_of(panel, row);
        read_lines(&part, panel->scratch, part.rows + PAD);
        write_columns(&part, panel->scratch, part.rows + PAD);
    }
    return 0;
}

TARGET_END
#endif

/*
 * Column-major panels for AVX2. A slice is read, then written: streamed stores among others that miss the cache take longer
 * than one after the other does. Unpacking is as in avx512_panel.c.
 */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"
#include "panel.h"

#include <stdalign.h>
#include <string.h>

enum {
    HALVES = TILE / VECTOR,
    /* Bytes that keep neighbouring rows of scratch off each other's cache sets. */
    PAD = VECTOR,
    V1_COLS = 512, /* of a panel that is packed at once: V1 rows are written in runs of four lines, V2 rows of eight; ... */
    V1_TILES = 32,
    V2_COLS = 256,
    V2_TILES = 64, /* ... the more columns, the fewer rows */
    V1_PITCH = (V1_TILES + 1) * PIECE + 3 * LINE, /* of the strips of a slice; as PAD */
    V2_PITCH = (V2_TILES + 1) * PIECE + 3 * LINE,
    PIECES_BYTES = V1_COLS / STRIP_COLS * V1_PITCH, /* of a slice */
    AHEAD = 2, /* tiles between the codes that are asked for and those that are joined */
};
_Static_assert(V2_COLS <= V1_COLS && V2_COLS / STRIP_COLS * V2_PITCH <= PIECES_BYTES, "a slice of V2 fits too");

/* Transposes the 16 x 16 bytes of each 128-bit lane: four perfect shuffles of sixteen vectors. */
static inline void transpose_lanes(__m256i v[16])
{
    __m256i t[16];
#pragma GCC unroll 2
    for (int pass = 0; pass < 2; pass++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            t[2 * i] = _mm256_unpacklo_epi8(v[i], v[i + 8]);
            t[2 * i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 8]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            v[2 * i] = _mm256_unpacklo_epi8(t[i], t[i + 8]);
            v[2 * i + 1] = _mm256_unpackhi_epi8(t[i], t[i + 8]);
        }
    }
}

static inline void put(uint8_t *p, __m256i v, bool stream)
{
    if (stream) {
        _mm256_stream_si256((void *)p, v);
    } else {
        _mm256_storeu_si256((void *)p, v);
    }
}

/* A payload row of whole blocks that starts anywhere; only its whole lines are streamed. Most have no ends: memcpy is a call. */
static inline void copy_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, bool stream)
{
    int64_t i = stream ? bytes_to_line(to, bytes) : 0;
    if (i > 0) {
        memcpy(to, from, (size_t)i);
    }
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, load(from + i), stream);
        put(to + i + VECTOR, load(from + i + VECTOR), stream);
    }
    if (i < bytes) {
        memcpy(to + i, from + i, (size_t)(bytes - i));
    }
}

static inline __m256i join(__m256i low, __m256i high, __m256i *seen)
{
    const __m256i mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    *seen = _mm256_or_si256(*seen, _mm256_or_si256(low, high));
    return _mm256_or_si256(_mm256_and_si256(low, mask), _mm256_slli_epi16(_mm256_and_si256(high, mask), 4));
}

/*
 * A piece is lines 0..7, each in two halves of 32 rows: lane l of a half of line j holds the bytes of rows 16l + 2j and
 * 16l + 2j + 1 of them. Three perfect shuffles of eight vectors turn 8 columns by 16 rows of each lane into that.
 * Each line of codes is read at once: where columns are a power of two apart, all sixteen fall on one set of the cache.
 */
static inline void join_piece(const uint8_t *restrict codes, const int64_t *columns, uint8_t *restrict piece, __m256i *seen)
{
    __m256i halves[HALVES][STRIP], t[STRIP];
#pragma GCC unroll 8
    for (int i = 0; i < STRIP; i++) {
        const uint8_t *low = codes + columns[2 * i], *high = codes + columns[2 * i + 1];
        halves[0][i] = join(load(low), load(high), seen);
        halves[1][i] = join(load(low + VECTOR), load(high + VECTOR), seen);
    }
    for (int h = 0; h < HALVES; h++) {
        __m256i *v = halves[h];
#pragma GCC unroll 3
        for (int pass = 0; pass < 3; pass++) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                t[2 * i] = _mm256_unpacklo_epi8(v[i], v[i + 4]);
                t[2 * i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 4]);
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

/* Asks for a line of each column of a strip; a hint alone, so it may lie past the end of the codes. */
static inline void ask_for_lines(const uint8_t *codes, const int64_t *columns, int64_t row)
{
    for (int i = 0; i < STRIP_COLS; i++) {
        _mm_prefetch((const void *)((uintptr_t)codes + (uintptr_t)(columns[i] + row)), _MM_HINT_T1);
    }
}

/* Reads a slice into pieces: strip s of tile t is at s * pitch + t * PIECE. */
static inline void read_slice(const uint8_t *restrict codes, const int64_t (*columns)[STRIP_COLS], const slice *s,
                              uint8_t *restrict pieces, int64_t pitch, __m256i *seen)
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
static inline void split_rows(const uint8_t *from, int64_t pitch, __m256i rows[4])
{
    const __m256i a = load(from), b = load(from + pitch);
    const __m256i c = load(from + 2 * pitch), d = load(from + 3 * pitch);
    const __m256i even = _mm256_unpacklo_epi64(a, b), even_end = _mm256_unpacklo_epi64(c, d);
    const __m256i odd = _mm256_unpackhi_epi64(a, b), odd_end = _mm256_unpackhi_epi64(c, d);
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
                __m256i v[4];
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
                __m256i v[2][4];
                split_rows(from, V2_PITCH, v[0]);
                split_rows(from + LINE, V2_PITCH, v[1]);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    put(runs[i / 4] + strip * STRIP * AWQ_QUAD_ROWS + VECTOR * (i % 4), v[i / 2 % 2][2 * (i / 4) + i % 2],
                        false);
                }
            }
            for (int l = 0; l < 2; l++) {
                const int row = (VECTOR * h + GROUP * l) / AWQ_QUAD_ROWS + quad;
                copy_run(payload + row * payload_stride, runs[l], strips * STRIP * AWQ_QUAD_ROWS, stream);
            }
        }
    }
}

uint8_t awq_avx2_pack_panel(const awq_panel *panel)
{
    const awq_packing packing = panel->packing;
    const uint8_t *restrict codes = panel->codes;
    uint8_t *restrict payload = panel->payload;
    const int64_t col_stride = panel->col_stride, payload_stride = panel->line_stride;
    const int64_t rows = panel->rows, cols = panel->cols;
    const bool stream = panel->stream;
    const bool is_v2 = packing == AWQ_PACKING_V2;
    const int64_t quad = awq_packings[packing].block_rows;
    const extent all = extent_of(codes, rows, cols, is_v2 ? V2_COLS : V1_COLS, is_v2 ? V2_TILES : V1_TILES);
    uint8_t *restrict pieces = panel->scratch;
    int64_t columns[V1_COLS / STRIP_COLS][STRIP_COLS];
    __m256i seen = _mm256_setzero_si256();
    for (int64_t strip = 0; strip < all.slice_cols / STRIP_COLS; strip++) {
        find_columns(packing, strip * STRIP, STRIP, col_stride, columns[strip]);
    }
    for (slice s = slice_at(&all, 0, 0); s.tiles > 0; s = slice_after(&all, &s)) {
        read_slice(codes + s.col * col_stride + TILE * s.first, columns, &s, pieces, is_v2 ? V2_PITCH : V1_PITCH, &seen);
        for (int64_t t = 0; t < s.tiles; t++) {
            uint8_t *target = payload + (s.first + t) * (TILE / quad) * payload_stride + s.col / 2 * quad;
            if (is_v2) {
                write_v2_tile(pieces + t * PIECE, s.strips, target, payload_stride, stream);
            } else {
                write_v1_tile(pieces + t * PIECE, s.strips, target, payload_stride, stream);
            }
        }
    }
    if (stream) {
        _mm_sfence();
    }
    return or_bytes(seen);
}

static inline __m256i nibbles(const uint8_t *from, __m128i shift)
{
    return _mm256_and_si256(_mm256_srl_epi16(load(from), shift), _mm256_set1_epi8(AWQ_CODE_MAX));
}

/* One column of codes, from the bytes it shares with another. */
static inline void split_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, int shift, bool stream)
{
    const __m128i by = _mm_cvtsi32_si128(shift);
    alignas(VECTOR) uint8_t end[LINE];
    int64_t i = stream ? bytes_to_line(to, bytes) : 0;
    if (i > 0) {
        put(end, nibbles(from, by), false);
        put(end + VECTOR, nibbles(from + VECTOR, by), false);
        memcpy(to, end, (size_t)i);
    }
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, nibbles(from + i, by), stream);
        put(to + i + VECTOR, nibbles(from + i + VECTOR, by), stream);
    }
    if (i < bytes) {
        put(end, nibbles(from + bytes - LINE, by), false);
        put(end + VECTOR, nibbles(from + bytes - VECTOR, by), false);
        memcpy(to + i, end + LINE - (bytes - i), (size_t)(bytes - i));
    }
}

static void unpack_slice(awq_packing packing, const uint8_t *restrict payload, int64_t payload_stride,
                         uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream,
                         uint8_t *restrict scratch)
{
    const int64_t quad = awq_packings[packing].block_rows;
    const int64_t run = cols / 2 * quad, lines = TILE / quad; /* of a payload row, and payload rows of a tile */
    const awq_panel_walk from = awq_panel_walk_of(packing, run + PAD);
    const int64_t pitch = rows + PAD;
    alignas(LINE) uint8_t tile[TILE * (AWQ_PANEL_COLS / 2 + PAD)];
    ahead next = ahead_of(payload, lines * payload_stride, payload_stride, rows / quad - lines, run);
    for (int64_t r = 0; r < rows; r += TILE) {
        for (int64_t i = 0; i < lines; i++) {
            ask(&next, (int)((run + LINE - 1) / LINE));
            copy_run(tile + i * (run + PAD), payload + (r / quad + i) * payload_stride, run, false);
        }
        for (int g = 0; g < cols / GROUP_COLS; g++) {
            const uint8_t *block = tile + g / BLOCK_GROUPS * from.block + g % BLOCK_GROUPS * GROUP;
            for (int h = 0; h < HALVES; h++) {
                __m256i v[GROUP];
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
    const bool has_ends = stream && ((uintptr_t)codes | (uintptr_t)col_stride) % LINE != 0; /* lines not streamed */
    next = ahead_of(payload, rows / quad * payload_stride, payload_stride, lines, run); /* of the panel below */
    for (int g = 0; g < cols / GROUP_COLS; g++) {
        int64_t columns[GROUP_COLS];
        find_columns(packing, g * GROUP, GROUP, col_stride, columns);
        for (int i = 0; i < GROUP && has_ends; i++) {
            prefetch(codes, columns[2 * i]);
            prefetch(codes, columns[2 * i] + rows - 1);
            prefetch(codes, columns[2 * i + 1]);
            prefetch(codes, columns[2 * i + 1] + rows - 1);
        }
        for (int i = 0; i < GROUP; i++) {
            const uint8_t *bytes = scratch + (g * GROUP + i) * pitch;
            ask(&next, 1);
            split_run(codes + columns[2 * i], bytes, rows, 0, stream);
            split_run(codes + columns[2 * i + 1], bytes, rows, 4, stream);
        }
    }
    if (stream) {
        _mm_sfence();
    }
}

uint8_t awq_avx2_unpack_panel(const awq_panel *panel)
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
                     rows - r < SLICE_ROWS ? rows - r : SLICE_ROWS, cols, stream, panel->scratch);
    }
    return 0;
}

#endif

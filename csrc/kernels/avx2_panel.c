/* Column-major panels for AVX2: the steps of packing, whose order is panel_pack.h's; and unpacking, as in avx512_panel.c. */
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
};

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

/* A payload row of whole blocks that starts anywhere; only its whole lines are streamed. */
static inline void copy_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes, bool stream)
{
    int64_t i = stream ? bytes_to_line(to, bytes) : 0;
    memcpy(to, from, (size_t)i);
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, load(from + i), stream);
        put(to + i + VECTOR, load(from + i + VECTOR), stream);
    }
    memcpy(to + i, from + i, (size_t)(bytes - i));
}

/*
 * A piece is lines 0..7, each in two halves of 32 rows: lane l of a half of line j holds the bytes of rows 16l + 2j and
 * 16l + 2j + 1 of them. Three perfect shuffles of eight vectors turn 8 columns by 16 rows of each lane into that.
 */
static inline void join_piece(const uint8_t *restrict codes, const int64_t *columns, uint8_t *restrict piece, __m256i *seen)
{
    const __m256i mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    for (int h = 0; h < HALVES; h++) {
        __m256i v[STRIP], t[STRIP];
#pragma GCC unroll 8
        for (int i = 0; i < STRIP; i++) {
            const __m256i a = load(codes + columns[2 * i] + VECTOR * h), b = load(codes + columns[2 * i + 1] + VECTOR * h);
            *seen = _mm256_or_si256(*seen, _mm256_or_si256(a, b));
            v[i] = _mm256_or_si256(_mm256_and_si256(a, mask), _mm256_slli_epi16(_mm256_and_si256(b, mask), 4));
        }
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

/* Thirty-two bytes of two rows of each lane, from the four strips they are in: rows[2 * lane + which of the two]. */
static inline void split_rows(const uint8_t *from, const uint16_t *at, __m256i rows[4])
{
    const __m256i a = load(from + PIECE * at[0]), b = load(from + PIECE * at[1]);
    const __m256i c = load(from + PIECE * at[2]), d = load(from + PIECE * at[3]);
    const __m256i even = _mm256_unpacklo_epi64(a, b), even_end = _mm256_unpacklo_epi64(c, d);
    const __m256i odd = _mm256_unpackhi_epi64(a, b), odd_end = _mm256_unpackhi_epi64(c, d);
    rows[0] = _mm256_permute2x128_si256(even, even_end, 0x20);
    rows[1] = _mm256_permute2x128_si256(odd, odd_end, 0x20);
    rows[2] = _mm256_permute2x128_si256(even, even_end, 0x31);
    rows[3] = _mm256_permute2x128_si256(odd, odd_end, 0x31);
}

/* Four rows of a block, 128 bytes, of each lane. */
static inline void send_v2_unit(outgoing *o, bool stream)
{
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * o->to.quad;
    const uint8_t *from = o->pieces + LINE * o->pair;
    uint8_t *to = o->target + o->strip / 4 * o->to.block + awq_panel_row(&o->to, 2 * o->pair);
    for (int h = 0; h < HALVES; h++, from += VECTOR, to += 2 * lane) {
        __m256i v[2][4];
        split_rows(from, o->places + o->strip, v[0]);
        split_rows(from + LINE, o->places + o->strip, v[1]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            put(to + i / 4 * lane + VECTOR * (i % 4), v[i / 2 % 2][2 * (i / 4) + i % 2], stream);
        }
    }
    go_on(o, 4, 2);
}

/* Two lines, or the line and a half or less that are left, of two rows of each lane. */
static inline void send_v1_unit(outgoing *o, bool stream)
{
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * o->to.quad;
    const int64_t end = o->strip + 16 < o->strips ? o->strip + 16 : o->strips;
    for (int h = 0; h < HALVES; h++) {
        const uint8_t *from = o->pieces + LINE * o->pair + VECTOR * h;
        uint8_t *to = o->target + awq_panel_row(&o->to, 2 * o->pair) + 2 * h * lane;
        for (int64_t strip = o->strip; strip < end; strip += 8) {
            __m256i v[2][4];
            const bool is_line = strip + 8 <= end;
            split_rows(from, o->places + strip, v[0]);
            split_rows(from, o->places + (is_line ? strip + 4 : strip), v[1]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                uint8_t *p = to + strip * STRIP + i / 2 * lane + i % 2 * o->to.row;
                put(p, v[0][i], stream);
                if (is_line) {
                    put(p + VECTOR, v[1][i], stream);
                }
            }
        }
    }
    go_on(o, 16, 1);
}

#define SEEN __m256i
enum { PIECES = 528 /* that wait: a quarter of a MiB, half of many a second-level cache */ };
#include "panel_pack.h"

uint8_t awq_avx2_pack_panel(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                            uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    return pack_panel(layout, codes, col_stride, payload, payload_stride, rows, cols, stream);
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

static void unpack_slice(awq_layout layout, const uint8_t *restrict payload, int64_t payload_stride,
                         uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    const int64_t quad = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t run = cols / 2 * quad, lines = TILE / quad; /* of a payload row, and payload rows of a tile */
    const awq_panel_walk from = awq_panel_walk_of(layout, run + PAD);
    const int64_t pitch = rows + PAD;
    alignas(LINE) uint8_t tile[TILE * (AWQ_PANEL_COLS / 2 + PAD)];
    alignas(LINE) uint8_t scratch[AWQ_PANEL_COLS / 2 * (SLICE_ROWS + PAD)]; /* [payload byte][row] */
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
        find_columns(layout, g * GROUP, GROUP, col_stride, columns);
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

void awq_avx2_unpack_panel(awq_layout layout, const uint8_t *restrict payload, int64_t payload_stride,
                           uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    const awq_panel_walk from = awq_panel_walk_of(layout, payload_stride);
    for (int64_t r = 0; r < rows; r += SLICE_ROWS) {
        unpack_slice(layout, payload + awq_panel_row(&from, r), payload_stride, codes + r, col_stride,
                     rows - r < SLICE_ROWS ? rows - r : SLICE_ROWS, cols, stream);
    }
}

#endif

/* Column-major panels for AVX2: the two phases of avx512_panel.c, with the payload's own rows as what lies between. */
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
    ENDS_AHEAD = 16,
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

uint8_t awq_avx2_pack_panel(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                            uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    const int64_t quad = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t run = cols / 2 * quad; /* bytes of a payload row */
    const awq_panel_walk to = awq_panel_walk_of(layout, run + PAD);
    const __m256i mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    __m256i seen = _mm256_setzero_si256();
    alignas(LINE) uint8_t scratch[AWQ_PANEL_ROWS * (AWQ_PANEL_COLS / 2 + PAD)];
    ahead next = ahead_of(codes, GROUP_COLS * col_stride, col_stride, cols - GROUP_COLS, rows);
    for (int g = 0; g < cols / GROUP_COLS; g++) {
        const group_columns columns = columns_of(layout, g, col_stride);
        for (int64_t r = 0; r < rows; r += VECTOR) {
            __m256i v[GROUP];
#pragma GCC unroll 16
            for (int i = 0; i < GROUP; i++) {
                const __m256i low = load(codes + columns.low[i] + r);
                const __m256i high = load(codes + columns.high[i] + r);
                ask(&next, 1);
                seen = _mm256_or_si256(seen, _mm256_or_si256(low, high));
                v[i] = _mm256_or_si256(_mm256_and_si256(low, mask),
                                       _mm256_slli_epi16(_mm256_and_si256(high, mask), 4));
            }
            transpose_lanes(v);
            uint8_t *block = scratch + g / BLOCK_GROUPS * to.block + g % BLOCK_GROUPS * GROUP;
            for (int j = 0; j < GROUP; j++) {
                _mm_store_si128((void *)(block + awq_panel_row(&to, r + j)), _mm256_castsi256_si128(v[j]));
                _mm_store_si128((void *)(block + awq_panel_row(&to, r + GROUP + j)), _mm256_extracti128_si256(v[j], 1));
            }
        }
    }
    next = ahead_of(codes, rows, col_stride, GROUP_COLS, rows); /* of the panel below */
    const bool has_ends = stream && ((uintptr_t)payload | (uintptr_t)payload_stride) % LINE != 0;
    for (int64_t i = 0; i < rows / quad; i++) {
        ask(&next, (int)quad);
        if (has_ends) { /* the lines that are not streamed, some rows ahead */
            prefetch(payload, (i + ENDS_AHEAD) * payload_stride);
            prefetch(payload, (i + ENDS_AHEAD) * payload_stride + run - 1);
        }
        copy_run(payload + i * payload_stride, scratch + i * (run + PAD), run, stream);
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

void awq_avx2_unpack_panel(awq_layout layout, const uint8_t *restrict payload, int64_t payload_stride,
                           uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    const int64_t quad = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t run = cols / 2 * quad, lines = TILE / quad; /* of a payload row, and payload rows of a tile */
    const awq_panel_walk from = awq_panel_walk_of(layout, run + PAD);
    const int64_t pitch = rows + PAD;
    alignas(LINE) uint8_t tile[TILE * (AWQ_PANEL_COLS / 2 + PAD)];
    alignas(LINE) uint8_t scratch[AWQ_PANEL_COLS / 2 * (AWQ_PANEL_ROWS + PAD)]; /* [payload byte][row] */
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
        const group_columns columns = columns_of(layout, g, col_stride);
        for (int i = 0; i < GROUP && has_ends; i++) {
            prefetch(codes, columns.low[i]);
            prefetch(codes, columns.low[i] + rows - 1);
            prefetch(codes, columns.high[i]);
            prefetch(codes, columns.high[i] + rows - 1);
        }
        for (int i = 0; i < GROUP; i++) {
            const uint8_t *bytes = scratch + (g * GROUP + i) * pitch;
            ask(&next, 1);
            split_run(codes + columns.low[i], bytes, rows, 0, stream);
            split_run(codes + columns.high[i], bytes, rows, 4, stream);
        }
    }
    if (stream) {
        _mm_sfence();
    }
}

#endif

/*
 * Column-major panels for AVX-512, in two phases with the panel's payload between them in the second-level cache: one
 * reads the source in long runs and the other writes the target in long runs, as DRAM and the page tables want it.
 */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"
#include "panel.h"

#include <stdalign.h>

enum { MAX_GROUPS = AWQ_PANEL_COLS / GROUP_COLS };

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

/* Streams the whole lines of a run that starts anywhere. */
static inline void stream_run(uint8_t *restrict to, const uint8_t *restrict from, int64_t bytes)
{
    const int64_t head = bytes_to_line(to, bytes);
    _mm512_mask_storeu_epi8(to, first_bytes(head), _mm512_maskz_loadu_epi8(first_bytes(head), from));
    int64_t i = head;
    for (; i + LINE <= bytes; i += LINE) {
        put(to + i, load(from + i), true);
    }
    const uint64_t rest = first_bytes(bytes - i);
    _mm512_mask_storeu_epi8(to + i, rest, _mm512_maskz_loadu_epi8(rest, from + i));
}

/*
 * A tile of payload as vectors [j][g], `pitch` to each j: lane l holds bytes 16g..16g+15 of row 16l + j.
 * Four neighbouring lanes of the payload make a line: two blocks of a V1 row, or two rows of a V2 block.
 */
static inline void put_tile(const __m512i *tile, int groups, int pitch, uint8_t *payload, awq_layout layout,
                            int64_t payload_stride, bool stream, ahead *next)
{
    const awq_panel_walk to = awq_panel_walk_of(layout, payload_stride);
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * to.quad;
    const int step = layout == AWQ_LAYOUT_V2 ? 2 : 1;
    for (int j = 0; j < GROUP; j += step) {
        const __m512i *row = tile + j * pitch;
        const __m512i *second = layout == AWQ_LAYOUT_V2 ? row + pitch : row + BLOCK_GROUPS;
        uint8_t *target = payload + awq_panel_row(&to, j);
        for (int g = 0; g < groups; g += 4 / step) {
            const bool is_line = g + 4 / step <= groups;
            const __m512i none = _mm512_setzero_si512();
            __m512i v[4] = {row[g], row[g + 1], is_line ? second[g] : none, is_line ? second[g + 1] : none};
            transpose_four(v);
            ask(next, 2);
            for (int l = 0; l < 4; l++) {
                uint8_t *p = target + l * lane + g / BLOCK_GROUPS * to.block;
                if (is_line) {
                    put(p, v[l], stream);
                } else {
                    _mm256_storeu_si256((void *)p, _mm512_castsi512_si256(v[l]));
                }
            }
        }
    }
}

static uint8_t pack_slice(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                          uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    const int groups = (int)(cols / GROUP_COLS), tiles = (int)(rows / TILE);
    const int pitch = groups + 1; /* rows a power of two apart would share cache sets */
    const __m512i mask = _mm512_set1_epi8(AWQ_CODE_MAX);
    __m512i seen = _mm512_setzero_si512();
    __m512i scratch[MAX_TILES * GROUP * (MAX_GROUPS + 1)];
    ahead next = ahead_of(codes, GROUP_COLS * col_stride, col_stride, cols - GROUP_COLS, rows);
    for (int g = 0; g < groups; g++) {
        const group_columns columns = columns_of(layout, g, col_stride);
        for (int t = 0; t < tiles; t++) {
            __m512i v[GROUP];
#pragma GCC unroll 16
            for (int i = 0; i < GROUP; i++) {
                const __m512i low = load(codes + columns.low[i] + TILE * t);
                const __m512i high = load(codes + columns.high[i] + TILE * t);
                ask(&next, 2);
                seen = _mm512_ternarylogic_epi64(seen, low, high, 0xfe);
                v[i] = _mm512_ternarylogic_epi64(mask, low, _mm512_slli_epi16(high, 4), 0xca);
            }
            transpose_lanes(v);
#pragma GCC unroll 16
            for (int j = 0; j < GROUP; j++) {
                scratch[(t * GROUP + j) * pitch + g] = v[j];
            }
        }
    }
    const awq_panel_walk to = awq_panel_walk_of(layout, payload_stride);
    const int64_t quad = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t run = cols / 2 * quad; /* bytes of a payload row */
    const bool has_ends = stream && ((uintptr_t)payload | (uintptr_t)payload_stride) % LINE != 0; /* not streamed */
    alignas(LINE) uint8_t lines[TILE * (AWQ_PANEL_COLS / 2 + LINE)];
    next = ahead_of(codes, rows, col_stride, GROUP_COLS, rows); /* of the panel below */
    for (int t = 0; t < tiles; t++) {
        const __m512i *tile = scratch + t * GROUP * pitch;
        uint8_t *target = payload + awq_panel_row(&to, TILE * t);
        if (!has_ends) {
            put_tile(tile, groups, pitch, target, layout, payload_stride, stream, &next);
            continue;
        }
        for (int64_t i = 0; i < TILE / quad; i++) {
            prefetch(target + i * payload_stride, 0);
            prefetch(target + i * payload_stride, run - 1);
        }
        put_tile(tile, groups, pitch, lines, layout, run + LINE, false, &next);
        for (int64_t i = 0; i < TILE / quad; i++) {
            stream_run(target + i * payload_stride, lines + i * (run + LINE), run);
        }
    }
    if (stream) {
        _mm_sfence();
    }
    return or_bytes(seen);
}

/* The mirror of put_tile. */
static inline void get_tile(const uint8_t *payload, awq_layout layout, int64_t payload_stride, __m512i *tile,
                            int groups, int pitch, ahead *next)
{
    const awq_panel_walk from = awq_panel_walk_of(layout, payload_stride);
    const int64_t lane = GROUP / AWQ_QUAD_ROWS * from.quad;
    const int step = layout == AWQ_LAYOUT_V2 ? 2 : 1;
    for (int j = 0; j < GROUP; j += step) {
        __m512i *row = tile + j * pitch;
        __m512i *second = layout == AWQ_LAYOUT_V2 ? row + pitch : row + BLOCK_GROUPS;
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

static void unpack_slice(awq_layout layout, const uint8_t *restrict payload, int64_t payload_stride,
                         uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    const int groups = (int)(cols / GROUP_COLS), tiles = (int)(rows / TILE);
    const int pitch = groups + 1, column_pitch = tiles + 1;
    const awq_panel_walk from = awq_panel_walk_of(layout, payload_stride);
    const int64_t quad = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t run = cols / 2 * quad;
    const int64_t tile_lines = TILE / quad; /* payload rows */
    __m512i tile[GROUP * (MAX_GROUPS + 1)];
    __m512i scratch[AWQ_PANEL_COLS / 2 * (MAX_TILES + 1)]; /* [payload byte][tile]: a byte of 64 rows */
    ahead next = ahead_of(payload, tile_lines * payload_stride, payload_stride, (tiles - 1) * tile_lines, run);
    for (int t = 0; t < tiles; t++) {
        get_tile(payload + awq_panel_row(&from, TILE * t), layout, payload_stride, tile, groups, pitch, &next);
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
        const group_columns columns = columns_of(layout, g, col_stride);
        for (int i = 0; i < GROUP && has_ends; i++) {
            prefetch(codes, columns.low[i]);
            prefetch(codes, columns.low[i] + rows - 1);
            prefetch(codes, columns.high[i]);
            prefetch(codes, columns.high[i] + rows - 1);
        }
        for (int i = 0; i < GROUP; i++) {
            const uint8_t *bytes = (const uint8_t *)(scratch + (g * GROUP + i) * column_pitch);
            ask(&next, 1);
            split_run(codes + columns.low[i], bytes, rows, 0, stream);
            split_run(codes + columns.high[i], bytes, rows, 4, stream);
        }
    }
    if (stream) {
        _mm_sfence();
    }
}

uint8_t awq_avx512_pack_panel(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                              uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols,
                              bool stream)
{
    const awq_panel_walk to = awq_panel_walk_of(layout, payload_stride);
    uint8_t seen = 0;
    for (int64_t r = 0; r < rows; r += SLICE_ROWS) {
        seen |= pack_slice(layout, codes + r, col_stride, payload + awq_panel_row(&to, r), payload_stride,
                           rows - r < SLICE_ROWS ? rows - r : SLICE_ROWS, cols, stream);
    }
    return seen;
}

void awq_avx512_unpack_panel(awq_layout layout, const uint8_t *restrict payload, int64_t payload_stride,
                             uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    const awq_panel_walk from = awq_panel_walk_of(layout, payload_stride);
    for (int64_t r = 0; r < rows; r += SLICE_ROWS) {
        unpack_slice(layout, payload + awq_panel_row(&from, r), payload_stride, codes + r, col_stride,
                     rows - r < SLICE_ROWS ? rows - r : SLICE_ROWS, cols, stream);
    }
}

#endif

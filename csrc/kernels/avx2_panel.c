/*
 * Column-major panels for AVX2. Packing reads one slice of the panel while it writes the one above: joined columns wait
 * in lines that the slices share. Unpacking has the two phases of avx512_panel.c, with columns as what lies between.
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
    ABREAST = 4, /* payload bytes whose columns are read side by side: more than eight columns share a set of L1 */
    LINES = 2560, /* that wait: what the second-level cache holds beside all that passes through it */
    MAX_BYTES = AWQ_PANEL_COLS / 2, /* payload bytes of a row */
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

/* Offsets of the two columns whose codes share each byte of a row. */
static inline void find_columns(awq_layout layout, int64_t bytes, int64_t col_stride, int64_t (*columns)[2])
{
    for (int64_t i = 0; i < bytes; i++) {
        const int64_t block = i / AWQ_BLOCK_BYTES * AWQ_BLOCK_CODES;
        const int byte = (int)(i % AWQ_BLOCK_BYTES);
        columns[i][0] = (block + awq_low_column(layout, byte)) * col_stride;
        columns[i][1] = (block + awq_high_column(layout, byte)) * col_stride;
    }
}

/* Four payload bytes of 64 rows from the eight columns they hold; asks for eight more, `ahead` bytes further down. */
static inline void join_lines(const uint8_t *restrict codes, const int64_t (*at)[2], const int64_t (*next)[2],
                              int64_t ahead, uint8_t *restrict lines, const uint16_t *places, __m256i *seen)
{
    const __m256i mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    for (int i = 0; i < ABREAST; i++) {
        prefetch(codes, next[i][0] + ahead);
        prefetch(codes, next[i][1] + ahead);
        for (int h = 0; h < HALVES; h++) {
            const __m256i a = load(codes + at[i][0] + VECTOR * h);
            const __m256i b = load(codes + at[i][1] + VECTOR * h);
            *seen = _mm256_or_si256(*seen, _mm256_or_si256(a, b));
            const __m256i bytes =
                _mm256_or_si256(_mm256_and_si256(a, mask), _mm256_slli_epi16(_mm256_and_si256(b, mask), 4));
            _mm256_store_si256((void *)(lines + LINE * places[i] + VECTOR * h), bytes);
        }
    }
}

/* The lines of 64 rows, `bytes` of them, to payload rows as `to` has them. */
static inline void turn_tile(const uint8_t *restrict lines, const uint16_t *at, int64_t bytes, uint8_t *restrict rows,
                             const awq_panel_walk *to)
{
    for (int g = 0; g < bytes / GROUP; g++) {
        uint8_t *block = rows + g / BLOCK_GROUPS * to->block + g % BLOCK_GROUPS * GROUP;
        for (int h = 0; h < HALVES; h++) {
            __m256i v[GROUP];
#pragma GCC unroll 16
            for (int i = 0; i < GROUP; i++) {
                v[i] = load(lines + LINE * at[g * GROUP + i] + VECTOR * h);
            }
            transpose_lanes(v);
#pragma GCC unroll 16
            for (int j = 0; j < GROUP; j++) {
                uint8_t *p = block + h * (VECTOR / AWQ_QUAD_ROWS) * to->quad + j / AWQ_QUAD_ROWS * to->quad +
                             j % AWQ_QUAD_ROWS * to->row;
                _mm_store_si128((void *)p, _mm256_castsi256_si128(v[j]));
                _mm_store_si128((void *)(p + GROUP / AWQ_QUAD_ROWS * to->quad), _mm256_extracti128_si256(v[j], 1));
            }
        }
    }
}

/*
 * The lines of a slice are numbered as its tiles are written, byte by byte of each. Line n of those that are read goes
 * where line n of those that were written has been, so both slices share LINES of them.
 */
static uint8_t pack_columns(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                            uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    const int64_t quad = layout == AWQ_LAYOUT_V2 ? AWQ_QUAD_ROWS : 1;
    const int64_t bytes = cols / 2, run = bytes * quad, tile_runs = TILE / quad; /* payload rows, and those of a tile */
    const int64_t tiles = rows / TILE, most = LINES / bytes;
    const awq_panel_walk to = awq_panel_walk_of(layout, run);
    __m256i seen = _mm256_setzero_si256();
    alignas(LINE) uint8_t lines[LINE * LINES];
    alignas(LINE) uint8_t ready[TILE * MAX_BYTES];
    uint16_t places[2][LINES];
    int64_t columns[MAX_BYTES][2];
    find_columns(layout, bytes, col_stride, columns);
    for (int i = 0; i < LINES; i++) {
        places[0][i] = (uint16_t)i;
    }
    int64_t held = 0; /* tiles of the slice above, read and not yet written */
    for (int64_t first = 0, slice = 0; first < tiles || held > 0; slice++) {
        const uint16_t *above = places[slice % 2];
        uint16_t *here = places[(slice + 1) % 2];
        const int64_t taken = tiles - first < most ? tiles - first : most;
        const int64_t reads = taken * bytes / ABREAST;
        const uint8_t *source = codes + TILE * first;
        int64_t read = 0, tile = 0, byte = 0;
        for (int64_t t = 0; t < (held > 0 ? held : 1); t++) {
            uint8_t *target = payload + (first - held + t) * tile_runs * payload_stride;
            const int64_t from = read, until = held > 0 ? reads * (t + 1) / held : reads;
            int64_t sent = held > 0 ? 0 : tile_runs;
            if (held > 0) {
                turn_tile(lines, above + t * bytes, bytes, ready, &to);
            }
            for (; read < until; read++) {
                uint16_t *at = here + tile * bytes + byte;
                memcpy(at, above + ABREAST * read, ABREAST * sizeof *at);
                const bool is_last = byte + ABREAST == bytes;
                join_lines(source + TILE * tile, columns + byte, columns + (is_last ? 0 : byte + ABREAST),
                           is_last ? TILE * taken : 0, lines, at, &seen);
                if (++tile == taken) {
                    tile = 0;
                    byte += ABREAST;
                }
                for (; sent * (until - from) < tile_runs * (read + 1 - from) && sent < tile_runs; sent++) {
                    copy_run(target + sent * payload_stride, ready + sent * run, run, stream);
                }
            }
            for (; sent < tile_runs; sent++) {
                copy_run(target + sent * payload_stride, ready + sent * run, run, stream);
            }
        }
        held = taken;
        first += taken;
    }
    if (stream) {
        _mm_sfence();
    }
    return or_bytes(seen);
}

/* V2's runs of four rows are long enough with half the columns, which leaves twice the rows to a slice. */
uint8_t awq_avx2_pack_panel(awq_layout layout, const uint8_t *restrict codes, int64_t col_stride,
                            uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    const bool is_v2 = layout == AWQ_LAYOUT_V2;
    const int64_t most = is_v2 ? AWQ_PANEL_COLS / 2 : AWQ_PANEL_COLS;
    uint8_t seen = 0;
    for (int64_t c = 0; c < cols; c += most) {
        seen |= pack_columns(layout, codes + c * col_stride, col_stride,
                             payload + c / 2 * (is_v2 ? AWQ_QUAD_ROWS : 1), payload_stride, rows,
                             cols - c < most ? cols - c : most, stream);
    }
    return seen;
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

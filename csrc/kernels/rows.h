/*
 * Row-major V1 and V2 for both x86 instruction sets: the walks. Below them are these primitives of avx2.c or avx512.c:
 *   row_keys                                            what shuffles need: pack_keys(packing), unpack_keys(packing)
 *   pack_line(first, second, keys, seen, line)         two runs of 64 codes of one row to a line of payload
 *   unpack_line(from, keys, first, second)             the way back
 *   pack_words, unpack_words                            no more words of V1 than a line holds
 */
#ifndef AWQPACK_ROWS_H
#define AWQPACK_ROWS_H

enum {
    LINE_CODES = 2 * LINE, /* codes that make one line of payload */
    LINE_WORDS = LINE / AWQ_WORD_BYTES,
    PREFETCH = 1024,        /* bytes of source ahead: a quarter of a page measured best */
    STREAMS = 4,            /* runs read side by side, as one run alone leaves DRAM banks and line buffers idle ... */
    STREAM_LINES = 1 << 10, /* ... each this many payload lines long */
};

/* Words before the destination is aligned to a line; 0 when it never is. */
static inline int64_t words_to_line(const uint8_t *p, int word_bytes, int64_t words)
{
    const uintptr_t gap = -(uintptr_t)p % LINE;
    const int64_t n = gap % (uintptr_t)word_bytes ? 0 : (int64_t)gap / word_bytes;
    return n < words ? n : words;
}

/* `count` runs of `lines` lines, each run right after the other, all of them at once. */
ALWAYS_INLINE void pack_runs(const uint8_t *restrict codes, uint8_t *restrict payload, int count, int64_t lines,
                             row_keys keys, bool stream, vector *seen)
{
    for (int64_t i = 0; i < lines; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = codes + LINE_CODES * (k * lines + i);
            vector line[HALVES];
            prefetch(from, PREFETCH);
            prefetch(from, PREFETCH + LINE);
            pack_line(from, from + LINE, keys, seen, line);
            put_line(payload + LINE * (k * lines + i), line, stream);
        }
    }
}

ALWAYS_INLINE void unpack_runs(const uint8_t *restrict payload, uint8_t *restrict codes, int count, int64_t lines,
                               row_keys keys, bool stream)
{
    for (int64_t i = 0; i < lines; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = payload + LINE * (k * lines + i);
            uint8_t *to = codes + LINE_CODES * (k * lines + i);
            vector first[HALVES], second[HALVES];
            prefetch(from, PREFETCH);
            unpack_line(from, keys, first, second);
            put_line(to, first, stream);
            put_line(to + LINE, second, stream);
        }
    }
}

/* So that the compiler sees which packings it can be. */
static inline awq_packing v1_packing(const awq_panel *line)
{
    return line->packing == AWQ_PACKING_V1 ? AWQ_PACKING_V1 : AWQ_PACKING_V1_REORDER;
}

static uint8_t pack_v1(const awq_panel *line)
{
    const row_keys keys = pack_keys(v1_packing(line));
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    int64_t words = line->cols / AWQ_WORD_CODES;
    vector seen = no_codes();
    const int64_t head = words_to_line(payload, AWQ_WORD_BYTES, words);
    pack_words(codes, payload, head, keys, &seen);
    codes += AWQ_WORD_CODES * head;
    payload += AWQ_WORD_BYTES * head;
    words -= head;
    const bool stream = way_to(line, payload, 0) == STREAM;
    for (; stream && words >= STREAMS * STREAM_LINES * LINE_WORDS; words -= STREAMS * STREAM_LINES * LINE_WORDS) {
        pack_runs(codes, payload, STREAMS, STREAM_LINES, keys, true, &seen);
        codes += STREAMS * STREAM_LINES * LINE_CODES;
        payload += STREAMS * STREAM_LINES * LINE;
    }
    pack_runs(codes, payload, 1, words / LINE_WORDS, keys, stream, &seen);
    const int64_t tail = words % LINE_WORDS;
    pack_words(codes + AWQ_WORD_CODES * (words - tail), payload + AWQ_WORD_BYTES * (words - tail), tail, keys, &seen);
    return or_bytes(seen);
}

static uint8_t unpack_v1(const awq_panel *line)
{
    const row_keys keys = unpack_keys(v1_packing(line));
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    int64_t words = line->cols / AWQ_WORD_CODES;
    const int64_t head = words_to_line(codes, AWQ_WORD_CODES, words);
    unpack_words(payload, codes, head, keys);
    codes += AWQ_WORD_CODES * head;
    payload += AWQ_WORD_BYTES * head;
    words -= head;
    const bool stream = way_to(line, codes, 0) == STREAM;
    for (; stream && words >= STREAMS * STREAM_LINES * LINE_WORDS; words -= STREAMS * STREAM_LINES * LINE_WORDS) {
        unpack_runs(payload, codes, STREAMS, STREAM_LINES, keys, true);
        codes += STREAMS * STREAM_LINES * LINE_CODES;
        payload += STREAMS * STREAM_LINES * LINE;
    }
    unpack_runs(payload, codes, 1, words / LINE_WORDS, keys, stream);
    const int64_t tail = words % LINE_WORDS;
    unpack_words(payload + AWQ_WORD_BYTES * (words - tail), codes + AWQ_WORD_CODES * (words - tail), tail, keys);
    return 0;
}

ALWAYS_INLINE void pack_quads(const awq_panel *panel, vector *seen, way way)
{
    const row_keys keys = pack_keys(AWQ_PACKING_V2);
    const uint8_t *restrict codes = panel->codes;
    uint8_t *restrict payload = panel->payload;
    const int64_t row_stride = panel->row_stride, blocks = panel->cols / AWQ_BLOCK_CODES;
    alignas(LINE) uint8_t rest[1][LINE];
    writer w = writer_of(way, payload, rest);
    for (int64_t rows = panel->rows; rows > 0; rows -= AWQ_QUAD_ROWS) {
        w.is_first = true;
        for (int64_t b = 0; b < blocks; b++) {
            for (int r = 0; r < AWQ_QUAD_ROWS; r += 2) {
                const uint8_t *even = codes + r * row_stride + b * AWQ_BLOCK_CODES;
                const uint8_t *odd = even + row_stride;
                vector line[HALVES];
                prefetch(even, PREFETCH);
                prefetch(odd, PREFETCH);
                pack_line(even, odd, keys, seen, line);
                put_next(&w, 0, payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES, line);
                w.is_first = false;
            }
        }
        put_rest(&w, 0, payload + blocks * AWQ_QUAD_BLOCK_BYTES);
        codes += AWQ_QUAD_ROWS * row_stride;
        payload += panel->line_stride;
    }
}

/* Any number of lines. */
static uint8_t pack_v2(const awq_panel *panel)
{
    const int64_t between = panel->rows > AWQ_QUAD_ROWS ? panel->line_stride : 0;
    vector seen = no_codes();
    BY_WAY(way_to(panel, panel->payload, between), pack_quads, panel, &seen)
    return or_bytes(seen);
}

ALWAYS_INLINE void unpack_quads(const awq_panel *panel, way way)
{
    const row_keys keys = unpack_keys(AWQ_PACKING_V2);
    const uint8_t *restrict payload = panel->payload;
    uint8_t *restrict codes = panel->codes;
    const int64_t row_stride = panel->row_stride, blocks = panel->cols / AWQ_BLOCK_CODES;
    alignas(LINE) uint8_t rest[AWQ_QUAD_ROWS][LINE];
    writer w = writer_of(way, codes, rest);
    for (int64_t rows = panel->rows; rows > 0; rows -= AWQ_QUAD_ROWS) {
        w.is_first = true;
        for (int64_t b = 0; b < blocks; b++) {
            for (int r = 0; r < AWQ_QUAD_ROWS; r += 2) {
                const uint8_t *from = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
                uint8_t *even = codes + r * row_stride + b * AWQ_BLOCK_CODES;
                vector first[HALVES], second[HALVES];
                prefetch(from, PREFETCH);
                unpack_line(from, keys, first, second);
                put_next(&w, r, even, first);
                put_next(&w, r + 1, even + row_stride, second);
            }
            w.is_first = false;
        }
        put_rests(&w, AWQ_QUAD_ROWS, codes + panel->cols, row_stride);
        codes += AWQ_QUAD_ROWS * row_stride;
        payload += panel->line_stride;
    }
}

/* Any number of lines. */
static uint8_t unpack_v2(const awq_panel *panel)
{
    BY_WAY(way_to(panel, panel->codes, panel->row_stride), unpack_quads, panel)
    return 0;
}

#endif

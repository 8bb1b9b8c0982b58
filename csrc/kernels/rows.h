/*
 * Row-major V1 and V2 for both x86 instruction sets: the walks. Below them are these primitives of avx2.c or avx512.c:
 *   row_keys                                            what shuffles need: pack_keys(packing), unpack_keys(packing)
 *   pack_line(first, second, to, keys, mode, seen)      two runs of 64 codes of one row to a line of payload
 *   unpack_line(from, first, second, keys, mode)        the way back
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

/* The widest streaming store for a destination whose addresses have all the alignment of `address`. */
static inline store_mode mode_for(uintptr_t address, bool stream)
{
    return !stream || address % 16 ? STORE_PLAIN : address % VECTOR ? STORE_STREAM_16 : STORE_STREAM;
}

/* Words before the destination is aligned to a line; 0 when it never is. */
static inline int64_t words_to_line(const uint8_t *p, int word_bytes, int64_t words)
{
    const uintptr_t gap = -(uintptr_t)p % LINE;
    const int64_t n = gap % (uintptr_t)word_bytes ? 0 : (int64_t)gap / word_bytes;
    return n < words ? n : words;
}

/* `count` runs of `lines` lines, each run right after the other, all of them at once. */
ALWAYS_INLINE void pack_runs(const uint8_t *restrict codes, uint8_t *restrict payload, int count, int64_t lines,
                             row_keys keys, store_mode mode, vector *seen)
{
    for (int64_t i = 0; i < lines; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = codes + LINE_CODES * (k * lines + i);
            prefetch(from, PREFETCH);
            prefetch(from, PREFETCH + LINE);
            pack_line(from, from + LINE, payload + LINE * (k * lines + i), keys, mode, seen);
        }
    }
}

ALWAYS_INLINE void unpack_runs(const uint8_t *restrict payload, uint8_t *restrict codes, int count, int64_t lines,
                               row_keys keys, store_mode mode)
{
    for (int64_t i = 0; i < lines; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = payload + LINE * (k * lines + i);
            uint8_t *to = codes + LINE_CODES * (k * lines + i);
            prefetch(from, PREFETCH);
            unpack_line(from, to, to + LINE, keys, mode);
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
    const bool streamed = mode_for((uintptr_t)payload, line->stream) == STORE_STREAM;
    if (streamed) {
        for (; words >= STREAMS * STREAM_LINES * LINE_WORDS; words -= STREAMS * STREAM_LINES * LINE_WORDS) {
            pack_runs(codes, payload, STREAMS, STREAM_LINES, keys, STORE_STREAM, &seen);
            codes += STREAMS * STREAM_LINES * LINE_CODES;
            payload += STREAMS * STREAM_LINES * LINE;
        }
        pack_runs(codes, payload, 1, words / LINE_WORDS, keys, STORE_STREAM, &seen);
    } else {
        pack_runs(codes, payload, 1, words / LINE_WORDS, keys, STORE_PLAIN, &seen);
    }
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
    const bool streamed = mode_for((uintptr_t)codes, line->stream) == STORE_STREAM;
    if (streamed) {
        for (; words >= STREAMS * STREAM_LINES * LINE_WORDS; words -= STREAMS * STREAM_LINES * LINE_WORDS) {
            unpack_runs(payload, codes, STREAMS, STREAM_LINES, keys, STORE_STREAM);
            codes += STREAMS * STREAM_LINES * LINE_CODES;
            payload += STREAMS * STREAM_LINES * LINE;
        }
        unpack_runs(payload, codes, 1, words / LINE_WORDS, keys, STORE_STREAM);
    } else {
        unpack_runs(payload, codes, 1, words / LINE_WORDS, keys, STORE_PLAIN);
    }
    const int64_t tail = words % LINE_WORDS;
    unpack_words(payload + AWQ_WORD_BYTES * (words - tail), codes + AWQ_WORD_CODES * (words - tail), tail, keys);
    return 0;
}

ALWAYS_INLINE void pack_quads(const awq_panel *panel, store_mode mode, vector *seen)
{
    const row_keys keys = pack_keys(AWQ_PACKING_V2);
    const uint8_t *restrict codes = panel->codes;
    uint8_t *restrict payload = panel->payload;
    const int64_t row_stride = panel->row_stride, blocks = panel->cols / AWQ_BLOCK_CODES;
    for (int64_t rows = panel->rows; rows > 0; rows -= AWQ_QUAD_ROWS) {
        for (int64_t b = 0; b < blocks; b++) {
            for (int r = 0; r < AWQ_QUAD_ROWS; r += 2) {
                const uint8_t *even = codes + r * row_stride + b * AWQ_BLOCK_CODES;
                const uint8_t *odd = even + row_stride;
                prefetch(even, PREFETCH);
                prefetch(odd, PREFETCH);
                pack_line(even, odd, payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES, keys, mode, seen);
            }
        }
        codes += AWQ_QUAD_ROWS * row_stride;
        payload += panel->line_stride;
    }
}

/* Any number of lines. */
static uint8_t pack_v2(const awq_panel *panel)
{
    const uintptr_t between = panel->rows > AWQ_QUAD_ROWS ? (uintptr_t)panel->line_stride : 0;
    vector seen = no_codes();
    switch (mode_for((uintptr_t)panel->payload | between, panel->stream)) {
    case STORE_STREAM: pack_quads(panel, STORE_STREAM, &seen); break;
    case STORE_STREAM_16: pack_quads(panel, STORE_STREAM_16, &seen); break;
    default: pack_quads(panel, STORE_PLAIN, &seen);
    }
    return or_bytes(seen);
}

ALWAYS_INLINE void unpack_quads(const awq_panel *panel, store_mode mode)
{
    const row_keys keys = unpack_keys(AWQ_PACKING_V2);
    const uint8_t *restrict payload = panel->payload;
    uint8_t *restrict codes = panel->codes;
    const int64_t row_stride = panel->row_stride, blocks = panel->cols / AWQ_BLOCK_CODES;
    for (int64_t rows = panel->rows; rows > 0; rows -= AWQ_QUAD_ROWS) {
        for (int64_t b = 0; b < blocks; b++) {
            for (int r = 0; r < AWQ_QUAD_ROWS; r += 2) {
                const uint8_t *from = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
                uint8_t *even = codes + r * row_stride + b * AWQ_BLOCK_CODES;
                prefetch(from, PREFETCH);
                unpack_line(from, even, even + row_stride, keys, mode);
            }
        }
        codes += AWQ_QUAD_ROWS * row_stride;
        payload += panel->line_stride;
    }
}

/* Any number of lines. */
static uint8_t unpack_v2(const awq_panel *panel)
{
    switch (mode_for((uintptr_t)panel->codes | (uintptr_t)panel->row_stride, panel->stream)) {
    case STORE_STREAM: unpack_quads(panel, STORE_STREAM); break;
    case STORE_STREAM_16: unpack_quads(panel, STORE_STREAM_16); break;
    default: unpack_quads(panel, STORE_PLAIN);
    }
    return 0;
}

#endif

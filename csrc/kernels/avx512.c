/* The kernels for AVX-512 F, BW, VL and VBMI: one byte permutation per packing, then the same arithmetic for all. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"

#include <stdalign.h>

enum {
    LINE_CODES = 2 * LINE,  /* codes that make one line of payload */
    PREFETCH = 1024,        /* bytes of source ahead: a quarter of a page measured best */
    STREAMS = 4,            /* runs read side by side, as one run alone leaves DRAM banks and line buffers idle ... */
    STREAM_LINES = 1 << 10, /* ... each this many payload lines long */
};

#define TIMES_8(f, i) f(i), f((i) + 1), f((i) + 2), f((i) + 3), f((i) + 4), f((i) + 5), f((i) + 6), f((i) + 7)
#define TIMES_32(f) TIMES_8(f, 0), TIMES_8(f, 8), TIMES_8(f, 16), TIMES_8(f, 24)
#define TIMES_64(f) TIMES_32(f), TIMES_8(f, 32), TIMES_8(f, 40), TIMES_8(f, 48), TIMES_8(f, 56)

/* Byte 2*i is the low and byte 2*i + 1 the high column of payload byte i, as awq_low_column has them. */
#define PAIR_V1(i) 2 * (i), 2 * (i) + 1
#define LOW_REORDER(i) (8 * ((i) / 4) + 4 * ((i) % 2) + (i) % 4 / 2)
#define PAIR_REORDER(i) LOW_REORDER(i), LOW_REORDER(i) + 2
#define LOW_V2(i) (32 * ((i) / 16) + 16 * ((i) % 2) + (i) % 16 / 2)
#define PAIR_V2(i) LOW_V2(i), LOW_V2(i) + 8

static const alignas(LINE) uint8_t pair_order[AWQ_PACKING_COUNT][LINE] = {
    [AWQ_PACKING_V1] = {TIMES_32(PAIR_V1)},
    [AWQ_PACKING_V1_REORDER] = {TIMES_32(PAIR_REORDER)},
    [AWQ_PACKING_V2] = {TIMES_32(PAIR_V2)},
};

/* Unpacking, eight columns of a block at a time: the payload bytes they need, and the bit where each nibble starts. */
#define SPREAD_V1(i) 4 * ((i) / 8) + (i) % 4
#define SPREAD_V2(i) 16 * ((i) / 32) + 2 * ((i) % 8) + (i) / 16 % 2
#define SHIFT_V1(i) 4 * ((i) % 8)
#define SHIFT_REORDER(i) 4 * ((i) % 8 / 2 + 4 * ((i) % 2))
#define SHIFT_V2(i) 8 * ((i) % 8) + 4 * ((i) / 8 % 2)

static const alignas(LINE) uint8_t spread_order[AWQ_PACKING_COUNT][LINE] = {
    [AWQ_PACKING_V1] = {TIMES_64(SPREAD_V1)},
    [AWQ_PACKING_V1_REORDER] = {TIMES_64(SPREAD_V1)},
    [AWQ_PACKING_V2] = {TIMES_64(SPREAD_V2)},
};

static const alignas(LINE) uint8_t spread_shift[AWQ_PACKING_COUNT][LINE] = {
    [AWQ_PACKING_V1] = {TIMES_64(SHIFT_V1)},
    [AWQ_PACKING_V1_REORDER] = {TIMES_64(SHIFT_REORDER)},
    [AWQ_PACKING_V2] = {TIMES_64(SHIFT_V2)},
};

/* Stores of 16 bytes still fill whole lines one after another, which is all that NumPy's alignment allows. */
typedef enum store_mode { STORE_PLAIN, STORE_STREAM_16, STORE_STREAM_64 } store_mode;

static inline void store(uint8_t *p, __m512i v, store_mode mode)
{
    switch (mode) {
    case STORE_STREAM_64:
        _mm512_stream_si512((void *)p, v);
        break;
    case STORE_STREAM_16:
        _mm_stream_si128((void *)p, _mm512_castsi512_si128(v));
        _mm_stream_si128((void *)(p + 16), _mm512_extracti32x4_epi32(v, 1));
        _mm_stream_si128((void *)(p + 32), _mm512_extracti32x4_epi32(v, 2));
        _mm_stream_si128((void *)(p + 48), _mm512_extracti32x4_epi32(v, 3));
        break;
    default:
        _mm512_storeu_si512(p, v);
    }
}

/* The widest streaming store for a destination whose addresses have all the alignment of `address`. */
static inline store_mode mode_for(uintptr_t address, bool stream)
{
    return !stream || address % 16 ? STORE_PLAIN : address % LINE ? STORE_STREAM_16 : STORE_STREAM_64;
}

/* Two blocks of codes, in any packing, to their 64 payload bytes. */
static inline __m512i pack_line(__m512i a, __m512i b, __m512i pairs, __m512i *seen)
{
    const __m512i mask = _mm512_set1_epi8(AWQ_CODE_MAX);
    const __m512i weights = _mm512_set1_epi16(0x1001);
    const __m512i halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    *seen = _mm512_ternarylogic_epi64(*seen, a, b, 0xfe);
    a = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_permutexvar_epi8(pairs, a), mask), weights);
    b = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_permutexvar_epi8(pairs, b), mask), weights);
    return _mm512_permutexvar_epi64(halves, _mm512_packus_epi16(a, b));
}

/* Block 0 or 1 of a payload line to its 64 codes. */
static inline __m512i unpack_block(__m512i line, __m512i spread, __m512i shift)
{
    const __m512i mask = _mm512_set1_epi8(AWQ_CODE_MAX);
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(spread, line)), mask);
}

static inline __m512i second_block(__m512i spread)
{
    return _mm512_add_epi8(spread, _mm512_set1_epi8(AWQ_BLOCK_BYTES));
}

/* Words before the destination is aligned to a line; 0 when it never is. */
static inline int64_t words_to_line(const uint8_t *p, int word_bytes, int64_t words)
{
    const uintptr_t gap = -(uintptr_t)p % LINE;
    const int64_t n = gap % (uintptr_t)word_bytes ? 0 : (int64_t)gap / word_bytes;
    return n < words ? n : words;
}

/* Fewer words than fill a line (or just as many), by masked accesses. */
static inline void pack_words(const uint8_t *codes, uint8_t *payload, int64_t words, __m512i pairs, __m512i *seen)
{
    const int64_t n = AWQ_WORD_CODES * words;
    const __m512i a = _mm512_maskz_loadu_epi8(first_bytes(n), codes);
    const __m512i b = n > LINE ? _mm512_maskz_loadu_epi8(first_bytes(n - LINE), codes + LINE) : _mm512_setzero_si512();
    _mm512_mask_storeu_epi8(payload, first_bytes(AWQ_WORD_BYTES * words), pack_line(a, b, pairs, seen));
}

static inline void unpack_words(const uint8_t *payload, uint8_t *codes, int64_t words, __m512i spread, __m512i shift)
{
    const int64_t n = AWQ_WORD_CODES * words;
    const __m512i line = _mm512_maskz_loadu_epi8(first_bytes(AWQ_WORD_BYTES * words), payload);
    _mm512_mask_storeu_epi8(codes, first_bytes(n), unpack_block(line, spread, shift));
    if (n > LINE) {
        _mm512_mask_storeu_epi8(codes + LINE, first_bytes(n - LINE), unpack_block(line, second_block(spread), shift));
    }
}

/* `count` runs of `lines` lines, each run right after the other, all of them at once. */
static inline void pack_runs(const uint8_t *restrict codes, uint8_t *restrict payload, int count, int64_t lines,
                             __m512i pairs, store_mode mode, __m512i *seen)
{
    for (int64_t i = 0; i < lines; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = codes + LINE_CODES * (k * lines + i);
            prefetch(from, PREFETCH);
            prefetch(from, PREFETCH + LINE);
            store(payload + LINE * (k * lines + i), pack_line(load(from), load(from + LINE), pairs, seen), mode);
        }
    }
}

static inline void unpack_runs(const uint8_t *restrict payload, uint8_t *restrict codes, int count, int64_t lines,
                               __m512i spread, __m512i shift, store_mode mode)
{
    for (int64_t i = 0; i < lines; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = payload + LINE * (k * lines + i);
            uint8_t *to = codes + LINE_CODES * (k * lines + i);
            prefetch(from, PREFETCH);
            const __m512i line = load(from);
            store(to, unpack_block(line, spread, shift), mode);
            store(to + LINE, unpack_block(line, second_block(spread), shift), mode);
        }
    }
}

static uint8_t pack_v1(const awq_panel *line)
{
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    int64_t words = line->cols / AWQ_WORD_CODES;
    enum { LINE_WORDS = LINE / AWQ_WORD_BYTES };
    const __m512i pairs = load(pair_order[line->packing]);
    __m512i seen = _mm512_setzero_si512();
    const int64_t head = words_to_line(payload, AWQ_WORD_BYTES, words);
    pack_words(codes, payload, head, pairs, &seen);
    codes += AWQ_WORD_CODES * head;
    payload += AWQ_WORD_BYTES * head;
    words -= head;
    const bool streamed = mode_for((uintptr_t)payload, line->stream) == STORE_STREAM_64;
    if (streamed) {
        for (; words >= STREAMS * STREAM_LINES * LINE_WORDS; words -= STREAMS * STREAM_LINES * LINE_WORDS) {
            pack_runs(codes, payload, STREAMS, STREAM_LINES, pairs, STORE_STREAM_64, &seen);
            codes += STREAMS * STREAM_LINES * LINE_CODES;
            payload += STREAMS * STREAM_LINES * LINE;
        }
        pack_runs(codes, payload, 1, words / LINE_WORDS, pairs, STORE_STREAM_64, &seen);
    } else {
        pack_runs(codes, payload, 1, words / LINE_WORDS, pairs, STORE_PLAIN, &seen);
    }
    const int64_t tail = words % LINE_WORDS;
    pack_words(codes + AWQ_WORD_CODES * (words - tail), payload + AWQ_WORD_BYTES * (words - tail), tail, pairs, &seen);
    if (streamed) {
        _mm_sfence();
    }
    return or_bytes(seen);
}

static uint8_t unpack_v1(const awq_panel *line)
{
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    int64_t words = line->cols / AWQ_WORD_CODES;
    enum { LINE_WORDS = LINE / AWQ_WORD_BYTES };
    const __m512i spread = load(spread_order[line->packing]);
    const __m512i shift = load(spread_shift[line->packing]);
    const int64_t head = words_to_line(codes, AWQ_WORD_CODES, words);
    unpack_words(payload, codes, head, spread, shift);
    codes += AWQ_WORD_CODES * head;
    payload += AWQ_WORD_BYTES * head;
    words -= head;
    const bool streamed = mode_for((uintptr_t)codes, line->stream) == STORE_STREAM_64;
    if (streamed) {
        for (; words >= STREAMS * STREAM_LINES * LINE_WORDS; words -= STREAMS * STREAM_LINES * LINE_WORDS) {
            unpack_runs(payload, codes, STREAMS, STREAM_LINES, spread, shift, STORE_STREAM_64);
            codes += STREAMS * STREAM_LINES * LINE_CODES;
            payload += STREAMS * STREAM_LINES * LINE;
        }
        unpack_runs(payload, codes, 1, words / LINE_WORDS, spread, shift, STORE_STREAM_64);
    } else {
        unpack_runs(payload, codes, 1, words / LINE_WORDS, spread, shift, STORE_PLAIN);
    }
    const int64_t tail = words % LINE_WORDS;
    unpack_words(payload + AWQ_WORD_BYTES * (words - tail), codes + AWQ_WORD_CODES * (words - tail), tail, spread,
                 shift);
    if (streamed) {
        _mm_sfence();
    }
    return 0;
}

static inline void pack_quads(const uint8_t *restrict codes, int64_t row_stride, uint8_t *restrict payload,
                              int64_t blocks, store_mode mode, __m512i *seen)
{
    const __m512i pairs = load(pair_order[AWQ_PACKING_V2]);
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r += 2) {
            const uint8_t *even = codes + r * row_stride + b * AWQ_BLOCK_CODES;
            const uint8_t *odd = even + row_stride;
            prefetch(even, PREFETCH);
            prefetch(odd, PREFETCH);
            uint8_t *to = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
            store(to, pack_line(load(even), load(odd), pairs, seen), mode);
        }
    }
}

static uint8_t pack_v2(const awq_panel *line)
{
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    const int64_t row_stride = line->row_stride, blocks = line->cols / AWQ_BLOCK_CODES;
    __m512i seen = _mm512_setzero_si512();
    switch (mode_for((uintptr_t)payload, line->stream)) {
    case STORE_STREAM_64:
        pack_quads(codes, row_stride, payload, blocks, STORE_STREAM_64, &seen);
        _mm_sfence();
        break;
    case STORE_STREAM_16:
        pack_quads(codes, row_stride, payload, blocks, STORE_STREAM_16, &seen);
        _mm_sfence();
        break;
    default:
        pack_quads(codes, row_stride, payload, blocks, STORE_PLAIN, &seen);
    }
    return or_bytes(seen);
}

static inline void unpack_quads(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t row_stride,
                                int64_t blocks, store_mode mode)
{
    const __m512i spread = load(spread_order[AWQ_PACKING_V2]);
    const __m512i shift = load(spread_shift[AWQ_PACKING_V2]);
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r += 2) {
            const uint8_t *from = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
            uint8_t *even = codes + r * row_stride + b * AWQ_BLOCK_CODES;
            prefetch(from, PREFETCH);
            const __m512i line = load(from);
            store(even, unpack_block(line, spread, shift), mode);
            store(even + row_stride, unpack_block(line, second_block(spread), shift), mode);
        }
    }
}

static uint8_t unpack_v2(const awq_panel *line)
{
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    const int64_t row_stride = line->row_stride, blocks = line->cols / AWQ_BLOCK_CODES;
    switch (mode_for((uintptr_t)codes | (uintptr_t)row_stride, line->stream)) {
    case STORE_STREAM_64:
        unpack_quads(payload, codes, row_stride, blocks, STORE_STREAM_64);
        _mm_sfence();
        break;
    case STORE_STREAM_16:
        unpack_quads(payload, codes, row_stride, blocks, STORE_STREAM_16);
        _mm_sfence();
        break;
    default:
        unpack_quads(payload, codes, row_stride, blocks, STORE_PLAIN);
    }
    return 0;
}

const awq_kernels awq_kernels_avx512 = {
    .name = "avx512",
    .scratch_bytes = AVX512_SCRATCH,
    .of = {
        [AWQ_PACKING_V1] = {pack_v1, unpack_v1, awq_avx512_pack_panel, awq_avx512_unpack_panel},
        [AWQ_PACKING_V1_REORDER] = {pack_v1, unpack_v1, awq_avx512_pack_panel, awq_avx512_unpack_panel},
        [AWQ_PACKING_V2] = {pack_v2, unpack_v2, awq_avx512_pack_panel, awq_avx512_unpack_panel},
    },
};

#endif

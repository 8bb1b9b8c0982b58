/* The kernels for AVX2: per packing, shuffles bring the two codes of a payload byte together, then one multiply-add. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"

#include <string.h>

enum {
    PREFETCH = 1024,        /* bytes of source ahead: a quarter of a page measured best */
    STREAMS = 4,            /* runs read side by side, as one run alone leaves DRAM banks and line buffers idle ... */
    STREAM_STEPS = 1 << 10, /* ... each this many steps long */
};

/* A step is one cache line of whichever side is written, so that streaming stores fill lines one by one. */
enum {
    PACK_STEP_WORDS = LINE / AWQ_WORD_BYTES,
    UNPACK_STEP_WORDS = LINE / AWQ_WORD_CODES,
    PACK_STEP_CODES = PACK_STEP_WORDS * AWQ_WORD_CODES,
    UNPACK_STEP_PAYLOAD = UNPACK_STEP_WORDS * AWQ_WORD_BYTES,
};

/* Stores of 16 bytes still fill whole lines one after another, which is all that NumPy's alignment allows. */
typedef enum store_mode { STORE_PLAIN, STORE_STREAM_16, STORE_STREAM_32 } store_mode;

static inline void store(uint8_t *p, __m256i v, store_mode mode)
{
    switch (mode) {
    case STORE_STREAM_32:
        _mm256_stream_si256((void *)p, v);
        break;
    case STORE_STREAM_16:
        _mm_stream_si128((void *)p, _mm256_castsi256_si128(v));
        _mm_stream_si128((void *)(p + 16), _mm256_extracti128_si256(v, 1));
        break;
    default:
        _mm256_storeu_si256((void *)p, v);
    }
}

/* The widest streaming store for a destination whose addresses have all the alignment of `address`. */
static inline store_mode mode_for(uintptr_t address, bool stream)
{
    return !stream || address % 16 ? STORE_PLAIN : address % VECTOR ? STORE_STREAM_16 : STORE_STREAM_32;
}

/* Within eight codes: the order that brings the low and high column of each V1 byte together, ... */
static inline __m256i pairs_v1(bool reorder)
{
    const int64_t order = reorder ? 0x0705030106040200 : 0x0706050403020100;
    return _mm256_setr_epi64x(order, order + 0x0808080808080808, order, order + 0x0808080808080808);
}

/* ... and the way back, from nibbles to columns. */
static inline __m256i columns_v1(bool reorder)
{
    const int64_t order = reorder ? 0x0703060205010400 : 0x0706050403020100;
    return _mm256_setr_epi64x(order, order + 0x0808080808080808, order, order + 0x0808080808080808);
}

/* Codes whose pairs have been brought together, to one payload byte in each 16 bits. */
static inline __m256i join(__m256i pairs)
{
    return _mm256_maddubs_epi16(_mm256_and_si256(pairs, _mm256_set1_epi8(AWQ_CODE_MAX)), _mm256_set1_epi16(0x1001));
}

static inline __m256i pack_block_v1(const uint8_t *codes, __m256i order, __m256i *seen)
{
    const __m256i a = load(codes);
    const __m256i b = load(codes + VECTOR);
    *seen = _mm256_or_si256(*seen, _mm256_or_si256(a, b));
    const __m256i bytes =
        _mm256_packus_epi16(join(_mm256_shuffle_epi8(a, order)), join(_mm256_shuffle_epi8(b, order)));
    return _mm256_permute4x64_epi64(bytes, 0xd8);
}

/* Half a block: 16 payload bytes to 32 codes. */
static inline __m256i unpack_half_v1(const uint8_t *payload, __m256i order)
{
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)payload));
    const __m256i nibbles = _mm256_or_si256(bytes, _mm256_slli_epi16(bytes, 4));
    return _mm256_shuffle_epi8(_mm256_and_si256(nibbles, _mm256_set1_epi8(AWQ_CODE_MAX)), order);
}

/* Words one by one: the ends that fill no step. */
static inline void pack_words(const uint8_t *codes, uint8_t *payload, int64_t words, __m256i order, __m256i *seen)
{
    for (int64_t j = 0; j < words; j++) {
        const __m128i word = _mm_loadl_epi64((const void *)(codes + AWQ_WORD_CODES * j));
        const __m256i wide = _mm256_zextsi128_si256(word);
        *seen = _mm256_or_si256(*seen, wide);
        const __m128i bytes = _mm256_castsi256_si128(join(_mm256_shuffle_epi8(wide, order)));
        const int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(bytes, bytes));
        memcpy(payload + AWQ_WORD_BYTES * j, &packed, sizeof packed);
    }
}

static inline void unpack_words(const uint8_t *payload, uint8_t *codes, int64_t words, __m256i order)
{
    for (int64_t j = 0; j < words; j++) {
        uint8_t word[16] = {0};
        memcpy(word, payload + AWQ_WORD_BYTES * j, AWQ_WORD_BYTES);
        _mm_storel_epi64((void *)(codes + AWQ_WORD_CODES * j), _mm256_castsi256_si128(unpack_half_v1(word, order)));
    }
}

/* Words before the destination is aligned to a line; 0 when it never is. */
static inline int64_t words_to_line(const uint8_t *p, int word_bytes, int64_t words)
{
    const uintptr_t gap = -(uintptr_t)p % LINE;
    const int64_t n = gap % (uintptr_t)word_bytes ? 0 : (int64_t)gap / word_bytes;
    return n < words ? n : words;
}

/* `count` runs of `steps` steps, each run right after the other, all of them at once. */
static inline void pack_runs(const uint8_t *restrict codes, uint8_t *restrict payload, int count, int64_t steps,
                             __m256i order, store_mode mode, __m256i *seen)
{
    for (int64_t i = 0; i < steps; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = codes + PACK_STEP_CODES * (k * steps + i);
            uint8_t *to = payload + LINE * (k * steps + i);
            prefetch(from, PREFETCH);
            prefetch(from, PREFETCH + LINE);
            const __m256i first = pack_block_v1(from, order, seen);
            const __m256i second = pack_block_v1(from + AWQ_BLOCK_CODES, order, seen);
            store(to, first, mode);
            store(to + VECTOR, second, mode);
        }
    }
}

static inline void unpack_runs(const uint8_t *restrict payload, uint8_t *restrict codes, int count, int64_t steps,
                               __m256i order, store_mode mode)
{
    for (int64_t i = 0; i < steps; i++) {
        for (int k = 0; k < count; k++) {
            const uint8_t *from = payload + UNPACK_STEP_PAYLOAD * (k * steps + i);
            uint8_t *to = codes + LINE * (k * steps + i);
            prefetch(from, PREFETCH);
            store(to, unpack_half_v1(from, order), mode);
            store(to + VECTOR, unpack_half_v1(from + UNPACK_STEP_PAYLOAD / 2, order), mode);
        }
    }
}

static uint8_t pack_v1(const awq_panel *line)
{
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    int64_t words = line->cols / AWQ_WORD_CODES;
    const __m256i order = pairs_v1(awq_packings[line->packing].reorder);
    __m256i seen = _mm256_setzero_si256();
    const int64_t head = words_to_line(payload, AWQ_WORD_BYTES, words);
    pack_words(codes, payload, head, order, &seen);
    codes += AWQ_WORD_CODES * head;
    payload += AWQ_WORD_BYTES * head;
    words -= head;
    int64_t steps = words / PACK_STEP_WORDS;
    if (mode_for((uintptr_t)payload, line->stream) == STORE_STREAM_32) {
        for (; steps >= STREAMS * STREAM_STEPS; steps -= STREAMS * STREAM_STEPS) {
            pack_runs(codes, payload, STREAMS, STREAM_STEPS, order, STORE_STREAM_32, &seen);
            codes += STREAMS * STREAM_STEPS * PACK_STEP_CODES;
            payload += STREAMS * STREAM_STEPS * LINE;
        }
        pack_runs(codes, payload, 1, steps, order, STORE_STREAM_32, &seen);
        _mm_sfence();
    } else {
        pack_runs(codes, payload, 1, steps, order, STORE_PLAIN, &seen);
    }
    pack_words(codes + PACK_STEP_CODES * steps, payload + LINE * steps, words % PACK_STEP_WORDS, order, &seen);
    return or_bytes(seen);
}

static uint8_t unpack_v1(const awq_panel *line)
{
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    int64_t words = line->cols / AWQ_WORD_CODES;
    const __m256i order = columns_v1(awq_packings[line->packing].reorder);
    const int64_t head = words_to_line(codes, AWQ_WORD_CODES, words);
    unpack_words(payload, codes, head, order);
    codes += AWQ_WORD_CODES * head;
    payload += AWQ_WORD_BYTES * head;
    words -= head;
    int64_t steps = words / UNPACK_STEP_WORDS;
    if (mode_for((uintptr_t)codes, line->stream) == STORE_STREAM_32) {
        for (; steps >= STREAMS * STREAM_STEPS; steps -= STREAMS * STREAM_STEPS) {
            unpack_runs(payload, codes, STREAMS, STREAM_STEPS, order, STORE_STREAM_32);
            codes += STREAMS * STREAM_STEPS * LINE;
            payload += STREAMS * STREAM_STEPS * UNPACK_STEP_PAYLOAD;
        }
        unpack_runs(payload, codes, 1, steps, order, STORE_STREAM_32);
        _mm_sfence();
    } else {
        unpack_runs(payload, codes, 1, steps, order, STORE_PLAIN);
    }
    unpack_words(payload + UNPACK_STEP_PAYLOAD * steps, codes + LINE * steps, words % UNPACK_STEP_WORDS, order);
    return 0;
}

static inline __m256i pack_block_v2(const uint8_t *codes, __m256i *seen)
{
    const __m256i neighbours = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14,
                                                                         7, 15));
    const __m256i a = load(codes);
    const __m256i b = load(codes + VECTOR);
    *seen = _mm256_or_si256(*seen, _mm256_or_si256(a, b));
    const __m256i first = join(_mm256_shuffle_epi8(a, neighbours));
    const __m256i second = join(_mm256_shuffle_epi8(b, neighbours));
    const __m256i even = _mm256_permute2x128_si256(first, second, 0x20);
    const __m256i odd = _mm256_permute2x128_si256(first, second, 0x31);
    return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

static inline void pack_quads(const uint8_t *restrict codes, int64_t row_stride, uint8_t *restrict payload,
                              int64_t blocks, store_mode mode, __m256i *seen)
{
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r++) {
            const uint8_t *from = codes + r * row_stride + b * AWQ_BLOCK_CODES;
            prefetch(from, PREFETCH);
            store(payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES, pack_block_v2(from, seen), mode);
        }
    }
}

static uint8_t pack_v2(const awq_panel *line)
{
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    const int64_t row_stride = line->row_stride, blocks = line->cols / AWQ_BLOCK_CODES;
    __m256i seen = _mm256_setzero_si256();
    switch (mode_for((uintptr_t)payload, line->stream)) {
    case STORE_STREAM_32:
        pack_quads(codes, row_stride, payload, blocks, STORE_STREAM_32, &seen);
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

static inline void unpack_block_v2(const uint8_t *payload, uint8_t *codes, store_mode mode)
{
    const __m256i mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    const __m256i split = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13,
                                                                    15));
    const __m256i bytes = _mm256_shuffle_epi8(load(payload), split);
    const __m256i low = _mm256_and_si256(bytes, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    const __m256i front = _mm256_unpacklo_epi64(low, high);
    const __m256i back = _mm256_unpackhi_epi64(low, high);
    store(codes, _mm256_permute2x128_si256(front, back, 0x20), mode);
    store(codes + VECTOR, _mm256_permute2x128_si256(front, back, 0x31), mode);
}

static inline void unpack_quads(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t row_stride,
                                int64_t blocks, store_mode mode)
{
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r++) {
            const uint8_t *from = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
            prefetch(from, PREFETCH);
            unpack_block_v2(from, codes + r * row_stride + b * AWQ_BLOCK_CODES, mode);
        }
    }
}

static uint8_t unpack_v2(const awq_panel *line)
{
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    const int64_t row_stride = line->row_stride, blocks = line->cols / AWQ_BLOCK_CODES;
    switch (mode_for((uintptr_t)codes | (uintptr_t)row_stride, line->stream)) {
    case STORE_STREAM_32:
        unpack_quads(payload, codes, row_stride, blocks, STORE_STREAM_32);
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

const awq_kernels awq_kernels_avx2 = {
    .name = "avx2",
    .scratch_bytes = AVX2_SCRATCH,
    .of = {
        [AWQ_PACKING_V1] = {pack_v1, unpack_v1, awq_avx2_pack_panel, awq_avx2_unpack_panel},
        [AWQ_PACKING_V1_REORDER] = {pack_v1, unpack_v1, awq_avx2_pack_panel, awq_avx2_unpack_panel},
        [AWQ_PACKING_V2] = {pack_v2, unpack_v2, awq_avx2_pack_panel, awq_avx2_unpack_panel},
    },
};

#endif

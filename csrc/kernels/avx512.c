/* The kernels for AVX-512 F, BW, VL and VBMI: one byte permutation per packing, then the same arithmetic for all. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx512.h"
#include "float_kernels.h"

#include <stdalign.h>

#define TIMES_8(f, i) f(i), f((i) + 1), f((i) + 2), f((i) + 3), f((i) + 4), f((i) + 5), f((i) + 6), f((i) + 7)
#define TIMES_32(f) TIMES_8(f, 0), TIMES_8(f, 8), TIMES_8(f, 16), TIMES_8(f, 24)
#define TIMES_64(f) TIMES_32(f), TIMES_8(f, 32), TIMES_8(f, 40), TIMES_8(f, 48), TIMES_8(f, 56)

/* Byte 2*i is the low and byte 2*i + 1 the high column of payload byte i. */
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

/* The vectors that a packing's shuffles take: pairs of columns to pack, or spread bytes and shifts to unpack. */
typedef struct row_keys {
    vector order, shift;
} row_keys;

static inline row_keys pack_keys(awq_packing packing)
{
    return (row_keys){load(pair_order[packing]), no_codes()};
}

static inline row_keys unpack_keys(awq_packing packing)
{
    return (row_keys){load(spread_order[packing]), load(spread_shift[packing])};
}

/* Two blocks of codes, in any packing, to their 64 payload bytes. */
static inline vector join_blocks(vector a, vector b, row_keys keys, vector *seen)
{
    const vector mask = _mm512_set1_epi8(AWQ_CODE_MAX);
    const vector weights = _mm512_set1_epi16(0x1001);
    const vector halves = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    *seen = _mm512_ternarylogic_epi64(*seen, a, b, 0xfe);
    a = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_permutexvar_epi8(keys.order, a), mask), weights);
    b = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_permutexvar_epi8(keys.order, b), mask), weights);
    return _mm512_permutexvar_epi64(halves, _mm512_packus_epi16(a, b));
}

static inline void pack_line(const uint8_t *first, const uint8_t *second, row_keys keys, vector *seen,
                             vector line[HALVES])
{
    line[0] = join_blocks(load(first), load(second), keys, seen);
}

/* Block 0 or 1 of a payload line to its 64 codes. */
static inline vector split_block(vector line, row_keys keys, int block)
{
    const vector spread = block == 0 ? keys.order : _mm512_add_epi8(keys.order, _mm512_set1_epi8(AWQ_BLOCK_BYTES));
    const vector bits = _mm512_multishift_epi64_epi8(keys.shift, _mm512_permutexvar_epi8(spread, line));
    return _mm512_and_si512(bits, _mm512_set1_epi8(AWQ_CODE_MAX));
}

static inline void unpack_line(const uint8_t *from, row_keys keys, vector first[HALVES], vector second[HALVES])
{
    const vector line = load(from);
    first[0] = split_block(line, keys, 0);
    second[0] = split_block(line, keys, 1);
}

/* Fewer words than fill a line (or just as many), by masked accesses. */
static inline void pack_words(const uint8_t *codes, uint8_t *payload, int64_t words, row_keys keys, vector *seen)
{
    const int64_t n = AWQ_WORD_CODES * words;
    const vector a = _mm512_maskz_loadu_epi8(first_bytes(n), codes);
    const vector b = n > LINE ? _mm512_maskz_loadu_epi8(first_bytes(n - LINE), codes + LINE) : no_codes();
    _mm512_mask_storeu_epi8(payload, first_bytes(AWQ_WORD_BYTES * words), join_blocks(a, b, keys, seen));
}

static inline void unpack_words(const uint8_t *payload, uint8_t *codes, int64_t words, row_keys keys)
{
    const int64_t n = AWQ_WORD_CODES * words;
    const vector line = _mm512_maskz_loadu_epi8(first_bytes(AWQ_WORD_BYTES * words), payload);
    _mm512_mask_storeu_epi8(codes, first_bytes(n), split_block(line, keys, 0));
    if (n > LINE) {
        _mm512_mask_storeu_epi8(codes + LINE, first_bytes(n - LINE), split_block(line, keys, 1));
    }
}

#include "rows.h"
#include "turned.h"

#include "crossed.h"

static const awq_walks v1 = {
    .pack_rows = pack_v1,
    .unpack_rows = unpack_v1,
    .pack_panel = awq_avx512_pack_v1_panel,
    .unpack_panel = awq_avx512_unpack_panel,
    .pack_turned = pack_turned,
    .unpack_turned = unpack_turned,
};
static const awq_walks v2 = {
    .pack_rows = pack_v2,
    .unpack_rows = unpack_v2,
    .pack_panel = awq_avx512_pack_v2_panel,
    .unpack_panel = awq_avx512_unpack_panel,
    .has_lines = true,
};

const awq_kernels awq_kernels_avx512 = {
    .name = "avx512",
    .scratch_bytes = SCRATCH,
    .floats = &awq_float_avx512,
    .cross_v1 = cross_v1,
    .of =
        {
            [AWQ_PACKING_V1] = &v1,
            [AWQ_PACKING_V1_REORDER] = &v1,
            [AWQ_PACKING_V2] = &v2,
            [AWQ_PACKING_MARLIN] = &awq_avx512_marlin,
        },
};

TARGET_END
#endif

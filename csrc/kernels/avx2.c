/* The kernels for AVX2: per packing, shuffles bring the two codes of a payload byte together, then one multiply-add. */
#include "kernels.h"

#if defined(__x86_64__)

#include "avx2.h"
#include "float_kernels.h"

/* How the columns of a word of V1 are shuffled; V2 needs no key, and its own shuffles. */
typedef struct row_keys {
    bool is_v2;
    vector order;
} row_keys;

/* Within eight codes of V1: the order that brings the low and high column of each byte together, ... */
static inline row_keys pack_keys(awq_packing packing)
{
    const int64_t order = packing == AWQ_PACKING_V1_REORDER ? 0x0705030106040200 : 0x0706050403020100;
    const int64_t next = order + 0x0808080808080808;
    return (row_keys){packing == AWQ_PACKING_V2, _mm256_setr_epi64x(order, next, order, next)};
}

/* ... and the way back, from nibbles to columns. */
static inline row_keys unpack_keys(awq_packing packing)
{
    const int64_t order = packing == AWQ_PACKING_V1_REORDER ? 0x0703060205010400 : 0x0706050403020100;
    const int64_t next = order + 0x0808080808080808;
    return (row_keys){packing == AWQ_PACKING_V2, _mm256_setr_epi64x(order, next, order, next)};
}

/* Codes whose pairs have been brought together, to one payload byte in each 16 bits. */
static inline vector join_pairs(vector pairs)
{
    return _mm256_maddubs_epi16(_mm256_and_si256(pairs, _mm256_set1_epi8(AWQ_CODE_MAX)), _mm256_set1_epi16(0x1001));
}

/* Sixty-four codes of a row. */
static inline vector pack_block_v1(vector a, vector b, vector order)
{
    const vector bytes =
        _mm256_packus_epi16(join_pairs(_mm256_shuffle_epi8(a, order)), join_pairs(_mm256_shuffle_epi8(b, order)));
    return _mm256_permute4x64_epi64(bytes, 0xd8);
}

static inline vector pack_block_v2(vector a, vector b)
{
    const vector neighbours =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    const vector first = join_pairs(_mm256_shuffle_epi8(a, neighbours));
    const vector second = join_pairs(_mm256_shuffle_epi8(b, neighbours));
    const vector even = _mm256_permute2x128_si256(first, second, 0x20);
    const vector odd = _mm256_permute2x128_si256(first, second, 0x31);
    return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

static inline vector pack_block(const uint8_t *codes, row_keys keys, vector *seen)
{
    const vector a = load(codes), b = load(codes + VECTOR);
    *seen = _mm256_or_si256(*seen, _mm256_or_si256(a, b));
    return keys.is_v2 ? pack_block_v2(a, b) : pack_block_v1(a, b, keys.order);
}

static inline void pack_line(const uint8_t *first, const uint8_t *second, row_keys keys, vector *seen,
                             vector line[HALVES])
{
    line[0] = pack_block(first, keys, seen);
    line[1] = pack_block(second, keys, seen);
}

/* Half a block: 16 payload bytes to 32 codes. */
static inline vector unpack_half_v1(const uint8_t *payload, vector order)
{
    const vector bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)payload));
    const vector both = _mm256_or_si256(bytes, _mm256_slli_epi16(bytes, 4));
    return _mm256_shuffle_epi8(_mm256_and_si256(both, _mm256_set1_epi8(AWQ_CODE_MAX)), order);
}

static inline void unpack_block_v2(const uint8_t *payload, vector codes[HALVES])
{
    const vector mask = _mm256_set1_epi8(AWQ_CODE_MAX);
    const vector split =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const vector bytes = _mm256_shuffle_epi8(load(payload), split);
    const vector low = _mm256_and_si256(bytes, mask);
    const vector high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    const vector front = _mm256_unpacklo_epi64(low, high);
    const vector back = _mm256_unpackhi_epi64(low, high);
    codes[0] = _mm256_permute2x128_si256(front, back, 0x20);
    codes[1] = _mm256_permute2x128_si256(front, back, 0x31);
}

static inline void unpack_block(const uint8_t *from, row_keys keys, vector codes[HALVES])
{
    if (keys.is_v2) {
        unpack_block_v2(from, codes);
    } else {
        codes[0] = unpack_half_v1(from, keys.order);
        codes[1] = unpack_half_v1(from + AWQ_BLOCK_BYTES / 2, keys.order);
    }
}

static inline void unpack_line(const uint8_t *from, row_keys keys, vector first[HALVES], vector second[HALVES])
{
    unpack_block(from, keys, first);
    unpack_block(from + AWQ_BLOCK_BYTES, keys, second);
}

/* Words one by one: the ends that fill no line. */
static inline void pack_words(const uint8_t *codes, uint8_t *payload, int64_t words, row_keys keys, vector *seen)
{
    for (int64_t j = 0; j < words; j++) {
        const vector wide = _mm256_zextsi128_si256(_mm_loadl_epi64((const void *)(codes + AWQ_WORD_CODES * j)));
        *seen = _mm256_or_si256(*seen, wide);
        const __m128i bytes = _mm256_castsi256_si128(join_pairs(_mm256_shuffle_epi8(wide, keys.order)));
        const int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(bytes, bytes));
        memcpy(payload + AWQ_WORD_BYTES * j, &packed, sizeof packed);
    }
}

static inline void unpack_words(const uint8_t *payload, uint8_t *codes, int64_t words, row_keys keys)
{
    for (int64_t j = 0; j < words; j++) {
        uint8_t word[16] = {0};
        memcpy(word, payload + AWQ_WORD_BYTES * j, AWQ_WORD_BYTES);
        const __m128i eight = _mm256_castsi256_si128(unpack_half_v1(word, keys.order));
        _mm_storel_epi64((void *)(codes + AWQ_WORD_CODES * j), eight);
    }
}

#include "rows.h"
#include "turned.h"

#include "crossed.h"

static const awq_walks v1 = {
    .pack_rows = pack_v1,
    .unpack_rows = unpack_v1,
    .pack_panel = awq_avx2_pack_v1_panel,
    .unpack_panel = awq_avx2_unpack_panel,
    .pack_turned = pack_turned,
    .unpack_turned = unpack_turned,
};
static const awq_walks v2 = {
    .pack_rows = pack_v2,
    .unpack_rows = unpack_v2,
    .pack_panel = awq_avx2_pack_v2_panel,
    .unpack_panel = awq_avx2_unpack_panel,
    .has_lines = true,
};

const awq_kernels awq_kernels_avx2 = {
    .name = "avx2",
    .scratch_bytes = SCRATCH,
    .floats = &awq_float_avx2,
    .cross_v1 = cross_v1,
    .of =
        {
            [AWQ_PACKING_V1] = &v1,
            [AWQ_PACKING_V1_REORDER] = &v1,
            [AWQ_PACKING_V2] = &v2,
            [AWQ_PACKING_MARLIN] = &awq_avx2_marlin,
        },
};

TARGET_END
#endif

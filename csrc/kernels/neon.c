/* The kernels for AArch64 NEON: zips and unzips bring the codes of a payload byte together. */
#include "float_kernels.h"
#include "kernels.h"
#include "walk.h"

#if defined(__aarch64__)

#include <arm_neon.h>

enum {
    VECTOR = 16,
    PACK_WORDS = VECTOR / AWQ_WORD_BYTES /* words that make one vector of payload */
};

/* Columns 8j..8j+7 in the order of their nibbles, and back. */
static inline uint8x16_t nibble_order(bool reorder)
{
    const uint64_t order = reorder ? 0x0705030106040200 : 0x0706050403020100;
    return vcombine_u8(vcreate_u8(order), vcreate_u8(order + 0x0808080808080808));
}

static inline uint8x16_t column_order(bool reorder)
{
    const uint64_t order = reorder ? 0x0703060205010400 : 0x0706050403020100;
    return vcombine_u8(vcreate_u8(order), vcreate_u8(order + 0x0808080808080808));
}

/* The shift drops all but the low nibble of the high codes, the insert all but the low nibble of the low ones. */
static inline uint8x16_t join(uint8x16_t low, uint8x16_t high)
{
    return vsliq_n_u8(low, high, 4);
}

static inline uint8x16_t low_nibbles(uint8x16_t bytes)
{
    return vandq_u8(bytes, vdupq_n_u8(AWQ_CODE_MAX));
}

static inline uint8_t or_bytes(uint8x16_t seen)
{
    const uint64x2_t halves = vreinterpretq_u64_u8(seen);
    uint64_t bits = vgetq_lane_u64(halves, 0) | vgetq_lane_u64(halves, 1);
    bits |= bits >> 32;
    bits |= bits >> 16;
    return (uint8_t)(bits | bits >> 8);
}

static uint8_t pack_v1(const awq_panel *line)
{
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    int64_t words = line->cols / AWQ_WORD_CODES;
    const uint8x16_t order = nibble_order(awq_packings[line->packing].reorder);
    uint8x16_t seen = vdupq_n_u8(0);
    int64_t j = 0;
    for (; j + PACK_WORDS <= words; j += PACK_WORDS) {
        const uint8x16_t a = vld1q_u8(codes + AWQ_WORD_CODES * j);
        const uint8x16_t b = vld1q_u8(codes + AWQ_WORD_CODES * j + VECTOR);
        seen = vorrq_u8(seen, vorrq_u8(a, b));
        const uint8x16_t first = vqtbl1q_u8(a, order);
        const uint8x16_t second = vqtbl1q_u8(b, order);
        vst1q_u8(payload + AWQ_WORD_BYTES * j, join(vuzp1q_u8(first, second), vuzp2q_u8(first, second)));
    }
    for (; j < words; j++) {
        const uint8x16_t a = vcombine_u8(vld1_u8(codes + AWQ_WORD_CODES * j), vcreate_u8(0));
        seen = vorrq_u8(seen, a);
        const uint8x16_t word = vqtbl1q_u8(a, order);
        const uint8x16_t bytes = join(vuzp1q_u8(word, word), vuzp2q_u8(word, word));
        const uint32_t packed = vgetq_lane_u32(vreinterpretq_u32_u8(bytes), 0);
        __builtin_memcpy(payload + AWQ_WORD_BYTES * j, &packed, sizeof packed);
    }
    return or_bytes(seen);
}

static uint8_t unpack_v1(const awq_panel *line)
{
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    int64_t words = line->cols / AWQ_WORD_CODES;
    const uint8x16_t order = column_order(awq_packings[line->packing].reorder);
    int64_t j = 0;
    for (; j + PACK_WORDS <= words; j += PACK_WORDS) {
        const uint8x16_t bytes = vld1q_u8(payload + AWQ_WORD_BYTES * j);
        const uint8x16_t low = low_nibbles(bytes);
        const uint8x16_t high = vshrq_n_u8(bytes, 4);
        vst1q_u8(codes + AWQ_WORD_CODES * j, vqtbl1q_u8(vzip1q_u8(low, high), order));
        vst1q_u8(codes + AWQ_WORD_CODES * j + VECTOR, vqtbl1q_u8(vzip2q_u8(low, high), order));
    }
    for (; j < words; j++) {
        uint32_t packed;
        __builtin_memcpy(&packed, payload + AWQ_WORD_BYTES * j, sizeof packed);
        const uint8x16_t bytes = vreinterpretq_u8_u32(vdupq_n_u32(packed));
        const uint8x16_t nibbles = vzip1q_u8(low_nibbles(bytes), vshrq_n_u8(bytes, 4));
        vst1_u8(codes + AWQ_WORD_CODES * j, vget_low_u8(vqtbl1q_u8(nibbles, order)));
    }
    return 0;
}

/* Half a block in V2: eight codes of each of the nibbles 0..3 of eight int16, whose bytes alternate. */
static inline uint8x16_t pack_half_v2(const uint8_t *codes, uint8x16_t *seen)
{
    const uint8x16_t a = vld1q_u8(codes);
    const uint8x16_t b = vld1q_u8(codes + VECTOR);
    *seen = vorrq_u8(*seen, vorrq_u8(a, b));
    const uint8x16_t low = vzip1q_u8(a, b);
    const uint8x16_t high = vzip2q_u8(a, b);
    return join(low, high);
}

static uint8_t pack_v2(const awq_panel *line)
{
    const uint8_t *restrict codes = line->codes;
    uint8_t *restrict payload = line->payload;
    const int64_t row_stride = line->row_stride, blocks = line->cols / AWQ_BLOCK_CODES;
    uint8x16_t seen = vdupq_n_u8(0);
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r++) {
            const uint8_t *from = codes + r * row_stride + b * AWQ_BLOCK_CODES;
            uint8_t *to = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
            vst1q_u8(to, pack_half_v2(from, &seen));
            vst1q_u8(to + VECTOR, pack_half_v2(from + AWQ_BLOCK_CODES / 2, &seen));
        }
    }
    return or_bytes(seen);
}

static inline void unpack_half_v2(const uint8_t *payload, uint8_t *codes)
{
    const uint8x16_t bytes = vld1q_u8(payload);
    const uint8x16_t low = low_nibbles(bytes);
    const uint8x16_t high = vshrq_n_u8(bytes, 4);
    vst1q_u8(codes, vuzp1q_u8(low, high));
    vst1q_u8(codes + VECTOR, vuzp2q_u8(low, high));
}

static uint8_t unpack_v2(const awq_panel *line)
{
    const uint8_t *restrict payload = line->payload;
    uint8_t *restrict codes = line->codes;
    const int64_t row_stride = line->row_stride, blocks = line->cols / AWQ_BLOCK_CODES;
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r++) {
            const uint8_t *from = payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES;
            uint8_t *to = codes + r * row_stride + b * AWQ_BLOCK_CODES;
            unpack_half_v2(from, to);
            unpack_half_v2(from + VECTOR, to + AWQ_BLOCK_CODES / 2);
        }
    }
    return 0;
}

/* Transposes 16 x 16 bytes: four perfect shuffles of sixteen vectors. */
static inline void transpose(uint8x16_t v[16])
{
    uint8x16_t t[16];
#pragma GCC unroll 2
    for (int pass = 0; pass < 2; pass++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            t[2 * i] = vzip1q_u8(v[i], v[i + 8]);
            t[2 * i + 1] = vzip2q_u8(v[i], v[i + 8]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            v[2 * i] = vzip1q_u8(t[i], t[i + 8]);
            v[2 * i + 1] = vzip2q_u8(t[i], t[i + 8]);
        }
    }
}

enum { HALVES = AWQ_BLOCK_BYTES / VECTOR };

static uint8_t pack_panel(const awq_panel *panel)
{
    const int64_t col_stride = panel->col_stride, rows = panel->rows, cols = panel->cols;
    const uint8_t *restrict codes = panel->codes;
    uint8_t *restrict payload = panel->payload;
    const awq_panel_walk walk = awq_panel_walk_of(panel->packing, panel->line_stride);
    int64_t columns[AWQ_BLOCK_CODES];
    awq_find_columns(panel, AWQ_BLOCK_CODES, columns);
    uint8x16_t seen = vdupq_n_u8(0);
    for (int64_t row = 0; row < rows; row += VECTOR) {
        for (int64_t g = 0; g < cols / (2 * VECTOR); g++) {
            const uint8_t *from = codes + g / HALVES * AWQ_BLOCK_CODES * col_stride + row;
            uint8_t *to = payload + g / HALVES * walk.block + g % HALVES * VECTOR;
            uint8x16_t v[VECTOR];
            for (int i = 0; i < VECTOR; i++) {
                const int64_t *pair = columns + 2 * (g % HALVES * VECTOR + i);
                const uint8x16_t low = vld1q_u8(from + pair[0]), high = vld1q_u8(from + pair[1]);
                seen = vorrq_u8(seen, vorrq_u8(low, high));
                v[i] = join(low, high);
            }
            transpose(v);
            for (int r = 0; r < VECTOR; r++) {
                vst1q_u8(to + awq_panel_row(&walk, row + r), v[r]);
            }
        }
    }
    return or_bytes(seen);
}

static uint8_t unpack_panel(const awq_panel *panel)
{
    const int64_t col_stride = panel->col_stride, rows = panel->rows, cols = panel->cols;
    uint8_t *restrict codes = panel->codes;
    const uint8_t *restrict payload = panel->payload;
    const awq_panel_walk walk = awq_panel_walk_of(panel->packing, panel->line_stride);
    int64_t columns[AWQ_BLOCK_CODES];
    awq_find_columns(panel, AWQ_BLOCK_CODES, columns);
    for (int64_t row = 0; row < rows; row += VECTOR) {
        for (int64_t g = 0; g < cols / (2 * VECTOR); g++) {
            const uint8_t *from = payload + g / HALVES * walk.block + g % HALVES * VECTOR;
            uint8_t *to = codes + g / HALVES * AWQ_BLOCK_CODES * col_stride + row;
            uint8x16_t v[VECTOR];
            for (int r = 0; r < VECTOR; r++) {
                v[r] = vld1q_u8(from + awq_panel_row(&walk, row + r));
            }
            transpose(v);
            for (int i = 0; i < VECTOR; i++) {
                const int64_t *pair = columns + 2 * (g % HALVES * VECTOR + i);
                vst1q_u8(to + pair[0], low_nibbles(v[i]));
                vst1q_u8(to + pair[1], vshrq_n_u8(v[i], 4));
            }
        }
    }
    return 0;
}

static const awq_walks v1 = {pack_v1, unpack_v1, pack_panel, unpack_panel, NULL, NULL, false};
static const awq_walks v2 = {pack_v2, unpack_v2, pack_panel, unpack_panel, NULL, NULL, false};

const awq_kernels awq_kernels_neon = {
    .name = "neon",
    .floats = &awq_float_neon,
    .of =
        {
            [AWQ_PACKING_V1] = &v1,
            [AWQ_PACKING_V1_REORDER] = &v1,
            [AWQ_PACKING_V2] = &v2,
        },
};

#endif

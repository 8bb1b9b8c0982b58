/* The kernels in plain C, written from the byte description in packing.h: every other variant is compared with these. */
#include "kernels.h"

/* Bytes of one V1 word keep to its eight columns, so the first four bytes of a block describe every word. */
static uint8_t pack_bytes(awq_packing packing, const uint8_t *restrict codes, int64_t col_stride,
                          uint8_t *restrict payload, int bytes)
{
    uint8_t seen = 0;
    for (int i = 0; i < bytes; i++) {
        const uint8_t low = codes[awq_low_column(packing, i) * col_stride];
        const uint8_t high = codes[awq_high_column(packing, i) * col_stride];
        seen |= low | high;
        payload[i] = (uint8_t)((low & AWQ_CODE_MAX) | (high & AWQ_CODE_MAX) << 4);
    }
    return seen;
}

static void unpack_bytes(awq_packing packing, const uint8_t *restrict payload, uint8_t *restrict codes,
                         int64_t col_stride, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        codes[awq_low_column(packing, i) * col_stride] = payload[i] & AWQ_CODE_MAX;
        codes[awq_high_column(packing, i) * col_stride] = payload[i] >> 4;
    }
}

static awq_packing v1_packing(bool reorder)
{
    return reorder ? AWQ_PACKING_V1_REORDER : AWQ_PACKING_V1;
}

static uint8_t pack_v1(const uint8_t *restrict codes, uint8_t *restrict payload, int64_t words, bool reorder,
                       bool stream)
{
    (void)stream;
    const awq_packing packing = v1_packing(reorder);
    uint8_t seen = 0;
    for (int64_t j = 0; j < words; j++) {
        seen |= pack_bytes(packing, codes + AWQ_WORD_CODES * j, 1, payload + AWQ_WORD_BYTES * j, AWQ_WORD_BYTES);
    }
    return seen;
}

static void unpack_v1(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t words, bool reorder,
                      bool stream)
{
    (void)stream;
    const awq_packing packing = v1_packing(reorder);
    for (int64_t j = 0; j < words; j++) {
        unpack_bytes(packing, payload + AWQ_WORD_BYTES * j, codes + AWQ_WORD_CODES * j, 1, AWQ_WORD_BYTES);
    }
}

static uint8_t pack_v2(const uint8_t *restrict codes, int64_t row_stride, uint8_t *restrict payload, int64_t blocks,
                       bool stream)
{
    (void)stream;
    uint8_t seen = 0;
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r++) {
            seen |= pack_bytes(AWQ_PACKING_V2, codes + r * row_stride + b * AWQ_BLOCK_CODES, 1,
                               payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES, AWQ_BLOCK_BYTES);
        }
    }
    return seen;
}

static void unpack_v2(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t row_stride, int64_t blocks,
                      bool stream)
{
    (void)stream;
    for (int64_t b = 0; b < blocks; b++) {
        for (int r = 0; r < AWQ_QUAD_ROWS; r++) {
            unpack_bytes(AWQ_PACKING_V2, payload + b * AWQ_QUAD_BLOCK_BYTES + r * AWQ_BLOCK_BYTES,
                         codes + r * row_stride + b * AWQ_BLOCK_CODES, 1, AWQ_BLOCK_BYTES);
        }
    }
}

static uint8_t pack_panel(awq_packing packing, const uint8_t *restrict codes, int64_t col_stride,
                          uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols, bool stream)
{
    (void)stream;
    const awq_panel_walk to = awq_panel_walk_of(packing, payload_stride);
    uint8_t seen = 0;
    for (int64_t r = 0; r < rows; r++) {
        uint8_t *row = payload + awq_panel_row(&to, r);
        for (int64_t b = 0; b < cols / AWQ_BLOCK_CODES; b++) {
            seen |= pack_bytes(packing, codes + b * AWQ_BLOCK_CODES * col_stride + r, col_stride, row + b * to.block,
                               AWQ_BLOCK_BYTES);
        }
    }
    return seen;
}

static void unpack_panel(awq_packing packing, const uint8_t *restrict payload, int64_t payload_stride,
                         uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    (void)stream;
    const awq_panel_walk from = awq_panel_walk_of(packing, payload_stride);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *row = payload + awq_panel_row(&from, r);
        for (int64_t b = 0; b < cols / AWQ_BLOCK_CODES; b++) {
            unpack_bytes(packing, row + b * from.block, codes + b * AWQ_BLOCK_CODES * col_stride + r, col_stride,
                         AWQ_BLOCK_BYTES);
        }
    }
}

const awq_kernels awq_kernels_scalar = {
    .name = "scalar",
    .pack_v1 = pack_v1,
    .unpack_v1 = unpack_v1,
    .pack_v2 = pack_v2,
    .unpack_v2 = unpack_v2,
    .pack_panel = pack_panel,
    .unpack_panel = unpack_panel,
};

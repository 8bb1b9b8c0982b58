/* The formulas of the packings, one nibble at a time, as kernels: what plain C is compared with. Nothing here comes from
   awq_low_column. */
#include "checkkernels.h"

static const int v1_order[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 2, 4, 6, 1, 3, 5, 7}};

static int formula_column(awq_packing packing, int nibble)
{
    if (packing == AWQ_PACKING_V2) {
        const int item = nibble / 4, h = item / 8, m = item % 8, a = nibble % 4;
        return 32 * h + 8 * a + m;
    }
    return 8 * (nibble / 8) + v1_order[packing == AWQ_PACKING_V1_REORDER][nibble % 8];
}

static uint8_t formula_pack(awq_packing packing, const uint8_t *codes, int64_t col_stride, uint8_t *payload, int count)
{
    uint8_t seen = 0;
    for (int i = 0; i < count; i++) {
        const uint8_t code = codes[formula_column(packing, i) * col_stride];
        seen |= code;
        payload[i / 2] = (uint8_t)(i % 2 == 0 ? code & 15 : payload[i / 2] | (code & 15) << 4);
    }
    return seen;
}

static void formula_unpack(awq_packing packing, const uint8_t *payload, uint8_t *codes, int64_t col_stride, int count)
{
    for (int i = 0; i < count; i++) {
        codes[formula_column(packing, i) * col_stride] = payload[i / 2] >> 4 * (i % 2) & 15;
    }
}

static uint8_t formula_pack_v1(const uint8_t *restrict codes, uint8_t *restrict payload, int64_t words, bool reorder,
                               bool stream)
{
    (void)stream;
    uint8_t seen = 0;
    for (int64_t j = 0; j < words; j++) {
        seen |= formula_pack(reorder ? AWQ_PACKING_V1_REORDER : AWQ_PACKING_V1, codes + 8 * j, 1, payload + 4 * j, 8);
    }
    return seen;
}

static void formula_unpack_v1(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t words, bool reorder,
                              bool stream)
{
    (void)stream;
    for (int64_t j = 0; j < words; j++) {
        formula_unpack(reorder ? AWQ_PACKING_V1_REORDER : AWQ_PACKING_V1, payload + 4 * j, codes + 8 * j, 1, 8);
    }
}

static uint8_t formula_pack_v2(const uint8_t *restrict codes, int64_t row_stride, uint8_t *restrict payload,
                               int64_t blocks, bool stream)
{
    (void)stream;
    uint8_t seen = 0;
    for (int64_t b = 0; b < blocks; b++) {
        for (int n = 0; n < 4; n++) {
            uint8_t *to = payload + 2 * (64 * b + 16 * n);
            seen |= formula_pack(AWQ_PACKING_V2, codes + n * row_stride + 64 * b, 1, to, 64);
        }
    }
    return seen;
}

static void formula_unpack_v2(const uint8_t *restrict payload, uint8_t *restrict codes, int64_t row_stride,
                              int64_t blocks, bool stream)
{
    (void)stream;
    for (int64_t b = 0; b < blocks; b++) {
        for (int n = 0; n < 4; n++) {
            formula_unpack(AWQ_PACKING_V2, payload + 2 * (64 * b + 16 * n), codes + n * row_stride + 64 * b, 1, 64);
        }
    }
}

/* Byte offset of block b of row r. */
static int64_t formula_place(awq_packing packing, int64_t payload_stride, int64_t r, int64_t b)
{
    return packing == AWQ_PACKING_V2 ? r / 4 * payload_stride + 2 * (64 * b + 16 * (r % 4)) : r * payload_stride + 32 * b;
}

static uint8_t formula_pack_panel(awq_packing packing, const uint8_t *restrict codes, int64_t col_stride,
                                  uint8_t *restrict payload, int64_t payload_stride, int64_t rows, int64_t cols,
                                  bool stream)
{
    (void)stream;
    uint8_t seen = 0;
    for (int64_t i = 0; i < rows * cols / 64; i++) {
        const int64_t r = i % rows, b = i / rows;
        seen |= formula_pack(packing, codes + 64 * b * col_stride + r, col_stride,
                             payload + formula_place(packing, payload_stride, r, b), 64);
    }
    return seen;
}

static void formula_unpack_panel(awq_packing packing, const uint8_t *restrict payload, int64_t payload_stride,
                                 uint8_t *restrict codes, int64_t col_stride, int64_t rows, int64_t cols, bool stream)
{
    (void)stream;
    for (int64_t i = 0; i < rows * cols / 64; i++) {
        const int64_t r = i % rows, b = i / rows;
        formula_unpack(packing, payload + formula_place(packing, payload_stride, r, b), codes + 64 * b * col_stride + r,
                       col_stride, 64);
    }
}

const awq_kernels formulas = {
    .name = "formulas",
    .pack_v1 = formula_pack_v1,
    .unpack_v1 = formula_unpack_v1,
    .pack_v2 = formula_pack_v2,
    .unpack_v2 = formula_unpack_v2,
    .pack_panel = formula_pack_panel,
    .unpack_panel = formula_unpack_panel,
};

/* The packings as their formulas say, one nibble at a time: what plain C is compared with. Nothing here comes from the
   rows of packing.h. */
#include "checkkernels.h"

const packing_shape packing_shapes[AWQ_PACKING_COUNT] = {
    [AWQ_PACKING_V1] = {4, 1, 8, false},
    [AWQ_PACKING_V1_REORDER] = {4, 1, 8, false},
    [AWQ_PACKING_V2] = {2, 4, 64, false},
    [AWQ_PACKING_MARLIN] = {4, 16, 64, true},
};

/* Row n and column k of W whose code is in a nibble of an item of a line of the payload. */
static inline void formula_place(awq_packing packing, int64_t line, int64_t item, int nibble, int64_t *n, int64_t *k)
{
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    switch (packing) {
    case AWQ_PACKING_V1:
        *n = line;
        *k = 8 * item + nibble;
        break;
    case AWQ_PACKING_V1_REORDER:
        *n = line;
        *k = 8 * item + order[nibble];
        break;
    case AWQ_PACKING_V2:
        *n = 4 * line + item % 64 / 16;
        *k = 64 * (item / 64) + 32 * (item / 8 % 2) + 8 * nibble + item % 8;
        break;
    case AWQ_PACKING_MARLIN: {
        const int64_t lane = item % 128 / 4, j = item % 4;
        *n = 64 * (item / 128) + 16 * j + lane / 4 + 8 * (nibble >> 1 & 1);
        *k = 16 * line + 2 * (lane % 4) + 8 * (nibble & 1) + (nibble >> 2);
        break;
    }
    default: abort();
    }
}

typedef void nibble_job(uint8_t *code, uint8_t *byte, bool is_high, uint8_t *seen);

/* Calls `at` for every nibble, in the order of the payload. Each packing and job has a walk of its own once compiled. */
static inline __attribute__((always_inline)) uint8_t walk(const awq_panel *p, awq_packing packing, nibble_job *at)
{
    const packing_shape *s = &packing_shapes[packing];
    const int64_t lines = p->rows / s->line_rows, items = p->cols * s->line_rows / 2 / s->item_bytes;
    uint8_t seen = 0;
    for (int64_t line = 0; line < lines; line++) {
        for (int64_t item = 0; item < items; item++) {
            for (int nibble = 0; nibble < 2 * s->item_bytes; nibble++) {
                int64_t n, k;
                formula_place(packing, line, item, nibble, &n, &k);
                const int64_t row = s->is_turned ? k : n, col = s->is_turned ? n : k;
                at(p->codes + row * p->row_stride + col * p->col_stride,
                   p->payload + line * p->line_stride + item * p->item_stride + nibble / 2, nibble % 2 != 0, &seen);
            }
        }
    }
    return seen;
}

static inline __attribute__((always_inline)) uint8_t formula_walk(const awq_panel *p, nibble_job *at)
{
    switch (p->packing) {
    case AWQ_PACKING_V1: return walk(p, AWQ_PACKING_V1, at);
    case AWQ_PACKING_V1_REORDER: return walk(p, AWQ_PACKING_V1_REORDER, at);
    case AWQ_PACKING_V2: return walk(p, AWQ_PACKING_V2, at);
    case AWQ_PACKING_MARLIN: return walk(p, AWQ_PACKING_MARLIN, at);
    default: abort();
    }
}

static void pack_nibble(uint8_t *code, uint8_t *byte, bool is_high, uint8_t *seen)
{
    *seen |= *code;
    *byte = (uint8_t)(is_high ? *byte | (*code & 15) << 4 : *code & 15);
}

static void unpack_nibble(uint8_t *code, uint8_t *byte, bool is_high, uint8_t *seen)
{
    (void)seen;
    *code = is_high ? *byte >> 4 : *byte & 15;
}

uint8_t formula_pack(const awq_panel *panel)
{
    return formula_walk(panel, pack_nibble);
}

uint8_t formula_unpack(const awq_panel *panel)
{
    return formula_walk(panel, unpack_nibble);
}

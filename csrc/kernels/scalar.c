/* The walk over the blocks of any packing, in plain C, from the rows of packing.h: every other variant is compared with
   it. */
#include "kernels.h"

/* How far the bytes of a block are from the first, and its codes, nibble by nibble, from theirs. */
typedef struct block {
    int bytes;
    int64_t byte[1 << (AWQ_PLACE_BITS - 1)], code[1 << AWQ_PLACE_BITS];
} block;

static void find_block(const awq_panel *panel, block *b)
{
    const awq_packing_traits *traits = &awq_packings[panel->packing];
    const int64_t row_stride = traits->runs_down ? panel->col_stride : panel->row_stride; /* of W */
    const int64_t col_stride = traits->runs_down ? panel->row_stride : panel->col_stride;
    b->bytes = awq_block_bytes(traits);
    for (int i = 0; i < b->bytes; i++) {
        b->byte[i] = i / traits->item_bytes * panel->item_stride + i % traits->item_bytes;
    }
    b->code[0] = 0;
    for (int bit = 0; 1 << bit < 2 * b->bytes; bit++) {
        const int64_t step = traits->step[bit].row * row_stride + traits->step[bit].col * col_stride;
        for (int i = 0; i < 1 << bit; i++) {
            b->code[i + (1 << bit)] = b->code[i] + step;
        }
    }
}

uint8_t awq_pack_blocks(const awq_panel *panel)
{
    block b;
    find_block(panel, &b);
    const int line_rows = awq_line_rows(panel), step_cols = awq_step_cols(panel);
    const int64_t step = awq_panel_offset(panel, 0, step_cols);
    uint8_t seen = 0;
    for (int64_t row = 0; row < panel->rows; row += line_rows) {
        uint8_t *restrict to = panel->payload + row / line_rows * panel->line_stride;
        const uint8_t *restrict from = panel->codes + row * panel->row_stride;
        for (int64_t col = 0; col < panel->cols; col += step_cols) {
            for (int i = 0; i < b.bytes; i++) {
                const uint8_t low = from[b.code[2 * i]], high = from[b.code[2 * i + 1]];
                seen |= low | high;
                to[b.byte[i]] = (uint8_t)((low & AWQ_CODE_MAX) | (high & AWQ_CODE_MAX) << 4);
            }
            from += step_cols * panel->col_stride;
            to += step;
        }
    }
    return seen;
}

uint8_t awq_unpack_blocks(const awq_panel *panel)
{
    block b;
    find_block(panel, &b);
    const int line_rows = awq_line_rows(panel), step_cols = awq_step_cols(panel);
    const int64_t step = awq_panel_offset(panel, 0, step_cols);
    for (int64_t row = 0; row < panel->rows; row += line_rows) {
        const uint8_t *restrict from = panel->payload + row / line_rows * panel->line_stride;
        uint8_t *restrict to = panel->codes + row * panel->row_stride;
        for (int64_t col = 0; col < panel->cols; col += step_cols) {
            for (int i = 0; i < b.bytes; i++) {
                to[b.code[2 * i]] = from[b.byte[i]] & AWQ_CODE_MAX;
                to[b.code[2 * i + 1]] = from[b.byte[i]] >> 4;
            }
            to += step_cols * panel->col_stride;
            from += step;
        }
    }
    return 0;
}

const awq_kernels awq_kernels_scalar = {.name = "scalar"};

/* The walk over the blocks of any packing, in plain C, from the rows of packing.h: every other variant is compared with
   it. */
#include "kernels.h"

enum { MAX_NIBBLES = 1 << AWQ_PLACE_BITS };

/* Bytes from the first code of a block to that of each nibble. Returns how many nibbles there are. */
static int find_codes(const awq_panel *panel, int64_t *offsets)
{
    const awq_packing_traits *traits = &awq_packings[panel->packing];
    const int64_t row_stride = panel->is_turned ? panel->col_stride : panel->row_stride; /* of W */
    const int64_t col_stride = panel->is_turned ? panel->row_stride : panel->col_stride;
    const int count = 2 * awq_block_bytes(traits);
    for (int nibble = 0; nibble < count; nibble++) {
        const awq_place place = awq_place_of(traits, nibble);
        offsets[nibble] = place.row * row_stride + place.col * col_stride;
    }
    return count;
}

uint8_t awq_pack_blocks(const awq_panel *panel)
{
    int64_t offsets[MAX_NIBBLES];
    const int bytes = find_codes(panel, offsets) / 2;
    const int line_rows = awq_line_rows(panel), step_cols = awq_step_cols(panel);
    uint8_t seen = 0;
    for (int64_t row = 0; row < panel->rows; row += line_rows) {
        uint8_t *restrict to = panel->payload + row / line_rows * panel->line_stride;
        for (int64_t col = 0; col < panel->cols; col += step_cols, to += bytes) {
            const uint8_t *restrict from = panel->codes + row * panel->row_stride + col * panel->col_stride;
            for (int i = 0; i < bytes; i++) {
                const uint8_t low = from[offsets[2 * i]], high = from[offsets[2 * i + 1]];
                seen |= low | high;
                to[i] = (uint8_t)((low & AWQ_CODE_MAX) | (high & AWQ_CODE_MAX) << 4);
            }
        }
    }
    return seen;
}

uint8_t awq_unpack_blocks(const awq_panel *panel)
{
    int64_t offsets[MAX_NIBBLES];
    const int bytes = find_codes(panel, offsets) / 2;
    const int line_rows = awq_line_rows(panel), step_cols = awq_step_cols(panel);
    for (int64_t row = 0; row < panel->rows; row += line_rows) {
        const uint8_t *restrict from = panel->payload + row / line_rows * panel->line_stride;
        for (int64_t col = 0; col < panel->cols; col += step_cols, from += bytes) {
            uint8_t *restrict to = panel->codes + row * panel->row_stride + col * panel->col_stride;
            for (int i = 0; i < bytes; i++) {
                to[offsets[2 * i]] = from[i] & AWQ_CODE_MAX;
                to[offsets[2 * i + 1]] = from[i] >> 4;
            }
        }
    }
    return 0;
}

const awq_kernels awq_kernels_scalar = {.name = "scalar"};

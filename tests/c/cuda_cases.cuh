/* What checks and times of the CUDA kernels share: errors, geometries, codes in device memory. */
#ifndef CUDA_CASES_CUH
#define CUDA_CASES_CUH

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

#include "awqpack_cuda.h"
#include "common.cuh"

static std::mt19937_64 rng(20240607);
static const char *const packing_names[] = {"V1", "V1_REORDER", "V2", "MARLIN"};

#define CUDA(call) must(static_cast<int>(call), #call)

static void must(int code, const char *what)
{
    if (code != 0) {
        char text[256];
        fprintf(stderr, "%s: %s\n", what, awq_cuda_error_text(code, text, sizeof text));
        exit(2);
    }
}

/* ---- geometries ---- */

enum CodesKind {
    ROWS,
    ROWS_MERGED,
    ROWS_PITCH16,
    ROWS_PITCH5,
    ROWS_UP,
    COLUMNS,
    COLUMNS_PITCH16,
    COLUMNS_PITCH5,
    COLUMNS_BACK,
    EVERY_THIRD,
    ROWS_BACK,
    CODES_KINDS
};
enum PayloadKind { DENSE, PITCH, EVERY_SECOND, UPWARDS, TURNED, TURNED_PITCH, PAYLOAD_KINDS };

static const char *const codes_names[] = {
    "rows",          "rows merged",      "rows pitch 16",   "rows pitch 5",      "rows upwards",
    "columns",       "columns pitch 16", "columns pitch 5", "columns backwards", "every third",
    "rows backwards"};
static const char *const payload_names[] = {"dense", "pitch", "every second", "upwards", "turned", "turned pitch"};

/* The size of a payload, in its items. */
struct PayloadSize {
    int64_t lines, items, item_bytes;
};

static PayloadSize payload_size(awq_packing packing, int64_t rows, int64_t cols)
{
    const awq_packing_traits &t = awq_packings[packing];
    const int64_t down = rows / t.block_rows, across = cols / t.block_cols, items = awq_block_items(&t);
    return t.runs_down ? PayloadSize{across, down * items, t.item_bytes}
                       : PayloadSize{down, across * items, t.item_bytes};
}

struct PayloadStrides {
    int64_t row, col;
};

static PayloadStrides payload_strides(PayloadKind kind, const PayloadSize &size)
{
    const PayloadStrides all[PAYLOAD_KINDS] = {{size.items, 1},         {size.items + 16 / size.item_bytes, 1},
                                               {2 * size.items + 1, 2}, {-(size.items + 1), 1},
                                               {1, size.lines},         {1, size.lines + 3}};
    return all[kind];
}

/* Whether rows that lie behind each other are one geometry; blocks that run down are not. */
static bool can_merge(awq_packing packing)
{
    return !awq_packings[packing].runs_down;
}

/* The geometry of a case; merged rows are only made beside a dense payload. */
static awq_geometry make_geometry(awq_packing packing, int64_t rows, int64_t cols, const std::vector<int64_t> &batch,
                                  CodesKind codes, PayloadKind payload)
{
    awq_geometry g = {};
    g.packing = packing;
    const bool is_line = awq_packings[packing].block_rows == 1;
    if (codes == ROWS_MERGED && can_merge(packing)) {
        int64_t count = 1;
        for (const int64_t size : batch) {
            count *= size;
        }
        g.rows = is_line ? 1 : rows * count;
        g.cols = is_line ? cols * rows * count : cols;
        g.codes_row_stride = g.cols;
        g.codes_col_stride = 1;
        g.payload_row_stride = payload_size(packing, g.rows, g.cols).items;
        g.payload_col_stride = 1;
        return g;
    }
    const PayloadSize size = payload_size(packing, rows, cols);
    const int64_t codes_strides[CODES_KINDS][2] = {
        {cols, 1},      {cols, 1},     {cols + 16, 1},    {cols + 5, 1},     {-(cols + 16), 1}, {1, rows},
        {1, rows + 16}, {1, rows + 5}, {1, -(rows + 16)}, {3, 3 * rows + 1}, {cols + 1, -1},
    };
    const PayloadStrides strides = payload_strides(payload, size);
    g.rows = rows;
    g.cols = cols;
    g.codes_row_stride = codes_strides[codes][0];
    g.codes_col_stride = codes_strides[codes][1];
    g.payload_row_stride = strides.row;
    g.payload_col_stride = strides.col;
    /* the first batch dimension is the innermost in memory, and there are gaps between matrices: nothing merges */
    int64_t codes_step = std::max(std::abs(g.codes_row_stride) * rows, std::abs(g.codes_col_stride) * cols) + 48;
    int64_t payload_step = std::max(std::abs(strides.row) * size.lines, std::abs(strides.col) * size.items) + 24;
    g.batch_dims = static_cast<int32_t>(batch.size());
    for (size_t i = 0; i < batch.size(); i++) {
        g.batch_sizes[i] = batch[i];
        g.codes_batch_strides[i] = codes_step;
        g.payload_batch_strides[i] = payload_step;
        codes_step *= std::max<int64_t>(batch[i], 1);
        payload_step *= std::max<int64_t>(batch[i], 1);
    }
    return g;
}

/* Fills device memory with copies of a period of random codes; returns that period. */
static std::vector<uint8_t> fill_codes(uint8_t *device, int64_t bytes, int64_t period)
{
    std::vector<uint8_t> codes(static_cast<size_t>(period));
    for (size_t i = 0; i < codes.size(); i += 8) {
        const uint64_t r = rng() & 0x0f0f0f0f0f0f0f0fu;
        memcpy(&codes[i], &r, 8);
    }
    CUDA(cudaMemcpy(device, codes.data(), static_cast<size_t>(std::min(period, bytes)), cudaMemcpyHostToDevice));
    for (int64_t at = period; at < bytes; at += period) {
        CUDA(cudaMemcpy(device + at, device, static_cast<size_t>(std::min(period, bytes - at)),
                        cudaMemcpyDeviceToDevice));
    }
    return codes;
}

#endif

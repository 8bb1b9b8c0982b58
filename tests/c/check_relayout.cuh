/* Every pair of packings, transposed or not, beside a walk over the nibbles of both. */
#ifndef CHECK_RELAYOUT_CUH
#define CHECK_RELAYOUT_CUH

#include <algorithm>
#include <vector>

#include "cuda_reference.cuh"

/* Where the nibble of a code is, in half bytes from the payload's first. */
static int64_t nibble_at(awq_packing packing, int64_t n, int64_t k, int64_t matrix, const PayloadStrides &strides)
{
    int64_t line, element;
    int nibble = 0;
    locate(packing, n, k, &line, &element, &nibble);
    return (matrix + line * strides.row + element * strides.col) * 2 * payload_size(packing, n, k).item_bytes + nibble;
}

struct RelayoutCase {
    awq_packing source, target;
    bool transpose;
    int64_t rows, cols; /* of the target's codes */
    std::vector<int64_t> batch;
    PayloadKind source_kind, target_kind;
    int64_t source_offset, target_offset; /* items */
};

static void check_relayout(const RelayoutCase &c)
{
    const PayloadSize sizes[2] = {payload_size(c.source, c.transpose ? c.cols : c.rows, c.transpose ? c.rows : c.cols),
                                  payload_size(c.target, c.rows, c.cols)};
    const PayloadStrides strides[2] = {payload_strides(c.source_kind, sizes[0]),
                                       payload_strides(c.target_kind, sizes[1])};
    awq_relayout r = {c.source,
                      c.target,
                      c.transpose,
                      static_cast<int32_t>(c.batch.size()),
                      c.rows,
                      c.cols,
                      strides[0].row,
                      strides[0].col,
                      strides[1].row,
                      strides[1].col,
                      {},
                      {},
                      {}};
    Span spans[2];
    int64_t *const batch_strides[2] = {r.source_batch_strides, r.target_batch_strides};
    for (int side = 0; side < 2; side++) {
        int64_t step =
            std::max(std::abs(strides[side].row) * sizes[side].lines, std::abs(strides[side].col) * sizes[side].items) +
            8;
        spans[side].step(sizes[side].lines, strides[side].row * sizes[side].item_bytes);
        spans[side].step(sizes[side].items, strides[side].col * sizes[side].item_bytes);
        for (size_t i = 0; i < c.batch.size(); i++) {
            r.batch_sizes[i] = c.batch[i];
            batch_strides[side][i] = step;
            spans[side].step(c.batch[i], step * sizes[side].item_bytes);
            step *= c.batch[i];
        }
    }
    Buffer source(spans[0].lowest, spans[0].highest + sizes[0].item_bytes, c.source_offset * sizes[0].item_bytes);
    Buffer target(spans[1].lowest, spans[1].highest + sizes[1].item_bytes, c.target_offset * sizes[1].item_bytes);
    source.upload();
    target.upload();
    CUDA(awq_cuda_relayout(&r, source.device + source.origin, target.device + target.origin, nullptr));
    CUDA(cudaDeviceSynchronize());
    awq_geometry g = {}; /* for the walk over the batch alone */
    g.batch_dims = r.batch_dims;
    std::copy(r.batch_sizes, r.batch_sizes + c.batch.size(), g.batch_sizes);
    std::copy(r.source_batch_strides, r.source_batch_strides + c.batch.size(), g.codes_batch_strides);
    std::copy(r.target_batch_strides, r.target_batch_strides + c.batch.size(), g.payload_batch_strides);
    for (const Matrix &m : matrices(g)) {
        for (int64_t n = 0; n < c.rows; n++) {
            for (int64_t k = 0; k < c.cols; k++) {
                const int64_t from = nibble_at(c.source, c.transpose ? k : n, c.transpose ? n : k, m.codes, strides[0]);
                const int64_t to = nibble_at(c.target, n, k, m.payload, strides[1]);
                /* half bytes count upwards from the origin, and the lower one of a byte is the low nibble */
                const int code = source.host[static_cast<size_t>(source.origin + (from >> 1))] >> (from & 1) * 4 & 15;
                uint8_t &byte = target.host[static_cast<size_t>(target.origin + (to >> 1))];
                byte = static_cast<uint8_t>((byte & ~(15 << (to & 1) * 4)) | code << (to & 1) * 4);
            }
        }
    }
    char name[200];
    snprintf(name, sizeof name, "relayout %s %s + %lld to %s %s + %lld%s, %lld x %lld", packing_names[c.source],
             payload_names[c.source_kind], static_cast<long long>(c.source_offset), packing_names[c.target],
             payload_names[c.target_kind], static_cast<long long>(c.target_offset), c.transpose ? ", transposed" : "",
             static_cast<long long>(c.rows), static_cast<long long>(c.cols));
    expect(target.same_on_device() && source.same_on_device(), name);
}

static void check_relayouts(bool quick)
{
    const std::vector<std::pair<int64_t, int64_t>> shapes = {{64, 64},   {192, 320}, {128, 128},
                                                             {320, 192}, {64, 1088}, {576, 64}};
    const PayloadKind kinds[] = {DENSE, PITCH, TURNED, EVERY_SECOND};
    for (int source = 0; source < AWQ_PACKING_COUNT; source++) {
        for (int target = 0; target < AWQ_PACKING_COUNT; target++) {
            for (size_t i = 0; i < (quick ? 2 : shapes.size()); i++) {
                for (const bool transpose : {false, true}) {
                    const awq_packing s = static_cast<awq_packing>(source), t = static_cast<awq_packing>(target);
                    const int64_t rows = shapes[i].first, cols = shapes[i].second;
                    check_relayout({s, t, transpose, rows, cols, {}, DENSE, DENSE, 0, 0});
                    check_relayout({s, t, transpose, rows, cols, {2}, DENSE, DENSE, random_below(8), random_below(8)});
                    check_relayout({s,
                                    t,
                                    transpose,
                                    rows,
                                    cols,
                                    {2, 3},
                                    kinds[random_below(4)],
                                    kinds[random_below(4)],
                                    random_below(8),
                                    random_below(8)});
                    check_relayout({s, t, transpose, rows, cols, {}, PITCH, PITCH, 0, 0});
                }
            }
            check_relayout({static_cast<awq_packing>(source),
                            static_cast<awq_packing>(target),
                            true,
                            0,
                            64,
                            {},
                            DENSE,
                            DENSE,
                            0,
                            0});
        }
    }
    /* what is left of the tiles of those that have kernels of their own */
    for (const awq_packing v1 : {AWQ_PACKING_V1, AWQ_PACKING_V1_REORDER}) {
        for (const bool transpose : {false, true}) {
            const int64_t rows = 192, cols = 80;
            check_relayout({v1, AWQ_PACKING_MARLIN, transpose, rows, cols, {}, DENSE, DENSE, 0, 0});
            check_relayout({AWQ_PACKING_MARLIN,
                            v1,
                            transpose,
                            transpose ? cols : rows,
                            transpose ? rows : cols,
                            {3},
                            PITCH,
                            DENSE,
                            0,
                            1});
            check_relayout({v1, AWQ_PACKING_MARLIN, transpose, rows, cols, {2}, TURNED_PITCH, DENSE, 1, 0});
            check_relayout({AWQ_PACKING_MARLIN,
                            v1,
                            transpose,
                            transpose ? cols : rows,
                            transpose ? rows : cols,
                            {},
                            DENSE,
                            TURNED,
                            0,
                            0});
        }
    }
}

#endif

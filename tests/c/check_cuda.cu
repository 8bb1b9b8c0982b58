/*
 * Compares the CUDA kernels with the formulas of the packings, over packings, strides, batches, sizes, alignments and
 * invalid codes; every byte of every buffer is compared, so that a write outside the tensor fails too.
 *   check_cuda [--quick]   checks; --quick is small enough for compute-sanitizer
 *   check_cuda --bench     times beside device-to-device copies that move the same bytes
 *   check_cuda --tune      times the kernel configurations that launch.cu chooses from
 */
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "awqpack_cuda.h"
#include "cuda_cases.cuh"
#ifndef CHECK_ONLY /* timing brings in many kernels that launch.cu does not use: a minute of compiling */
#include "bench_cuda.cuh"
#include "tune_cuda.cuh"
#endif

static long passed, failed;
static bool expect(bool ok, const char *what)
{
    ok ? passed++ : failed++;
    if (!ok && failed <= 40) {
        printf("FAILED %s\n", what);
    }
    return ok;
}

static int64_t random_below(int64_t n)
{
    return static_cast<int64_t>(rng() % static_cast<uint64_t>(n));
}

/* ---- the slow, obvious implementation ---- */

/* Codes and payload offsets, in elements, of every matrix of a batch, with the linear index of its first code. */
struct Matrix {
    int64_t codes, payload;
    uint64_t first;
};

static std::vector<Matrix> matrices(const awq_geometry &g)
{
    std::vector<Matrix> all = {{0, 0, 0}};
    for (int i = 0; i < g.batch_dims; i++) {
        std::vector<Matrix> next;
        for (const Matrix &m : all) {
            for (int64_t k = 0; k < g.batch_sizes[i]; k++) {
                next.push_back({m.codes + k * g.codes_batch_strides[i], m.payload + k * g.payload_batch_strides[i],
                                m.first * static_cast<uint64_t>(g.batch_sizes[i]) + static_cast<uint64_t>(k)});
            }
        }
        all = next;
    }
    for (Matrix &m : all) {
        m.first *= static_cast<uint64_t>(g.rows * g.cols);
    }
    return all;
}

/* Where the code of (row, col) lies: payload row, element, nibble. */
static void locate(awq_packing packing, int64_t n, int64_t k, int64_t *line, int64_t *element, int *nibble)
{
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    if (packing == AWQ_PACKING_MARLIN) {
        const int64_t n64 = n / 64, j = n % 64 / 16, lane = n % 8 * 4 + k % 8 / 2;
        *line = k / 16;
        *element = 128 * n64 + 4 * lane + j;
        *nibble = static_cast<int>(k % 16 / 8 + n % 16 / 8 * 2 + k % 2 * 4);
        return;
    }
    if (packing == AWQ_PACKING_V2) {
        const int64_t B = k / 64, h = k % 64 / 32, a = k % 32 / 8, m = k % 8;
        *line = n / 4;
        *element = 64 * B + 16 * (n % 4) + 8 * h + m;
        *nibble = static_cast<int>(a);
        return;
    }
    *line = n;
    *element = k / 8;
    for (int i = 0; i < 8; i++) {
        if ((packing == AWQ_PACKING_V1_REORDER ? order[i] : i) == k % 8) {
            *nibble = i;
        }
    }
}

/* Packs or unpacks; returns the fault word of the codes. `codes` and `payload` point at element (0, ..., 0). */
static uint64_t reference(const awq_geometry &g, uint8_t *codes, uint8_t *payload, bool pack)
{
    const int64_t bytes = payload_size(g.packing, g.rows, g.cols).item_bytes;
    uint64_t fault = AWQ_CUDA_NO_FAULT;
    for (const Matrix &m : matrices(g)) {
        for (int64_t n = 0; n < g.rows; n++) {
            for (int64_t k = 0; k < g.cols; k++) {
                int64_t line, element;
                int nibble = 0;
                locate(g.packing, n, k, &line, &element, &nibble);
                uint8_t *code = codes + m.codes + n * g.codes_row_stride + k * g.codes_col_stride;
                uint8_t *byte = payload +
                                (m.payload + line * g.payload_row_stride + element * g.payload_col_stride) * bytes +
                                nibble / 2;
                const int shift = 4 * (nibble % 2);
                if (!pack) {
                    *code = *byte >> shift & 15;
                    continue;
                }
                *byte = static_cast<uint8_t>((*byte & ~(15 << shift)) | (*code & 15) << shift);
                if (*code > 15 && fault == AWQ_CUDA_NO_FAULT) {
                    fault = (m.first + static_cast<uint64_t>(n * g.cols + k)) << 8 | *code;
                }
            }
        }
    }
    return fault;
}

/* ---- buffers ---- */

/* Host bytes around element (0, ..., 0) at `origin`, and their copy on the device. */
struct Buffer {
    std::vector<uint8_t> host;
    int64_t origin = 0;
    uint8_t *device = nullptr;

    Buffer(int64_t lowest, int64_t highest, int64_t misaligned)
    {
        const int64_t guard = 64;
        origin = (guard - lowest + 31) / 32 * 32 + misaligned;
        host.resize(static_cast<size_t>(origin + highest + guard));
        for (uint8_t &b : host) {
            b = static_cast<uint8_t>(rng());
        }
        CUDA(cudaMalloc(&device, host.size()));
    }
    ~Buffer() { CUDA(cudaFree(device)); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    void upload() { CUDA(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice)); }
    bool same_on_device() const
    {
        std::vector<uint8_t> now(host.size());
        CUDA(cudaMemcpy(now.data(), device, now.size(), cudaMemcpyDeviceToHost));
        return now == host;
    }
};

struct Span {
    int64_t lowest = 0, highest = 0;
    void step(int64_t size, int64_t stride)
    {
        (stride < 0 ? lowest : highest) += size > 0 ? (size - 1) * stride : 0;
    }
};

/* ---- checks ---- */

/* Packs valid codes, then with invalid ones, checked and not; unpacks. */
static void check_geometry(const awq_geometry &g, int64_t codes_offset, int64_t payload_offset, const char *what)
{
    const PayloadSize size = payload_size(g.packing, g.rows, g.cols);
    const int64_t bytes = size.item_bytes;
    Span codes_span, payload_span;
    codes_span.step(g.rows, g.codes_row_stride);
    codes_span.step(g.cols, g.codes_col_stride);
    payload_span.step(size.lines, g.payload_row_stride * bytes);
    payload_span.step(size.items, g.payload_col_stride * bytes);
    int64_t count = g.rows * g.cols;
    for (int i = 0; i < g.batch_dims; i++) {
        codes_span.step(g.batch_sizes[i], g.codes_batch_strides[i]);
        payload_span.step(g.batch_sizes[i], g.payload_batch_strides[i] * bytes);
        count *= g.batch_sizes[i];
    }
    Buffer codes(codes_span.lowest, codes_span.highest + 1, codes_offset);
    Buffer payload(payload_span.lowest, payload_span.highest + bytes, payload_offset * bytes);
    uint8_t *const device_codes = codes.device + codes.origin;
    uint8_t *const device_payload = payload.device + payload.origin;
    const std::vector<Matrix> all = matrices(g);
    for (const Matrix &m : all) {
        for (int64_t n = 0; n < g.rows; n++) {
            for (int64_t k = 0; k < g.cols; k++) {
                codes.host[static_cast<size_t>(codes.origin + m.codes + n * g.codes_row_stride +
                                               k * g.codes_col_stride)] &= 15;
            }
        }
    }
    uint64_t found;
    char name[200];

    codes.upload();
    payload.upload();
    CUDA(awq_cuda_pack_checked(&g, device_codes, device_payload, nullptr, &found));
    uint64_t expected = reference(g, codes.host.data() + codes.origin, payload.host.data() + payload.origin, true);
    snprintf(name, sizeof name, "%s: pack", what);
    expect(payload.same_on_device() && codes.same_on_device() && found == expected && found == AWQ_CUDA_NO_FAULT, name);

    for (int bad = 1; count > 0 && bad <= 64; bad *= 8) {
        for (int i = 0; i < bad; i++) {
            const Matrix &m = all[static_cast<size_t>(random_below(static_cast<int64_t>(all.size())))];
            codes.host[static_cast<size_t>(codes.origin + m.codes + random_below(g.rows) * g.codes_row_stride +
                                           random_below(g.cols) * g.codes_col_stride)] =
                static_cast<uint8_t>(16 + random_below(240));
        }
        codes.upload();
        CUDA(awq_cuda_pack_checked(&g, device_codes, device_payload, nullptr, &found));
        expected = reference(g, codes.host.data() + codes.origin, payload.host.data() + payload.origin, true);
        snprintf(name, sizeof name, "%s: %d invalid, found %llx, not %llx", what, bad,
                 static_cast<unsigned long long>(found), static_cast<unsigned long long>(expected));
        expect(found == expected && payload.same_on_device(), name);
    }
    payload.upload();
    CUDA(awq_cuda_pack(&g, device_codes, device_payload, nullptr));
    CUDA(cudaDeviceSynchronize());
    snprintf(name, sizeof name, "%s: unchecked pack", what);
    expect(payload.same_on_device(), name);

    for (uint8_t &b : payload.host) {
        b = static_cast<uint8_t>(rng());
    }
    payload.upload();
    CUDA(awq_cuda_unpack(&g, device_payload, device_codes, nullptr));
    CUDA(cudaDeviceSynchronize());
    reference(g, codes.host.data() + codes.origin, payload.host.data() + payload.origin, false);
    snprintf(name, sizeof name, "%s: unpack", what);
    expect(codes.same_on_device() && payload.same_on_device(), name);
}

static void check_case(awq_packing packing, int64_t rows, int64_t cols, const std::vector<int64_t> &batch, int codes,
                       int payload, int64_t codes_offset, int64_t payload_offset)
{
    if (codes == ROWS_MERGED && (payload != DENSE || !can_merge(packing))) {
        return;
    }
    char what[160];
    snprintf(what, sizeof what, "%s %lldx%lld, %d batch dims, codes %s + %lld, payload %s + %lld", packing_names[packing],
             static_cast<long long>(rows), static_cast<long long>(cols), static_cast<int>(batch.size()),
             codes_names[codes], static_cast<long long>(codes_offset), payload_names[payload],
             static_cast<long long>(payload_offset));
    const awq_geometry g = make_geometry(packing, rows, cols, batch, static_cast<CodesKind>(codes),
                                         static_cast<PayloadKind>(payload));
    check_geometry(g, codes_offset, payload_offset, what);
}

/* The sizes that a packing is checked with, what its small ones are multiples of, and how its blocks are left over. */
struct Sizes {
    std::vector<std::pair<int64_t, int64_t>> shapes; /* the last ones have more tiles down and across than a band does */
    int64_t cols;                                    /* of misaligned ones, which have a tail */
};

static Sizes sizes_of(awq_packing packing)
{
    switch (packing) {
    case AWQ_PACKING_V2:
        return {{{4, 64}, {20, 192}, {128, 256}, {132, 320}, {4, 4160}, {260, 576}, {600, 2112}, {4484, 320}, {24, 8768}}, 192};
    case AWQ_PACKING_MARLIN:
        return {{{64, 16}, {192, 48}, {128, 256}, {64, 4112}, {320, 528}, {4480, 80}, {1216, 656}}, 144};
    default:
        return {{{1, 8}, {3, 24}, {17, 264}, {128, 256}, {37, 1032}, {261, 520}, {1, 40008}, {600, 2056}, {4500, 264}, {24, 8712}},
                184};
    }
}

/* Every misalignment, row-major and column-major, and every row tail of a column. */
static void check_misaligned(awq_packing packing, bool quick)
{
    const int64_t cols = sizes_of(packing).cols, unit = awq_packings[packing].block_rows;
    const int64_t rows = std::max<int64_t>(unit, 32);
    for (int64_t offset = 0; offset < 32; offset += quick ? 7 : 1) {
        for (const int codes : {ROWS, ROWS_PITCH5, COLUMNS, COLUMNS_PITCH16}) {
            check_case(packing, rows, cols, {2}, codes, DENSE, offset, 0);
            check_case(packing, rows, cols, {2}, codes, TURNED_PITCH, offset, offset % 3);
            check_case(packing, std::max<int64_t>(unit, 4) * (unit < 64 ? 1 + offset : 1), cols, {}, codes, PITCH, 0, offset % 8);
            if (unit == 1) {
                check_case(packing, 1 + offset, cols, {}, codes, DENSE, offset, 0);
                check_case(packing, 1 + offset, cols, {}, codes, TURNED, offset, 0);
            }
        }
    }
}

static void check_packing(awq_packing packing, bool quick)
{
    const std::vector<std::vector<int64_t>> batches = {{}, {3}, {2, 3}, {3, 1, 2}};
    const Sizes sizes = sizes_of(packing);
    for (size_t s = 0; s < (quick ? 3 : sizes.shapes.size()); s++) {
        const int64_t rows = sizes.shapes[s].first, cols = sizes.shapes[s].second;
        const bool large = rows * cols > 200000;
        for (size_t b = 0; b < (large ? 1 : quick ? 2 : batches.size()); b++) {
            for (int codes = 0; codes < CODES_KINDS; codes++) {
                for (int payload = 0; payload < PAYLOAD_KINDS; payload++) {
                    /* the host's reference takes its time over a large one */
                    if (large ? payload != DENSE && payload != TURNED : quick && payload > 1 && (codes + payload) % 3 != 0) {
                        continue;
                    }
                    check_case(packing, rows, cols, batches[b], codes, payload, 0, 0);
                    check_case(packing, rows, cols, batches[b], codes, payload, 1 + random_below(31), random_below(8));
                }
            }
        }
    }
    check_misaligned(packing, quick);
    const int64_t rows = awq_packings[packing].block_rows;
    if (rows <= 4) { /* whole blocks of four tiles, aligned, and what is left beside and below them */
        check_case(packing, 272, 576, {}, COLUMNS, DENSE, 0, 0);
        check_case(packing, 272, 576, {2}, COLUMNS_PITCH16, PITCH, 0, 0);
    }
    for (const int codes : {ROWS, COLUMNS, EVERY_THIRD}) {
        check_case(packing, 0, 64, {}, codes, DENSE, 0, 0);
        check_case(packing, std::max<int64_t>(rows, 4), 0, {}, codes, DENSE, 0, 0);
        check_case(packing, std::max<int64_t>(rows, 4), 64, {2, 0}, codes, DENSE, 0, 0);
        if (!quick) { /* more matrices than one grid holds */
            check_case(packing, rows, awq_packings[packing].block_cols, {66000}, codes, DENSE, 0, 0);
        }
    }
}

/* ---- from one packing to another ---- */

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
    const PayloadStrides strides[2] = {payload_strides(c.source_kind, sizes[0]), payload_strides(c.target_kind, sizes[1])};
    awq_relayout r = {c.source, c.target, c.transpose, static_cast<int32_t>(c.batch.size()), c.rows, c.cols, strides[0].row,
                      strides[0].col, strides[1].row, strides[1].col, {}, {}, {}};
    Span spans[2];
    int64_t *const batch_strides[2] = {r.source_batch_strides, r.target_batch_strides};
    for (int side = 0; side < 2; side++) {
        int64_t step = std::max(std::abs(strides[side].row) * sizes[side].lines, std::abs(strides[side].col) * sizes[side].items) + 8;
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
    const std::vector<std::pair<int64_t, int64_t>> shapes = {{64, 64}, {192, 320}, {128, 128}, {320, 192}, {64, 1088}, {576, 64}};
    const PayloadKind kinds[] = {DENSE, PITCH, TURNED, EVERY_SECOND};
    for (int source = 0; source < AWQ_PACKING_COUNT; source++) {
        for (int target = 0; target < AWQ_PACKING_COUNT; target++) {
            for (size_t i = 0; i < (quick ? 2 : shapes.size()); i++) {
                for (const bool transpose : {false, true}) {
                    const awq_packing s = static_cast<awq_packing>(source), t = static_cast<awq_packing>(target);
                    const int64_t rows = shapes[i].first, cols = shapes[i].second;
                    check_relayout({s, t, transpose, rows, cols, {}, DENSE, DENSE, 0, 0});
                    check_relayout({s, t, transpose, rows, cols, {2}, DENSE, DENSE, random_below(8), random_below(8)});
                    check_relayout({s, t, transpose, rows, cols, {2, 3}, kinds[random_below(4)], kinds[random_below(4)],
                                    random_below(8), random_below(8)});
                    check_relayout({s, t, transpose, rows, cols, {}, PITCH, PITCH, 0, 0});
                }
            }
            check_relayout({static_cast<awq_packing>(source), static_cast<awq_packing>(target), true, 0, 64, {}, DENSE, DENSE, 0, 0});
        }
    }
    /* what is left of the tiles of those that have kernels of their own */
    for (const awq_packing v1 : {AWQ_PACKING_V1, AWQ_PACKING_V1_REORDER}) {
        for (const bool transpose : {false, true}) {
            const int64_t rows = 192, cols = 80;
            check_relayout({v1, AWQ_PACKING_MARLIN, transpose, rows, cols, {}, DENSE, DENSE, 0, 0});
            check_relayout({AWQ_PACKING_MARLIN, v1, transpose, transpose ? cols : rows, transpose ? rows : cols, {3}, PITCH, DENSE, 0, 1});
            check_relayout({v1, AWQ_PACKING_MARLIN, transpose, rows, cols, {2}, TURNED_PITCH, DENSE, 1, 0});
            check_relayout({AWQ_PACKING_MARLIN, v1, transpose, transpose ? cols : rows, transpose ? rows : cols, {}, DENSE, TURNED, 0, 0});
        }
    }
}

/* A captured pack runs when its graph does. */
static void check_capture()
{
    const awq_geometry g = make_geometry(AWQ_PACKING_V1, 64, 256, {}, ROWS, DENSE);
    Buffer codes(0, 64 * 256, 0), payload(0, 64 * 128, 0);
    codes.upload();
    payload.upload();
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t run;
    bool before, during;
    CUDA(cudaStreamCreate(&stream));
    CUDA(awq_cuda_is_capturing(stream, &before));
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CUDA(awq_cuda_is_capturing(stream, &during));
    CUDA(awq_cuda_pack(&g, codes.device + codes.origin, payload.device + payload.origin, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&run, graph, 0));
    CUDA(cudaGraphLaunch(run, stream));
    CUDA(cudaStreamSynchronize(stream));
    reference(g, codes.host.data() + codes.origin, payload.host.data() + payload.origin, true);
    expect(!before && during && payload.same_on_device(), "pack under stream capture");
    CUDA(cudaGraphExecDestroy(run));
    CUDA(cudaGraphDestroy(graph));
    CUDA(cudaStreamDestroy(stream));
}

/* Threads, more than there are words to tell of a fault, that pack on streams of their own, each with one invalid code. */
static void check_threads(int threads, int turns)
{
    const int64_t rows = 64, cols = 256;
    const awq_geometry g = make_geometry(AWQ_PACKING_V1, rows, cols, {}, ROWS, DENSE);
    std::vector<std::thread> running;
    std::atomic<int> wrong{0};
    for (int t = 0; t < threads; t++) {
        running.emplace_back([&, t] {
            cudaStream_t stream;
            uint8_t *codes, *payload;
            CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
            CUDA(cudaMalloc(&codes, static_cast<size_t>(rows * cols)));
            CUDA(cudaMalloc(&payload, static_cast<size_t>(rows * cols / 2)));
            for (int turn = 0; turn < turns; turn++) {
                const int64_t at = (131 * t + 17 * turn) % (rows * cols);
                const bool is_bad = (t + turn) % 3 != 0;
                uint64_t found;
                CUDA(cudaMemsetAsync(codes, 3, static_cast<size_t>(rows * cols), stream));
                CUDA(cudaMemsetAsync(codes + at, is_bad ? 16 + t : 15, 1, stream));
                CUDA(awq_cuda_pack_checked(&g, codes, payload, stream, &found));
                wrong += found != (is_bad ? static_cast<uint64_t>(at) << 8 | static_cast<uint64_t>(16 + t) : AWQ_CUDA_NO_FAULT);
            }
            CUDA(cudaFree(codes));
            CUDA(cudaFree(payload));
            CUDA(cudaStreamDestroy(stream));
        });
    }
    for (std::thread &thread : running) {
        thread.join();
    }
    expect(wrong == 0, "faults of many threads");
}

/* Every code invalid, over more blocks than run at once. */
static void check_all_invalid(int64_t side)
{
    const int64_t rows = side, cols = side;
    uint8_t *codes, *payload;
    uint64_t found;
    CUDA(cudaMalloc(&codes, static_cast<size_t>(rows * cols)));
    CUDA(cudaMalloc(&payload, static_cast<size_t>(rows * cols / 2)));
    CUDA(cudaMemset(codes, 0xee, static_cast<size_t>(rows * cols)));
    for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
        for (const CodesKind kind : {ROWS, COLUMNS}) {
            const awq_geometry g = make_geometry(static_cast<awq_packing>(packing), rows, cols, {}, kind, DENSE);
            CUDA(awq_cuda_pack_checked(&g, codes, payload, nullptr, &found));
            expect(found == 0xee, "every code invalid");
        }
    }
    CUDA(cudaFree(codes));
    CUDA(cudaFree(payload));
}

/* `bytes` bytes to an address that is or is not a multiple of 16, among others that must stay. */
static void check_copy_of(size_t bytes, size_t offset, cudaStream_t stream)
{
    std::vector<uint8_t> source(bytes), target(bytes + 2 * 16);
    uint8_t *from, *to;
    for (uint8_t &byte : source) {
        byte = static_cast<uint8_t>(rng());
    }
    CUDA(cudaMalloc(&from, bytes));
    CUDA(cudaMalloc(&to, target.size()));
    CUDA(cudaMemsetAsync(to, 0xa5, target.size(), stream));
    CUDA(cudaMemcpyAsync(from, source.data(), bytes, cudaMemcpyHostToDevice, stream));
    CUDA(awq_cuda_copy(to + offset, from, bytes, stream));
    CUDA(cudaMemcpyAsync(target.data(), to, target.size(), cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    expect(memcmp(target.data() + offset, source.data(), bytes) == 0, "copy: the bytes");
    bool is_kept = true;
    for (size_t i = 0; i < target.size(); i++) {
        is_kept = is_kept && ((i >= offset && i < offset + bytes) || target[i] == 0xa5);
    }
    expect(is_kept, "copy: nothing beside them");
    CUDA(cudaFree(from));
    CUDA(cudaFree(to));
}

static void check_copies()
{
    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (size_t bytes : {1, 16, 4080, 4096, 1 << 20, (1 << 20) + 16}) {
        check_copy_of(bytes, 16, stream);
        check_copy_of(bytes, 1, stream);
    }
    expect(awq_cuda_copy(nullptr, nullptr, 0, stream) == 0, "copy of nothing");
    CUDA(cudaStreamDestroy(stream));
}

static void check_errors()
{
    char text[128];
    int previous, code = awq_cuda_enter_device(1 << 20, &previous);
    expect(code != 0 && strstr(awq_cuda_error_text(code, text, sizeof text), "cudaError") != nullptr, "bad device");
    expect(cudaGetLastError() == cudaSuccess, "the error of a bad device is cleared");
    expect(awq_cuda_enter_device(0, &previous) == 0 && awq_cuda_leave_device(previous) == 0, "device guard");
    uint8_t *from;
    CUDA(cudaMalloc(&from, 17));
    expect(awq_cuda_copy(nullptr, from, 17, nullptr) == cudaErrorInvalidValue, "copy to nowhere");
    expect(cudaGetLastError() == cudaSuccess, "the error of a copy is cleared");
    CUDA(cudaFree(from));
}

static bool is_periodic(const uint8_t *device, int64_t bytes, const std::vector<uint8_t> &period)
{
    std::vector<uint8_t> chunk(period.size());
    for (int64_t at = 0; at < bytes; at += static_cast<int64_t>(chunk.size())) {
        const size_t n = std::min(chunk.size(), static_cast<size_t>(bytes - at));
        CUDA(cudaMemcpy(chunk.data(), device + at, n, cudaMemcpyDeviceToHost));
        if (memcmp(chunk.data(), period.data(), n) != 0) {
            return false;
        }
    }
    return true;
}

/* More than 2^32 codes: 64-bit offsets, row-major and column-major, and the index of an invalid code near the end. */
static void check_huge()
{
    const int64_t rows = 65536, cols = 81920, count = rows * cols, period_cols = 256, period = rows * period_cols;
    uint8_t *codes, *payload;
    uint64_t found;
    CUDA(cudaMalloc(&codes, static_cast<size_t>(count)));
    CUDA(cudaMalloc(&payload, static_cast<size_t>(count / 2)));
    const std::vector<uint8_t> sample = fill_codes(codes, count, period);
    for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
        for (const CodesKind kind : {ROWS_MERGED, COLUMNS}) {
            char name[80];
            snprintf(name, sizeof name, "huge %s %s", packing_names[packing], codes_names[kind]);
            const awq_packing l = static_cast<awq_packing>(packing);
            const awq_geometry g = make_geometry(l, rows, cols, {}, kind, DENSE);
            /* a column-major period is 256 columns of every row; a row-major one is 16777216 codes of whole rows */
            const awq_geometry small = kind == COLUMNS ? make_geometry(l, rows, period_cols, {}, COLUMNS, DENSE)
                                                       : make_geometry(l, 4096, 4096, {}, ROWS, DENSE);
            std::vector<uint8_t> packed(static_cast<size_t>(period / 2));
            std::vector<uint8_t> copy = sample;
            reference(small, copy.data(), packed.data(), true);
            CUDA(awq_cuda_pack_checked(&g, codes, payload, nullptr, &found));
            bool same = found == AWQ_CUDA_NO_FAULT;
            if (kind == COLUMNS && awq_packings[l].runs_down) { /* a period is whole rows of the payload */
                same = same && is_periodic(payload, count / 2, packed);
            } else if (kind == COLUMNS) { /* payload rows repeat every 256 columns: spread the period over one row at a time */
                const int64_t lines = payload_size(l, rows, cols).lines;
                const size_t line = static_cast<size_t>(count / 2 / lines), part = static_cast<size_t>(period / 2 / lines);
                std::vector<uint8_t> rows_now(line * 1024);
                for (int64_t first = 0; first < lines; first += 1024) {
                    CUDA(cudaMemcpy(rows_now.data(), payload + static_cast<size_t>(first) * line, rows_now.size(),
                                    cudaMemcpyDeviceToHost));
                    for (size_t at = 0; at < rows_now.size(); at += part) {
                        same = same && memcmp(&rows_now[at],
                                              &packed[(static_cast<size_t>(first) + at / line) * part], part) == 0;
                    }
                }
            } else if (awq_packings[l].block_rows == 1) {
                same = same && is_periodic(payload, count / 2, packed);
            }
            expect(same, name);
            CUDA(cudaMemset(codes, 0xee, static_cast<size_t>(count)));
            CUDA(awq_cuda_unpack(&g, payload, codes, nullptr));
            expect(is_periodic(codes, count, sample), name);
            const uint8_t bad = 16;
            CUDA(cudaMemcpy(codes + count - 3, &bad, 1, cudaMemcpyHostToDevice));
            CUDA(awq_cuda_pack_checked(&g, codes, payload, nullptr, &found));
            const int64_t index = kind == COLUMNS ? (rows - 3) * cols + cols - 1 : count - 3;
            expect(found == (static_cast<uint64_t>(index) << 8 | bad), name);
            CUDA(cudaMemcpy(codes + count - 3, &sample[static_cast<size_t>((count - 3) % period)], 1,
                            cudaMemcpyHostToDevice));
        }
    }
    CUDA(cudaFree(codes));
    CUDA(cudaFree(payload));
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    cudaDeviceProp device;
    CUDA(cudaGetDeviceProperties(&device, 0));
    printf("%s, compute capability %d.%d, runtime %d, built for %s\n", device.name, device.major, device.minor,
           awq_cuda_runtime_version(), awq_cuda_archs());
#ifndef CHECK_ONLY
    if (strcmp(mode, "--bench") == 0) {
        bench(16384, 16384);
        bench(65536, 32768);
        return 0;
    }
    if (strcmp(mode, "--tune") == 0) {
        tune(65536, 65536);
        tune(69632, 61440); /* about as large, but no column or row a power of two from the next one */
        tune(32768, 32768);
        tune(57344, 16384);
        tune(16384, 16384);
        return 0;
    }
#endif
    const bool quick = strcmp(mode, "--quick") == 0;
    if (!quick && *mode != '\0') {
        fprintf(stderr, "usage: check_cuda [--quick | --bench | --tune]\n");
        return 2;
    }
    for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
        check_packing(static_cast<awq_packing>(packing), quick);
    }
    check_relayouts(quick);
    check_capture();
    check_copies();
    check_threads(quick ? 4 : 80, quick ? 3 : 200);
    check_all_invalid(quick ? 512 : 4096);
    if (!quick) {
        check_errors(); /* the sanitizer would report these */
        check_huge();
    }
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0;
}

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
#include "check_relayout.cuh"
#include "cuda_cases.cuh"
#include "cuda_reference.cuh"
#ifndef CHECK_ONLY /* timing brings in many kernels that launch.cu does not use: a minute of compiling */
#include "bench_cuda.cuh"
#include "tune_cuda.cuh"
#endif

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
    snprintf(what, sizeof what, "%s %lldx%lld, %d batch dims, codes %s + %lld, payload %s + %lld",
             packing_names[packing], static_cast<long long>(rows), static_cast<long long>(cols),
             static_cast<int>(batch.size()), codes_names[codes], static_cast<long long>(codes_offset),
             payload_names[payload], static_cast<long long>(payload_offset));
    const awq_geometry g =
        make_geometry(packing, rows, cols, batch, static_cast<CodesKind>(codes), static_cast<PayloadKind>(payload));
    check_geometry(g, codes_offset, payload_offset, what);
}

/* The sizes that a packing is checked with, what its small ones are multiples of, and how its blocks are left over. */
struct Sizes {
    std::vector<std::pair<int64_t, int64_t>> shapes; /* the last have more tiles down and across than a band */
    int64_t cols;                                    /* of misaligned ones, which have a tail */
};

static Sizes sizes_of(awq_packing packing)
{
    switch (packing) {
    case AWQ_PACKING_V2:
        return {
            {{4, 64}, {20, 192}, {128, 256}, {132, 320}, {4, 4160}, {260, 576}, {600, 2112}, {4484, 320}, {24, 8768}},
            192};
    case AWQ_PACKING_MARLIN:
        return {{{64, 16}, {192, 48}, {128, 256}, {64, 4112}, {320, 528}, {4480, 80}, {1216, 656}}, 144};
    default:
        return {{{1, 8},
                 {3, 24},
                 {17, 264},
                 {128, 256},
                 {37, 1032},
                 {261, 520},
                 {1, 40008},
                 {600, 2056},
                 {4500, 264},
                 {24, 8712}},
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
            check_case(packing, std::max<int64_t>(unit, 4) * (unit < 64 ? 1 + offset : 1), cols, {}, codes, PITCH, 0,
                       offset % 8);
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
                    if (large ? payload != DENSE && payload != TURNED
                              : quick && payload > 1 && (codes + payload) % 3 != 0) {
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

/* More threads than there are words to tell of a fault pack on streams of their own, most with one invalid code. */
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
                wrong += found !=
                         (is_bad ? static_cast<uint64_t>(at) << 8 | static_cast<uint64_t>(16 + t) : AWQ_CUDA_NO_FAULT);
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
            } else if (kind == COLUMNS) { /* payload rows repeat every 256 columns: spread the period over a row */
                const int64_t lines = payload_size(l, rows, cols).lines;
                const size_t line = static_cast<size_t>(count / 2 / lines),
                             part = static_cast<size_t>(period / 2 / lines);
                std::vector<uint8_t> rows_now(line * 1024);
                for (int64_t first = 0; first < lines; first += 1024) {
                    CUDA(cudaMemcpy(rows_now.data(), payload + static_cast<size_t>(first) * line, rows_now.size(),
                                    cudaMemcpyDeviceToHost));
                    for (size_t at = 0; at < rows_now.size(); at += part) {
                        same = same && memcmp(&rows_now[at], &packed[(static_cast<size_t>(first) + at / line) * part],
                                              part) == 0;
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

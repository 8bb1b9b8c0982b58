/* Times of the CUDA kernels beside device-to-device copies that move the same bytes. */
#ifndef BENCH_CUDA_CUH
#define BENCH_CUDA_CUH

#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <vector>

#include "awqpack_cuda.h"
#include "cuda_cases.cuh"

constexpr int bench_repeats = 25;
constexpr int64_t fill_period = (1 << 26) - 1048; /* no multiple of a tile, so that no tile equals another */

struct Times {
    double copy_ms, ours_ms;
};

/* Medians of a copy of `bytes` and of `work`, taken in turn. */
template <class Work>
static Times measure(uint8_t *to, const uint8_t *from, int64_t bytes, int repeats, Work work)
{
    cudaEvent_t events[3];
    for (cudaEvent_t &e : events) {
        CUDA(cudaEventCreate(&e));
    }
    std::vector<float> copies, ours;
    for (int i = -3; i < repeats; i++) {
        CUDA(cudaEventRecord(events[0], nullptr));
        CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, nullptr));
        CUDA(cudaEventRecord(events[1], nullptr));
        work();
        CUDA(cudaEventRecord(events[2], nullptr));
        CUDA(cudaEventSynchronize(events[2]));
        float copy, our;
        CUDA(cudaEventElapsedTime(&copy, events[0], events[1]));
        CUDA(cudaEventElapsedTime(&our, events[1], events[2]));
        if (i >= 0) {
            copies.push_back(copy);
            ours.push_back(our);
        }
    }
    for (cudaEvent_t &e : events) {
        CUDA(cudaEventDestroy(e));
    }
    std::nth_element(copies.begin(), copies.begin() + repeats / 2, copies.end());
    std::nth_element(ours.begin(), ours.begin() + repeats / 2, ours.end());
    return {copies[repeats / 2], ours[repeats / 2]};
}

/* Square-ish matrices of codes, a payload, and two buffers for copies. */
struct Bench {
    int64_t rows, cols, codes_bytes;
    uint8_t *codes, *payload, *from, *to;
    uint64_t *word;

    Bench(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), codes_bytes(rows_ * cols_)
    {
        CUDA(cudaMalloc(&codes, static_cast<size_t>(codes_bytes)));
        CUDA(cudaMalloc(&payload, static_cast<size_t>(codes_bytes / 2)));
        CUDA(cudaMalloc(&from, static_cast<size_t>(codes_bytes / 4 * 3)));
        CUDA(cudaMalloc(&to, static_cast<size_t>(codes_bytes / 4 * 3)));
        CUDA(cudaMalloc(&word, sizeof *word));
        fill_codes(codes, codes_bytes, fill_period);
        fill_codes(from, codes_bytes / 4 * 3, fill_period);
        const awq_geometry g = make_geometry(AWQ_PACKING_V1, rows, cols, {}, ROWS_MERGED, DENSE);
        CUDA(awq_cuda_pack(&g, codes, payload, nullptr));
    }
    ~Bench()
    {
        for (void *p : {static_cast<void *>(codes), static_cast<void *>(payload), static_cast<void *>(from),
                        static_cast<void *>(to), static_cast<void *>(word)}) {
            CUDA(cudaFree(p));
        }
    }
    Bench(const Bench &) = delete;
    Bench &operator=(const Bench &) = delete;

    /* Beside a copy of `bytes`, which reads and writes as many. */
    template <class Work>
    void report(const char *what, int64_t bytes, Work work)
    {
        const Times t = measure(to, from, bytes, bench_repeats, work);
        printf("%5lld MiB  %-44s %8.4f ms  copy %8.4f ms %6.0f GB/s  ratio %.3f\n",
               static_cast<long long>(codes_bytes >> 20), what, t.ours_ms, t.copy_ms,
               2e-6 * static_cast<double>(bytes) / t.copy_ms, t.copy_ms / t.ours_ms);
    }
};

static void bench_packing(Bench &b, awq_packing packing, CodesKind codes, PayloadKind payload)
{
    const awq_geometry g = make_geometry(packing, b.rows, b.cols, {}, codes, payload);
    const int64_t bytes = b.codes_bytes / 4 * 3;
    char what[80];
    uint64_t found;
    snprintf(what, sizeof what, "%s %s, %s pack", packing_names[packing], codes_names[codes], payload_names[payload]);
    b.report(what, bytes, [&] { CUDA(awq_cuda_pack(&g, b.codes, b.payload, nullptr)); });
    strcat(what, ", checked");
    b.report(what, bytes, [&] { CUDA(awq_cuda_pack_checked(&g, b.codes, b.payload, nullptr, &found)); });
    snprintf(what, sizeof what, "%s %s, %s unpack", packing_names[packing], codes_names[codes], payload_names[payload]);
    b.report(what, bytes, [&] { CUDA(awq_cuda_unpack(&g, b.payload, b.codes, nullptr)); });
}

/* From the payload to what lies behind its bytes among the codes. */
static void bench_relayout(Bench &b, awq_packing source, PayloadKind kind, awq_packing target, bool transpose)
{
    const int64_t rows = transpose ? b.cols : b.rows, cols = transpose ? b.rows : b.cols;
    const PayloadStrides from = payload_strides(kind, payload_size(source, b.rows, b.cols));
    const awq_relayout r = {
        source, target, transpose, 0, rows, cols, from.row, from.col, payload_size(target, rows, cols).items,
        1,      {},     {},        {}};
    char what[80];
    snprintf(what, sizeof what, "%s %s to %s%s", packing_names[source], payload_names[kind], packing_names[target],
             transpose ? ", transposed" : "");
    b.report(what, b.codes_bytes / 2, [&] { CUDA(awq_cuda_relayout(&r, b.payload, b.codes, nullptr)); });
}

static void bench(int64_t rows, int64_t cols)
{
    Bench b(rows, cols);
    for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
        for (const CodesKind kind : {ROWS_MERGED, ROWS, COLUMNS}) {
            if (kind != ROWS_MERGED || can_merge(static_cast<awq_packing>(packing))) {
                bench_packing(b, static_cast<awq_packing>(packing), kind, DENSE);
            }
        }
    }
    for (const CodesKind kind : {ROWS, COLUMNS}) {
        bench_packing(b, AWQ_PACKING_V1, kind, TURNED);
    }
    for (const bool transpose : {false, true}) {
        bench_relayout(b, AWQ_PACKING_V1_REORDER, DENSE, AWQ_PACKING_MARLIN, transpose);
        bench_relayout(b, AWQ_PACKING_MARLIN, DENSE, AWQ_PACKING_V1_REORDER, transpose);
        bench_relayout(b, AWQ_PACKING_V1, DENSE, AWQ_PACKING_V2, transpose);
        bench_relayout(b, AWQ_PACKING_V2, DENSE, AWQ_PACKING_MARLIN, transpose);
    }
    bench_relayout(b, AWQ_PACKING_V1, TURNED, AWQ_PACKING_MARLIN, false);
}

#endif

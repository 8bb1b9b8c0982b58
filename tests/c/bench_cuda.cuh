/* Times of the CUDA kernels beside device-to-device copies that move the same bytes, and of what launch.cu could use. */
#ifndef BENCH_CUDA_CUH
#define BENCH_CUDA_CUH

#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <vector>

#include "awqpack_cuda.h"
#include "cuda_cases.cuh"
#include "rowmajor.cuh"
#include "tile.cuh"

constexpr int bench_repeats = 25;
#ifndef TUNE_REPEATS
#define TUNE_REPEATS 13
#endif

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
    uint64_t *fault;

    Bench(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), codes_bytes(rows_ * cols_)
    {
        CUDA(cudaMalloc(&codes, static_cast<size_t>(codes_bytes)));
        CUDA(cudaMalloc(&payload, static_cast<size_t>(codes_bytes / 2)));
        CUDA(cudaMalloc(&from, static_cast<size_t>(codes_bytes / 4 * 3)));
        CUDA(cudaMalloc(&to, static_cast<size_t>(codes_bytes / 4 * 3)));
        CUDA(cudaMalloc(&fault, sizeof *fault));
        fill_codes(codes, codes_bytes, 1 << 26);
        fill_codes(from, codes_bytes / 4 * 3, 1 << 26);
        const awq_geometry g = make_geometry(AWQ_LAYOUT_V1, rows, cols, {}, ROWS_MERGED, DENSE);
        CUDA(awq_cuda_pack(&g, codes, payload, nullptr, nullptr));
    }
    ~Bench()
    {
        for (void *p : {static_cast<void *>(codes), static_cast<void *>(payload), static_cast<void *>(from),
                        static_cast<void *>(to), static_cast<void *>(fault)}) {
            CUDA(cudaFree(p));
        }
    }
    Bench(const Bench &) = delete;
    Bench &operator=(const Bench &) = delete;

    template <class Work>
    void report(const char *what, Work work)
    {
        const Times t = measure(to, from, codes_bytes / 4 * 3, bench_repeats, work);
        printf("%5lld MiB  %-44s %8.4f ms  copy %8.4f ms %6.0f GB/s  ratio %.3f\n",
               static_cast<long long>(codes_bytes >> 20), what, t.ours_ms, t.copy_ms,
               1.5e-6 * static_cast<double>(codes_bytes) / t.copy_ms, t.copy_ms / t.ours_ms);
    }
};

static void bench(int64_t rows, int64_t cols)
{
    Bench b(rows, cols);
    for (const CodesKind kind : {ROWS_MERGED, ROWS, COLUMNS}) {
        for (int layout = 0; layout < AWQ_LAYOUT_COUNT; layout++) {
            const awq_geometry g = make_geometry(static_cast<awq_layout>(layout), rows, cols, {}, kind, DENSE);
            char what[80];
            snprintf(what, sizeof what, "%s %s pack", layout_names[layout], codes_names[kind]);
            b.report(what, [&] { CUDA(awq_cuda_pack(&g, b.codes, b.payload, nullptr, nullptr)); });
            snprintf(what, sizeof what, "%s %s pack, checked", layout_names[layout], codes_names[kind]);
            b.report(what, [&] { CUDA(awq_cuda_pack(&g, b.codes, b.payload, b.fault, nullptr)); });
            snprintf(what, sizeof what, "%s %s unpack", layout_names[layout], codes_names[kind]);
            b.report(what, [&] { CUDA(awq_cuda_unpack(&g, b.payload, b.codes, nullptr)); });
        }
    }
}

/* ---- tuning ---- */

struct Comparison {
    const uint64_t *a, *b;
    unsigned long long *different;
};

static __global__ void compare(const Comparison c, const uint64_t words)
{
    const uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < words && c.a[i] != c.b[i]) {
        *c.different = i;
    }
}

/* Candidates of one access pattern, over one size; every one is checked against what the library does. */
struct Tuner {
    Bench &b;
    bool columns;
    double copy_ms = 0;
    uint8_t *codes = nullptr;
    uint8_t *payloads[AWQ_LAYOUT_COUNT] = {};

    Tuner(Bench &bench, bool is_columns) : b(bench), columns(is_columns)
    {
        CUDA(cudaMalloc(&codes, static_cast<size_t>(b.codes_bytes)));
        CUDA(cudaMemcpy(codes, b.codes, static_cast<size_t>(b.codes_bytes), cudaMemcpyDeviceToDevice));
        for (const awq_layout layout : {AWQ_LAYOUT_V1, AWQ_LAYOUT_V2}) {
            const awq_geometry g = make_geometry(layout, b.rows, b.cols, {}, columns ? COLUMNS : ROWS, DENSE);
            CUDA(cudaMalloc(&payloads[layout], static_cast<size_t>(b.codes_bytes / 2)));
            CUDA(awq_cuda_pack(&g, codes, payloads[layout], nullptr, nullptr));
        }
        print_copy();
    }
    ~Tuner()
    {
        print_copy();
        CUDA(cudaFree(codes));
        CUDA(cudaFree(payloads[AWQ_LAYOUT_V1]));
        CUDA(cudaFree(payloads[AWQ_LAYOUT_V2]));
    }
    Tuner(const Tuner &) = delete;
    Tuner &operator=(const Tuner &) = delete;

    /* Ratios are taken to the copy time found here. */
    void print_copy()
    {
        copy_ms = measure(b.to, b.from, b.codes_bytes / 4 * 3, 3 * TUNE_REPEATS, [] {}).copy_ms;
        printf("%s of %lld x %lld, %lld MiB: copy %.4f ms\n", columns ? "columns" : "rows",
               static_cast<long long>(b.rows), static_cast<long long>(b.cols),
               static_cast<long long>(b.codes_bytes >> 20), copy_ms);
    }

    awq_cuda::Job job(awq_layout layout, bool pack) const
    {
        awq_cuda::Job job = {};
        job.codes = b.codes;
        job.payload = pack ? b.payload : payloads[layout];
        job.rows = b.rows;
        job.cols = b.cols;
        job.codes_row = columns ? 1 : b.cols;
        job.codes_col = columns ? b.rows : 1;
        job.payload_row = layout == AWQ_LAYOUT_V2 ? 2 * b.cols : b.cols / 2;
        job.payload_col = awq_cuda::element_bytes(layout);
        job.codes_aligned = job.payload_aligned = true;
        return job;
    }

    bool same(const uint8_t *a, const uint8_t *expected, int64_t bytes)
    {
        Comparison c = {reinterpret_cast<const uint64_t *>(a), reinterpret_cast<const uint64_t *>(expected),
                        reinterpret_cast<unsigned long long *>(b.fault)};
        uint64_t words = static_cast<uint64_t>(bytes / 8), different;
        void *arguments[] = {&c, &words};
        CUDA(cudaMemset(b.fault, 0xff, 8));
        CUDA(cudaLaunchKernel(compare, dim3(static_cast<unsigned>((words + 255) / 256)), dim3(256), arguments, 0,
                              nullptr));
        CUDA(cudaMemcpy(&different, b.fault, 8, cudaMemcpyDeviceToHost));
        return different == UINT64_MAX;
    }

    /* `blocks`: at most that many at a time on a multiprocessor, held by shared memory they do not use; 0: any. */
    void time(awq_layout layout, bool pack, awq_cuda::Kernel kernel, awq_cuda::Shape shape, int blocks)
    {
        awq_cuda::Job j = job(layout, pack);
        size_t memory = 0;
        if (blocks > 0) {
            cudaFuncAttributes attributes;
            CUDA(cudaFuncGetAttributes(&attributes, kernel));
            memory = static_cast<size_t>(228 * 1024 / blocks - 1280) - attributes.sharedSizeBytes;
            CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory)));
        }
        void *arguments[] = {&j, &shape.split};
        const auto launch = [&] {
            CUDA(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(shape.blocks)), shape.threads, arguments, memory,
                                  nullptr));
        };
        const int64_t bytes = pack ? b.codes_bytes / 2 : b.codes_bytes;
        uint8_t *const target = pack ? b.payload : b.codes;
        CUDA(cudaMemset(target, 0xee, static_cast<size_t>(bytes)));
        launch();
        const bool right = same(target, pack ? payloads[layout] : codes, bytes);
        const Times t = measure(b.to, b.from, b.codes_bytes / 4 * 3, TUNE_REPEATS, launch);
        printf("  %.3f%s", copy_ms / t.ours_ms, right ? "" : " WRONG");
        if (!right) {
            CUDA(cudaMemcpy(b.codes, codes, static_cast<size_t>(b.codes_bytes), cudaMemcpyDeviceToDevice));
        }
    }

    template <class Config>
    void tile(int blocks)
    {
        const awq_cuda::Shape shape = awq_cuda::tile_shape<Config>(job(AWQ_LAYOUT_V1, true));
        time(AWQ_LAYOUT_V1, true, awq_cuda::pack_tiles<AWQ_LAYOUT_V1, Config>, shape, blocks);
        time(AWQ_LAYOUT_V2, true, awq_cuda::pack_tiles<AWQ_LAYOUT_V2, Config>, shape, blocks);
        time(AWQ_LAYOUT_V1, false, awq_cuda::unpack_tiles<AWQ_LAYOUT_V1, Config>, shape, blocks);
        time(AWQ_LAYOUT_V2, false, awq_cuda::unpack_tiles<AWQ_LAYOUT_V2, Config>, shape, blocks);
    }

    template <class Config>
    void row(int blocks)
    {
        const awq_cuda::Shape v1 = awq_cuda::rows_shape<Config>(job(AWQ_LAYOUT_V1, true), AWQ_LAYOUT_V1);
        const awq_cuda::Shape v2 = awq_cuda::rows_shape<Config>(job(AWQ_LAYOUT_V2, true), AWQ_LAYOUT_V2);
        time(AWQ_LAYOUT_V1, true, awq_cuda::pack_rows<AWQ_LAYOUT_V1, Config>, v1, blocks);
        time(AWQ_LAYOUT_V2, true, awq_cuda::pack_rows<AWQ_LAYOUT_V2, Config>, v2, blocks);
        time(AWQ_LAYOUT_V1, false, awq_cuda::unpack_rows<AWQ_LAYOUT_V1, Config>, v1, blocks);
        time(AWQ_LAYOUT_V2, false, awq_cuda::unpack_rows<AWQ_LAYOUT_V2, Config>, v2, blocks);
    }
};

/* The configuration is printed as it stands in launch.cu; then the ratios of pack V1, pack V2, unpack V1, unpack V2. */
#define ROW_LIMITED(blocks, ...)                               \
    do {                                                       \
        printf("  %-44s @%d", #__VA_ARGS__, blocks);           \
        t.row<awq_cuda::RowConfig<__VA_ARGS__>>(blocks);       \
        printf("\n");                                          \
        fflush(stdout);                                        \
    } while (0)
#define TILE_LIMITED(blocks, ...)                              \
    do {                                                       \
        printf("  %-44s @%d", #__VA_ARGS__, blocks);           \
        t.tile<awq_cuda::TileConfig<__VA_ARGS__>>(blocks);     \
        printf("\n");                                          \
        fflush(stdout);                                        \
    } while (0)
#define ROW(...) ROW_LIMITED(0, __VA_ARGS__)
#define TILE(...) TILE_LIMITED(0, __VA_ARGS__)

static void tune_rows(Bench &b)
{
    using namespace awq_cuda;
    Tuner t(b, false);
    ROW(2, 256, true, load_plain);
    ROW(2, 256, false, load_plain);
    ROW(4, 128, true, load_plain);
}

constexpr int endless = INT32_MAX;

static void tune_tiles(Bench &b)
{
    using namespace awq_cuda;
    Tuner t(b, true);
    TILE(16, 256, true, endless, 1, 1, load_plain);
    TILE(16, 512, true, endless, 2, 1, load_plain);
    TILE(16, 512, true, 16, 2, 1, load_plain);
    TILE(16, 512, true, endless, 2, 1, load_256);
    TILE(16, 512, true, endless, 2, 1, load_128);
    TILE(16, 768, true, endless, 3, 1, load_plain);
    TILE(16, 768, true, endless, 3, 1, load_256);
    TILE(16, 1024, true, endless, 2, 1, load_plain);
    TILE(16, 512, true, 8, 2, 1, load_plain);
    TILE(16, 512, true, 32, 2, 1, load_plain);
    TILE(16, 512, true, 16, 2, 1, load_256);
    TILE(16, 512, false, 2, 2, 1, load_plain);
    TILE(16, 512, false, 2, 2, 1, load_256);
}

static void tune(int64_t rows, int64_t cols)
{
    Bench b(rows, cols);
    tune_tiles(b);
    tune_rows(b);
}

#endif

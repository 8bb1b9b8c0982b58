/* Kernel configurations that launch.cu chooses from, checked and timed, and what their access patterns alone cost. */
#ifndef TUNE_CUDA_CUH
#define TUNE_CUDA_CUH

#include "bench_cuda.cuh"
#include "rowmajor.cuh"
#include "tile.cuh"

#ifndef TUNE_REPEATS
#define TUNE_REPEATS 13
#endif

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
    uint8_t *codes = nullptr;
    uint8_t *payloads[AWQ_PACKING_COUNT] = {};

    Tuner(Bench &bench, bool is_columns) : b(bench), columns(is_columns)
    {
        CUDA(cudaMalloc(&codes, static_cast<size_t>(b.codes_bytes)));
        CUDA(cudaMemcpy(codes, b.codes, static_cast<size_t>(b.codes_bytes), cudaMemcpyDeviceToDevice));
        for (const awq_packing packing : {AWQ_PACKING_V1, AWQ_PACKING_V2}) {
            const awq_geometry g = make_geometry(packing, b.rows, b.cols, {}, columns ? COLUMNS : ROWS, DENSE);
            CUDA(cudaMalloc(&payloads[packing], static_cast<size_t>(b.codes_bytes / 2)));
            CUDA(awq_cuda_pack(&g, codes, payloads[packing], nullptr));
        }
        print_copy();
    }
    ~Tuner()
    {
        print_copy();
        CUDA(cudaFree(codes));
        CUDA(cudaFree(payloads[AWQ_PACKING_V1]));
        CUDA(cudaFree(payloads[AWQ_PACKING_V2]));
    }
    Tuner(const Tuner &) = delete;
    Tuner &operator=(const Tuner &) = delete;

    void print_copy()
    {
        const double copy_ms = measure(b.to, b.from, b.codes_bytes / 4 * 3, 3 * TUNE_REPEATS, [] {}).copy_ms;
        printf("%s of %lld x %lld, %lld MiB: copy %.4f ms\n", columns ? "columns" : "rows",
               static_cast<long long>(b.rows), static_cast<long long>(b.cols),
               static_cast<long long>(b.codes_bytes >> 20), copy_ms);
    }

    awq_cuda::Job job(awq_packing packing, bool pack) const
    {
        awq_cuda::Job job = {};
        job.codes = b.codes;
        job.payload = pack ? b.payload : payloads[packing];
        job.rows = b.rows;
        job.cols = b.cols;
        job.codes_row = columns ? 1 : b.cols;
        job.codes_col = columns ? b.rows : 1;
        const PayloadSize size = payload_size(packing, b.rows, b.cols);
        job.payload_row = size.items * size.item_bytes;
        job.payload_col = size.item_bytes;
        job.codes_aligned = job.payload_aligned = true;
        return job;
    }

    bool same(const uint8_t *a, const uint8_t *expected, int64_t bytes)
    {
        Comparison c = {reinterpret_cast<const uint64_t *>(a), reinterpret_cast<const uint64_t *>(expected),
                        reinterpret_cast<unsigned long long *>(b.word)};
        uint64_t words = static_cast<uint64_t>(bytes / 8), different;
        void *arguments[] = {&c, &words};
        CUDA(cudaMemset(b.word, 0xff, 8));
        CUDA(cudaLaunchKernel(compare, dim3(static_cast<unsigned>((words + 255) / 256)), dim3(256), arguments, 0,
                              nullptr));
        CUDA(cudaMemcpy(&different, b.word, 8, cudaMemcpyDeviceToHost));
        return different == UINT64_MAX;
    }

    /* Ratio of the time of a copy, taken in turn, to that of `launch`. */
    template <class Launch>
    void report(Launch launch, const char *mark)
    {
        const Times t = measure(b.to, b.from, b.codes_bytes / 4 * 3, TUNE_REPEATS, launch);
        printf("  %.3f%s", t.copy_ms / t.ours_ms, mark);
    }

    void time(awq_packing packing, bool pack, awq_cuda::Kernel kernel, awq_cuda::Shape shape)
    {
        awq_cuda::Job j = job(packing, pack);
        void *arguments[] = {&j, &shape.split};
        const auto launch = [&] {
            CUDA(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(shape.blocks)), shape.threads, arguments,
                                  shape.shared, nullptr));
        };
        const int64_t bytes = pack ? b.codes_bytes / 2 : b.codes_bytes;
        uint8_t *const target = pack ? b.payload : b.codes;
        CUDA(cudaMemset(target, 0xee, static_cast<size_t>(bytes)));
        launch();
        const bool right = same(target, pack ? payloads[packing] : codes, bytes);
        report(launch, right ? "" : " WRONG");
        if (!right) {
            CUDA(cudaMemcpy(b.codes, codes, static_cast<size_t>(b.codes_bytes), cudaMemcpyDeviceToDevice));
        }
    }

    /* Prints how many blocks a multiprocessor holds, too. */
    template <awq_packing P, class Config>
    void tile(bool pack)
    {
        const awq_cuda::Kernel kernel = pack ? awq_cuda::pack_tiles<P, Config> : awq_cuda::unpack_tiles<P, Config>;
        int resident;
        CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(Config::shared)));
        CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, Config::threads, Config::shared));
        printf("  (%d)", resident);
        time(P, pack, kernel, awq_cuda::tile_shape<Config>(job(P, pack)));
    }

    template <class Config>
    void row()
    {
        const awq_cuda::Shape v1 = awq_cuda::rows_shape<AWQ_PACKING_V1, Config>(job(AWQ_PACKING_V1, true));
        const awq_cuda::Shape v2 = awq_cuda::rows_shape<AWQ_PACKING_V2, Config>(job(AWQ_PACKING_V2, true));
        time(AWQ_PACKING_V1, true, awq_cuda::pack_rows<AWQ_PACKING_V1, Config>, v1);
        time(AWQ_PACKING_V2, true, awq_cuda::pack_rows<AWQ_PACKING_V2, Config>, v2);
        time(AWQ_PACKING_V1, false, awq_cuda::unpack_rows<AWQ_PACKING_V1, Config>, v1);
        time(AWQ_PACKING_V2, false, awq_cuda::unpack_rows<AWQ_PACKING_V2, Config>, v2);
    }
};

/*
 * Moves the bytes of an unpack without unpacking them: blocks of Rows x Cols codes, read along payload rows and written
 * along columns. What a pattern costs here no kernel of that pattern can beat.
 */
template <int Rows, int Cols, int Threads, bool Quads>
static __global__ void __launch_bounds__(Threads) move_pattern(const awq_cuda::Job job, const uint32_t down)
{
    constexpr int vectors = Rows * Cols / 32; /* of payload, 16 bytes each */
    constexpr int passes = vectors / Threads;
    constexpr int quads = Quads ? AWQ_QUAD_ROWS : 1;
    constexpr int row_vectors = Cols * quads / 32, column_vectors = Rows / 16;
    static_assert(vectors % Threads == 0, "threads share evenly");
    const int64_t row = static_cast<int64_t>(blockIdx.x % down) * Rows;
    const int64_t col = static_cast<int64_t>(blockIdx.x / down) * Cols;
    uint4 v[passes];
#pragma unroll
    for (int i = 0; i < passes; i++) {
        const int n = i * Threads + static_cast<int>(threadIdx.x);
        const uint8_t *p =
            job.payload + (row / quads + n / row_vectors) * job.payload_row + col / 2 * quads + n % row_vectors * 16;
        v[i] = __ldg(reinterpret_cast<const uint4 *>(p));
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2 * passes; i++) {
        const int n = i * Threads + static_cast<int>(threadIdx.x);
        uint8_t *p = job.codes + (col + n / column_vectors) * job.codes_col + row + n % column_vectors * 16;
        *reinterpret_cast<uint4 *>(p) = v[i / 2];
    }
}

template <int Rows, int Cols, int Threads>
static void time_pattern(Tuner &t)
{
    printf("  pattern %d x %d, %d threads: unpack V1, V2", Rows, Cols, Threads);
    for (const bool quads : {false, true}) {
        const awq_cuda::Kernel kernel =
            quads ? move_pattern<Rows, Cols, Threads, true> : move_pattern<Rows, Cols, Threads, false>;
        awq_cuda::Job j = t.job(quads ? AWQ_PACKING_V2 : AWQ_PACKING_V1, false);
        uint32_t down = static_cast<uint32_t>(j.rows / Rows);
        const unsigned blocks = down * static_cast<unsigned>(j.cols / Cols);
        void *arguments[] = {&j, &down};
        t.report([&] { CUDA(cudaLaunchKernel(kernel, dim3(blocks), dim3(Threads), arguments, 0, nullptr)); }, "");
    }
    printf("\n");
    fflush(stdout);
}

/* The configuration is printed as it stands in launch.cu; then the ratios of pack V1, pack V2, unpack V1, unpack V2. */
#define ROW(...)                                                                                                       \
    do {                                                                                                               \
        printf("  rows  %-44s", #__VA_ARGS__);                                                                         \
        t.row<awq_cuda::RowConfig<__VA_ARGS__>>();                                                                     \
        printf("\n");                                                                                                  \
        fflush(stdout);                                                                                                \
    } while (0)
#define TILE(...)                                                                                                      \
    do {                                                                                                               \
        printf("  tile  %-44s", #__VA_ARGS__);                                                                         \
        using Config = TileConfig<__VA_ARGS__>;                                                                        \
        t.tile<AWQ_PACKING_V1, Config>(true);                                                                          \
        t.tile<AWQ_PACKING_V2, Config>(true);                                                                          \
        t.tile<AWQ_PACKING_V1, Config>(false);                                                                         \
        t.tile<AWQ_PACKING_V2, Config>(false);                                                                         \
        printf("\n");                                                                                                  \
        fflush(stdout);                                                                                                \
    } while (0)

static void tune_rows(Bench &b)
{
    using namespace awq_cuda;
    Tuner t(b, false);
    ROW(2, 256, true);
}

static void tune_columns(Bench &b)
{
    using namespace awq_cuda;
    Tuner t(b, true);
    TILE(16, 512, true, 16, 2, 1, 2);
    TILE(16, 512, true, endless, 2, 1, 2);
    TILE(16, 512, false, 2, 2, 1, 2);
    TILE(16, 512, true, endless, 2, 1, 3);
    TILE(16, 512, true, endless, 1, 2, 3);
    TILE(16, 512, true, 16, 2, 2, 3);
    TILE(16, 512, true, endless, 2, 2, 2);
    TILE(16, 512, true, endless, 2, 2, 3);
    TILE(16, 512, true, endless, 4, 1, 3);
    time_pattern<256, 256, 512>(t);
    time_pattern<256, 512, 512>(t);
    CUDA(cudaMemcpy(b.codes, t.codes, static_cast<size_t>(b.codes_bytes), cudaMemcpyDeviceToDevice));
}

static void tune(int64_t rows, int64_t cols)
{
    Bench b(rows, cols);
    tune_columns(b);
    tune_rows(b);
}

#endif

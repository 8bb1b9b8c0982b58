/* Times of the kernels of floats beside device-to-device copies that move the same bytes. */
#ifndef BENCH_CUDA_FLOATS_CUH
#define BENCH_CUDA_FLOATS_CUH

#include "bench_cuda.cuh"
#include "float_cases.cuh"

/* A matrix of float weights, a payload, scales and zeros, and two buffers for copies. */
static void bench_floats(int64_t rows, int64_t cols, int64_t group)
{
    const int64_t count = rows * cols;
    uint8_t *weight, *payload, *scales, *zeros, *from, *to;
    uint64_t found;
    const size_t copy_bytes = static_cast<size_t>(count) / 16 * 37;
    CUDA(cudaMalloc(&weight, static_cast<size_t>(count) * 4));
    CUDA(cudaMalloc(&payload, static_cast<size_t>(count / 2)));
    CUDA(cudaMalloc(&scales, static_cast<size_t>(count / group * 4)));
    CUDA(cudaMalloc(&zeros, static_cast<size_t>(count / group)));
    CUDA(cudaMalloc(&from, copy_bytes));
    CUDA(cudaMalloc(&to, copy_bytes));
    fill_codes(from, static_cast<int64_t>(copy_bytes), fill_period);
    std::vector<uint8_t> bytes(static_cast<size_t>(count / 2));
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        const uint64_t r = rng();
        memcpy(&bytes[i], &r, 8);
    }
    CUDA(cudaMemcpy(payload, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
    bytes.resize(static_cast<size_t>(count / group));
    for (uint8_t &b : bytes) {
        b = static_cast<uint8_t>(rng() & 15);
    }
    CUDA(cudaMemcpy(zeros, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));

    struct Case {
        const char *name;
        CodesKind kind;
        bool by_row; /* groups run along rows of codes, as W's do beside its payload, or down, beside that of W.t() */
    };
    const Case cases[] = {{"rows, groups along them", ROWS, true},
                          {"rows, groups down", ROWS, false},
                          {"columns, groups down", COLUMNS, false},
                          {"columns, groups along rows", COLUMNS, true}};
    for (const awq_dtype dtype : float_dtypes) {
        const int64_t item = format_of(dtype).bytes;
        bytes.resize(static_cast<size_t>(count / group * item));
        for (int64_t i = 0; i < count / group; i++) {
            store_float(dtype, &bytes[static_cast<size_t>(i * item)],
                        round_to(dtype, 0.001f + static_cast<float>(rng() % 4096) / 500000));
        }
        CUDA(cudaMemcpy(scales, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
        for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
            for (const Case &c : cases) {
                if (dtype == AWQ_DTYPE_BFLOAT16 && packing != AWQ_PACKING_V1_REORDER) {
                    continue;
                }
                awq_float_geometry g =
                    float_geometry(make_geometry(static_cast<awq_packing>(packing), rows, cols, {}, c.kind, DENSE),
                                   dtype, dtype, c.by_row ? 1 : group, c.by_row ? group : 1, SCALES_DENSE);
                g.weight.data = weight, g.payload.data = payload, g.scales.data = scales, g.zeros.data = zeros;
                const int64_t moved = count / 2 + count * item + count / group * (item + 1);
                const auto report = [&](const char *op, int64_t total, auto work) {
                    const Times t = measure(to, from, total / 2, 15, work);
                    printf("%lldx%lld %-10s %-8s %-26s %-16s %8.4f ms  copy %8.4f ms %6.0f GB/s  ratio %.3f\n",
                           static_cast<long long>(rows), static_cast<long long>(cols), packing_names[packing],
                           float_names[dtype - AWQ_DTYPE_FLOAT16], c.name, op, t.ours_ms, t.copy_ms,
                           1e-6 * static_cast<double>(total) / t.copy_ms, t.copy_ms / t.ours_ms);
                };
                report("dequantize", moved, [&] { CUDA(awq_cuda_dequantize(&g, nullptr)); });
                report("quantize", moved, [&] { CUDA(awq_cuda_quantize(&g, nullptr, nullptr)); });
                report("quantize checked", moved, [&] { CUDA(awq_cuda_quantize(&g, nullptr, &found)); });
                if (packing == AWQ_PACKING_V1) {
                    awq_float_geometry s = g;
                    s.scales.data = to, s.zeros.data = from; /* as the scales stay for the next ones */
                    report("min_max", moved - count / 2,
                           [&] { CUDA(awq_cuda_min_max(&s, AWQ_SCALES_ASYMMETRIC, nullptr, nullptr)); });
                }
            }
        }
    }
    for (void *p : {static_cast<void *>(weight), static_cast<void *>(payload), static_cast<void *>(scales),
                    static_cast<void *>(zeros), static_cast<void *>(from), static_cast<void *>(to)}) {
        CUDA(cudaFree(p));
    }
}

#endif

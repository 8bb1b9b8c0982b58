/* What checks of the CUDA kernels compare with: the packings' formulas, a code at a time, and guarded buffers. */
#ifndef CUDA_REFERENCE_CUH
#define CUDA_REFERENCE_CUH

#include <stdint.h>
#include <stdio.h>

#include <vector>

#include "awqpack_cuda.h"
#include "cuda_cases.cuh"

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
    void step(int64_t size, int64_t stride) { (stride < 0 ? lowest : highest) += size > 0 ? (size - 1) * stride : 0; }
};

#endif

/*
 * Compares the CUDA kernels of floats with floats.h's formulas, over packings, dtypes, groups, strides, batches and
 * alignments; every byte of every buffer is compared, so that a write outside the tensor fails too.
 *   check_cuda_floats [--quick]   checks; --quick is small enough for compute-sanitizer
 *   check_cuda_floats --bench     times beside device-to-device copies that move the same bytes
 */
#include <stdio.h>
#include <string.h>

#include "float_cases.cuh"
#include "float_codes.cuh"
#ifndef CHECK_ONLY
#include "bench_cuda_floats.cuh"
#endif

static long passed, failed;

static void expect(bool ok, const char *what, const char *part)
{
    ok ? passed++ : failed++;
    if (!ok && failed <= 40) {
        printf("FAILED %s: %s\n", what, part);
    }
}

static void check_quantize(const awq_float_geometry &g, Tensors t, const char *what)
{
    uint64_t found;
    for_each_code(g, t, [&](const MatrixOffsets &m, int64_t n, int64_t k, uint8_t *, int, float scale, float) {
        store_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)),
                    random_weight(g.weight_dtype, scale));
    });
    upload_all(t);
    CUDA(awq_cuda_quantize(&g, nullptr, &found));
    const uint64_t expected = reference_quantize(g, t);
    expect(found == expected && expected == AWQ_CUDA_NO_FAULT && all_same(t), what, "quantize");
    if (g.rows * g.cols == 0 || float_matrices(g).empty()) {
        return;
    }
    for (int bad = 1; bad <= 16; bad *= 16) {
        for (int i = 0; i < bad; i++) {
            spoil_weight(g, t);
        }
        upload_all(t);
        CUDA(awq_cuda_quantize(&g, nullptr, &found));
        const uint64_t wanted = reference_quantize(g, t);
        expect(found == wanted && wanted != AWQ_CUDA_NO_FAULT && all_same(t), what, "weights that are not finite");
    }
    t.payload.upload();
    CUDA(awq_cuda_quantize(&g, nullptr, nullptr));
    CUDA(cudaDeviceSynchronize());
    expect(all_same(t), what, "unchecked quantize");
    spoil_factor(g, t);
    upload_all(t);
    CUDA(awq_cuda_quantize(&g, nullptr, &found));
    expect(found == reference_quantize(g, t), what, "a bad scale or zero");
}

static void check_min_max(awq_float_geometry g, Tensors t, const char *what)
{
    if (g.zeros.data == nullptr || g.rows * g.cols == 0) {
        return;
    }
    uint64_t found;
    for_each_code(g, t, [&](const MatrixOffsets &m, int64_t n, int64_t k, uint8_t *, int, float, float) {
        const float one = static_cast<float>(1 + random_below(5)) / 100;
        float weight = random_weight(g.weight_dtype, one);
        weight = fabsf(weight) > 100 && random_below(64) != 0 ? one : weight;
        store_float(g.weight_dtype, t.weight.at(m.weight + plane_index(g.weight, n, k)),
                    round_to(g.weight_dtype, weight));
    });
    for (int mode = 0; mode < AWQ_SCALES_MODE_COUNT; mode++) {
        upload_all(t);
        CUDA(awq_cuda_min_max(&g, static_cast<awq_scale_mode>(mode), nullptr, &found));
        const uint64_t expected = reference_min_max(g, static_cast<awq_scale_mode>(mode), t);
        expect(found == expected && all_same(t), what, "min_max");
    }
    spoil_weight(g, t);
    upload_all(t);
    CUDA(awq_cuda_min_max(&g, AWQ_SCALES_ASYMMETRIC, nullptr, &found));
    expect(found == reference_min_max(g, AWQ_SCALES_ASYMMETRIC, t), what, "min_max of a weight that is not finite");
}

static void check_float_case(const awq_geometry &shape, awq_dtype weight_dtype, awq_dtype scale_dtype,
                             int64_t group_rows, int64_t group_cols, ScalesKind kind, int64_t weight_offset,
                             int64_t payload_offset, const char *name)
{
    awq_float_geometry g = float_geometry(shape, weight_dtype, scale_dtype, group_rows, group_cols, kind);
    const awq_packing_traits &traits = awq_packings[g.packing];
    const int64_t across = g.cols / group_cols, down = g.rows / group_rows;
    const int64_t lines = traits.runs_down ? g.cols / traits.block_cols : g.rows / traits.block_rows;
    const int64_t items =
        (traits.runs_down ? g.rows / traits.block_rows : g.cols / traits.block_cols) * awq_block_items(&traits);
    const int64_t offset = kind == SCALES_PITCH ? 1 : 0;
    FloatBuffer weight(g, &g.weight, g.rows, g.cols, format_of(weight_dtype).bytes, weight_offset);
    FloatBuffer payload(g, &g.payload, lines, items, traits.item_bytes, payload_offset);
    FloatBuffer scales(g, &g.scales, down, across, format_of(scale_dtype).bytes, offset);
    FloatBuffer zeros(g, &g.zeros, down, across, 1, offset);
    const Tensors t = {weight, payload, scales, zeros};
    if (kind == NO_ZEROS) {
        g.zeros.data = nullptr;
    }
    char what[240];
    snprintf(what, sizeof what, "%s, %s from scales %s %s, groups %lldx%lld", name,
             float_names[weight_dtype - AWQ_DTYPE_FLOAT16], float_names[scale_dtype - AWQ_DTYPE_FLOAT16],
             scales_names[kind], static_cast<long long>(group_rows), static_cast<long long>(group_cols));
    fill_factors(g, t);
    upload_all(t);
    CUDA(awq_cuda_dequantize(&g, nullptr));
    CUDA(cudaDeviceSynchronize());
    reference_dequantize(g, t);
    expect(all_same(t), what, "dequantize");
    check_quantize(g, t, what);
    check_min_max(g, t, what);
}

/* Every dtype of weights and scales takes its turn over the cases of one shape, so do the groups and the scales'
 * strides. */
static void check_shape(awq_packing packing, int64_t rows, int64_t cols, const std::vector<int64_t> &batch, bool quick)
{
    static unsigned turn;
    const int64_t run = awq_packings[packing].block_cols;
    const int64_t groups[][2] = {{1, run},
                                 {1, cols},
                                 {rows, 1},
                                 {1, 1},
                                 {rows, cols},
                                 {1, 4},
                                 {rows % 16 == 0 ? 16 : 1, 1},
                                 {rows > 0 && rows % 8 == 0 ? 8 : std::max<int64_t>(rows, 1), 8},
                                 {rows % 2 == 0 ? 2 : 1, 2}};
    for (int codes = 0; codes < CODES_KINDS; codes++) {
        for (int payload = 0; payload < PAYLOAD_KINDS; payload++) {
            const bool large = rows * cols > 20000; /* the host's reference takes its time over one */
            if (codes == ROWS_MERGED || (large && payload != DENSE)) {
                continue;
            }
            const awq_geometry shape = make_geometry(packing, rows, cols, batch, static_cast<CodesKind>(codes),
                                                     static_cast<PayloadKind>(payload));
            const bool usual = payload == DENSE &&
                               (codes == ROWS || codes == COLUMNS || codes == ROWS_PITCH5 || codes == COLUMNS_PITCH5);
            const int cases = large ? 2 : usual ? (quick ? 9 : 27) : quick ? 1 : 3;
            for (int i = 0; i < cases; i++, turn++) {
                char name[160];
                snprintf(name, sizeof name, "%s %lldx%lld, %d batch dims, weight %s, payload %s",
                         packing_names[packing], static_cast<long long>(rows), static_cast<long long>(cols),
                         static_cast<int>(batch.size()), codes_names[codes], payload_names[payload]);
                const int64_t *group = groups[rows == 0 || cols == 0 ? 3 : turn % 9];
                only_usual = turn % 2 == 0;
                check_float_case(shape, float_dtypes[turn / 9 % 3],
                                 float_dtypes[turn / 27 % 3 == 0 ? turn / 9 % 3 : turn % 3], group[0], group[1],
                                 static_cast<ScalesKind>(random_below(SCALES_KINDS)), i % 3 == 2 ? random_below(16) : 0,
                                 i % 3 == 1 ? random_below(8) : 0, name);
            }
        }
    }
}

static void check_floats(bool quick)
{
    using Shapes = std::vector<std::pair<int64_t, int64_t>>;
    const Shapes v1 = {{1, 8},     {3, 24},   {40, 264},  {128, 256}, {37, 1032},
                       {261, 520}, {1, 8200}, {272, 576}, {16, 0},    {0, 64}};
    const Shapes marlin = {{64, 16}, {128, 48}, {192, 272}, {256, 512}, {0, 16}};
    const Shapes v2 = {{4, 64},    {20, 192}, {136, 320}, {128, 256}, {8, 64},
                       {132, 320}, {4, 4160}, {260, 576}, {4, 0},     {0, 64}};
    const std::vector<std::vector<int64_t>> batches = {{}, {3}, {2, 1, 2}};
    for (int packing = 0; packing < AWQ_PACKING_COUNT; packing++) {
        const Shapes &shapes = packing == AWQ_PACKING_MARLIN ? marlin : packing == AWQ_PACKING_V2 ? v2 : v1;
        for (size_t s = 0; s < (quick ? 3 : shapes.size()); s++) {
            const bool large = shapes[s].first * shapes[s].second > 20000;
            for (size_t b = 0; b < (quick || large ? 1 : batches.size()); b++) {
                check_shape(static_cast<awq_packing>(packing), shapes[s].first, shapes[s].second,
                            batches[quick ? s % 2 : b], quick);
            }
        }
    }
    if (!quick) { /* more matrices than one grid holds */
        for (const CodesKind codes : {ROWS, COLUMNS, EVERY_THIRD}) {
            check_float_case(make_geometry(AWQ_PACKING_V1, 1, 8, {66000}, codes, DENSE), AWQ_DTYPE_FLOAT16,
                             AWQ_DTYPE_FLOAT16, 1, 8, SCALES_DENSE, 0, 0, "66000 matrices");
        }
    }
}

__global__ void count_wrong_reciprocals(int exponent, unsigned *wrong)
{
    const uint32_t fraction = blockIdx.x * blockDim.x + threadIdx.x;
    const float value = __uint_as_float(static_cast<uint32_t>(exponent) << 23 | fraction);
    if (awq_cuda::reciprocal_of(value) != __frcp_rn(value)) {
        atomicAdd(wrong, 1);
    }
}

/* Every significand, at both ends of the range in which reciprocals are taken so and in its middle. */
static void check_reciprocals()
{
    unsigned *wrong, count;
    CUDA(cudaMalloc(&wrong, sizeof *wrong));
    for (const int exponent : {27, 31, 126, 127, 227, 231}) {
        CUDA(cudaMemset(wrong, 0, sizeof *wrong));
        count_wrong_reciprocals<<<1 << 15, 1 << 8>>>(exponent, wrong);
        CUDA(cudaMemcpy(&count, wrong, sizeof count, cudaMemcpyDeviceToHost));
        expect(count == 0, "every significand", "reciprocal");
    }
    CUDA(cudaFree(wrong));
}

/* All codes come back from the weights that they make, for every zero and every float16 scale that is normal. */
static void check_all_scales()
{
    awq_geometry shape = make_geometry(AWQ_PACKING_V1, 30720, 16 * 16, {}, ROWS, DENSE);
    for (const awq_dtype dtype : {AWQ_DTYPE_FLOAT16, AWQ_DTYPE_FLOAT32}) {
        awq_float_geometry g = float_geometry(shape, dtype, AWQ_DTYPE_FLOAT16, 1, 16, SCALES_DENSE);
        FloatBuffer weight(g, &g.weight, g.rows, g.cols, format_of(dtype).bytes, 0);
        FloatBuffer payload(g, &g.payload, g.rows, g.cols / 8, 4, 0);
        FloatBuffer scales(g, &g.scales, g.rows, 16, 2, 0), zeros(g, &g.zeros, g.rows, 16, 1, 0);
        for (int64_t n = 0; n < g.rows; n++) {
            for (int64_t c = 0; c < 16; c++) {
                const uint16_t bits = static_cast<uint16_t>(1024 + n), low[2] = {0x3210, 0x7654},
                               high[2] = {0xba98, 0xfedc};
                memcpy(scales.at(n * 16 + c), &bits, 2);
                *zeros.at(n * 16 + c) = static_cast<uint8_t>(c);
                memcpy(payload.at((n * 16 + c) * 2), low, 4);
                memcpy(payload.at((n * 16 + c) * 2 + 1), high, 4);
            }
        }
        uint64_t found;
        upload_all({weight, payload, scales, zeros});
        CUDA(awq_cuda_dequantize(&g, nullptr));
        CUDA(cudaMemset(g.payload.data, 0, static_cast<size_t>(g.rows * g.cols / 2)));
        CUDA(awq_cuda_quantize(&g, nullptr, &found));
        const bool overflows = dtype == AWQ_DTYPE_FLOAT16; /* 15 times the largest scales is infinite there */
        if (overflows) {
            CUDA(cudaMemcpy(payload.host.data(), payload.device, payload.host.size(), cudaMemcpyDeviceToHost));
            bool same = true;
            for (int64_t n = 0; n < g.rows; n++) {
                for (int64_t c = 0; c < 16 && load_float(AWQ_DTYPE_FLOAT16, scales.at(n * 16)) < 4096; c++) {
                    const uint16_t expected[4] = {0x3210, 0x7654, 0xba98, 0xfedc};
                    same = same && memcmp(payload.at((n * 16 + c) * 2), expected, 8) == 0;
                }
            }
            expect(same, "every normal float16 scale", "there and back by float16");
        } else {
            expect(found == AWQ_CUDA_NO_FAULT && payload.same_on_device(), "every normal float16 scale",
                   "there and back by float32");
        }
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
#ifndef CHECK_ONLY
    if (strcmp(mode, "--bench") == 0) {
        bench_floats(28672, 8192, 128);
        return 0;
    }
#endif
    const bool quick = strcmp(mode, "--quick") == 0;
    if (!quick && *mode != '\0') {
        fprintf(stderr, "usage: check_cuda_floats [--quick | --bench]\n");
        return 2;
    }
    check_floats(quick);
    if (!quick) {
        check_reciprocals();
        check_all_scales();
    }
    printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0;
}

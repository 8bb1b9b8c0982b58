/*
 * Jobs of every variant beside the formulas, and the checks that precede them on sizes that fit nothing: what a fuzzer
 * guides by the branches of csrc/kernels.
 *
 * The input chooses a packing, a variant, what to do, sizes, strides and offsets; bytes past its end are 0. Memory ends
 * where the views do, so that AddressSanitizer sees one byte too many. Compiled with AWQ_FUZZ for libFuzzer, otherwise
 * as a program that runs the inputs of files, one a line in hexadecimal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkkernels.h"
#include "job.h"
#include "relayout.h"

enum { MOST_CODES = 1 << 13, MOST_DIMS = 4 };

typedef struct input {
    const uint8_t *at, *end;
    uint64_t random; /* of values, which guide nothing */
} input;

static int64_t take(input *in, int64_t below)
{
    uint64_t value = 0;
    for (int64_t most = below - 1; most > 0; most >>= 8) {
        value = value << 8 | (in->at < in->end ? *in->at++ : 0);
    }
    return (int64_t)(value % (uint64_t)below);
}

static uint8_t next_byte(input *in)
{
    in->random ^= in->random << 13;
    in->random ^= in->random >> 7;
    in->random ^= in->random << 17;
    return (uint8_t)(in->random >> 32);
}

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "jobs: %s\n", what);
        abort();
    }
}

static const awq_kernels *variant(input *in)
{
    int count = 0;
    while (variant_at((size_t)count) != NULL) {
        count++;
    }
    return variant_at((size_t)take(in, count));
}

/* A tensor in memory of its own. */
typedef struct tensor {
    awq_view view;
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    int64_t count, item_bytes;
    uint8_t *memory;
    int64_t bytes;
} tensor;

/* Of these sizes; its dimensions lie in any order, with gaps and backwards, where `is_strided`. */
static void tensor_init(tensor *t, input *in, int64_t ndim, const int64_t *sizes, awq_dtype dtype, bool is_strided)
{
    int64_t order[MOST_DIMS] = {0, 1, 2, 3};
    int64_t extent = 1, start = 0;
    *t = (tensor){.count = 1, .item_bytes = awq_dtype_bytes(dtype)};
    for (int64_t d = ndim - 1; d > 0 && is_strided; d--) {
        const int64_t other = d - take(in, d + 1);
        const int64_t kept = order[d];
        order[d] = order[other];
        order[other] = kept;
    }
    for (int64_t i = ndim - 1; i >= 0; i--) {
        const int64_t d = order[i], gap = is_strided ? take(in, 16) : 0;
        const int64_t stride = extent + (gap < 12 ? 0 : gap - 11);
        const bool is_backwards = is_strided && take(in, 8) == 7;
        t->sizes[d] = sizes[d];
        t->strides[d] = is_backwards ? -stride : stride;
        if (sizes[d] > 0) {
            start += is_backwards ? (sizes[d] - 1) * stride : 0;
            extent = sizes[d] > 1 ? (sizes[d] - 1) * stride + extent : extent;
        }
        t->count *= sizes[d];
    }
    const int64_t offset = is_strided ? take(in, 64) : 0;
    t->bytes = offset + (t->count > 0 ? extent : 0) * t->item_bytes;
    t->memory = malloc((size_t)(t->bytes > 0 ? t->bytes : 1));
    require(t->memory != NULL, "no memory");
    memset(t->memory, 0xa5, (size_t)t->bytes);
    t->view = (awq_view){t->memory + offset + (t->count > 0 ? start : 0) * t->item_bytes,
                         t->sizes,
                         t->strides,
                         ndim,
                         dtype,
                         awq_dtype_name(dtype)};
}

static void tensor_free(tensor *t)
{
    free(t->memory);
}

/* The element at a row-major index. */
static uint8_t *element(const tensor *t, int64_t index)
{
    int64_t offset = 0;
    for (int64_t d = t->view.ndim - 1; d >= 0; d--) {
        offset += index % t->sizes[d] * t->strides[d];
        index /= t->sizes[d];
    }
    return (uint8_t *)t->view.data + offset * t->item_bytes;
}

/* Packs or unpacks tensors that are contiguous, by the formulas. */
static void by_formula(awq_packing packing, awq_direction direction, const tensor *codes, const tensor *payload)
{
    const int64_t rows = codes->sizes[codes->view.ndim - 2], cols = codes->sizes[codes->view.ndim - 1];
    const bool is_turned = packing_shapes[packing].is_turned;
    const int64_t line_bytes = payload->sizes[payload->view.ndim - 1] * payload->item_bytes;
    for (int64_t at = 0; at < codes->count; at += rows * cols) {
        const awq_panel panel = {
            .packing = packing,
            .codes = (uint8_t *)codes->view.data + at,
            .payload = (uint8_t *)payload->view.data + at / 2,
            .rows = is_turned ? cols : rows,
            .cols = is_turned ? rows : cols,
            .row_stride = is_turned ? 1 : cols,
            .col_stride = is_turned ? cols : 1,
            .line_stride = line_bytes,
            .item_stride = payload->item_bytes,
        };
        (direction == AWQ_PACK ? formula_pack : formula_unpack)(&panel);
    }
}

static void *scratch_new(size_t bytes)
{
    const size_t whole = (bytes / AWQ_SCRATCH_ALIGNMENT + 1) * AWQ_SCRATCH_ALIGNMENT;
    void *scratch = aligned_alloc(AWQ_SCRATCH_ALIGNMENT, whole);
    require(scratch != NULL, "no memory");
    memset(scratch, 0x5a, whole);
    return scratch;
}

/* The units of a job in two parts, in either order; the OR of what they return. */
static uint8_t run_units(input *in, const awq_job *job)
{
    void *scratch = scratch_new(job->scratch_bytes);
    const int64_t middle = take(in, job->units + 1);
    uint8_t seen = 0;
    if (take(in, 2) == 1) {
        seen |= awq_job_run(job, middle, job->units, scratch);
        seen |= awq_job_run(job, 0, middle, scratch);
    } else {
        seen |= awq_job_run(job, 0, middle, scratch);
        seen |= awq_job_run(job, middle, job->units, scratch);
    }
    free(scratch);
    return seen;
}

static void require_same(const tensor *actual, const tensor *expected)
{
    for (int64_t i = 0; i < expected->count; i++) {
        require(memcmp(element(actual, i), element(expected, i), (size_t)expected->item_bytes) == 0, "a wrong element");
    }
}

/* Elements of a tensor, and of its contiguous twin. */
static void fill(input *in, const tensor *t, const tensor *twin, uint8_t mask)
{
    for (int64_t i = 0; i < t->count; i++) {
        for (int64_t byte = 0; byte < t->item_bytes; byte++) {
            element(twin, i)[byte] = element(t, i)[byte] = next_byte(in) & mask;
        }
    }
}

static void check_pack(input *in, awq_packing packing, const awq_kernels *kernels, int64_t ndim, const int64_t *sizes)
{
    tensor codes, dense, payload, expected;
    int64_t payload_sizes[AWQ_MAX_DIMS];
    awq_error error = {0};
    awq_job job;
    tensor_init(&codes, in, ndim, sizes, AWQ_DTYPE_UINT8, true);
    tensor_init(&dense, in, ndim, sizes, AWQ_DTYPE_UINT8, false);
    fill(in, &codes, &dense, 15);
    const int64_t bad = codes.count > 0 && take(in, 4) == 3 ? take(in, codes.count) : -1;
    if (bad >= 0) {
        *element(&codes, bad) = *element(&dense, bad) = (uint8_t)(16 + take(in, 240));
    }
    require(awq_check_codes(&codes.view, packing, payload_sizes, &error), error.text);
    tensor_init(&payload, in, ndim, payload_sizes, awq_payload_dtype(packing), true);
    tensor_init(&expected, in, ndim, payload_sizes, awq_payload_dtype(packing), false);
    by_formula(packing, AWQ_PACK, &dense, &expected);
    awq_job_init(&job, AWQ_PACK, packing, kernels, &codes.view, &payload.view);
    const uint8_t seen = run_units(in, &job);
    require((seen > AWQ_CODE_MAX) == (bad >= 0), "a code that is too large was not seen, or one was that is not");
    if (bad < 0) {
        require_same(&payload, &expected);
    } else {
        require(!awq_fail_invalid_code(&codes.view, &error) && strstr(error.text, "codes[") != NULL,
                "no name of a code");
    }
    tensor_free(&codes);
    tensor_free(&dense);
    tensor_free(&payload);
    tensor_free(&expected);
}

static void check_unpack(input *in, awq_packing packing, const awq_kernels *kernels, int64_t ndim, const int64_t *sizes)
{
    tensor codes, expected, payload, dense;
    int64_t payload_sizes[AWQ_MAX_DIMS], codes_sizes[AWQ_MAX_DIMS];
    awq_error error = {0};
    awq_job job;
    tensor_init(&codes, in, ndim, sizes, AWQ_DTYPE_UINT8, true);
    tensor_init(&expected, in, ndim, sizes, AWQ_DTYPE_UINT8, false);
    require(awq_check_codes(&codes.view, packing, payload_sizes, &error), error.text);
    tensor_init(&payload, in, ndim, payload_sizes, awq_payload_dtype(packing), true);
    tensor_init(&dense, in, ndim, payload_sizes, awq_payload_dtype(packing), false);
    fill(in, &payload, &dense, 255);
    require(awq_check_payload(&payload.view, packing, codes_sizes, &error), error.text);
    require(memcmp(codes_sizes, sizes, (size_t)ndim * sizeof *sizes) == 0, "other sizes than those of the codes");
    by_formula(packing, AWQ_UNPACK, &expected, &dense);
    awq_job_init(&job, AWQ_UNPACK, packing, kernels, &codes.view, &payload.view);
    run_units(in, &job);
    require_same(&codes, &expected);
    tensor_free(&codes);
    tensor_free(&expected);
    tensor_free(&payload);
    tensor_free(&dense);
}

/* Sizes that the other packing, or the transposed codes, may not fit: then it must be refused. */
static void check_relayout(input *in, awq_packing source, const awq_kernels *kernels, int64_t ndim,
                           const int64_t *sizes)
{
    const awq_packing target = (awq_packing)take(in, AWQ_PACKING_COUNT);
    const bool transpose = take(in, 2) == 1;
    int64_t turned[MOST_DIMS], source_sizes[AWQ_MAX_DIMS], target_sizes[AWQ_MAX_DIMS], sizes_again[AWQ_MAX_DIMS];
    tensor codes, wanted, from, expected, to;
    awq_error error = {0};
    memcpy(turned, sizes, sizeof turned);
    if (transpose) {
        turned[ndim - 2] = sizes[ndim - 1];
        turned[ndim - 1] = sizes[ndim - 2];
    }
    tensor_init(&codes, in, ndim, sizes, AWQ_DTYPE_UINT8, false);
    tensor_init(&wanted, in, ndim, turned, AWQ_DTYPE_UINT8, false);
    require(awq_check_codes(&codes.view, source, source_sizes, &error), error.text);
    tensor_init(&from, in, ndim, source_sizes, awq_payload_dtype(source), true);
    fill(in, &codes, &codes, 15);
    const int64_t rows = turned[ndim - 2], cols = turned[ndim - 1];
    for (int64_t i = 0; i < codes.count; i++) {
        const int64_t matrix = i - i % (rows * cols), row = i % (rows * cols) / cols, col = i % cols;
        *element(&wanted, i) = *element(&codes, transpose ? matrix + col * rows + row : i);
    }
    const bool fits = awq_check_codes(&wanted.view, target, target_sizes, &error);
    require(awq_check_relayout(&from.view, source, target, transpose, sizes_again, &error) == fits,
            "fits in one alone");
    if (fits) {
        tensor dense;
        awq_relayout relayout;
        awq_relayout_job job;
        tensor_init(&dense, in, ndim, source_sizes, awq_payload_dtype(source), false);
        by_formula(source, AWQ_PACK, &codes, &dense);
        for (int64_t i = 0; i < dense.count; i++) {
            memcpy(element(&from, i), element(&dense, i), (size_t)dense.item_bytes);
        }
        tensor_init(&expected, in, ndim, target_sizes, awq_payload_dtype(target), false);
        tensor_init(&to, in, ndim, target_sizes, awq_payload_dtype(target), true);
        by_formula(target, AWQ_PACK, &wanted, &expected);
        awq_relayout_init(&relayout, source, target, transpose, &from.view, &to.view);
        awq_relayout_job_init(&job, &relayout, kernels, from.view.data, to.view.data);
        void *scratch = scratch_new(job.scratch_bytes);
        const int64_t middle = take(in, job.units + 1);
        awq_relayout_job_run(&job, middle, job.units, scratch);
        awq_relayout_job_run(&job, 0, middle, scratch);
        require_same(&to, &expected);
        free(scratch);
        tensor_free(&dense);
        tensor_free(&expected);
        tensor_free(&to);
    }
    tensor_free(&codes);
    tensor_free(&wanted);
    tensor_free(&from);
}

/* The checks, of sizes and strides that belong to no memory: they answer, and what they answer fits. */
static void check_checks(input *in, awq_packing packing)
{
    static const int64_t odd[] = {0, 1, 4, 7, 8, 16, 64, 100, INT64_C(1) << 31, INT64_C(1) << 61, INT64_MAX};
    const awq_dtype dtype = (awq_dtype)take(in, AWQ_DTYPE_FLOAT32 + 1);
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS], order[AWQ_MAX_DIMS], found[AWQ_MAX_DIMS];
    const int64_t ndim = take(in, 8) < 7 ? take(in, 5) : take(in, AWQ_MAX_DIMS + 1);
    bool is_in_memory = true, is_empty = false; /* strides of elements stay below 2^63 together, or there are none */
    for (int64_t d = 0; d < ndim; d++) {
        sizes[d] = odd[take(in, (int64_t)(sizeof odd / sizeof *odd))];
        strides[d] = odd[take(in, (int64_t)(sizeof odd / sizeof *odd))] * (take(in, 4) == 3 ? -1 : 1);
        order[d] = take(in, 8) == 7 ? take(in, 256) - 128 : ndim - 1 - d;
        is_empty = is_empty || sizes[d] == 0;
        is_in_memory = is_in_memory && sizes[d] <= 100 && strides[d] <= 100 && strides[d] >= -100;
    }
    uint8_t byte = 0;
    awq_error error = {0};
    const awq_view view = {&byte, sizes, strides, ndim, dtype, awq_dtype_name(dtype)};
    if (awq_check_codes(&view, packing, found, &error)) {
        require(dtype == AWQ_DTYPE_UINT8 && ndim >= 2, "codes of no kind were taken");
    }
    if (awq_check_payload(&view, packing, found, &error)) {
        require(dtype == awq_payload_dtype(packing) && ndim >= 2, "a payload of no kind was taken");
    }
    awq_check_relayout(&view, packing, (awq_packing)take(in, AWQ_PACKING_COUNT), take(in, 2) == 1, found, &error);
    if (is_empty || is_in_memory) {
        awq_check_out(&view, dtype, sizes, &view, &error);
    }
    awq_dense_strides(ndim, sizes, order, found, &error);
    awq_dense_strides(ndim, sizes, NULL, found, &error);
    require(memchr(error.text, 0, sizeof error.text) != NULL, "an error without an end");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, data + size, UINT64_C(0x9e3779b97f4a7c15)};
    const awq_packing packing = (awq_packing)take(&in, AWQ_PACKING_COUNT);
    const int64_t what = take(&in, 4);
    if (what == 3) {
        check_checks(&in, packing);
        return 0;
    }
    const awq_kernels *kernels = variant(&in);
    const awq_packing_traits *traits = &awq_packings[packing];
    const int64_t ndim = 2 + take(&in, MOST_DIMS - 1);
    int64_t sizes[MOST_DIMS], count = 1;
    for (int64_t d = 0; d < ndim; d++) {
        sizes[d] = d < ndim - 2 ? take(&in, 4) : take(&in, 256);
        sizes[d] *= d == ndim - 2 ? traits->block_rows : d == ndim - 1 ? traits->block_cols : 1;
        count *= sizes[d];
    }
    for (int64_t d = ndim - 1; count > MOST_CODES; d = d > 0 ? d - 1 : ndim - 1) {
        const int64_t unit = d == ndim - 2 ? traits->block_rows : d == ndim - 1 ? traits->block_cols : 1;
        count /= sizes[d];
        sizes[d] = sizes[d] / unit > 1 ? sizes[d] / unit / 2 * unit : sizes[d];
        count *= sizes[d];
    }
    in.random ^= (uint64_t)take(&in, 256) << 8;
    switch (what) {
    case 0: check_pack(&in, packing, kernels, ndim, sizes); break;
    case 1: check_unpack(&in, packing, kernels, ndim, sizes); break;
    default: check_relayout(&in, packing, kernels, ndim, sizes);
    }
    return 0;
}

#if !defined(AWQ_FUZZ)
int main(int argc, char **argv)
{
    static char line[4096];
    int count = 0;
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "r");
        if (file == NULL) {
            perror(argv[i]);
            return 2;
        }
        while (fgets(line, sizeof line, file) != NULL) {
            uint8_t data[sizeof line / 2];
            size_t size = 0;
            for (unsigned byte; sscanf(line + 2 * size, "%2x", &byte) == 1; size++) {
                data[size] = (uint8_t)byte;
            }
            LLVMFuzzerTestOneInput(data, size);
            count++;
        }
        fclose(file);
    }
    printf("%d inputs of jobs beside the formulas: nothing found\n", count);
    return 0;
}
#endif

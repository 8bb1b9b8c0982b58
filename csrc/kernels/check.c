/* Checks of shapes, dtypes and overlap, and the sentences that say what was expected and what came. */
#include "awqpack/view.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool awq_fail(awq_error *error, awq_error_kind kind, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    error->kind = kind;
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return false;
}

static awq_text format_list(const int64_t *numbers, int64_t count, const char *open, const char *close)
{
    awq_text text;
    size_t used = (size_t)snprintf(text.chars, sizeof text.chars, "%s", open);
    for (int64_t i = 0; i < count && used < sizeof text.chars; i++) {
        used += (size_t)snprintf(text.chars + used, sizeof text.chars - used, "%s%lld", i == 0 ? "" : ", ",
                                 (long long)numbers[i]);
    }
    if (used < sizeof text.chars) {
        snprintf(text.chars + used, sizeof text.chars - used, "%s", close);
    }
    return text;
}

awq_text awq_shape_text(const int64_t *sizes, int64_t ndim)
{
    return format_list(sizes, ndim, "(", ndim == 1 ? ",)" : ")");
}

awq_text awq_index_text(const int64_t *sizes, int64_t ndim, int64_t number)
{
    int64_t index[AWQ_MAX_DIMS];
    for (int64_t d = ndim - 1; d >= 0; d--) {
        index[d] = number % sizes[d];
        number /= sizes[d];
    }
    return format_list(index, ndim, "[", "]");
}

const char *awq_dtype_name(awq_dtype dtype)
{
    static const char *const names[] = {
        [AWQ_DTYPE_OTHER] = "another dtype", [AWQ_DTYPE_UINT8] = "uint8",     [AWQ_DTYPE_INT16] = "int16",
        [AWQ_DTYPE_INT32] = "int32",         [AWQ_DTYPE_FLOAT16] = "float16", [AWQ_DTYPE_BFLOAT16] = "bfloat16",
        [AWQ_DTYPE_FLOAT32] = "float32",
    };
    return names[dtype];
}

int64_t awq_dtype_bytes(awq_dtype dtype)
{
    switch (dtype) { /* no default: the compiler names a dtype that is missing */
    case AWQ_DTYPE_INT32:
    case AWQ_DTYPE_FLOAT32: return 4;
    case AWQ_DTYPE_INT16:
    case AWQ_DTYPE_FLOAT16:
    case AWQ_DTYPE_BFLOAT16: return 2;
    case AWQ_DTYPE_UINT8:
    case AWQ_DTYPE_OTHER: break;
    }
    return 1;
}

/* A list for a sentence: what users know of each packing. */
typedef enum list_kind { PACKING_NAMES, PACKING_NUMBERS, PAYLOAD_DTYPES } list_kind;

static void list_packings(list_kind kind, char *text, size_t length)
{
    size_t used = 0;
    for (int i = 0; i < AWQ_PACKING_COUNT && used < length; i++) {
        const awq_packing_traits *t = &awq_packings[i];
        if (i > 0 && t->number == t[-1].number) { /* two rows, but one packing to users */
            continue;
        }
        const bool is_last = t->number == awq_packings[AWQ_PACKING_COUNT - 1].number;
        const char *before = used == 0 ? "" : is_last && kind != PAYLOAD_DTYPES ? " or " : ", ";
        int more = 0;
        switch (kind) {
        case PACKING_NAMES: more = snprintf(text + used, length - used, "%sAWQPacking.%s", before, t->name); break;
        case PACKING_NUMBERS:
            more = snprintf(text + used, length - used, "%s%d (AWQPacking.%s)", before, t->number, t->name);
            break;
        case PAYLOAD_DTYPES:
            more =
                snprintf(text + used, length - used, "%s%s payloads are %s", before, t->name, awq_dtype_name(t->dtype));
            break;
        }
        used += (size_t)more;
    }
}

void awq_packing_names(char *text, size_t length)
{
    list_packings(PACKING_NAMES, text, length);
}

bool awq_packing_from_number(int64_t number, bool reorder, awq_packing *packing, awq_error *error)
{
    for (int i = 0; i < AWQ_PACKING_COUNT; i++) {
        if (awq_packings[i].number == number && (!awq_packings[i].has_order || awq_packings[i].reorder == reorder)) {
            *packing = (awq_packing)i;
            return true;
        }
    }
    char numbers[192];
    list_packings(PACKING_NUMBERS, numbers, sizeof numbers);
    return awq_fail(error, AWQ_ERROR_VALUE, "packing expects %s; got %lld", numbers, (long long)number);
}

awq_dtype awq_payload_dtype(awq_packing packing)
{
    return awq_packings[packing].dtype;
}

static bool check_ndim(const awq_view *view, const char *what, awq_error *error)
{
    if (view->ndim < 2) {
        return awq_fail(error, AWQ_ERROR_VALUE,
                        "%s of at least 2 dimensions (..., out_features, in_features); got shape %s", what,
                        awq_shape_text(view->sizes, view->ndim).chars);
    }
    if (view->ndim > AWQ_MAX_DIMS) {
        return awq_fail(error, AWQ_ERROR_VALUE, "%s of at most %d dimensions; got %lld", what, AWQ_MAX_DIMS,
                        (long long)view->ndim);
    }
    return true;
}

bool awq_check_codes(const awq_view *codes, awq_packing packing, int64_t *payload_sizes, awq_error *error)
{
    if (codes->dtype != AWQ_DTYPE_UINT8) {
        return awq_fail(
            error, AWQ_ERROR_VALUE,
            "pack expects uint8 codes in 0..15; got dtype %s (integer codes convert with "
            "codes.to(torch.uint8) or codes.astype(numpy.uint8), signed ones of -8..7 once 8 is added; float "
            "weights must be quantized first)",
            codes->dtype_name);
    }
    if (!check_ndim(codes, "pack expects codes", error)) {
        return false;
    }
    const awq_packing_traits *traits = &awq_packings[packing];
    const int64_t rows = codes->sizes[codes->ndim - 2];
    const int64_t cols = codes->sizes[codes->ndim - 1];
    const bool fits_across = cols % traits->block_cols == 0;
    if (!fits_across || rows % traits->block_rows != 0) {
        return awq_fail(error, AWQ_ERROR_VALUE, "pack as %s expects %s to be a multiple of %d; got %lld in shape %s",
                        traits->name,
                        fits_across ? "out_features (the last dimension but one)" : "in_features (the last dimension)",
                        fits_across ? traits->block_rows : traits->block_cols, (long long)(fits_across ? rows : cols),
                        awq_shape_text(codes->sizes, codes->ndim).chars);
    }
    const int64_t down = rows / traits->block_rows, right = cols / traits->block_cols;
    if ((traits->runs_down ? down : right) > INT64_MAX / awq_block_items(traits)) {
        return awq_fail(error, AWQ_ERROR_VALUE, "pack expects a payload of sizes below 2^63; got codes of shape %s",
                        awq_shape_text(codes->sizes, codes->ndim).chars);
    }
    memcpy(payload_sizes, codes->sizes, (size_t)codes->ndim * sizeof *payload_sizes);
    payload_sizes[codes->ndim - 2] = traits->runs_down ? right : down;
    payload_sizes[codes->ndim - 1] = (traits->runs_down ? down : right) * awq_block_items(traits);
    return true;
}

bool awq_check_payload(const awq_view *payload, awq_packing packing, int64_t *codes_sizes, awq_error *error)
{
    const awq_packing_traits *traits = &awq_packings[packing];
    if (payload->dtype != traits->dtype) {
        char dtypes[192];
        list_packings(PAYLOAD_DTYPES, dtypes, sizeof dtypes);
        return awq_fail(error, AWQ_ERROR_VALUE, "unpack of %s expects an %s payload; got dtype %s (%s)", traits->name,
                        awq_dtype_name(traits->dtype), payload->dtype_name, dtypes);
    }
    if (!check_ndim(payload, "unpack expects a payload", error)) {
        return false;
    }
    const int64_t lines = payload->sizes[payload->ndim - 2], items = payload->sizes[payload->ndim - 1];
    const int64_t block_items = awq_block_items(traits);
    if (items % block_items != 0) {
        return awq_fail(
            error, AWQ_ERROR_VALUE,
            "unpack of %s expects a payload whose last dimension is a multiple of %lld; got %lld in shape %s",
            traits->name, (long long)block_items, (long long)items,
            awq_shape_text(payload->sizes, payload->ndim).chars);
    }
    memcpy(codes_sizes, payload->sizes, (size_t)payload->ndim * sizeof *codes_sizes);
    const int64_t down = traits->runs_down ? items / block_items : lines;
    const int64_t right = traits->runs_down ? lines : items / block_items;
    if (down > INT64_MAX / traits->block_rows || right > INT64_MAX / traits->block_cols) {
        return awq_fail(error, AWQ_ERROR_VALUE, "unpack expects sizes below 2^63; got a payload of shape %s",
                        awq_shape_text(payload->sizes, payload->ndim).chars);
    }
    codes_sizes[payload->ndim - 2] = down * traits->block_rows;
    codes_sizes[payload->ndim - 1] = right * traits->block_cols;
    return true;
}

typedef struct byte_range {
    intptr_t begin, end; /* empty when equal */
} byte_range;

static byte_range memory_of(const awq_view *view)
{
    const int64_t bytes = awq_dtype_bytes(view->dtype);
    byte_range range = {(intptr_t)view->data, (intptr_t)view->data + bytes};
    for (int64_t d = 0; d < view->ndim; d++) {
        if (view->sizes[d] == 0) { /* before any product: strides of no elements may be anything */
            return (byte_range){0, 0};
        }
    }
    for (int64_t d = 0; d < view->ndim; d++) {
        const int64_t reach = (view->sizes[d] - 1) * view->strides[d] * bytes;
        if (reach < 0) {
            range.begin += reach;
        } else {
            range.end += reach;
        }
    }
    return range;
}

static int by_magnitude(const void *left, const void *right)
{
    const int64_t a = llabs(((const int64_t *)left)[0]), b = llabs(((const int64_t *)right)[0]);
    return a < b ? -1 : a > b;
}

/* Sufficient, not necessary: each dimension must step over everything the smaller strides span. */
static bool has_distinct_elements(const awq_view *view)
{
    int64_t dims[AWQ_MAX_DIMS][2]; /* stride, size */
    size_t count = 0;
    for (int64_t d = 0; d < view->ndim; d++) {
        if (view->sizes[d] == 0) {
            return true;
        }
        if (view->sizes[d] > 1) {
            dims[count][0] = view->strides[d];
            dims[count][1] = view->sizes[d];
            count++;
        }
    }
    qsort(dims, count, sizeof dims[0], by_magnitude);
    int64_t span = 0;
    for (size_t i = 0; i < count; i++) {
        if (llabs(dims[i][0]) <= span) {
            return false;
        }
        span += llabs(dims[i][0]) * (dims[i][1] - 1);
    }
    return true;
}

bool awq_check_out(const awq_view *out, awq_dtype dtype, const int64_t *sizes, const awq_view *input, awq_error *error)
{
    if (out->dtype != dtype) {
        return awq_fail(error, AWQ_ERROR_VALUE, "out expects dtype %s; got %s", awq_dtype_name(dtype), out->dtype_name);
    }
    if (out->ndim != input->ndim || memcmp(out->sizes, sizes, (size_t)out->ndim * sizeof *sizes) != 0) {
        return awq_fail(error, AWQ_ERROR_VALUE, "out expects shape %s; got %s",
                        awq_shape_text(sizes, input->ndim).chars, awq_shape_text(out->sizes, out->ndim).chars);
    }
    if (!has_distinct_elements(out)) {
        return awq_fail(error, AWQ_ERROR_VALUE,
                        "out expects memory of its own for each element; got overlapping strides %s for shape %s",
                        awq_shape_text(out->strides, out->ndim).chars, awq_shape_text(out->sizes, out->ndim).chars);
    }
    const byte_range ours = memory_of(out), theirs = memory_of(input);
    if (ours.begin < theirs.end && theirs.begin < ours.end) {
        return awq_fail(error, AWQ_ERROR_VALUE, "out expects memory that the input does not use; the two overlap");
    }
    return true;
}

bool awq_dense_strides(int64_t ndim, const int64_t *sizes, const int64_t *order, int64_t *strides, awq_error *error)
{
    bool is_placed[AWQ_MAX_DIMS] = {false};
    int64_t stride = 1;
    for (int64_t i = ndim - 1; i >= 0; i--) {
        const int64_t d = order == NULL ? i : order[i];
        if (d < 0 || d >= ndim || is_placed[d]) {
            return awq_fail(error, AWQ_ERROR_VALUE,
                            "stride_order expects a permutation of the %lld dimensions, outermost first; got %s",
                            (long long)ndim, awq_shape_text(order, ndim).chars);
        }
        is_placed[d] = true;
        strides[d] = stride;
        /* A broadcast input can have more elements than 63 bits count: its allocation fails later. */
        stride = (int64_t)((uint64_t)stride * (uint64_t)(sizes[d] > 1 ? sizes[d] : 1));
    }
    return true;
}

bool awq_fail_code_at(const int64_t *sizes, int64_t ndim, int64_t linear, int code, awq_error *error)
{
    return awq_fail(error, AWQ_ERROR_VALUE, "pack expects uint8 codes in 0..15; codes%s is %d",
                    awq_index_text(sizes, ndim, linear).chars, code);
}

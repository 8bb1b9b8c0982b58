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

void awq_format_shape(const int64_t *sizes, int64_t ndim, char *text, size_t length)
{
    size_t used = (size_t)snprintf(text, length, "(");
    for (int64_t d = 0; d < ndim && used < length; d++) {
        used += (size_t)snprintf(text + used, length - used, "%s%lld", d == 0 ? "" : ", ", (long long)sizes[d]);
    }
    if (used < length) {
        snprintf(text + used, length - used, ndim == 1 ? ",)" : ")");
    }
}

typedef struct shape_text {
    char chars[128];
} shape_text;

static shape_text format_shape(const int64_t *sizes, int64_t ndim)
{
    shape_text text;
    awq_format_shape(sizes, ndim, text.chars, sizeof text.chars);
    return text;
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

/* A list for a sentence. */
typedef struct list_text {
    char chars[192];
} list_text;

static void add_to_list(list_text *list, const char *item, const char *before)
{
    const size_t used = strlen(list->chars);
    snprintf(list->chars + used, sizeof list->chars - used, "%s%s", used == 0 ? "" : before, item);
}

/* True for the first of the rows that users know as one packing. */
static bool is_named_first(int packing)
{
    return packing == 0 || awq_packings[packing].number != awq_packings[packing - 1].number;
}

static bool is_named_last(int packing)
{
    return awq_packings[packing].number == awq_packings[AWQ_PACKING_COUNT - 1].number;
}

/* "1 (AWQPacking.V1), 2 (AWQPacking.V2) or ..." */
static list_text packing_numbers(void)
{
    list_text list = {""};
    for (int i = 0; i < AWQ_PACKING_COUNT; i++) {
        if (is_named_first(i)) {
            char item[48];
            snprintf(item, sizeof item, "%d (AWQPacking.%s)", awq_packings[i].number, awq_packings[i].name);
            add_to_list(&list, item, is_named_last(i) ? " or " : ", ");
        }
    }
    return list;
}

void awq_packing_names(char *text, size_t length)
{
    list_text list = {""};
    for (int i = 0; i < AWQ_PACKING_COUNT; i++) {
        if (is_named_first(i)) {
            char item[48];
            snprintf(item, sizeof item, "AWQPacking.%s", awq_packings[i].name);
            add_to_list(&list, item, is_named_last(i) ? " or " : ", ");
        }
    }
    snprintf(text, length, "%s", list.chars);
}

/* "V1 payloads are int32, V2 payloads are int16" */
static list_text payload_dtypes(void)
{
    list_text list = {""};
    for (int i = 0; i < AWQ_PACKING_COUNT; i++) {
        if (is_named_first(i)) {
            char item[48];
            snprintf(item, sizeof item, "%s payloads are %s", awq_packings[i].name,
                     awq_dtype_name(awq_packings[i].dtype));
            add_to_list(&list, item, ", ");
        }
    }
    return list;
}

bool awq_packing_from_number(int64_t number, bool reorder, awq_packing *packing, awq_error *error)
{
    for (int i = 0; i < AWQ_PACKING_COUNT; i++) {
        if (awq_packings[i].number == number && (!awq_packings[i].has_order || awq_packings[i].reorder == reorder)) {
            *packing = (awq_packing)i;
            return true;
        }
    }
    return awq_fail(error, AWQ_ERROR_VALUE, "packing expects %s; got %lld", packing_numbers().chars, (long long)number);
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
                        format_shape(view->sizes, view->ndim).chars);
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
    if (cols % traits->block_cols != 0) {
        return awq_fail(
            error, AWQ_ERROR_VALUE,
            "pack as %s expects in_features (the last dimension) to be a multiple of %d; got %lld in shape %s",
            traits->name, traits->block_cols, (long long)cols, format_shape(codes->sizes, codes->ndim).chars);
    }
    if (rows % traits->block_rows != 0) {
        return awq_fail(error, AWQ_ERROR_VALUE,
                        "pack as %s expects out_features (the last dimension but one) to be a multiple of %d; "
                        "got %lld in shape %s",
                        traits->name, traits->block_rows, (long long)rows,
                        format_shape(codes->sizes, codes->ndim).chars);
    }
    const int64_t down = rows / traits->block_rows, right = cols / traits->block_cols;
    if ((traits->runs_down ? down : right) > INT64_MAX / awq_block_items(traits)) {
        return awq_fail(error, AWQ_ERROR_VALUE, "pack expects a payload of sizes below 2^63; got codes of shape %s",
                        format_shape(codes->sizes, codes->ndim).chars);
    }
    for (int64_t d = 0; d < codes->ndim; d++) {
        payload_sizes[d] = codes->sizes[d];
    }
    payload_sizes[codes->ndim - 2] = traits->runs_down ? right : down;
    payload_sizes[codes->ndim - 1] = (traits->runs_down ? down : right) * awq_block_items(traits);
    return true;
}

bool awq_check_payload(const awq_view *payload, awq_packing packing, int64_t *codes_sizes, awq_error *error)
{
    const awq_packing_traits *traits = &awq_packings[packing];
    if (payload->dtype != traits->dtype) {
        return awq_fail(error, AWQ_ERROR_VALUE, "unpack of %s expects an %s payload; got dtype %s (%s)", traits->name,
                        awq_dtype_name(traits->dtype), payload->dtype_name, payload_dtypes().chars);
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
            traits->name, (long long)block_items, (long long)items, format_shape(payload->sizes, payload->ndim).chars);
    }
    for (int64_t d = 0; d < payload->ndim; d++) {
        codes_sizes[d] = payload->sizes[d];
    }
    const int64_t down = traits->runs_down ? items / block_items : lines;
    const int64_t right = traits->runs_down ? lines : items / block_items;
    if (down > INT64_MAX / traits->block_rows || right > INT64_MAX / traits->block_cols) {
        return awq_fail(error, AWQ_ERROR_VALUE, "unpack expects sizes below 2^63; got a payload of shape %s",
                        format_shape(payload->sizes, payload->ndim).chars);
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
    bool has_same_sizes = out->ndim == input->ndim;
    for (int64_t d = 0; has_same_sizes && d < out->ndim; d++) {
        has_same_sizes = out->sizes[d] == sizes[d];
    }
    if (!has_same_sizes) {
        return awq_fail(error, AWQ_ERROR_VALUE, "out expects shape %s; got %s", format_shape(sizes, input->ndim).chars,
                        format_shape(out->sizes, out->ndim).chars);
    }
    if (!has_distinct_elements(out)) {
        return awq_fail(error, AWQ_ERROR_VALUE,
                        "out expects memory of its own for each element; got overlapping strides %s for shape %s",
                        format_shape(out->strides, out->ndim).chars, format_shape(out->sizes, out->ndim).chars);
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
                            (long long)ndim, format_shape(order, ndim).chars);
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
    int64_t index[AWQ_MAX_DIMS];
    for (int64_t d = ndim - 1; d >= 0; d--) {
        index[d] = linear % sizes[d];
        linear /= sizes[d];
    }
    shape_text text = format_shape(index, ndim);
    text.chars[0] = '[';
    for (char *c = text.chars; *c != '\0'; c++) {
        if (*c == ')') {
            *c = ']';
        }
    }
    return awq_fail(error, AWQ_ERROR_VALUE, "pack expects uint8 codes in 0..15; codes%s is %d", text.chars, code);
}

bool awq_fail_invalid_code(const awq_view *codes, awq_error *error)
{
    int64_t index[AWQ_MAX_DIMS] = {0};
    const int64_t last = codes->ndim - 1;
    const uint8_t *row = codes->data;
    for (int64_t linear = 0;; linear += codes->sizes[last]) {
        for (int64_t k = 0; k < codes->sizes[last]; k++) {
            const uint8_t code = row[k * codes->strides[last]];
            if (code > AWQ_CODE_MAX) {
                return awq_fail_code_at(codes->sizes, codes->ndim, linear + k, code, error);
            }
        }
        int64_t d = last - 1;
        for (; d >= 0; d--) {
            row += codes->strides[d];
            if (++index[d] < codes->sizes[d]) {
                break;
            }
            row -= codes->sizes[d] * codes->strides[d];
            index[d] = 0;
        }
        if (d < 0) {
            return awq_fail(
                error, AWQ_ERROR_VALUE,
                "pack expects uint8 codes in 0..15; some were larger while they were packed, and have changed since");
        }
    }
}

/* The reading of sizes and strides from Python objects, and the strides of an order of dimensions. */
#include "fields.h"

#include <stdlib.h>

/* 1 and the value of a plain int, 0 for a torch.SymInt, -1 with an exception. */
static int read_int(PyObject *item, int64_t *value)
{
    if ((PyObject *)Py_TYPE(item) == awqpack.symint_type) {
        return 0;
    }
    PyObject *index = PyNumber_Index(item);
    if (index == NULL) {
        return -1;
    }
    *value = PyLong_AsLongLong(index);
    Py_DECREF(index);
    return *value == -1 && PyErr_Occurred() ? -1 : 1;
}

int awqpack_read_ints(PyObject *sequence, const char *what, int64_t *values, Py_ssize_t *count)
{
    PyObject *items = PyTuple_Check(sequence) ? Py_NewRef(sequence) : PySequence_Tuple(sequence);
    int result = items == NULL ? -1 : 1;
    *count = items == NULL ? 0 : PyTuple_Size(items);
    if (*count > AWQ_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s expects at most %d dimensions; got %zd", what, AWQ_MAX_DIMS, *count);
        Py_DECREF(items);
        return -1;
    }
    for (Py_ssize_t i = 0; result == 1 && i < *count; i++) {
        result = read_int(PyTuple_GetItem(items, i), &values[i]);
    }
    if (result < 0 && (PyErr_ExceptionMatches(PyExc_OverflowError) || PyErr_ExceptionMatches(PyExc_TypeError))) {
        const int is_overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
        PyErr_Format(is_overflow ? PyExc_ValueError : PyExc_TypeError, "%s expects a sequence of ints%s; got %R", what,
                     is_overflow ? " below 2^63" : "", sequence);
    }
    Py_XDECREF(items);
    return result;
}

typedef struct dim {
    int64_t size, stride;
    Py_ssize_t index;
} dim;

/* Outermost first: dimensions of one element, whose stride says nothing, then falling strides. */
static int by_falling_stride(const void *left, const void *right)
{
    const dim *a = left, *b = right;
    if ((a->size == 1) != (b->size == 1)) {
        return a->size == 1 ? -1 : 1;
    }
    if (a->size != 1 && a->stride != b->stride) {
        return a->stride > b->stride ? -1 : 1;
    }
    return a->index < b->index ? -1 : 1;
}

/* 1 and the stride order of a dense tensor, None when contiguous; 0 when the strides are not dense; -1 with an
   exception. */
static int stride_order(const int64_t *sizes, const int64_t *strides, Py_ssize_t ndim, PyObject **order)
{
    dim dims[AWQ_MAX_DIMS];
    int64_t outermost_first[AWQ_MAX_DIMS], expected = 1;
    int is_contiguous = 1, is_empty = 0;
    for (Py_ssize_t d = ndim; d-- > 0;) {
        dims[d] = (dim){sizes[d], strides[d], d};
        is_empty |= sizes[d] == 0;
        is_contiguous &= sizes[d] == 1 || strides[d] == expected;
        expected *= sizes[d];
    }
    if (is_contiguous || is_empty) {
        *order = Py_NewRef(Py_None);
        return 1;
    }
    *order = NULL;
    qsort(dims, (size_t)ndim, sizeof dims[0], by_falling_stride);
    expected = 1;
    for (Py_ssize_t i = ndim - 1; i >= 0; i--) {
        if (dims[i].size != 1 && dims[i].stride != expected) {
            return 0;
        }
        expected *= dims[i].size;
    }
    for (Py_ssize_t i = 0; i < ndim; i++) {
        outermost_first[i] = dims[i].index;
    }
    *order = awqpack_int_tuple(outermost_first, ndim);
    return *order == NULL ? -1 : 1;
}

int awqpack_read_order(PyObject *order, Py_ssize_t ndim, int64_t *values)
{
    uint64_t seen = 0; /* a bit for each dimension */
    int is_permutation = PyTuple_Check(order) && PyTuple_Size(order) == ndim && ndim <= AWQ_MAX_DIMS;
    for (Py_ssize_t i = 0; is_permutation && i < ndim; i++) {
        values[i] = PyLong_AsLongLong(PyTuple_GetItem(order, i));
        if (values[i] == -1 && PyErr_Occurred()) {
            return -1;
        }
        is_permutation = values[i] >= 0 && values[i] < ndim && (seen >> values[i] & 1) == 0;
        seen |= is_permutation ? (uint64_t)1 << values[i] : 0;
    }
    if (!is_permutation) {
        PyErr_Format(PyExc_ValueError,
                     "stride_order expects a permutation of the %zd dimensions, outermost first; got %R", ndim, order);
    }
    return is_permutation ? 0 : -1;
}

PyObject *awqpack_int_tuple(const int64_t *values, Py_ssize_t count)
{
    PyObject *result = PyTuple_New(count);
    for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
        PyObject *item = PyLong_FromLongLong(values[i]);
        if (item == NULL || PyTuple_SetItem(result, i, item) < 0) {
            Py_CLEAR(result);
        }
    }
    return result;
}

/* Strides of sizes in that order, as a tuple. */
static PyObject *dense_strides(const int64_t *sizes, Py_ssize_t ndim, PyObject *order)
{
    int64_t order_values[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    awq_error error;
    const int is_contiguous = order == Py_None;
    if (!is_contiguous && awqpack_read_order(order, ndim, order_values) < 0) {
        return NULL;
    }
    if (!awq_dense_strides(ndim, sizes, is_contiguous ? NULL : order_values, strides, &error)) {
        return awqpack_raise(&error);
    }
    return awqpack_int_tuple(strides, ndim);
}

/* Strides of a tuple of symbolic sizes in a dimension order; NULL order is contiguous. */
static PyObject *multiply_strides(PyObject *size, const int64_t *order, Py_ssize_t ndim)
{
    PyObject *result = PyTuple_New(ndim);
    PyObject *stride = PyLong_FromLong(1);
    for (Py_ssize_t i = ndim - 1; result != NULL && i >= 0; i--) {
        const Py_ssize_t d = order == NULL ? i : (Py_ssize_t)order[i];
        PyObject *item = PyTuple_GetItem(size, d);
        PyObject *next = item == NULL || stride == NULL ? NULL : PyNumber_Multiply(stride, item);
        if (next == NULL) {
            Py_CLEAR(result);
        } else {
            PyTuple_SetItem(result, d, stride);
            stride = next;
        }
    }
    Py_XDECREF(stride);
    return result;
}

PyObject *awqpack_ordered_strides(PyObject *size, PyObject *order)
{
    int64_t sizes[AWQ_MAX_DIMS], order_values[AWQ_MAX_DIMS];
    Py_ssize_t ndim;
    const int is_plain = awqpack_read_ints(size, "size", sizes, &ndim);
    if (is_plain != 0) {
        return is_plain < 0 ? NULL : dense_strides(sizes, ndim, order);
    }
    if (order == Py_None) {
        return multiply_strides(size, NULL, PyTuple_Size(size));
    }
    if (awqpack_read_order(order, PyTuple_Size(size), order_values) < 0) {
        return NULL;
    }
    return multiply_strides(size, order_values, PyTuple_Size(size));
}

/* The order and strides to record for a tuple of symbolic sizes: contiguous and transposed matrices, batches of them
   too, keep theirs, all others become contiguous. New references. */
static int record_symbolic(PyObject *size, PyObject *stride, PyObject **order, PyObject **dense)
{
    int64_t exchanged[AWQ_MAX_DIMS]; /* the last two dimensions, as a batch of transposed matrices has them */
    const Py_ssize_t ndim = PyTuple_Size(size);
    if (ndim < 2 || ndim > AWQ_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "size expects 2 to %d dimensions; got %zd", AWQ_MAX_DIMS, ndim);
        return -1;
    }
    for (Py_ssize_t d = 0; d < ndim; d++) {
        exchanged[d] = d < ndim - 2 ? d : 2 * ndim - 3 - d;
    }
    PyObject *given = PySequence_Tuple(stride);
    PyObject *contiguous = given == NULL ? NULL : multiply_strides(size, NULL, ndim);
    PyObject *columns = contiguous == NULL ? NULL : multiply_strides(size, exchanged, ndim);
    const int is_contiguous = columns == NULL ? -1 : PyObject_RichCompareBool(given, contiguous, Py_EQ);
    const int is_exchanged = is_contiguous == 0 ? PyObject_RichCompareBool(given, columns, Py_EQ) : 0;
    if (is_contiguous >= 0 && is_exchanged >= 0) {
        *order = is_exchanged ? awqpack_int_tuple(exchanged, ndim) : Py_BuildValue("");
        *dense = Py_NewRef(is_exchanged ? columns : contiguous);
    }
    Py_XDECREF(given);
    Py_XDECREF(contiguous);
    Py_XDECREF(columns);
    return *order == NULL ? -1 : 1;
}

int awqpack_record_strides(PyObject *size, PyObject *stride, const char *what, PyObject **order, PyObject **dense)
{
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    Py_ssize_t ndim, count;
    *order = *dense = NULL;
    const int is_plain_size = awqpack_read_ints(size, what, sizes, &ndim);
    const int is_plain = is_plain_size < 0 ? -1 : awqpack_read_ints(stride, what, strides, &count);
    if (is_plain <= 0 || is_plain_size == 0) {
        return is_plain < 0 ? -1 : record_symbolic(size, stride, order, dense);
    }
    const int is_dense = count == ndim ? stride_order(sizes, strides, ndim, order) : 0;
    *dense = is_dense > 0 ? dense_strides(sizes, ndim, *order) : NULL;
    return is_dense > 0 && *dense == NULL ? -1 : is_dense;
}

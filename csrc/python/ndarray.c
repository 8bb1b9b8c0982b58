/* NumPy arrays in and out, over the same jobs that the torch ops run. */
#include "ndarray.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#include <numpy/arrayobject.h>

#include "kernels/cpu.h"
#include "torch/shim.h"

int awqpack_import_numpy(void)
{
    import_array1(-1);
    return 0;
}

static awq_dtype dtype_of(PyArrayObject *array)
{
    switch (PyArray_TYPE(array)) {
    case NPY_UINT8: return AWQ_DTYPE_UINT8;
    case NPY_INT16: return AWQ_DTYPE_INT16;
    case NPY_INT32: return AWQ_DTYPE_INT32;
    default: /* int and long can be the same width and yet two types */
        return PyArray_TYPE(array) == NPY_LONG && PyArray_ITEMSIZE(array) == 4 ? AWQ_DTYPE_INT32 : AWQ_DTYPE_OTHER;
    }
}

static int type_number(awq_dtype dtype)
{
    switch (dtype) {
    case AWQ_DTYPE_UINT8: return NPY_UINT8;
    case AWQ_DTYPE_INT16: return NPY_INT16;
    case AWQ_DTYPE_INT32: return NPY_INT32;
    default: return NPY_NOTYPE;
    }
}

/* An awq_view with room for its own numbers: NumPy's are npy_intp, and its strides are in bytes. */
typedef struct array_view {
    awq_view view;
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    char name[48];
} array_view;

/* Asks NumPy, which takes a while: only where an error is to name it. */
static int name_dtype(PyArrayObject *array, char *name, size_t size)
{
    PyObject *object = PyObject_Str((PyObject *)PyArray_DESCR(array));
    const char *text = object == NULL ? NULL : PyUnicode_AsUTF8AndSize(object, NULL);
    if (text == NULL) {
        Py_XDECREF(object);
        return -1;
    }
    PyOS_snprintf(name, size, "%s%s", text, PyArray_ISNOTSWAPPED(array) ? "" : " (not native byte order)");
    Py_DECREF(object);
    return 0;
}

static int read_array(PyObject *object, const char *what, array_view *out)
{
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s expects a torch.Tensor or a numpy.ndarray; got %R", what,
                     (PyObject *)Py_TYPE(object));
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    const int64_t item = PyArray_ITEMSIZE(array);
    const awq_dtype dtype = PyArray_ISNOTSWAPPED(array) ? dtype_of(array) : AWQ_DTYPE_OTHER;
    out->view = (awq_view){
        .data = PyArray_DATA(array),
        .sizes = out->sizes,
        .strides = out->strides,
        .ndim = PyArray_NDIM(array),
        .dtype = dtype,
        .dtype_name = dtype == AWQ_DTYPE_OTHER ? out->name : awq_dtype_name(dtype),
    };
    if (dtype == AWQ_DTYPE_OTHER && name_dtype(array, out->name, sizeof out->name) < 0) {
        return -1;
    }
    for (int d = 0; d < PyArray_NDIM(array); d++) {
        out->sizes[d] = PyArray_DIM(array, d);
        if (dtype != AWQ_DTYPE_OTHER && PyArray_STRIDE(array, d) % item != 0) {
            PyErr_Format(PyExc_ValueError,
                         "%s expects strides that are multiples of the item size; got stride %zd bytes of dtype %s",
                         what, (Py_ssize_t)PyArray_STRIDE(array, d), out->view.dtype_name);
            return -1;
        }
        out->strides[d] = item == 0 ? 0 : PyArray_STRIDE(array, d) / item;
    }
    return 0;
}

static PyObject *new_array(int64_t ndim, const int64_t *sizes, const int64_t *order, awq_dtype dtype)
{
    npy_intp dims[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    int64_t dense[AWQ_MAX_DIMS];
    awq_error error;
    if (!awq_dense_strides(ndim, sizes, order, dense, &error)) {
        return awqpack_raise(&error);
    }
    const npy_intp item = (npy_intp)awq_dtype_bytes(dtype);
    for (int64_t d = 0; d < ndim; d++) {
        dims[d] = (npy_intp)sizes[d];
        strides[d] = (npy_intp)dense[d] * item;
    }
    const int number = type_number(dtype);
    if (number == NPY_NOTYPE) {
        PyErr_Format(PyExc_ValueError, "awqpack makes no NumPy array of dtype %s", awq_dtype_name(dtype));
        return NULL;
    }
    return PyArray_New(&PyArray_Type, (int)ndim, dims, number, strides, NULL, 0, 0, NULL);
}

static int run_job(awq_direction direction, awq_packing packing, const awq_kernels *kernels, const awq_view *codes,
                   const awq_view *payload, uint8_t *seen)
{
    awq_error error;
    awq_job job;
    bool ok;
    awq_job_init(&job, direction, packing, kernels, codes, payload);
    Py_BEGIN_ALLOW_THREADS
    ok = awq_parallel_run(&job, seen, &error);
    Py_END_ALLOW_THREADS
    if (!ok) {
        awqpack_raise(&error);
        return -1;
    }
    return 0;
}

/* The caller's buffer once it is known to fit, or a fresh array in that order of dimensions; a new reference. */
static PyObject *output_array(PyObject *out, awq_dtype dtype, const int64_t *sizes, const int64_t *order,
                              const awq_view *input, array_view *view)
{
    awq_error error;
    if (out == Py_None) {
        PyObject *fresh = new_array(input->ndim, sizes, order, dtype);
        if (fresh != NULL && read_array(fresh, "out", view) < 0) {
            Py_CLEAR(fresh);
        }
        return fresh;
    }
    if (read_array(out, "out", view) < 0) {
        return NULL;
    }
    if (!PyArray_ISWRITEABLE((PyArrayObject *)out)) {
        PyErr_SetString(PyExc_ValueError, "out expects a writeable array; got a read-only one");
        return NULL;
    }
    if (!awq_check_out(&view->view, dtype, sizes, input, &error)) {
        return awqpack_raise(&error);
    }
    return Py_NewRef(out);
}

static const awq_kernels *choose_kernels(const char *variant, awq_error *error)
{
    return variant == NULL ? awq_active_kernels(error) : awq_cpu_choose(variant, error);
}

PyObject *awqpack_pack_array(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *array, *out;
    long long number;
    int reorder, validate;
    const char *variant;
    if (!PyArg_ParseTuple(args, "OLppOz:pack_array", &array, &number, &reorder, &validate, &out, &variant)) {
        return NULL;
    }
    awq_error error;
    awq_packing packing;
    array_view codes, payload;
    int64_t sizes[AWQ_MAX_DIMS];
    uint8_t seen = 0;
    const awq_kernels *kernels = choose_kernels(variant, &error);
    if (kernels == NULL || !awq_packing_from_number(number, reorder != 0, &packing, &error)) {
        return awqpack_raise(&error);
    }
    if (read_array(array, "pack", &codes) < 0) {
        return NULL;
    }
    if (!awq_check_codes(&codes.view, packing, sizes, &error)) {
        return awqpack_raise(&error);
    }
    PyObject *result = output_array(out, awq_payload_dtype(packing), sizes, NULL, &codes.view, &payload);
    if (result == NULL || run_job(AWQ_PACK, packing, kernels, &codes.view, &payload.view, &seen) < 0) {
        Py_XDECREF(result);
        return NULL;
    }
    if (validate && seen > AWQ_CODE_MAX) {
        Py_DECREF(result);
        Py_BEGIN_ALLOW_THREADS /* it looks at every code */
        awq_fail_invalid_code(&codes.view, &error);
        Py_END_ALLOW_THREADS
        return awqpack_raise(&error);
    }
    return result;
}

static PyObject *unpack_view(const awq_kernels *kernels, awq_packing packing, const awq_view *payload, PyObject *out,
                             const int64_t *order)
{
    awq_error error;
    int64_t sizes[AWQ_MAX_DIMS];
    array_view codes;
    uint8_t seen = 0;
    if (!awq_check_payload(payload, packing, sizes, &error)) {
        return awqpack_raise(&error);
    }
    PyObject *result = output_array(out, AWQ_DTYPE_UINT8, sizes, order, payload, &codes);
    if (result != NULL && run_job(AWQ_UNPACK, packing, kernels, &codes.view, payload, &seen) < 0) {
        Py_CLEAR(result);
    }
    return result;
}

PyObject *awqpack_unpack_array(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *array, *out;
    long long number;
    int reorder;
    const char *variant;
    if (!PyArg_ParseTuple(args, "OLpOz:unpack_array", &array, &number, &reorder, &out, &variant)) {
        return NULL;
    }
    awq_error error;
    awq_packing packing;
    array_view payload;
    const awq_kernels *kernels = choose_kernels(variant, &error);
    if (kernels == NULL || !awq_packing_from_number(number, reorder != 0, &packing, &error)) {
        return awqpack_raise(&error);
    }
    return read_array(array, "unpack", &payload) < 0 ? NULL : unpack_view(kernels, packing, &payload.view, out, NULL);
}

PyObject *awqpack_unpack_to_array(const awq_view *payload, awq_packing packing, const int64_t *order)
{
    awq_error error;
    const awq_kernels *kernels = awq_active_kernels(&error);
    return kernels == NULL ? awqpack_raise(&error) : unpack_view(kernels, packing, payload, Py_None, order);
}

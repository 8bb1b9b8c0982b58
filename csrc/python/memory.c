/* Which bytes a tensor lies in, and where in another one's it lies. */
#include "memory.h"

#include <string.h>

#include "fields.h"
#include "payload.h"

/* 0 for what has no bytes at hand, as memory_of says. */
static int read_layout(const awqpack_dlpack_tensor *memory, memory_layout *layout)
{
    const uintptr_t begin = (uintptr_t)memory->data + memory->byte_offset;
    int64_t last = 0, contiguous = 1;
    layout->item_bytes = (int64_t)memory->type_bits * memory->type_lanes / 8;
    layout->ndim = memory->ndim <= MEMORY_MAX_DIMS ? memory->ndim : -1;
    for (int32_t d = memory->ndim - 1; d >= 0; d--) {
        const int64_t stride = memory->strides == NULL ? contiguous : memory->strides[d];
        if (memory->shape[d] == 0) {
            return 0;
        }
        if (layout->ndim >= 0) {
            layout->sizes[d] = memory->shape[d];
            layout->strides[d] = stride;
        }
        last += (memory->shape[d] - 1) * stride;
        contiguous *= memory->shape[d];
    }
    const uintptr_t end = begin + (uintptr_t)((last + 1) * layout->item_bytes);
    layout->span = (memory_span){memory->device_type, memory->device_id, begin, end};
    return begin != 0;
}

/* The int that a method without arguments gives: -1 with an exception. */
static int64_t ask_int(PyObject *tensor, const char *name)
{
    PyObject *value = PyObject_CallMethod(tensor, name, NULL);
    const int64_t result = value == NULL ? -1 : PyLong_AsLongLong(value);
    Py_XDECREF(value);
    return result;
}

/* What awqpack_describe says, from the tensor's methods, where torch has no such interface; -1 with an exception. The
   two arrays hold the sizes and strides. */
static int describe_slowly(PyObject *tensor, int64_t *sizes, int64_t *strides, awqpack_dlpack_tensor *memory)
{
    Py_ssize_t ndim, count;
    int status = -1;
    PyObject *pointer = PyObject_CallMethodObjArgs(tensor, awqpack.names.data_ptr, NULL);
    if (pointer == NULL) { /* sparse, for one: it has no such thing */
        PyErr_Clear();
        return 0;
    }
    PyObject *shape = PyObject_GetAttr(tensor, awqpack.names.shape);
    PyObject *stride = shape == NULL ? NULL : PyObject_CallMethodObjArgs(tensor, awqpack.names.stride, NULL);
    PyObject *device = stride == NULL ? NULL : PyObject_GetAttr(tensor, awqpack.names.device);
    if (device != NULL && awqpack_read_ints(shape, "shape", sizes, &ndim) > 0 &&
        awqpack_read_ints(stride, "stride", strides, &count) > 0) {
        *memory = (awqpack_dlpack_tensor){.shape = sizes, .strides = strides, .ndim = (int32_t)ndim, .type_lanes = 1};
        memory->type_bits = (uint8_t)(8 * ask_int(tensor, "element_size"));
        memory->device_id = (int32_t)ask_int(tensor, "get_device"); /* -1 on the CPU */
        memory->device_type = PyErr_Occurred() ? -1 : awqpack_device_kind_of(device);
        memory->data = PyLong_AsVoidPtr(pointer);
        status = PyErr_Occurred() ? -1 : 1;
    }
    Py_XDECREF(pointer);
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    Py_XDECREF(device);
    return status;
}

int memory_of(PyObject *tensor, memory_layout *layout)
{
    if ((PyObject *)Py_TYPE(tensor) != awqpack.tensor_type && (PyObject *)Py_TYPE(tensor) != awqpack.parameter_type) {
        return 0;
    }
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    awqpack_dlpack_tensor memory;
    const int is_there =
        awqpack.dlpack != NULL ? awqpack_describe(tensor, &memory) : describe_slowly(tensor, sizes, strides, &memory);
    return is_there > 0 ? read_layout(&memory, layout) : is_there;
}

int memory_spans_overlap(const memory_span *a, const memory_span *b)
{
    return a->device_type == b->device_type && a->device_id == b->device_id && a->begin < b->end && b->begin < a->end;
}

int memory_is_expanded(const memory_layout *layout)
{
    for (int d = 0; d < layout->ndim; d++) {
        if (layout->sizes[d] > 1 && layout->strides[d] == 0) {
            return 1;
        }
    }
    return 0;
}

/* The dimensions in which one of the two has more than an item, by falling stride, which must be the same in both.
   Returns how many there are, -1 when the two do not lie in one grid. */
static int grid_of(const memory_layout *a, const memory_layout *b, int *dims, int64_t *strides)
{
    int count = 0;
    if (a->ndim < 0 || a->ndim != b->ndim || a->item_bytes != b->item_bytes) {
        return -1;
    }
    for (int d = 0; d < a->ndim; d++) {
        if (a->sizes[d] == 1 && b->sizes[d] == 1) {
            continue;
        }
        const int64_t stride = a->sizes[d] > 1 ? a->strides[d] : b->strides[d];
        if (stride <= 0 || (a->sizes[d] > 1 && b->sizes[d] > 1 && a->strides[d] != b->strides[d])) {
            return -1;
        }
        int at = count++;
        for (; at > 0 && strides[at - 1] < stride; at--) {
            strides[at] = strides[at - 1];
            dims[at] = dims[at - 1];
        }
        strides[at] = stride;
        dims[at] = d;
    }
    return count;
}

/* Where a tensor begins in the dimensions of a grid, `bytes` from its corner. 0 when it is not in that grid. */
static int find_starts(const memory_layout *layout, uintptr_t bytes, int count, const int *dims, const int64_t *strides,
                       int64_t *starts)
{
    int64_t items = (int64_t)(bytes / (uintptr_t)layout->item_bytes);
    if (bytes % (uintptr_t)layout->item_bytes != 0) {
        return 0;
    }
    for (int i = 0; i < count; i++) {
        starts[dims[i]] = items / strides[i];
        items %= strides[i];
        /* It must end before the next item of the dimension around this one. */
        if (i > 0 && (starts[dims[i]] + layout->sizes[dims[i]]) * strides[i] > strides[i - 1]) {
            return 0;
        }
    }
    return items == 0;
}

memory_relation memory_relate(const memory_layout *whole, const memory_layout *part, int64_t *starts)
{
    int dims[MEMORY_MAX_DIMS];
    int64_t strides[MEMORY_MAX_DIMS], origin[MEMORY_MAX_DIMS];
    if (!memory_spans_overlap(&whole->span, &part->span)) {
        return MEMORY_APART;
    }
    memset(starts, 0, MEMORY_MAX_DIMS * sizeof *starts);
    const int count = grid_of(whole, part, dims, strides);
    const uintptr_t corner = whole->span.begin < part->span.begin ? whole->span.begin : part->span.begin;
    if (count < 0 || !find_starts(whole, whole->span.begin - corner, count, dims, strides, origin) ||
        !find_starts(part, part->span.begin - corner, count, dims, strides, starts)) {
        return MEMORY_MIXED;
    }
    int is_inside = 1;
    for (int i = 0; i < count; i++) {
        const int d = dims[i];
        starts[d] -= origin[d];
        if (starts[d] >= whole->sizes[d] || starts[d] + part->sizes[d] <= 0) {
            return MEMORY_APART;
        }
        is_inside &= starts[d] >= 0 && starts[d] + part->sizes[d] <= whole->sizes[d];
    }
    return is_inside ? MEMORY_INSIDE : MEMORY_MIXED;
}

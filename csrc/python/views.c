/* detach and view ops inside dispatch: what is all of a packed tensor stays packed, any other view is one of its
   codes. */
#include "views.h"

#include "modes.h"
#include "moves.h"
#include "payload.h"
#include "plain.h"
#include "tensors.h"

/* 1 when a == b; of symbolic ints, what torch would guard on, and no where it cannot know. -1 with an exception. */
static int is_equal_size(PyObject *a, PyObject *b)
{
    PyObject *answer = a == b ? Py_NewRef(Py_True) : PyObject_RichCompare(a, b, Py_EQ);
    if (answer != NULL && !PyBool_Check(answer)) {
        PyObject *guard = awqpack_look_up("torch.fx.experimental.symbolic_shapes", "guard_or_false");
        PyObject *known = guard == NULL ? NULL : PyObject_CallFunctionObjArgs(guard, answer, NULL);
        Py_XDECREF(guard);
        Py_DECREF(answer);
        answer = known;
    }
    const int result = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return result;
}

static PyObject *shape_of(PyObject *tensor)
{
    return PyObject_GetAttr(tensor, awqpack.names.shape);
}

static PyObject *strides_of(PyObject *tensor)
{
    return PyObject_CallMethodObjArgs(tensor, awqpack.names.stride, NULL);
}

/* The same of what `sizes_of` says of two tensors. */
static int have_equal_sizes(PyObject *view, PyObject *self, PyObject *(*sizes_of)(PyObject *))
{
    PyObject *left = sizes_of(view);
    PyObject *right = left == NULL ? NULL : sizes_of(self);
    const Py_ssize_t count = right == NULL ? -1 : PySequence_Size(left);
    const Py_ssize_t other = count < 0 ? -1 : PySequence_Size(right);
    int result = other < 0 ? -1 : count == other;
    for (Py_ssize_t i = 0; result == 1 && i < count; i++) {
        PyObject *a = PySequence_GetItem(left, i);
        PyObject *b = a == NULL ? NULL : PySequence_GetItem(right, i);
        result = b == NULL ? -1 : is_equal_size(a, b);
        Py_XDECREF(a);
        Py_XDECREF(b);
    }
    Py_XDECREF(left);
    Py_XDECREF(right);
    return result;
}

/* 1 when a view begins where `self` does and has its dtype, its size and its strides, -1 with an exception. */
static int is_whole(PyObject *view, PyObject *self)
{
    if (!PyObject_TypeCheck(view, (PyTypeObject *)awqpack.tensor_type)) {
        return 0;
    }
    PyObject *dtype = PyObject_GetAttr(view, awqpack.names.dtype);
    const int is_other = dtype == awqpack.uint8 ? awqpack_is_negated(view) : 1;
    int result = dtype == NULL || is_other < 0 ? -1 : !is_other;
    Py_XDECREF(dtype);
    result = result == 1 ? have_equal_sizes(view, self, shape_of) : result;
    result = result == 1 ? have_equal_sizes(view, self, strides_of) : result;
    PyObject *offset = result == 1 ? PyObject_CallMethod(view, "storage_offset", NULL) : NULL;
    PyObject *zero = offset == NULL ? NULL : PyLong_FromLong(0);
    result = result != 1 ? result : zero == NULL ? -1 : is_equal_size(offset, zero);
    Py_XDECREF(offset);
    Py_XDECREF(zero);
    return result;
}

/* A view again, or `self` where it is all of it. Takes the view over. */
static PyObject *keep_whole_view(PyObject *view, PyObject *self)
{
    const int whole = is_whole(view, self);
    if (whole == 0) {
        return view;
    }
    Py_DECREF(view);
    return whole < 0 ? NULL : packed_alias(self);
}

/* What a view op gave, a view or a list of views, with `self` for each that is all of it. Takes the result over, which
   may be NULL with an exception. */
static PyObject *keep_whole(PyObject *result, PyObject *self)
{
    if (result == NULL || !PyList_CheckExact(result)) {
        return result == NULL ? NULL : keep_whole_view(result, self);
    }
    for (Py_ssize_t i = 0; result != NULL && i < PyList_Size(result); i++) {
        PyObject *kept = keep_whole_view(Py_NewRef(PyList_GetItem(result, i)), self);
        if (kept == NULL || PyList_SetItem(result, i, kept) < 0) {
            Py_CLEAR(result);
        }
    }
    return result;
}

/* func on a tensor like `self` that has no memory: what the views will be, before anything is unpacked for them. */
static PyObject *foresee(PyObject *func, const packed_fields *fields, PyObject *args, PyObject *kwargs)
{
    PyObject *shape = PyTuple_Pack(2, fields->size, fields->stride);
    PyObject *stand_in = shape == NULL ? NULL : PyObject_Call(awqpack.empty_strided, shape, awqpack.meta_codes);
    PyObject *foreseen = stand_in == NULL ? NULL : plain_with_argument(args, 0, stand_in);
    PyObject *views = foreseen == NULL ? NULL : PyObject_Call(func, foreseen, kwargs);
    Py_XDECREF(shape);
    Py_XDECREF(stand_in);
    Py_XDECREF(foreseen);
    return views;
}

/* 1 and the result of func when that is all of `self`, as a view or as a list of one; 0 when codes are needed; -1 with
   an exception. */
static int view_whole(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs, PyObject **result)
{
    packed_fields fields;
    int status = -1;
    if (packed_fields_get(self, &fields) < 0) {
        return -1;
    }
    PyObject *guard = awqpack_turn_dispatch_off();
    *result = guard == NULL ? NULL : foresee(func, &fields, args, kwargs);
    const int is_list = *result != NULL && PyList_CheckExact(*result);
    if (*result != NULL) {
        status =
            is_list && PyList_Size(*result) != 1 ? 0 : is_whole(is_list ? PyList_GetItem(*result, 0) : *result, self);
    }
    Py_XDECREF(guard);
    if (status == 1) {
        *result = keep_whole(*result, self);
        status = *result == NULL ? -1 : 1;
    } else {
        Py_CLEAR(*result);
    }
    packed_fields_clear(&fields);
    return status;
}

/* func on the codes. */
static PyObject *view_codes(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs, int is_plain)
{
    const int is_transformed = is_plain ? awqpack_is_transformed() : 0;
    PyObject *guard = is_transformed < 0 ? NULL : awqpack_enter_view_mode(self);
    PyObject *result = guard == NULL    ? NULL
                       : is_transformed ? awqpack_view_codes(func, self, args, kwargs)
                                        : plain_run(func, args, kwargs);
    awqpack_leave_view_mode(guard);
    return result;
}

PyObject *packed_run_view(PyObject *func, PyObject *args, PyObject *kwargs, int may_be_whole)
{
    PyObject *self = PyTuple_GetItem(args, 0), *result = NULL;
    PyObject *payload = PyObject_GetAttr(self, awqpack.names._data);
    const int is_plain = payload != NULL && Py_TYPE(payload) == (PyTypeObject *)awqpack.tensor_type;
    /* In a trace the unpacking is no more than a node, which goes when nothing uses it. */
    const int whole = payload == NULL            ? -1
                      : is_plain && may_be_whole ? view_whole(func, self, args, kwargs, &result)
                                                 : 0;
    Py_XDECREF(payload);
    if (whole != 0) {
        return result;
    }
    result = view_codes(func, self, args, kwargs, is_plain);
    return may_be_whole ? keep_whole(result, self) : result;
}

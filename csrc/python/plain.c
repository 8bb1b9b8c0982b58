/* The codes of packed tensors, and ops run on codes in their place. */
#include "plain.h"

#include "fields.h"

PyObject *packed_unpack_fields(const packed_fields *fields)
{
    PyObject *number = awqpack_packing_number(fields->packing);
    if (fields->order == Py_None) {
        return PyObject_CallFunctionObjArgs(awqpack.op_unpack, fields->payload, number, fields->reorder, NULL);
    }
    return PyObject_CallFunctionObjArgs(awqpack.op_unpack, fields->payload, number, fields->reorder, fields->order,
                                        NULL);
}

PyObject *packed_unpack(PyObject *self, PyObject *Py_UNUSED(unused))
{
    packed_fields fields;
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *codes = packed_unpack_fields(&fields);
    packed_fields_clear(&fields);
    return codes;
}

int plain_is_tensor(PyObject *object)
{
    return PyObject_TypeCheck(object, (PyTypeObject *)awqpack.tensor_type);
}

/* The items of a list or tuple, or NULL with an exception: a list may change while they are in use. */
static PyObject *items_of(PyObject *sequence)
{
    return PyTuple_CheckExact(sequence) ? Py_NewRef(sequence) : PyList_AsTuple(sequence);
}

static int is_sequence(PyObject *value)
{
    return PyTuple_CheckExact(value) || PyList_CheckExact(value);
}

/* Lists may be nested by the ten thousand, or hold themselves. */
static int enter(void)
{
    return Py_EnterRecursiveCall(" among the arguments of an op on an AWQPackedTensor");
}

int plain_holds_packed(PyObject *value)
{
    if (!is_sequence(value)) {
        return awqpack_is_packed(value);
    }
    if (enter() != 0) {
        return -1;
    }
    const int is_tuple = PyTuple_CheckExact(value);
    const Py_ssize_t count = is_tuple ? PyTuple_Size(value) : PyList_Size(value);
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        result = plain_holds_packed(is_tuple ? PyTuple_GetItem(value, i) : PyList_GetItem(value, i));
    }
    Py_LeaveRecursiveCall();
    return result;
}

static PyObject *replace_in_sequence(PyObject *value, plain_replacer replace, void *state)
{
    PyObject *changed = NULL, *result = NULL;
    PyObject *items = items_of(value);
    const Py_ssize_t count = items == NULL ? 0 : PyTuple_Size(items);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, i);
        PyObject *plain = plain_replace(item, replace, state);
        if (plain != NULL && plain != item && changed == NULL) {
            changed = PySequence_List(items);
        }
        if (plain == NULL || (plain != item && changed == NULL)) {
            Py_XDECREF(plain);
            goto done;
        }
        if (changed == NULL) {
            Py_DECREF(plain);
        } else {
            (void)PyList_SetItem(changed, i, plain);
        }
    }
    if (items != NULL) {
        result = changed == NULL             ? Py_NewRef(value)
                 : PyTuple_CheckExact(value) ? PyList_AsTuple(changed)
                                             : Py_NewRef(changed);
    }
done:
    Py_XDECREF(items);
    Py_XDECREF(changed);
    return result;
}

static PyObject *replace_in_dict(PyObject *value, plain_replacer replace, void *state)
{
    PyObject *changed = NULL, *result = NULL;
    PyObject *items = PyDict_Items(value);
    const Py_ssize_t count = items == NULL ? 0 : PyList_Size(items);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PyList_GetItem(items, i);
        PyObject *item = PyTuple_GetItem(pair, 1);
        PyObject *plain = plain_replace(item, replace, state);
        if (plain != NULL && plain != item && changed == NULL) {
            changed = PyDict_Copy(value);
        }
        const int failed =
            plain == NULL ||
            (plain != item && (changed == NULL || PyDict_SetItem(changed, PyTuple_GetItem(pair, 0), plain) < 0));
        Py_XDECREF(plain);
        if (failed) {
            goto done;
        }
    }
    if (items != NULL) {
        result = Py_NewRef(changed == NULL ? value : changed);
    }
done:
    Py_XDECREF(items);
    Py_XDECREF(changed);
    return result;
}

PyObject *plain_replace(PyObject *value, plain_replacer replace, void *state)
{
    const int in_sequence = is_sequence(value);
    if (!in_sequence && !PyDict_CheckExact(value)) {
        return plain_is_tensor(value) ? replace(state, value) : Py_NewRef(value);
    }
    if (enter() != 0) {
        return NULL;
    }
    PyObject *result =
        in_sequence ? replace_in_sequence(value, replace, state) : replace_in_dict(value, replace, state);
    Py_LeaveRecursiveCall();
    return result;
}

/* The codes made for a call so far, so that a tensor given twice is unpacked once. */
typedef struct codes_memo {
    PyObject *packed, *codes; /* the first */
    /* dict: address -> (packed tensor, codes); the tensor is held so that the address stays its */
    PyObject *others;
} codes_memo;

/* 1 and the codes, 0 when there are none yet, -1 with an exception. */
static int known_codes(const codes_memo *memo, PyObject *key, PyObject **codes)
{
    PyObject *pair = memo->others == NULL ? NULL : PyDict_GetItemWithError(memo->others, key);
    *codes = pair == NULL ? NULL : Py_NewRef(PyTuple_GetItem(pair, 1));
    return pair != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
}

static int remember_codes(codes_memo *memo, PyObject *key, PyObject *packed, PyObject *codes)
{
    memo->others = memo->others == NULL ? PyDict_New() : memo->others;
    PyObject *pair = memo->others == NULL ? NULL : PyTuple_Pack(2, packed, codes);
    const int status = pair == NULL ? -1 : PyDict_SetItem(memo->others, key, pair);
    Py_XDECREF(pair);
    return status;
}

/* A plain_replacer: the codes of a packed tensor, any other tensor itself. */
static PyObject *codes_in_place_of(void *state, PyObject *tensor)
{
    codes_memo *memo = state;
    if (!awqpack_is_packed(tensor)) {
        return Py_NewRef(tensor);
    }
    if (memo->packed == tensor) {
        return Py_NewRef(memo->codes);
    }
    if (memo->packed == NULL) {
        PyObject *codes = packed_unpack(tensor, NULL);
        if (codes != NULL) {
            memo->packed = Py_NewRef(tensor);
            memo->codes = Py_NewRef(codes);
        }
        return codes;
    }
    PyObject *key = PyLong_FromVoidPtr(tensor);
    PyObject *codes = NULL;
    if (key != NULL && known_codes(memo, key, &codes) == 0) {
        codes = packed_unpack(tensor, NULL);
        if (codes != NULL && remember_codes(memo, key, tensor, codes) < 0) {
            Py_CLEAR(codes);
        }
    }
    Py_XDECREF(key);
    return codes;
}

PyObject *plain_run(PyObject *func, PyObject *args, PyObject *kwargs)
{
    codes_memo memo = {NULL, NULL, NULL};
    PyObject *result = NULL;
    PyObject *plain_args = plain_replace(args, codes_in_place_of, &memo);
    PyObject *plain_kwargs =
        plain_args == NULL || kwargs == NULL ? NULL : plain_replace(kwargs, codes_in_place_of, &memo);
    Py_XDECREF(memo.packed); /* the arguments alone hold the codes while the op runs */
    Py_XDECREF(memo.codes);
    Py_XDECREF(memo.others);
    if (plain_args != NULL && (kwargs == NULL || plain_kwargs != NULL)) {
        result = PyObject_Call(func, plain_args, plain_kwargs);
    }
    Py_XDECREF(plain_args);
    Py_XDECREF(plain_kwargs);
    return result;
}

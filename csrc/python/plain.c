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
    PyObject *items = PySequence_List(value); /* one of its own: a list may change meanwhile */
    int is_changed = 0;
    for (Py_ssize_t i = 0; items != NULL && i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i);
        PyObject *plain = plain_replace(item, replace, state);
        is_changed |= plain != item;
        if (plain == NULL || PyList_SetItem(items, i, plain) < 0) {
            Py_CLEAR(items);
        }
    }
    PyObject *result = items == NULL               ? NULL
                       : !is_changed               ? Py_NewRef(value)
                       : PyTuple_CheckExact(value) ? PyList_AsTuple(items)
                                                   : Py_NewRef(items);
    Py_XDECREF(items);
    return result;
}

static PyObject *replace_in_dict(PyObject *value, plain_replacer replace, void *state)
{
    PyObject *keys = PyDict_Keys(value); /* before other code can change it */
    PyObject *values = keys == NULL ? NULL : PyDict_Values(value);
    PyObject *replaced = values == NULL ? NULL : replace_in_sequence(values, replace, state);
    PyObject *result = replaced == NULL ? NULL : replaced == values ? Py_NewRef(value) : PyDict_New();
    for (Py_ssize_t i = 0; result != NULL && replaced != values && i < PyList_Size(keys); i++) {
        if (PyDict_SetItem(result, PyList_GetItem(keys, i), PyList_GetItem(replaced, i)) < 0) {
            Py_CLEAR(result);
        }
    }
    Py_XDECREF(keys);
    Py_XDECREF(values);
    Py_XDECREF(replaced);
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

PyObject *plain_with_argument(PyObject *args, Py_ssize_t position, PyObject *value)
{
    PyObject *list = PySequence_List(args), *result = NULL;
    if (list != NULL && PyList_SetItem(list, position, Py_NewRef(value)) == 0) {
        result = PyList_AsTuple(list);
    }
    Py_XDECREF(list);
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

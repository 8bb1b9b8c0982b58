/* Ops that write into a packed tensor: run on unpacked codes, check them, then change every payload or nothing. */
#include "plain.h"
#include "writes.h"

/* Arguments while an op runs: packed tensors through stand-ins, plain ones themselves, with a copy to go back to. */
typedef struct stand_ins {
    PyObject *memo;    /* memory of a payload -> its codes: detached twins share one */
    PyObject *pairs;   /* [(packed tensor, codes)] of the written ones */
    PyObject *backups; /* [(plain tensor, its values before)] of the written ones */
} stand_ins;

/* What tells payloads in different memory apart: a new reference. */
static PyObject *memory_key(PyObject *packed)
{
    PyObject *payload = PyObject_GetAttr(packed, awqpack.names._data);
    PyObject *key = NULL;
    if (payload != NULL && Py_TYPE(payload) == (PyTypeObject *)awqpack.tensor_type) {
        PyObject *pointer = PyObject_CallMethodObjArgs(payload, awqpack.names.data_ptr, NULL);
        PyObject *device = pointer == NULL ? NULL : PyObject_GetAttr(payload, awqpack.names.device);
        PyObject *shape = device == NULL ? NULL : PyObject_GetAttr(payload, awqpack.names.shape);
        PyObject *stride = shape == NULL ? NULL : PyObject_CallMethodObjArgs(payload, awqpack.names.stride, NULL);
        const int has_memory = stride != NULL && PyObject_IsTrue(pointer) > 0;
        key = stride == NULL ? NULL : has_memory ? PyTuple_Pack(4, pointer, device, shape, stride) : PyLong_FromVoidPtr(payload);
        Py_XDECREF(pointer);
        Py_XDECREF(device);
        Py_XDECREF(shape);
        Py_XDECREF(stride);
    } else if (payload != NULL) {
        key = PyLong_FromVoidPtr(payload);
    }
    Py_XDECREF(payload);
    return key;
}

/* Appends (first, second) to a list. */
static int append_pair(PyObject *list, PyObject *first, PyObject *second)
{
    PyObject *pair = PyTuple_Pack(2, first, second);
    const int status = pair == NULL ? -1 : PyList_Append(list, pair);
    Py_XDECREF(pair);
    return status;
}

/* The codes that stand in for a packed tensor: a new reference. */
static PyObject *stand_in_for(stand_ins *state, PyObject *packed, int is_written)
{
    PyObject *key = memory_key(packed);
    PyObject *codes = key == NULL ? NULL : PyDict_GetItemWithError(state->memo, key);
    Py_XINCREF(codes);
    if (codes == NULL && key != NULL && !PyErr_Occurred()) {
        codes = packed_unpack(packed, NULL);
        if (codes != NULL && PyDict_SetItem(state->memo, key, codes) < 0) {
            Py_CLEAR(codes);
        }
    }
    Py_XDECREF(key);
    if (codes != NULL && is_written && append_pair(state->pairs, packed, codes) < 0) {
        Py_CLEAR(codes);
    }
    return codes;
}

/* What the op gets in place of one tensor: a new reference. */
static PyObject *substitute_tensor(stand_ins *state, PyObject *tensor, int is_written)
{
    if (awqpack_is_packed(tensor)) {
        return stand_in_for(state, tensor, is_written);
    }
    if (is_written) {
        PyObject *backup = PyObject_CallMethodObjArgs(tensor, awqpack.names.clone, NULL);
        const int status = backup == NULL ? -1 : append_pair(state->backups, tensor, backup);
        Py_XDECREF(backup);
        if (status < 0) {
            return NULL;
        }
    }
    Py_INCREF(tensor);
    return tensor;
}

static PyObject *substitute_written(void *state, PyObject *tensor)
{
    return substitute_tensor(state, tensor, 1);
}

static PyObject *substitute_read(void *state, PyObject *tensor)
{
    return substitute_tensor(state, tensor, 0);
}

static PyObject *substitute(stand_ins *state, PyObject *value, int is_written)
{
    return plain_replace(value, is_written ? substitute_written : substitute_read, state);
}

static int is_written_argument(const op_plan *plan, Py_ssize_t position, PyObject *name)
{
    for (Py_ssize_t w = 0; w < plan->written_count; w++) {
        if (name == NULL ? plan->written[w].position == position
                         : PyObject_RichCompareBool(plan->written[w].name, name, Py_EQ) == 1) {
            return 1;
        }
    }
    return 0;
}

/* Calls func with every packed tensor replaced by its codes. */
static PyObject *run_on_stand_ins(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs, stand_ins *state)
{
    PyObject *result = NULL, *key, *value;
    Py_ssize_t position = 0;
    const Py_ssize_t count = PyTuple_Size(args);
    PyObject *plain_kwargs = PyDict_New();
    PyObject *plain_args = plain_kwargs == NULL ? NULL : PyTuple_New(count);
    if (plain_args == NULL) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *plain = substitute(state, PyTuple_GetItem(args, i), is_written_argument(plan, i, NULL));
        if (plain == NULL || PyTuple_SetItem(plain_args, i, plain) < 0) {
            goto done;
        }
    }
    while (kwargs != NULL && PyDict_Next(kwargs, &position, &key, &value)) {
        PyObject *plain = substitute(state, value, is_written_argument(plan, -1, key));
        const int status = plain == NULL ? -1 : PyDict_SetItem(plain_kwargs, key, plain);
        Py_XDECREF(plain);
        if (status < 0) {
            goto done;
        }
    }
    result = PyObject_Call(func, plain_args, plain_kwargs);
done:
    Py_XDECREF(plain_args);
    Py_XDECREF(plain_kwargs);
    return result;
}

/* The payload that packed should have, from its codes after the op; refuses what its metadata cannot hold. */
static PyObject *repack(PyObject *func, PyObject *packed, PyObject *codes)
{
    packed_fields fields;
    PyObject *payload = NULL;
    if (packed_fields_get(packed, &fields) < 0) {
        return NULL;
    }
    PyObject *shape = PyObject_GetAttr(codes, awqpack.names.shape);
    PyObject *expected = shape == NULL ? NULL : PyObject_GetAttr(packed, awqpack.names.shape);
    const int is_same = expected == NULL ? -1 : PyObject_RichCompareBool(shape, expected, Py_EQ);
    if (is_same == 0) {
        PyErr_Format(PyExc_ValueError, "%S writes a result of shape %R into an AWQPackedTensor of shape %R", func, shape,
                     expected);
    } else if (is_same > 0) {
        payload = PyObject_CallFunctionObjArgs(awqpack.op_pack, codes, awqpack_packing_number(fields.packing),
                                               fields.reorder, Py_True, NULL);
    }
    Py_XDECREF(shape);
    Py_XDECREF(expected);
    packed_fields_clear(&fields);
    return payload;
}

/* Gives a plain tensor the size and values it had before. */
static int restore(PyObject *target, PyObject *backup)
{
    PyObject *shape = PyObject_GetAttr(backup, awqpack.names.shape);
    PyObject *now = shape == NULL ? NULL : PyObject_GetAttr(target, awqpack.names.shape);
    const int is_same = now == NULL ? -1 : PyObject_RichCompareBool(shape, now, Py_EQ);
    PyObject *resized = is_same == 0 ? PyObject_CallMethodObjArgs(target, awqpack.names.resize_, shape, NULL) : NULL;
    PyObject *copied = is_same > 0 || resized != NULL
                           ? PyObject_CallMethodObjArgs(target, awqpack.names.copy_, backup, NULL)
                           : NULL;
    Py_XDECREF(shape);
    Py_XDECREF(now);
    Py_XDECREF(resized);
    Py_XDECREF(copied);
    return copied == NULL ? -1 : 0;
}

/* Undoes what the op did to plain tensors, last first; the exception that is set stays. */
static void roll_back(PyObject *backups)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (Py_ssize_t i = PyList_Size(backups) - 1; i >= 0; i--) {
        PyObject *pair = PyList_GetItem(backups, i);
        if (restore(PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1)) < 0) {
            PyErr_WriteUnraisable(PyTuple_GetItem(pair, 0));
        }
    }
    PyErr_Restore(type, value, trace);
}

/* Refuses a payload whose elements share memory, to which a copy_ would fail after others have been stored. */
static int check_writable(PyObject *packed)
{
    int64_t sizes[AWQ_MAX_DIMS], strides[AWQ_MAX_DIMS];
    Py_ssize_t ndim, count;
    int is_shared = 0;
    PyObject *payload = PyObject_GetAttr(packed, awqpack.names._data);
    PyObject *shape = payload == NULL ? NULL : PyObject_GetAttr(payload, awqpack.names.shape);
    PyObject *stride = shape == NULL ? NULL : PyObject_CallMethodObjArgs(payload, awqpack.names.stride, NULL);
    const int plain_sizes = stride == NULL ? -1 : awqpack_read_ints(shape, "payload", sizes, &ndim);
    const int plain = plain_sizes <= 0 ? plain_sizes : awqpack_read_ints(stride, "payload", strides, &count);
    for (Py_ssize_t d = 0; plain > 0 && d < ndim; d++) {
        is_shared |= sizes[d] > 1 && strides[d] == 0;
    }
    if (is_shared) {
        PyErr_Format(PyExc_RuntimeError,
                     "a write into an AWQPackedTensor expects a payload with memory for each element; got an expanded one of "
                     "shape %R and stride %R",
                     shape, stride);
    }
    Py_XDECREF(payload);
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    return plain < 0 || is_shared ? -1 : 0;
}

/* Packs every written stand-in first, and only when all are valid changes the payloads. */
static int commit(PyObject *func, PyObject *pairs)
{
    int status = -1;
    const Py_ssize_t count = PyList_Size(pairs);
    PyObject *results = PyList_New(count);
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *packed = PyTuple_GetItem(PyList_GetItem(pairs, i), 0);
        PyObject *payload = check_writable(packed) < 0 ? NULL : repack(func, packed, PyTuple_GetItem(PyList_GetItem(pairs, i), 1));
        if (payload == NULL || PyList_SetItem(results, i, payload) < 0) {
            goto done;
        }
    }
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *packed = PyTuple_GetItem(PyList_GetItem(pairs, i), 0);
        if (packed_store_payload(packed, PyList_GetItem(results, i), Py_False) < 0) {
            goto done;
        }
    }
    status = results == NULL ? -1 : 0;
done:
    Py_XDECREF(results);
    return status;
}

/* The op's result with the tensors themselves where it returned their stand-ins. Steals `result`. */
static PyObject *restore_results(PyObject *result, const op_plan *plan, PyObject *args, PyObject *kwargs)
{
    const Py_ssize_t count = plan->return_count;
    const int is_tuple = count > 1 && PyTuple_CheckExact(result);
    PyObject *restored = is_tuple ? PyTuple_New(count) : NULL;
    if (is_tuple && restored == NULL) {
        Py_DECREF(result);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const Py_ssize_t source = plan->sources[i];
        PyObject *item = source < 0 ? NULL : plan_given(&plan->written[source], args, kwargs);
        if (!is_tuple) {
            if (item != NULL && count == 1) {
                Py_INCREF(item);
                Py_DECREF(result);
                return item;
            }
            return result;
        }
        item = item == NULL ? PyTuple_GetItem(result, i) : item;
        Py_INCREF(item);
        PyTuple_SetItem(restored, i, item);
    }
    if (is_tuple) {
        Py_DECREF(result);
        return restored;
    }
    return result;
}

/* c10d ops return (tensors, Work) and go on in the background: the codes are there after wait(). */
static int wait_for_work(PyObject *result)
{
    const Py_ssize_t count = PyTuple_CheckExact(result) ? PyTuple_Size(result) : 0;
    PyObject *work = count > 0 ? PyTuple_GetItem(result, count - 1) : result;
    if (!PyObject_HasAttrString(work, "wait")) {
        return 0;
    }
    PyObject *done = PyObject_CallMethod(work, "wait", NULL);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Functional collectives are waited for through the tensors that they write. */
static int wait_for_tensors(PyObject *pairs)
{
    int status = -1;
    PyObject *torch = PyImport_ImportModule("torch");
    PyObject *ops = torch == NULL ? NULL : PyObject_GetAttrString(torch, "ops");
    PyObject *functional = ops == NULL ? NULL : PyObject_GetAttrString(ops, "_c10d_functional");
    for (Py_ssize_t i = 0; functional != NULL && i < PyList_Size(pairs); i++) {
        PyObject *codes = PyTuple_GetItem(PyList_GetItem(pairs, i), 1);
        PyObject *done = PyObject_CallMethod(functional, "wait_tensor", "O", codes);
        if (done == NULL) {
            goto done;
        }
        Py_DECREF(done);
    }
    status = functional == NULL ? -1 : 0;
done:
    Py_XDECREF(torch);
    Py_XDECREF(ops);
    Py_XDECREF(functional);
    return status;
}

static int wait_for(plan_collective collective, PyObject *result, PyObject *pairs)
{
    switch (collective) {
    case RETURNS_WORK:
        return wait_for_work(result);
    case WAIT_TENSOR:
        return wait_for_tensors(pairs);
    default:
        return 0;
    }
}

/* The arguments of a c10d op with async_op set: NCCL gives no Work without it, and what it gives instead crashes when
   waited for. A new reference; other ops keep their arguments. */
static PyObject *with_work(const op_plan *plan, PyObject *args)
{
    const Py_ssize_t position = plan->async_op;
    if (position < 0 || position >= PyTuple_Size(args)) {
        Py_INCREF(args);
        return args;
    }
    PyObject *list = PySequence_List(args), *result = NULL;
    if (list != NULL && PyList_SetItem(list, position, PyBool_FromLong(1)) == 0) {
        result = PyList_AsTuple(list);
    }
    Py_XDECREF(list);
    return result;
}

PyObject *write_packed(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs)
{
    PyObject *result = NULL;
    int writes_packed = 0;
    for (Py_ssize_t w = 0; writes_packed == 0 && w < plan->written_count; w++) {
        PyObject *argument = plan_given(&plan->written[w], args, kwargs);
        writes_packed = argument == NULL ? 0 : plain_holds_packed(argument);
    }
    if (writes_packed <= 0) {
        return writes_packed < 0 ? NULL : plain_run(func, args, kwargs);
    }
    switch (plan->refusal) {
    case REFUSE_METADATA:
        return PyErr_Format(PyExc_RuntimeError,
                            "%S would change the size, strides or storage of an AWQPackedTensor in place, which its payload "
                            "cannot follow; work on p.unpack() and pack the result",
                            func);
    case REFUSE_RECEIVE:
        return PyErr_Format(PyExc_RuntimeError,
                            "%S cannot receive into an AWQPackedTensor; receive its p.payload, or plain codes and p.copy_ them",
                            func);
    case REFUSE_NOTHING:
        break;
    }
    if (func == awqpack.aten_copy_ && PyTuple_Size(args) >= 2 && plain_is_tensor(PyTuple_GetItem(args, 1))) {
        PyObject *given = kwargs == NULL ? NULL : PyDict_GetItem(kwargs, awqpack.names.non_blocking);
        PyObject *non_blocking = PyTuple_Size(args) > 2 ? PyTuple_GetItem(args, 2) : given == NULL ? Py_False : given;
        return packed_copy_into(PyTuple_GetItem(args, 0), PyTuple_GetItem(args, 1), non_blocking);
    }
    PyObject *run_args = with_work(plan, args);
    stand_ins state = {PyDict_New(), PyList_New(0), PyList_New(0)};
    if (run_args != NULL && state.memo != NULL && state.pairs != NULL && state.backups != NULL) {
        result = run_on_stand_ins(func, plan, run_args, kwargs, &state);
        if (result != NULL && (wait_for(plan->collective, result, state.pairs) < 0 ||
                               commit(func, state.pairs) < 0)) {
            Py_CLEAR(result);
        }
        if (result == NULL) {
            roll_back(state.backups);
        }
    }
    Py_XDECREF(run_args);
    Py_XDECREF(state.memo);
    Py_XDECREF(state.pairs);
    Py_XDECREF(state.backups);
    return result == NULL ? NULL : restore_results(result, plan, args, kwargs);
}

/* Ops that write into a packed tensor: run on unpacked codes, check them, then change every payload or nothing. */
#include "writes.h"

#include "claims.h"
#include "fields.h"
#include "plain.h"
#include "stand_ins.h"
#include "store.h"

/* The payload that a written tensor should have, from its codes after the op; refuses what its metadata cannot hold. */
static PyObject *repack(PyObject *func, const stand_in *item)
{
    packed_fields fields;
    PyObject *payload = NULL;
    if (packed_fields_get(item->tensor, &fields) < 0) {
        return NULL;
    }
    PyObject *shape = PyObject_GetAttr(item->codes, awqpack.names.shape);
    PyObject *expected = shape == NULL ? NULL : PyObject_GetAttr(item->tensor, awqpack.names.shape);
    const int is_same = expected == NULL ? -1 : PyObject_RichCompareBool(shape, expected, Py_EQ);
    if (is_same == 0) {
        PyErr_Format(PyExc_ValueError, "%S writes a result of shape %R into an AWQPackedTensor of shape %R", func,
                     shape, expected);
    } else if (is_same > 0) {
        payload = PyObject_CallFunctionObjArgs(awqpack.op_pack, item->codes, awqpack_packing_number(fields.packing),
                                               fields.reorder, Py_True, NULL);
    }
    Py_XDECREF(shape);
    Py_XDECREF(expected);
    packed_fields_clear(&fields);
    return payload;
}

/* Refuses a payload whose elements share memory, which cannot hold codes that differ. */
static int check_writable(const stand_in *item)
{
    if (!item->has_memory || !memory_is_expanded(&item->memory)) {
        return 0;
    }
    PyObject *shape = PyObject_GetAttr(item->payload, awqpack.names.shape);
    PyObject *stride = shape == NULL ? NULL : PyObject_CallMethodObjArgs(item->payload, awqpack.names.stride, NULL);
    if (stride != NULL) {
        PyErr_Format(
            PyExc_RuntimeError,
            "a write into an AWQPackedTensor expects a payload with memory for each element; got an expanded one of "
            "shape %R and stride %R",
            shape, stride);
    }
    Py_XDECREF(shape);
    Py_XDECREF(stride);
    return -1;
}

/* Packs every written stand-in first, and only when all are valid changes the payloads. */
static int commit(PyObject *func, const stand_ins *state)
{
    Py_ssize_t count = 0;
    int status = 0;
    payload_store *stores = PyMem_Calloc((size_t)state->count, sizeof *stores);
    if (stores == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; status == 0 && i < state->count; i++) {
        const stand_in *item = &state->items[i];
        if (item->is_written && item->codes != NULL) {
            PyObject *source = check_writable(item) < 0 ? NULL : repack(func, item);
            stores[count++] = (payload_store){item->tensor, item->payload, source, NULL};
            status = source == NULL ? -1 : 0;
        }
    }
    if (status == 0) {
        status = store_payloads(stores, count, Py_False);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_XDECREF(stores[i].source);
        Py_XDECREF(stores[i].before);
    }
    PyMem_Free(stores);
    return status;
}

/* One of the op's returns: the written argument that it is, or else what the op gave for it. Borrowed. */
static PyObject *returned(const op_plan *plan, Py_ssize_t index, PyObject *args, PyObject *kwargs, PyObject *result)
{
    const Py_ssize_t source = plan->sources[index];
    PyObject *written = source < 0 ? NULL : plan_given(&plan->written[source], args, kwargs);
    return written == NULL ? result : written;
}

/* The op's result with the tensors themselves where it returned their stand-ins. Steals `result`. */
static PyObject *restore_results(PyObject *result, const op_plan *plan, PyObject *args, PyObject *kwargs)
{
    const Py_ssize_t count = plan->return_count;
    PyObject *restored = NULL;
    if (count > 1 && PyTuple_CheckExact(result) && PyTuple_Size(result) == count) {
        restored = PyTuple_New(count);
        for (Py_ssize_t i = 0; restored != NULL && i < count; i++) {
            PyTuple_SetItem(restored, i, Py_NewRef(returned(plan, i, args, kwargs, PyTuple_GetItem(result, i))));
        }
    } else {
        restored = Py_NewRef(count == 1 ? returned(plan, 0, args, kwargs, result) : result);
    }
    Py_DECREF(result);
    return restored;
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
static int wait_for_tensors(const stand_ins *state)
{
    PyObject *wait_tensor = awqpack_look_up("torch", "ops._c10d_functional.wait_tensor");
    int status = wait_tensor == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < state->count; i++) {
        PyObject *codes = state->items[i].is_written ? state->items[i].codes : NULL;
        PyObject *done = codes == NULL ? Py_NewRef(Py_None) : PyObject_CallFunctionObjArgs(wait_tensor, codes, NULL);
        status = done == NULL ? -1 : 0;
        Py_XDECREF(done);
    }
    Py_XDECREF(wait_tensor);
    return status;
}

static int wait_for(plan_collective collective, PyObject *result, const stand_ins *state)
{
    switch (collective) {
    case RETURNS_WORK: return wait_for_work(result);
    case WAIT_TENSOR: return wait_for_tensors(state);
    default: return 0;
    }
}

/* The arguments of a c10d op with async_op set: NCCL gives no Work without it, and what it gives instead crashes when
   waited for. A new reference; other ops keep their arguments. */
static PyObject *with_work(const op_plan *plan, PyObject *args)
{
    const Py_ssize_t position = plan->async_op;
    if (position < 0 || position >= PyTuple_Size(args)) {
        return Py_NewRef(args);
    }
    return plain_with_argument(args, position, Py_True);
}

/* A claim to the payloads that the op writes. *claim is NULL for a collective, which may wait for another thread of
   this process to write what it was given itself. */
static int claim_written(const stand_ins *state, const op_plan *plan, memory_claim **claim)
{
    Py_ssize_t count = 0;
    *claim = NULL;
    if (plan->collective != NO_COLLECTIVE) {
        return 0;
    }
    memory_span *spans = PyMem_Calloc((size_t)state->count, sizeof *spans);
    if (spans == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < state->count; i++) {
        const stand_in *item = &state->items[i];
        if (item->payload != NULL && item->is_written && item->has_memory) {
            spans[count++] = item->memory.span;
        }
    }
    *claim = count == 0 ? NULL : claim_memory(spans, count);
    PyMem_Free(spans);
    return count > 0 && *claim == NULL ? -1 : 0;
}

/* Runs the op on stand-ins and stores what it wrote. */
static PyObject *run_and_commit(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs, stand_ins *state)
{
    memory_claim *claim;
    PyObject *result = NULL;
    if (claim_written(state, plan, &claim) < 0) {
        return NULL;
    }
    PyObject *run_args = stand_ins_back_up(state) < 0 ? NULL : with_work(plan, args);
    if (run_args != NULL) {
        result = stand_ins_run(state, func, run_args, kwargs);
        if (result != NULL && wait_for(plan->collective, result, state) < 0) {
            Py_CLEAR(result);
        }
        result = result == NULL ? NULL : restore_results(result, plan, args, kwargs);
        if (result != NULL && commit(func, state) < 0) {
            Py_CLEAR(result);
        }
        if (result == NULL) {
            stand_ins_roll_back(state);
        }
        Py_DECREF(run_args);
    }
    release_memory(claim);
    return result;
}

/* An error for an op that may not write into a packed tensor. */
static int refuse(PyObject *func, plan_refusal refusal)
{
    switch (refusal) {
    case REFUSE_METADATA:
        PyErr_Format(
            PyExc_RuntimeError,
            "%S would change the size, strides or storage of an AWQPackedTensor in place, which its payload cannot "
            "follow; work on its codes (p.unpack(), or p + 0 where a transform such as vmap hides unpack) and pack the "
            "result",
            func);
        return -1;
    case REFUSE_RECEIVE:
        PyErr_Format(
            PyExc_RuntimeError,
            "%S cannot receive into an AWQPackedTensor; receive its p.payload, or plain codes and p.copy_ them", func);
        return -1;
    case REFUSE_NOTHING: break;
    }
    return 0;
}

/* copy_(packed, tensor, non_blocking), and whether that is what is called: 1, 0, or -1 with an exception. */
static int copy_directly(PyObject *func, PyObject *args, PyObject *kwargs, PyObject **result)
{
    const Py_ssize_t count = PyTuple_Size(args);
    if (func != awqpack.aten_copy_ || count < 2 || !plain_is_tensor(PyTuple_GetItem(args, 1))) {
        return 0;
    }
    PyObject *named = kwargs == NULL ? NULL : PyDict_GetItem(kwargs, awqpack.names.non_blocking);
    PyObject *non_blocking = Py_NewRef(count > 2 ? PyTuple_GetItem(args, 2) : named == NULL ? Py_False : named);
    *result = copy_into_packed(PyTuple_GetItem(args, 0), PyTuple_GetItem(args, 1), non_blocking);
    Py_DECREF(non_blocking);
    return *result == NULL ? -1 : 1;
}

PyObject *write_packed(PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs)
{
    PyObject *result = NULL;
    int writes_packed = 0, writes_lists = plan->written_count > 1;
    for (Py_ssize_t w = 0; writes_packed == 0 && w < plan->written_count; w++) {
        PyObject *argument = plan_given(&plan->written[w], args, kwargs);
        writes_packed = argument == NULL ? 0 : plain_holds_packed(argument);
        writes_lists |= argument != NULL && !plain_is_tensor(argument);
    }
    if (writes_packed < 0 || (writes_packed && refuse(func, plan->refusal) < 0)) {
        return NULL;
    }
    /* A list of plain tensors may hold the payload of a packed one that is read. */
    if (!writes_packed && !writes_lists) {
        return plain_run(func, args, kwargs);
    }
    if (writes_packed && copy_directly(func, args, kwargs, &result) != 0) {
        return result;
    }
    stand_ins state = {0};
    if (stand_ins_collect(&state, func, plan, args, kwargs) == 0) {
        result = writes_packed ? run_and_commit(func, plan, args, kwargs, &state)
                               : stand_ins_run(&state, func, args, kwargs);
    }
    stand_ins_clear(&state);
    return result;
}

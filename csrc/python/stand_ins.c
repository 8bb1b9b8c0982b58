/* Codes in the place of packed tensors while an op runs that writes: those that share memory share codes as they do. */
#include "stand_ins.h"

#include <string.h>

#include "fields.h"
#include "plain.h"

/* The stand-in of a tensor, or NULL. */
static stand_in *find(const stand_ins *state, PyObject *tensor)
{
    for (Py_ssize_t i = 0; i < state->count; i++) {
        if (state->items[i].tensor == tensor) {
            return &state->items[i];
        }
    }
    return NULL;
}

/* That of a tensor that has none yet. NULL with an exception. */
static stand_in *append(stand_ins *state, PyObject *tensor)
{
    packed_fields fields = {0};
    if (state->count == state->room) {
        const Py_ssize_t wanted = state->room == 0 ? 4 : 2 * state->room;
        stand_in *grown = PyMem_Realloc(state->items, (size_t)wanted * sizeof *grown);
        if (grown == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        state->items = grown;
        state->room = wanted;
    }
    if (awqpack_is_packed(tensor) && packed_fields_get(tensor, &fields) < 0) {
        return NULL;
    }
    stand_in *item = &state->items[state->count];
    *item = (stand_in){.tensor = Py_NewRef(tensor), .payload = Py_XNewRef(fields.payload), .root = state->count++};
    item->packing = fields.payload == NULL ? 0 : awqpack_packing_of(fields.packing, fields.reorder);
    item->has_memory = memory_of(fields.payload == NULL ? tensor : fields.payload, &item->memory);
    packed_fields_clear(&fields);
    return item->has_memory < 0 ? NULL : item;
}

/* Plain_replacers that only note what they see. A plain tensor is noted as often as it is met: a list may have
   thousands. */
static PyObject *note(stand_ins *state, PyObject *tensor, int is_written)
{
    stand_in *item = awqpack_is_packed(tensor) ? find(state, tensor) : NULL;
    item = item == NULL ? append(state, tensor) : item;
    if (item == NULL) {
        return NULL;
    }
    item->is_written |= is_written;
    state->write_count += is_written;
    return Py_NewRef(tensor);
}

static PyObject *note_read(void *state, PyObject *tensor)
{
    return note(state, tensor, 0);
}

static PyObject *note_written(void *state, PyObject *tensor)
{
    return note(state, tensor, 1);
}

static int note_all(stand_ins *state, const op_plan *plan, PyObject *args, PyObject *kwargs)
{
    for (Py_ssize_t w = 0; w < plan->written_count; w++) {
        PyObject *argument = plan_given(&plan->written[w], args, kwargs);
        PyObject *seen = argument == NULL ? Py_NewRef(Py_None) : plain_replace(argument, note_written, state);
        Py_XDECREF(seen);
        if (seen == NULL) {
            return -1;
        }
    }
    /* Packed ones that are written are noted already, and stay so. */
    PyObject *seen = plain_replace(args, note_read, state);
    PyObject *named = seen == NULL || kwargs == NULL ? NULL : plain_replace(kwargs, note_read, state);
    const int failed = seen == NULL || (kwargs != NULL && named == NULL);
    Py_XDECREF(seen);
    Py_XDECREF(named);
    return failed ? -1 : 0;
}

/* 1 when the codes of a part of a payload are a rectangle of the whole's: it begins and ends with blocks. */
static int is_rectangle(const stand_in *part, const int64_t *starts)
{
    const int last = part->memory.ndim - 1;
    const int items = awq_block_items(&awq_packings[part->packing]);
    return last >= 1 && starts[last] % items == 0 && part->memory.sizes[last] % items == 0;
}

static int64_t item_count(const memory_layout *memory)
{
    int64_t count = 1;
    for (int d = 0; d < memory->ndim; d++) {
        count *= memory->sizes[d];
    }
    return count;
}

/* 1 when `inner` may take its codes from those of `outer`. */
static int can_share(const stand_in *outer, const stand_in *inner, int64_t *starts)
{
    if (outer == inner || outer->payload == NULL || outer->packing != inner->packing) {
        return 0;
    }
    if (!outer->has_memory || !inner->has_memory) { /* fake, traced or empty ones: twins have one payload */
        return outer->payload == inner->payload && outer < inner;
    }
    if (memory_relate(&outer->memory, &inner->memory, starts) != MEMORY_INSIDE || !is_rectangle(inner, starts)) {
        return 0;
    }
    const int64_t outer_count = item_count(&outer->memory), inner_count = item_count(&inner->memory);
    return outer_count > inner_count || (outer_count == inner_count && outer < inner);
}

/* Notes which other payload, the largest there is, holds all of a packed tensor's. */
static void find_root(const stand_ins *state, stand_in *item)
{
    int64_t starts[MEMORY_MAX_DIMS] = {0}, largest = -1;
    for (Py_ssize_t i = 0; i < state->count; i++) {
        const stand_in *other = &state->items[i];
        if (can_share(other, item, starts)) {
            const int64_t count = other->has_memory ? item_count(&other->memory) : 0;
            if (count > largest) {
                largest = count;
                item->root = i;
                memcpy(item->starts, starts, sizeof starts);
            }
        }
    }
}

static Py_ssize_t last_root(const stand_ins *state, Py_ssize_t index)
{
    while (state->items[index].root != index) {
        index = state->items[index].root;
    }
    return index;
}

/* 1 when two arguments, one of them written, lie in the same bytes. */
static int are_entangled(const stand_in *a, const stand_in *b)
{
    int64_t starts[MEMORY_MAX_DIMS];
    return (a->is_written || b->is_written) && a->has_memory && b->has_memory &&
           memory_relate(&a->memory, &b->memory, starts) != MEMORY_APART;
}

/* Refuses what only torch's order of steps could say the result of: what a single write reads it reads before. */
static int refuse_entangled(const stand_ins *state, PyObject *func)
{
    int found = 0;
    for (Py_ssize_t i = 0; i < state->count && state->write_count > 1; i++) {
        for (Py_ssize_t j = 0; state->items[i].payload != NULL && j < state->count; j++) {
            found |= last_root(state, i) != last_root(state, j) && are_entangled(&state->items[i], &state->items[j]);
        }
    }
    if (found) {
        PyErr_Format(PyExc_RuntimeError,
                     "%S got tensors to write that share memory with the payload of an AWQPackedTensor in part, in "
                     "another packing "
                     "or as its payload; write them in one call each",
                     func);
    }
    return found ? -1 : 0;
}

int stand_ins_collect(stand_ins *state, PyObject *func, const op_plan *plan, PyObject *args, PyObject *kwargs)
{
    if (note_all(state, plan, args, kwargs) < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < state->count; i++) {
        if (state->items[i].payload != NULL) {
            find_root(state, &state->items[i]);
        }
    }
    return refuse_entangled(state, func);
}

/* tensor.narrow(dim, start, length). Takes the tensor over, which may be NULL with an exception. */
static PyObject *narrow(PyObject *tensor, int dim, int64_t start, int64_t length)
{
    PyObject *result =
        tensor == NULL ? NULL : PyObject_CallMethod(tensor, "narrow", "iLL", dim, (long long)start, (long long)length);
    Py_XDECREF(tensor);
    return result;
}

/* The codes of a part, in those of the whole. */
static PyObject *narrow_codes(const stand_in *part, PyObject *codes)
{
    const awq_packing_traits *traits = &awq_packings[part->packing];
    const int items = awq_block_items(traits), line = part->memory.ndim - 2, along = line + 1;
    const int row_dim = traits->runs_down ? along : line, col_dim = traits->runs_down ? line : along;
    const int64_t *starts = part->starts, *sizes = part->memory.sizes;
    PyObject *result = Py_NewRef(codes);
    for (int d = 0; d < line; d++) {
        result = narrow(result, d, starts[d], sizes[d]);
    }
    const int row_items = traits->runs_down ? items : 1, col_items = traits->runs_down ? 1 : items;
    result = narrow(result, line, starts[row_dim] / row_items * traits->block_rows,
                    sizes[row_dim] / row_items * traits->block_rows);
    return narrow(result, along, starts[col_dim] / col_items * traits->block_cols,
                  sizes[col_dim] / col_items * traits->block_cols);
}

/* The codes that stand in for a packed tensor: borrowed, unpacked when they are first asked for. */
static PyObject *codes_of(stand_ins *state, stand_in *item)
{
    stand_in *root = &state->items[item->root];
    if (item->codes == NULL && root == item) {
        item->codes = packed_unpack(item->tensor, NULL);
    } else if (item->codes == NULL) {
        PyObject *whole = codes_of(state, root);
        item->codes = whole == NULL ? NULL : item->has_memory ? narrow_codes(item, whole) : Py_NewRef(whole);
    }
    return item->codes;
}

static PyObject *stand_in_for(void *data, PyObject *tensor)
{
    stand_ins *state = data;
    if (!awqpack_is_packed(tensor)) {
        return Py_NewRef(tensor);
    }
    stand_in *item = find(state, tensor);
    if (item == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the arguments of an op on AWQPackedTensors changed while it began");
        return NULL;
    }
    return Py_XNewRef(codes_of(state, item));
}

PyObject *stand_ins_run(stand_ins *state, PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *result = NULL;
    PyObject *plain_args = plain_replace(args, stand_in_for, state);
    PyObject *plain_kwargs = plain_args == NULL || kwargs == NULL ? NULL : plain_replace(kwargs, stand_in_for, state);
    if (plain_args != NULL && (kwargs == NULL || plain_kwargs != NULL)) {
        result = PyObject_Call(func, plain_args, plain_kwargs);
    }
    Py_XDECREF(plain_args);
    Py_XDECREF(plain_kwargs);
    return result;
}

int stand_ins_back_up(stand_ins *state)
{
    for (Py_ssize_t i = 0; i < state->count; i++) {
        stand_in *item = &state->items[i];
        if (item->is_written && item->payload == NULL) {
            item->before = PyObject_CallMethodObjArgs(item->tensor, awqpack.names.clone, NULL);
            if (item->before == NULL) {
                return -1;
            }
        }
    }
    return 0;
}

/* Gives a plain tensor the size and values it had before. */
static int restore(PyObject *target, PyObject *before)
{
    PyObject *shape = PyObject_GetAttr(before, awqpack.names.shape);
    PyObject *now = shape == NULL ? NULL : PyObject_GetAttr(target, awqpack.names.shape);
    const int is_same = now == NULL ? -1 : PyObject_RichCompareBool(shape, now, Py_EQ);
    PyObject *resized = is_same == 0 ? PyObject_CallMethodObjArgs(target, awqpack.names.resize_, shape, NULL) : NULL;
    PyObject *copied =
        is_same > 0 || resized != NULL ? PyObject_CallMethodObjArgs(target, awqpack.names.copy_, before, NULL) : NULL;
    Py_XDECREF(shape);
    Py_XDECREF(now);
    Py_XDECREF(resized);
    Py_XDECREF(copied);
    return copied == NULL ? -1 : 0;
}

void stand_ins_roll_back(const stand_ins *state)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (Py_ssize_t i = state->count - 1; i >= 0; i--) {
        const stand_in *item = &state->items[i];
        if (item->before != NULL && restore(item->tensor, item->before) < 0) {
            PyErr_WriteUnraisable(item->tensor);
        }
    }
    PyErr_Restore(type, value, trace);
}

void stand_ins_clear(stand_ins *state)
{
    for (Py_ssize_t i = 0; i < state->count; i++) {
        Py_DECREF(state->items[i].tensor);
        Py_XDECREF(state->items[i].payload);
        Py_XDECREF(state->items[i].codes);
        Py_XDECREF(state->items[i].before);
    }
    PyMem_Free(state->items);
}

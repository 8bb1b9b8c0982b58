/* Codes in the place of packed tensors while an op runs that writes: those that share memory share codes as they do. */
#include "stand_ins.h"

#include "fields.h"
#include "plain.h"

/* Makes room for another item. */
static int grow(void **items, Py_ssize_t count, Py_ssize_t *room, size_t size)
{
    if (count < *room) {
        return 0;
    }
    const Py_ssize_t wanted = *room == 0 ? 4 : 2 * *room;
    void *grown = PyMem_Realloc(*items, (size_t)wanted * size);
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *items = grown;
    *room = wanted;
    return 0;
}

/* The stand-in of a tensor, or NULL. */
static stand_in *find(const stand_ins *state, PyObject *packed)
{
    for (Py_ssize_t i = 0; i < state->packed_count; i++) {
        if (state->packed[i].packed == packed) {
            return &state->packed[i];
        }
    }
    return NULL;
}

static int note_packed(stand_ins *state, PyObject *packed, int is_written)
{
    packed_fields fields;
    stand_in *known = find(state, packed);
    if (known != NULL) {
        known->is_written |= is_written;
        return 0;
    }
    if (grow((void **)&state->packed, state->packed_count, &state->packed_room, sizeof *state->packed) < 0 ||
        packed_fields_get(packed, &fields) < 0) {
        return -1;
    }
    stand_in *item = &state->packed[state->packed_count];
    *item = (stand_in){.packed = Py_NewRef(packed), .payload = Py_NewRef(fields.payload), .is_written = is_written};
    item->root = state->packed_count++;
    item->packing = awqpack_packing_of(fields.packing, fields.reorder);
    item->has_memory = memory_of(fields.payload, &item->memory);
    packed_fields_clear(&fields);
    return item->has_memory < 0 ? -1 : 0;
}

static int note_plain(stand_ins *state, PyObject *tensor, int is_written)
{
    if (grow((void **)&state->plain, state->plain_count, &state->plain_room, sizeof *state->plain) < 0) {
        return -1;
    }
    stand_by *item = &state->plain[state->plain_count++];
    *item = (stand_by){.tensor = Py_NewRef(tensor), .is_written = is_written};
    item->has_memory = memory_of(tensor, &item->memory);
    return item->has_memory < 0 ? -1 : 0;
}

/* Plain_replacers that only note what they see. */
static PyObject *note(stand_ins *state, PyObject *tensor, int is_written)
{
    const int status =
        awqpack_is_packed(tensor) ? note_packed(state, tensor, is_written) : note_plain(state, tensor, is_written);
    return status < 0 ? NULL : Py_NewRef(tensor);
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
    /* Those that are written are noted already: the packed ones stay what they are, the plain ones say the same
       again. */
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

/* 1 when `part` may take its codes from those of `whole`. */
static int can_share(const stand_ins *state, Py_ssize_t whole, Py_ssize_t part, int64_t *starts)
{
    const stand_in *outer = &state->packed[whole], *inner = &state->packed[part];
    if (outer->packing != inner->packing) {
        return 0;
    }
    if (!outer->has_memory || !inner->has_memory) { /* fake, traced or empty ones: twins have one payload */
        return outer->payload == inner->payload && whole < part;
    }
    if (memory_relate(&outer->memory, &inner->memory, starts) != MEMORY_INSIDE || !is_rectangle(inner, starts)) {
        return 0;
    }
    const int64_t outer_count = item_count(&outer->memory), inner_count = item_count(&inner->memory);
    return outer_count > inner_count || (outer_count == inner_count && whole < part);
}

static void find_root(const stand_ins *state, Py_ssize_t index)
{
    stand_in *item = &state->packed[index];
    int64_t starts[MEMORY_MAX_DIMS] = {0}, largest = -1;
    for (Py_ssize_t other = 0; other < state->packed_count; other++) {
        if (other != index && can_share(state, other, index, starts)) {
            const int64_t count = state->packed[other].has_memory ? item_count(&state->packed[other].memory) : 0;
            if (count > largest) {
                largest = count;
                item->root = other;
                for (int d = 0; d < MEMORY_MAX_DIMS; d++) {
                    item->starts[d] = starts[d];
                }
            }
        }
    }
}

static Py_ssize_t last_root(const stand_ins *state, Py_ssize_t index)
{
    while (state->packed[index].root != index) {
        index = state->packed[index].root;
    }
    return index;
}

/* 1 when two arguments, one of them written, lie in the same bytes and only torch's order of steps could say what comes
   of it. What a single write reads it reads before. */
static int are_entangled(const stand_ins *state, const memory_layout *a, int is_a_written, const memory_layout *b,
                         int is_b_written)
{
    int64_t starts[MEMORY_MAX_DIMS];
    return (is_a_written || is_b_written) && state->written_count > 1 && memory_spans_overlap(&a->span, &b->span) &&
           memory_relate(a, b, starts) != MEMORY_APART;
}

static int refuse_entangled(const stand_ins *state, PyObject *func)
{
    int found = 0;
    for (Py_ssize_t i = 0; i < state->packed_count && state->written_count > 1; i++) {
        const stand_in *item = &state->packed[i];
        for (Py_ssize_t j = i + 1; item->has_memory && j < state->packed_count; j++) {
            const stand_in *other = &state->packed[j];
            found |= other->has_memory && last_root(state, i) != last_root(state, j) &&
                     are_entangled(state, &item->memory, item->is_written, &other->memory, other->is_written);
        }
        for (Py_ssize_t j = 0; item->has_memory && j < state->plain_count; j++) {
            const stand_by *other = &state->plain[j];
            found |= other->has_memory &&
                     are_entangled(state, &item->memory, item->is_written, &other->memory, other->is_written);
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
    for (Py_ssize_t i = 0; i < state->packed_count; i++) {
        state->written_packed_count += state->packed[i].is_written;
        if (state->packed_count > 1) {
            find_root(state, i);
        }
    }
    state->written_count = state->written_packed_count;
    for (Py_ssize_t i = 0; i < state->plain_count; i++) {
        state->written_count += state->plain[i].is_written;
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
static PyObject *codes_of(stand_ins *state, Py_ssize_t index)
{
    if (state->packed[index].codes != NULL) {
        return state->packed[index].codes;
    }
    const Py_ssize_t root = state->packed[index].root;
    PyObject *codes = NULL;
    if (root == index) {
        codes = packed_unpack(state->packed[index].packed, NULL);
    } else {
        PyObject *whole = codes_of(state, root);
        codes = whole == NULL                     ? NULL
                : state->packed[index].has_memory ? narrow_codes(&state->packed[index], whole)
                                                  : Py_NewRef(whole);
    }
    state->packed[index].codes = codes;
    return codes;
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
    return Py_XNewRef(codes_of(state, item - state->packed));
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
    for (Py_ssize_t i = 0; i < state->plain_count; i++) {
        stand_by *item = &state->plain[i];
        if (item->is_written) {
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
    for (Py_ssize_t i = state->plain_count - 1; i >= 0; i--) {
        const stand_by *item = &state->plain[i];
        if (item->before != NULL && restore(item->tensor, item->before) < 0) {
            PyErr_WriteUnraisable(item->tensor);
        }
    }
    PyErr_Restore(type, value, trace);
}

void stand_ins_clear(stand_ins *state)
{
    for (Py_ssize_t i = 0; i < state->packed_count; i++) {
        Py_DECREF(state->packed[i].packed);
        Py_DECREF(state->packed[i].payload);
        Py_XDECREF(state->packed[i].codes);
    }
    for (Py_ssize_t i = 0; i < state->plain_count; i++) {
        Py_DECREF(state->plain[i].tensor);
        Py_XDECREF(state->plain[i].before);
    }
    PyMem_Free(state->packed);
    PyMem_Free(state->plain);
}

/* Reads an op's schema once and keeps what it says about packed arguments. */
#include "plan.h"

#include <string.h>

/* Views that drop a dimension, ops about the memory a tensor rests in, and what torch asks before it moves a
   parameter. */
static plan_kind special_kind(const char *name)
{
    static const struct {
        const char *name;
        plan_kind kind;
    } specials[] = {
        {"aten::select", PLAN_PART},
        {"aten::unbind", PLAN_PART},
        {"aten::diagonal", PLAN_PART},
        {"aten::to", PLAN_DECOMPOSE},
        {"aten::is_pinned", PLAN_ON_PAYLOAD},
        {"aten::record_stream", PLAN_ON_PAYLOAD},
        {"aten::pin_memory", PLAN_PIN},
        {"aten::_pin_memory", PLAN_PIN},
        {"aten::empty_like", PLAN_EMPTY},
        {"aten::dequantize", PLAN_DEQUANTIZE},
        {"aten::_has_compatible_shallow_copy_type", PLAN_INCOMPATIBLE},
    };
    for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++) {
        if (strcmp(name, specials[i].name) == 0) {
            return specials[i].kind;
        }
    }
    return PLAN_READ;
}

/* The alias set an argument or return writes into, as a new set; None when it is not written; NULL with an
   exception. */
static PyObject *written_set(PyObject *value)
{
    PyObject *result = NULL;
    PyObject *info = PyObject_GetAttr(value, awqpack.names.alias_info);
    if (info == NULL || info == Py_None) {
        return info;
    }
    PyObject *is_write = PyObject_GetAttr(info, awqpack.names.is_write);
    if (is_write == Py_True) {
        result = PyObject_GetAttr(info, awqpack.names.before_set);
    } else if (is_write != NULL) {
        result = Py_NewRef(Py_None);
    }
    Py_XDECREF(is_write);
    Py_DECREF(info);
    return result;
}

/* A new sequence of the schema's, as a tuple. */
static PyObject *schema_part(PyObject *schema, PyObject *name)
{
    PyObject *part = PyObject_GetAttr(schema, name);
    PyObject *result = part == NULL ? NULL : PySequence_Tuple(part);
    Py_XDECREF(part);
    return result;
}

/* Room for `count` items, at least one, zeroed. NULL with an exception. */
static void *new_array(Py_ssize_t count, size_t item)
{
    void *result = PyMem_Calloc((size_t)count + 1, item);
    return result == NULL ? PyErr_NoMemory() : result;
}

/* Notes the arguments that the schema writes. c10d's collectives write into their first one, and say so only by the
   underscore that ends their name. */
static int note_written(op_plan *plan, PyObject *arguments)
{
    const Py_ssize_t count = PyTuple_Size(arguments);
    plan->written = new_array(count, sizeof *plan->written);
    int status = plan->written == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < count; i++) {
        PyObject *argument = PyTuple_GetItem(arguments, i);
        PyObject *name = PyObject_GetAttr(argument, awqpack.names.name);
        PyObject *set = name == NULL ? NULL : written_set(argument);
        status = set == NULL ? -1 : 0;
        if (status == 0 && (set != Py_None || (plan->collective == RETURNS_WORK && i == 0))) {
            plan->written[plan->written_count++] = (plan_argument){i, Py_NewRef(name), Py_NewRef(set)};
        }
        Py_XDECREF(name);
        Py_XDECREF(set);
    }
    return status;
}

/* Notes which return is which written argument. */
static int note_sources(op_plan *plan, PyObject *returns)
{
    const Py_ssize_t count = PyTuple_Size(returns);
    plan->sources = new_array(count, sizeof *plan->sources);
    int status = plan->sources == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < count; i++) {
        PyObject *set = written_set(PyTuple_GetItem(returns, i));
        status = set == NULL ? -1 : 0;
        plan->sources[i] = -1;
        for (Py_ssize_t w = 0; status == 0 && set != Py_None && w < plan->written_count; w++) {
            const int is_same = PyObject_RichCompareBool(plan->written[w].alias_set, set, Py_EQ);
            status = is_same < 0 ? -1 : 0;
            plan->sources[i] = is_same > 0 ? w : plan->sources[i];
        }
        Py_XDECREF(set);
    }
    plan->return_count = count;
    return status;
}

/* 1 when a return aliases an argument: torch then treats the op as a view. */
static int returns_alias(PyObject *returns)
{
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyTuple_Size(returns); i++) {
        PyObject *info = PyObject_GetAttr(PyTuple_GetItem(returns, i), awqpack.names.alias_info);
        result = info == NULL ? -1 : info != Py_None;
        Py_XDECREF(info);
    }
    return result;
}

/* 1 when the op is tagged as changing its argument's size or strides in place. */
static int changes_metadata(PyObject *func)
{
    PyObject *tags = PyObject_GetAttrString(func, "tags");
    const int result = tags == NULL ? -1 : PySequence_Contains(tags, awqpack.inplace_view);
    Py_XDECREF(tags);
    return result;
}

/* Where there is an argument of that name: -1 when nowhere, -2 with an exception. */
static Py_ssize_t argument_position(PyObject *arguments, const char *wanted)
{
    for (Py_ssize_t i = 0; i < PyTuple_Size(arguments); i++) {
        PyObject *name = PyObject_GetAttr(PyTuple_GetItem(arguments, i), awqpack.names.name);
        const int is_it = name == NULL ? -1 : PyUnicode_CompareWithASCIIString(name, wanted) == 0;
        Py_XDECREF(name);
        if (is_it != 0) {
            return is_it < 0 ? -2 : i;
        }
    }
    return -1;
}

static int begins_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* Fills in what the schema of an op that is no special one says. */
static int read_schema(op_plan *plan, PyObject *func, const char *name, PyObject *arguments, PyObject *returns)
{
    plan->collective = begins_with(name, "c10d::") && name[strlen(name) - 1] == '_' ? RETURNS_WORK
                       : begins_with(name, "_c10d_functional")                      ? WAIT_TENSOR
                                                                                    : NO_COLLECTIVE;
    if (note_written(plan, arguments) < 0) {
        return -1;
    }
    if (plan->written_count == 0) {
        const int is_view = returns_alias(returns);
        plan->kind = is_view > 0 ? PLAN_VIEW : PLAN_READ;
        return is_view < 0 ? -1 : 0;
    }
    const int is_metadata = note_sources(plan, returns) < 0 ? -1 : changes_metadata(func);
    plan->kind = PLAN_WRITE;
    plan->refusal = is_metadata > 0                    ? REFUSE_METADATA
                    : begins_with(name, "c10d::recv_") ? REFUSE_RECEIVE
                                                       : REFUSE_NOTHING;
    plan->async_op = plan->collective == RETURNS_WORK ? argument_position(arguments, "async_op") : -1;
    return is_metadata < 0 || plan->async_op < -1 ? -1 : 0;
}

static void delete_plan(op_plan *plan)
{
    for (Py_ssize_t w = 0; w < plan->written_count; w++) {
        Py_DECREF(plan->written[w].name);
        Py_DECREF(plan->written[w].alias_set);
    }
    PyMem_Free(plan->written);
    PyMem_Free(plan->sources);
    PyMem_Free(plan);
}

/* A capsule of the plan of an op. */
static PyObject *make_plan(PyObject *func)
{
    PyObject *arguments = NULL, *returns = NULL, *capsule = NULL;
    op_plan *plan = new_array(0, sizeof *plan);
    PyObject *schema = plan == NULL ? NULL : PyObject_GetAttr(func, awqpack.names._schema);
    PyObject *name = schema == NULL ? NULL : PyObject_GetAttr(schema, awqpack.names.name);
    const char *text = name == NULL ? NULL : PyUnicode_AsUTF8AndSize(name, NULL);
    if (text != NULL) {
        plan->async_op = -1;
        plan->kind = special_kind(text);
        arguments = schema_part(schema, awqpack.names.arguments);
        returns = arguments == NULL ? NULL : schema_part(schema, awqpack.names.returns);
    }
    if (returns != NULL && (plan->kind != PLAN_READ || read_schema(plan, func, text, arguments, returns) == 0)) {
        capsule = PyCapsule_New(plan, NULL, NULL);
    }
    if (plan != NULL && capsule == NULL) {
        delete_plan(plan);
    }
    Py_XDECREF(schema);
    Py_XDECREF(name);
    Py_XDECREF(arguments);
    Py_XDECREF(returns);
    return capsule;
}

const op_plan *plan_of(PyObject *func)
{
    PyObject *capsule = PyDict_GetItemWithError(awqpack.plans, func); /* which keeps what it has */
    if (capsule == NULL && !PyErr_Occurred()) {
        /* Never let go: another thread may put its own in this one's place. */
        capsule = make_plan(func);
        if (capsule != NULL && PyDict_SetItem(awqpack.plans, func, capsule) < 0) {
            capsule = NULL;
        }
    }
    return capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, NULL);
}

PyObject *plan_given(const plan_argument *argument, PyObject *args, PyObject *kwargs)
{
    if (argument->position < PyTuple_Size(args)) {
        return PyTuple_GetItem(args, argument->position);
    }
    return kwargs == NULL ? NULL : PyDict_GetItem(kwargs, argument->name);
}

/* How each op treats packed arguments, read from its schema the first time it is seen. */
#include "awqpackmodule.h"

#include <string.h>

/* Ops that are about the memory a tensor rests in, or that torch asks before it moves a parameter. */
static long special_kind(const char *name)
{
    static const struct {
        const char *name;
        awqpack_plan_kind kind;
    } specials[] = {
        {"aten::to", AWQPACK_PLAN_DECOMPOSE},
        {"aten::is_pinned", AWQPACK_PLAN_ON_PAYLOAD},
        {"aten::record_stream", AWQPACK_PLAN_ON_PAYLOAD},
        {"aten::pin_memory", AWQPACK_PLAN_PIN},
        {"aten::_pin_memory", AWQPACK_PLAN_PIN},
        {"aten::_has_compatible_shallow_copy_type", AWQPACK_PLAN_INCOMPATIBLE},
    };
    for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++) {
        if (strcmp(name, specials[i].name) == 0) {
            return specials[i].kind;
        }
    }
    return 0;
}

/* The alias set an argument or return writes into, as a new set; None when it is not written; NULL with an exception. */
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
        result = Py_None;
        Py_INCREF(result);
    }
    Py_XDECREF(is_write);
    Py_DECREF(info);
    return result;
}

/* [(position, name, alias set)] of the arguments that the schema writes. c10d's collectives write into their first argument,
   and say so only by the underscore that ends their name. */
static PyObject *written_arguments(PyObject *schema, int is_collective)
{
    PyObject *written = PyList_New(0);
    PyObject *arguments = PyObject_GetAttr(schema, awqpack.names.arguments);
    const Py_ssize_t count = arguments == NULL || written == NULL ? -1 : PySequence_Size(arguments);
    int failed = count < 0;
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        PyObject *argument = PySequence_GetItem(arguments, i);
        PyObject *name = argument == NULL ? NULL : PyObject_GetAttr(argument, awqpack.names.name);
        PyObject *set = name == NULL ? NULL : written_set(argument);
        failed = set == NULL;
        if (!failed && (set != Py_None || (is_collective && i == 0))) {
            PyObject *entry = Py_BuildValue("(nOO)", i, name, set);
            failed = entry == NULL || PyList_Append(written, entry) < 0;
            Py_XDECREF(entry);
        }
        Py_XDECREF(argument);
        Py_XDECREF(name);
        Py_XDECREF(set);
    }
    Py_XDECREF(arguments);
    if (failed) {
        Py_CLEAR(written);
    }
    return written;
}

/* For each return, the index in `written` of the argument that it is, or -1. */
static PyObject *return_sources(PyObject *schema, PyObject *written)
{
    PyObject *sources = PyList_New(0);
    PyObject *returns = PyObject_GetAttr(schema, awqpack.names.returns);
    const Py_ssize_t count = returns == NULL || sources == NULL ? -1 : PySequence_Size(returns);
    int failed = count < 0;
    for (Py_ssize_t i = 0; !failed && i < count; i++) {
        long source = -1;
        PyObject *value = PySequence_GetItem(returns, i);
        PyObject *set = value == NULL ? NULL : written_set(value);
        failed = set == NULL;
        for (Py_ssize_t w = 0; !failed && set != Py_None && w < PyList_Size(written); w++) {
            const int same = PyObject_RichCompareBool(PyTuple_GetItem(PyList_GetItem(written, w), 2), set, Py_EQ);
            failed = same < 0;
            source = same > 0 ? (long)w : source;
        }
        PyObject *number = failed ? NULL : PyLong_FromLong(source);
        failed = number == NULL || PyList_Append(sources, number) < 0;
        Py_XDECREF(number);
        Py_XDECREF(value);
        Py_XDECREF(set);
    }
    Py_XDECREF(returns);
    if (failed) {
        Py_CLEAR(sources);
    }
    return sources;
}

/* 1 when a return aliases an argument: torch then treats the op as a view. */
static int returns_alias(PyObject *schema)
{
    PyObject *returns = PyObject_GetAttr(schema, awqpack.names.returns);
    const Py_ssize_t count = returns == NULL ? -1 : PySequence_Size(returns);
    int result = count < 0 ? -1 : 0;
    for (Py_ssize_t i = 0; result == 0 && i < count; i++) {
        PyObject *value = PySequence_GetItem(returns, i);
        PyObject *info = value == NULL ? NULL : PyObject_GetAttr(value, awqpack.names.alias_info);
        result = info == NULL ? -1 : info != Py_None;
        Py_XDECREF(value);
        Py_XDECREF(info);
    }
    Py_XDECREF(returns);
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

/* Where the schema has an argument of that name: -1 when nowhere, -2 with an exception. */
static Py_ssize_t argument_position(PyObject *schema, const char *wanted)
{
    PyObject *arguments = PyObject_GetAttr(schema, awqpack.names.arguments);
    const Py_ssize_t count = arguments == NULL ? -1 : PySequence_Size(arguments);
    Py_ssize_t result = count < 0 ? -2 : -1;
    for (Py_ssize_t i = 0; result == -1 && i < count; i++) {
        PyObject *argument = PySequence_GetItem(arguments, i);
        PyObject *name = argument == NULL ? NULL : PyObject_GetAttr(argument, awqpack.names.name);
        result = name == NULL ? -2 : PyUnicode_CompareWithASCIIString(name, wanted) == 0 ? i : -1;
        Py_XDECREF(argument);
        Py_XDECREF(name);
    }
    Py_XDECREF(arguments);
    return result;
}

static PyObject *make_plan(PyObject *func)
{
    PyObject *plan = NULL, *written = NULL, *sources = NULL, *name = NULL;
    PyObject *schema = PyObject_GetAttr(func, awqpack.names._schema);
    name = schema == NULL ? NULL : PyObject_GetAttr(schema, awqpack.names.name);
    const char *text = name == NULL ? NULL : PyUnicode_AsUTF8AndSize(name, NULL);
    if (text == NULL) {
        goto done;
    }
    const long kind = special_kind(text);
    if (kind != 0) {
        plan = PyLong_FromLong(kind);
        goto done;
    }
    const awqpack_collective collective = strncmp(text, "c10d::", 6) == 0 && text[strlen(text) - 1] == '_' ? AWQPACK_RETURNS_WORK
                                          : strncmp(text, "_c10d_functional", 16) == 0 ? AWQPACK_WAIT_TENSOR
                                                                                       : AWQPACK_NO_COLLECTIVE;
    written = written_arguments(schema, collective == AWQPACK_RETURNS_WORK);
    if (written == NULL) {
        goto done;
    }
    if (PyList_Size(written) == 0) {
        const int is_view = returns_alias(schema);
        plan = is_view < 0 ? NULL : is_view ? PyLong_FromLong(AWQPACK_PLAN_VIEW) : Py_BuildValue("");
        goto done;
    }
    sources = return_sources(schema, written);
    const int is_metadata = sources == NULL ? -1 : changes_metadata(func);
    if (is_metadata >= 0) {
        const int refusal = is_metadata ? AWQPACK_REFUSE_METADATA
                            : strncmp(text, "c10d::recv_", 11) == 0 ? AWQPACK_REFUSE_RECEIVE
                                                                                     : AWQPACK_REFUSE_NOTHING;
        const Py_ssize_t async_op = collective == AWQPACK_RETURNS_WORK ? argument_position(schema, "async_op") : -1;
        plan = async_op < -1 ? NULL : Py_BuildValue("(OOiin)", written, sources, refusal, collective, async_op);
    }
done:
    Py_XDECREF(schema);
    Py_XDECREF(name);
    Py_XDECREF(written);
    Py_XDECREF(sources);
    return plan;
}

PyObject *awqpack_plan_of(PyObject *func)
{
    PyObject *plan = PyDict_GetItemWithError(awqpack.plans, func);
    if (plan != NULL || PyErr_Occurred()) {
        Py_XINCREF(plan);
        return plan;
    }
    plan = make_plan(func);
    if (plan != NULL && PyDict_SetItem(awqpack.plans, func, plan) < 0) {
        Py_CLEAR(plan);
    }
    return plan;
}

/* Which of torch's modes are on, and guards that turn some off. */
#include "modes.h"

/* question(), without the detour through the type where the question is a C function. */
static PyObject *ask(PyObject *question)
{
    return PyCFunction_CheckExact(question) && PyCFunction_GetFlags(question) == METH_NOARGS
               ? PyCFunction_GetFunction(question)(PyCFunction_GetSelf(question), NULL)
               : PyObject_CallNoArgs(question);
}

/* 1 when all of the questions are answered with nothing. */
static int all_say_no(PyObject *const *questions, size_t count)
{
    int result = 1;
    for (size_t i = 0; result == 1 && i < count; i++) {
        PyObject *answer = ask(questions[i]);
        result = answer == NULL ? -1 : PyObject_Not(answer);
        Py_XDECREF(answer);
    }
    return result;
}

int awqpack_is_unmoded(void)
{
    PyObject *const questions[] = {awqpack.dispatch_depth, awqpack.function_depth, awqpack.is_inference_on,
                                   awqpack.functorch_level};
    return all_say_no(questions, sizeof questions / sizeof questions[0]);
}

int awqpack_is_unwatched(void)
{
    const int is_unmoded = awqpack_is_unmoded();
    return is_unmoded == 1 ? all_say_no(&awqpack.is_tracing, 1) : is_unmoded;
}

PyObject *awqpack_turn_dispatch_off(void)
{
    /* Calling the type would look its __init__ up each time. */
    PyTypeObject *type = (PyTypeObject *)awqpack.dispatch_off;
    const newfunc allocate = (newfunc)PyType_GetSlot(type, Py_tp_new);
    PyObject *none = PyTuple_New(0);
    PyObject *guard = none == NULL ? NULL : allocate(type, none, NULL);
    PyObject *done = guard == NULL ? NULL : PyObject_CallFunctionObjArgs(awqpack.dispatch_off_init, guard, NULL);
    if (done == NULL) {
        Py_CLEAR(guard);
    }
    Py_XDECREF(none);
    Py_XDECREF(done);
    return guard;
}

PyObject *awqpack_enter_view_mode(PyObject *self)
{
    PyObject *guard = NULL, *entered = NULL;
    PyObject *is_on = PyObject_CallFunctionObjArgs(awqpack.is_inference_on, NULL);
    PyObject *is_inside = is_on == Py_True ? PyObject_CallMethod(self, "is_inference", NULL) : NULL;
    if (is_on != NULL && (is_on == Py_False || is_inside == Py_True)) {
        guard = Py_BuildValue("");
    } else if (is_inside != NULL) {
        guard = PyObject_CallFunctionObjArgs(awqpack.inference_mode, Py_False, NULL);
        entered = guard == NULL ? NULL : PyObject_CallMethod(guard, "__enter__", NULL);
        if (entered == NULL) {
            Py_CLEAR(guard);
        }
    }
    Py_XDECREF(is_on);
    Py_XDECREF(is_inside);
    Py_XDECREF(entered);
    return guard;
}

void awqpack_leave_view_mode(PyObject *guard)
{
    if (guard != NULL && guard != Py_None) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyObject *left = PyObject_CallMethod(guard, "__exit__", "OOO", Py_None, Py_None, Py_None);
        Py_XDECREF(left);
        PyErr_Restore(type, value, trace);
    }
    Py_XDECREF(guard);
}

/* Stores new payloads in place of the old ones: the end of every write into packed tensors. */
#include "store.h"

#include "modes.h"

static int is_plain(PyObject *payload)
{
    return Py_TYPE(payload) == (PyTypeObject *)awqpack.tensor_type;
}

/* Moves the version counter of a tensor that was written below autograd. Inference tensors have none. */
static int mark_written(PyObject *tensor)
{
    PyObject *is_inference = PyObject_CallMethodObjArgs(tensor, awqpack.names.is_inference, NULL);
    PyObject *marked = is_inference == Py_True ? Py_NewRef(Py_None) : NULL;
    if (is_inference == Py_False) {
        PyObject *one = PyTuple_Pack(1, tensor);
        marked = one == NULL ? NULL : PyObject_CallFunctionObjArgs(awqpack.increment_version, one, NULL);
        Py_XDECREF(one);
    }
    Py_XDECREF(is_inference);
    Py_XDECREF(marked);
    return marked == NULL ? -1 : 0;
}

/* Keeps the payloads as they are, and says who saved them that they change. */
static int prepare(payload_store *stores, Py_ssize_t count)
{
    /* One store fails before it has written anything, unless a mode goes on after it. */
    const int is_unmoded = count > 1 ? 0 : awqpack_is_unmoded();
    int status = is_unmoded < 0 ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < count; i++) {
        if (!is_plain(stores[i].payload)) { /* in a trace, which has no versions and no values to go back to */
            continue;
        }
        if (!is_unmoded) {
            stores[i].before = PyObject_CallMethodObjArgs(stores[i].payload, awqpack.names.clone, NULL);
            status = stores[i].before == NULL ? -1 : 0;
        }
        if (status == 0) {
            status = mark_written(stores[i].payload) < 0 ? -1 : mark_written(stores[i].packed);
        }
    }
    return status;
}

/* Puts the old payloads back, last first; the exception that is set stays. */
static void undo(const payload_store *stores, Py_ssize_t count)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    for (Py_ssize_t i = count - 1; i >= 0; i--) {
        if (stores[i].before == NULL) {
            continue;
        }
        PyObject *copied = PyObject_CallMethodObjArgs(stores[i].payload, awqpack.names.copy_, stores[i].before, NULL);
        if (copied == NULL) {
            PyErr_WriteUnraisable(stores[i].payload);
        }
        Py_XDECREF(copied);
    }
    PyErr_Restore(type, value, trace);
}

int store_payloads(payload_store *stores, Py_ssize_t count, PyObject *non_blocking)
{
    if (prepare(stores, count) < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *copied =
            PyObject_CallMethodObjArgs(stores[i].payload, awqpack.names.copy_, stores[i].source, non_blocking, NULL);
        if (copied == NULL) {
            undo(stores, i + 1);
            return -1;
        }
        Py_DECREF(copied);
    }
    return 0;
}

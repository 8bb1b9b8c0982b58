/* Views of codes under torch.func's transforms, through which a caller may write without knowing that it is no view. */
#include "views.h"

/* Looks up what codes_view.py offers, once. */
static int prepare(void)
{
    if (awqpack.transforms != NULL) {
        return 0;
    }
    PyObject *module = PyImport_ImportModule("awqpack.codes_view");
    PyObject *view = module == NULL ? NULL : PyObject_GetAttrString(module, "view");
    PyObject *transforms = view == NULL ? NULL : PyObject_CallMethod(module, "transforms", NULL);
    if (transforms != NULL && awqpack.transforms == NULL) {
        awqpack.view_codes = Py_NewRef(view);
        awqpack.transforms = Py_NewRef(transforms);
    }
    Py_XDECREF(module);
    Py_XDECREF(view);
    Py_XDECREF(transforms);
    return awqpack.transforms == NULL ? -1 : 0;
}

static int is_transform(PyFrameObject *frame)
{
    PyObject *code = (PyObject *)PyFrame_GetCode(frame);
    int result = 0;
    for (Py_ssize_t i = 0; !result && i < PyTuple_Size(awqpack.transforms); i++) {
        result = PyTuple_GetItem(awqpack.transforms, i) == code;
    }
    Py_DECREF(code);
    return result;
}

int awqpack_is_transformed(void)
{
    if (prepare() < 0) {
        return -1;
    }
    int result = 0;
    PyObject *frame = Py_XNewRef((PyObject *)PyEval_GetFrame());
    while (result == 0 && frame != NULL && frame != Py_None) {
        result = is_transform((PyFrameObject *)frame);
        PyObject *back = result ? NULL : PyObject_GetAttr(frame, awqpack.names.f_back);
        result = result ? 1 : back == NULL ? -1 : 0;
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    return result;
}

PyObject *awqpack_view_codes(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs)
{
    return PyObject_CallFunctionObjArgs(awqpack.view_codes, func, self, args, kwargs == NULL ? Py_None : kwargs, NULL);
}

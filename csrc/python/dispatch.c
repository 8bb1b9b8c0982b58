/* __torch_dispatch__: detach, whole views and moves on the payload, every other op on unpacked codes. */
#include "dispatch.h"

#include "fields.h"
#include "moves.h"
#include "plain.h"
#include "plan.h"
#include "views.h"
#include "writes.h"

/* torch.inference_mode skips the step that breaks `to` into `_to_copy`. */
static PyObject *decompose(PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *method = PyObject_GetAttrString(func, "decompose");
    PyObject *result = method == NULL ? NULL : PyObject_Call(method, args, kwargs);
    Py_XDECREF(method);
    return result;
}

/* torch's own gives an unquantized tensor as floats: here, codes for weights. */
static PyObject *refuse_dequantize(void)
{
    PyErr_SetString(PyExc_RuntimeError,
                    "an AWQPackedTensor holds codes without their scales, so it cannot be dequantized alone; "
                    "awqpack.dequantize(p.payload, scales, zeros, p.packing, p.reorder) takes them");
    return NULL;
}

/* `self` is the first argument where that is packed, else NULL. */
static PyObject *run_plan(const op_plan *plan, PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs)
{
    switch (plan->kind) {
    case PLAN_WRITE: return write_packed(func, plan, args, kwargs);
    case PLAN_INCOMPATIBLE: Py_RETURN_FALSE;
    case PLAN_DECOMPOSE: return self == NULL ? plain_run(func, args, kwargs) : decompose(func, args, kwargs);
    case PLAN_ON_PAYLOAD:
        return self == NULL ? plain_run(func, args, kwargs) : packed_run_on_payload(func, args, kwargs);
    case PLAN_VIEW:
    case PLAN_PART:
        return self == NULL ? plain_run(func, args, kwargs)
                            : packed_run_view(func, args, kwargs, plan->kind == PLAN_VIEW);
    case PLAN_PIN: return self == NULL ? plain_run(func, args, kwargs) : packed_pin(func, self, args, kwargs);
    case PLAN_EMPTY: return self == NULL ? plain_run(func, args, kwargs) : packed_empty_like(func, self, args, kwargs);
    case PLAN_DEQUANTIZE: return refuse_dequantize();
    case PLAN_READ: break;
    }
    return plain_run(func, args, kwargs);
}

/* Takes the arguments of __torch_dispatch__(func, types, args, kwargs) apart; args and kwargs, which may
   be NULL, are new references. 0 with an exception. */
static int read_arguments(PyObject *const *given, Py_ssize_t count, PyObject *names, PyObject **args, PyObject **kwargs)
{
    PyObject *op_args = count > 3 ? given[3] : NULL;
    *kwargs = count > 4 ? given[4] : NULL;
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_Size(names); i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        if (PyUnicode_CompareWithASCIIString(name, "args") == 0 && op_args == NULL) {
            op_args = given[count + i];
        } else if (PyUnicode_CompareWithASCIIString(name, "kwargs") == 0 && *kwargs == NULL) {
            *kwargs = given[count + i];
        } else {
            PyErr_Format(PyExc_TypeError, "__torch_dispatch__ got an unexpected argument %R", name);
            return 0;
        }
    }
    if (count < 3 || count > 5 || (op_args != NULL && !PyTuple_CheckExact(op_args)) ||
        (*kwargs != NULL && *kwargs != Py_None && !PyDict_Check(*kwargs))) {
        PyErr_Format(PyExc_TypeError, "__torch_dispatch__ expects (func, types, args=(), kwargs=None)");
        return 0;
    }
    const int has_kwargs = *kwargs != NULL && *kwargs != Py_None && PyDict_Size(*kwargs) > 0;
    *args = op_args == NULL ? PyTuple_New(0) : Py_NewRef(op_args);
    *kwargs = !has_kwargs ? NULL : PyDict_CheckExact(*kwargs) ? Py_NewRef(*kwargs) : PyDict_Copy(*kwargs);
    if (*args == NULL || (has_kwargs && *kwargs == NULL)) {
        Py_XDECREF(*args);
        Py_XDECREF(*kwargs);
        return 0;
    }
    return 1;
}

PyObject *packed_torch_dispatch(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t count, PyObject *names)
{
    PyObject *args, *kwargs, *result = NULL;
    if (!read_arguments(given, count, names, &args, &kwargs)) {
        return NULL;
    }
    PyObject *func = given[1];
    PyObject *self = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : NULL;
    self = self != NULL && awqpack_is_packed(self) ? self : NULL;
    if (self != NULL && func == awqpack.aten_detach) {
        result = packed_alias(self);
    } else if (self != NULL && func == awqpack.aten_to_copy) {
        result = packed_to_copy(func, self, kwargs);
    } else {
        const op_plan *plan = plan_of(func);
        result = plan == NULL ? NULL : run_plan(plan, func, self, args, kwargs);
    }
    Py_DECREF(args);
    Py_XDECREF(kwargs);
    return result;
}

/* __torch_dispatch__: detach, whole views and moves on the payload, every other op on unpacked codes. */
#include "plain.h"
#include "plan.h"
#include "writes.h"

/* A borrowed value of kwargs, or NULL when it is absent or None. */
static PyObject *given(PyObject *kwargs, PyObject *name)
{
    PyObject *value = kwargs == NULL ? NULL : PyDict_GetItem(kwargs, name);
    return value == Py_None ? NULL : value;
}

/* func(payload, **kwargs) without the arguments that speak of the codes. */
static PyObject *copy_payload(PyObject *func, PyObject *payload, PyObject *kwargs)
{
    PyObject *result = NULL;
    PyObject *args = PyTuple_Pack(1, payload);
    PyObject *kept = kwargs == NULL ? PyDict_New() : PyDict_Copy(kwargs);
    if (args == NULL || kept == NULL) {
        goto done;
    }
    if ((PyDict_GetItem(kept, awqpack.names.dtype) != NULL && PyDict_DelItem(kept, awqpack.names.dtype) < 0) ||
        (PyDict_GetItem(kept, awqpack.names.memory_format) != NULL &&
         PyDict_DelItem(kept, awqpack.names.memory_format) < 0)) {
        goto done;
    }
    result = PyObject_Call(func, args, kept);
done:
    Py_XDECREF(args);
    Py_XDECREF(kept);
    return result;
}

/* The payload on a device on which it stays packed. */
static PyObject *place_payload(PyObject *func, PyObject *payload, PyObject *kwargs, PyObject *source, PyObject *device)
{
    const int is_pinned = given(kwargs, awqpack.names.pin_memory) == Py_True;
    const int is_same = is_pinned ? 0 : PyObject_RichCompareBool(source, device, Py_EQ);
    const int is_direct = is_same <= 0 ? is_same : awqpack_is_unwatched();
    PyObject *copy = is_direct <= 0 ? NULL : awqpack_copy_payload(payload);
    return copy != NULL || PyErr_Occurred() ? copy : copy_payload(func, payload, kwargs);
}

/* A packed tensor around a payload that was moved, with contiguous strides when the caller asked for them. Steals it. */
static PyObject *wrap_moved(PyObject *self, const packed_fields *fields, PyObject *kwargs, PyObject *payload)
{
    PyObject *result = NULL;
    if (payload == NULL) {
        return NULL;
    }
    if (given(kwargs, awqpack.names.memory_format) == awqpack.contiguous_format && fields->order != Py_None) {
        PyObject *stride = awqpack_ordered_strides(fields->size, Py_None);
        PyObject *meta =
            stride == NULL ? NULL : packed_meta_new(fields->packing, fields->reorder, Py_None, fields->size, stride);
        result = meta == NULL ? NULL : packed_new((PyObject *)Py_TYPE(self), payload, meta);
        Py_XDECREF(stride);
        Py_XDECREF(meta);
    } else {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields->meta);
    }
    Py_DECREF(payload);
    return result;
}

/* Plain codes on another device: half the bytes travel when the payload is copied first, but a copy that does not block must
   be the last step. */
static PyObject *move_plain(PyObject *func, const packed_fields *fields, PyObject *kwargs, int from_compute)
{
    PyObject *result = NULL;
    PyObject *non_blocking = given(kwargs, awqpack.names.non_blocking);
    if (from_compute && non_blocking != Py_True && given(kwargs, awqpack.names.pin_memory) != Py_True) {
        PyObject *payload = copy_payload(func, fields->payload, kwargs);
        if (payload != NULL) {
            packed_fields moved = *fields;
            moved.payload = payload;
            result = packed_unpack_fields(&moved);
            Py_DECREF(payload);
        }
        return result;
    }
    PyObject *codes = packed_unpack_fields(fields);
    PyObject *args = codes == NULL ? NULL : PyTuple_Pack(1, codes);
    result = args == NULL ? NULL : PyObject_Call(func, args, kwargs);
    Py_XDECREF(codes);
    Py_XDECREF(args);
    return result;
}

/* 1 when the arguments ask for nothing that a payload cannot follow: a dense tensor, in its own order or contiguous. */
static int has_plain_layout(PyObject *kwargs)
{
    PyObject *layout = given(kwargs, awqpack.names.layout);
    PyObject *format = given(kwargs, awqpack.names.memory_format);
    return (layout == NULL || layout == awqpack.strided) &&
           (format == NULL || format == awqpack.preserve_format || format == awqpack.contiguous_format);
}

static PyObject *dispatch_to_copy(PyObject *func, PyObject *self, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *result = NULL, *source = NULL, *device = NULL;
    PyObject *dtype = given(kwargs, awqpack.names.dtype);
    if (dtype != NULL && dtype != awqpack.uint8) {
        return PyErr_Format(PyExc_ValueError,
                            "AWQPackedTensor holds torch.uint8 codes and cannot become %S; convert its codes: "
                            "p.unpack().to(%S), or (p + 0).to(%S) where a transform such as vmap hides unpack",
                            dtype, dtype, dtype);
    }
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    source = PyObject_GetAttr(fields.payload, awqpack.names.device);
    if (source == NULL) {
        goto done;
    }
    device = given(kwargs, awqpack.names.device);
    device = Py_NewRef(device == NULL ? source : device);
    const int from = awqpack_device_kind_of(source), to = from < 0 ? -1 : awqpack_device_kind_of(device);
    if (to < 0) {
        goto done;
    }
    const int from_compute = from == AWQPACK_CUDA || from == AWQPACK_XPU;
    const int is_plain = has_plain_layout(kwargs);
    if (awqpack_stays_packed(from, to) && is_plain) {
        result = wrap_moved(self, &fields, kwargs, place_payload(func, fields.payload, kwargs, source, device));
    } else {
        const int keeps_order = given(kwargs, awqpack.names.memory_format) != awqpack.contiguous_format;
        result = move_plain(func, &fields, kwargs, from_compute && is_plain && keeps_order);
    }
done:
    Py_XDECREF(source);
    Py_XDECREF(device);
    packed_fields_clear(&fields);
    return result;
}

/* torch.inference_mode skips the step that breaks `to` into `_to_copy`. */
static PyObject *decompose(PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *method = PyObject_GetAttrString(func, "decompose");
    PyObject *result = method == NULL ? NULL : PyObject_Call(method, args, kwargs);
    Py_XDECREF(method);
    return result;
}

/* func with the payload in place of its first argument. */
static PyObject *run_on_payload(PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *result = NULL;
    PyObject *self = PyTuple_GetItem(args, 0);
    PyObject *payload = self == NULL ? NULL : PyObject_GetAttr(self, awqpack.names._data);
    PyObject *rest = payload == NULL ? NULL : PySequence_List(args);
    if (rest != NULL && PyList_SetItem(rest, 0, payload) == 0) {
        payload = NULL;
        PyObject *payload_args = PyList_AsTuple(rest);
        result = payload_args == NULL ? NULL : PyObject_Call(func, payload_args, kwargs);
        Py_XDECREF(payload_args);
    }
    Py_XDECREF(payload);
    Py_XDECREF(rest);
    return result;
}

/* A packed tensor around the payload that the op pinned. */
static PyObject *pin(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *result = NULL;
    PyObject *payload = run_on_payload(func, args, kwargs);
    if (payload != NULL && packed_fields_get(self, &fields) == 0) {
        result = packed_new((PyObject *)Py_TYPE(self), payload, fields.meta);
        packed_fields_clear(&fields);
    }
    Py_XDECREF(payload);
    return result;
}

/* A packed tensor of unspecified codes, which any payload holds; a plain one where it is to be no such codes. */
static PyObject *dispatch_empty(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *dtype = given(kwargs, awqpack.names.dtype);
    if ((dtype != NULL && dtype != awqpack.uint8) || !has_plain_layout(kwargs)) {
        return plain_run(func, args, kwargs);
    }
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    PyObject *result = wrap_moved(self, &fields, kwargs, copy_payload(func, fields.payload, kwargs));
    packed_fields_clear(&fields);
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
    case PLAN_WRITE:
        return write_packed(func, plan, args, kwargs);
    case PLAN_INCOMPATIBLE:
        Py_RETURN_FALSE;
    case PLAN_DECOMPOSE:
        return self == NULL ? plain_run(func, args, kwargs) : decompose(func, args, kwargs);
    case PLAN_ON_PAYLOAD:
        return self == NULL ? plain_run(func, args, kwargs) : run_on_payload(func, args, kwargs);
    case PLAN_VIEW:
    case PLAN_PART:
        return self == NULL ? plain_run(func, args, kwargs) : packed_run_view(func, args, kwargs, plan->kind == PLAN_VIEW);
    case PLAN_PIN:
        return self == NULL ? plain_run(func, args, kwargs) : pin(func, self, args, kwargs);
    case PLAN_EMPTY:
        return self == NULL ? plain_run(func, args, kwargs) : dispatch_empty(func, self, args, kwargs);
    case PLAN_DEQUANTIZE:
        return refuse_dequantize();
    case PLAN_READ:
        break;
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
        result = dispatch_to_copy(func, self, kwargs);
    } else {
        const op_plan *plan = plan_of(func);
        result = plan == NULL ? NULL : run_plan(plan, func, self, args, kwargs);
    }
    Py_DECREF(args);
    Py_XDECREF(kwargs);
    return result;
}

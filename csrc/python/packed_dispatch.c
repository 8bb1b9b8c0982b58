/* __torch_dispatch__: detach, whole views and moves on the payload, every other op on unpacked codes. */
#include "awqpackmodule.h"

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

static PyObject *dispatch_to_copy(PyObject *func, PyObject *self, PyObject *kwargs)
{
    packed_fields fields;
    PyObject *result = NULL, *source = NULL;
    PyObject *dtype = given(kwargs, awqpack.names.dtype);
    PyObject *layout = given(kwargs, awqpack.names.layout);
    PyObject *format = given(kwargs, awqpack.names.memory_format);
    if (dtype != NULL && dtype != awqpack.uint8) {
        return PyErr_Format(PyExc_ValueError,
                            "AWQPackedTensor holds torch.uint8 codes and cannot become %S; convert its codes: "
                            "p.unpack().to(%S)",
                            dtype, dtype);
    }
    if (packed_fields_get(self, &fields) < 0) {
        return NULL;
    }
    source = PyObject_GetAttr(fields.payload, awqpack.names.device);
    if (source == NULL) {
        goto done;
    }
    PyObject *device = given(kwargs, awqpack.names.device);
    device = device == NULL ? source : device;
    const int from = awqpack_device_kind_of(source), to = from < 0 ? -1 : awqpack_device_kind_of(device);
    if (to < 0) {
        goto done;
    }
    const int from_compute = from == AWQPACK_CUDA || from == AWQPACK_XPU;
    const int has_plain_layout = layout == NULL || layout == awqpack.strided;
    const int has_plain_format = format == NULL || format == awqpack.preserve_format || format == awqpack.contiguous_format;
    if (awqpack_stays_packed(from, to) && has_plain_layout && has_plain_format) {
        result = wrap_moved(self, &fields, kwargs, place_payload(func, fields.payload, kwargs, source, device));
    } else {
        result = move_plain(func, &fields, kwargs, from_compute && has_plain_layout && has_plain_format && format != awqpack.contiguous_format);
    }
done:
    Py_XDECREF(source);
    packed_fields_clear(&fields);
    return result;
}

static PyObject *unpack_nested(PyObject *value, PyObject **memo);

/* The codes of a packed argument: those made for this call before, when it was given more than once. *memo is a dict by
   address, made with the first entry; the arguments keep their tensors alive meanwhile. */
static PyObject *unpack_once(PyObject *packed, PyObject **memo)
{
    PyObject *key = PyLong_FromVoidPtr(packed);
    PyObject *codes = key == NULL || *memo == NULL ? NULL : PyDict_GetItemWithError(*memo, key);
    Py_XINCREF(codes);
    if (codes == NULL && !PyErr_Occurred()) {
        *memo = *memo == NULL ? PyDict_New() : *memo;
        codes = *memo == NULL ? NULL : packed_unpack(packed, NULL);
        if (codes != NULL && PyDict_SetItem(*memo, key, codes) < 0) {
            Py_CLEAR(codes);
        }
    }
    Py_XDECREF(key);
    return codes;
}

/* A list or tuple with its packed tensors unpacked; the same object when it holds none. */
static PyObject *unpack_sequence(PyObject *value, PyObject **memo)
{
    const int is_tuple = PyTuple_CheckExact(value);
    const Py_ssize_t count = is_tuple ? PyTuple_Size(value) : PyList_Size(value);
    PyObject *changed = NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = is_tuple ? PyTuple_GetItem(value, i) : PyList_GetItem(value, i);
        PyObject *plain = unpack_nested(item, memo);
        if (plain == NULL) {
            Py_XDECREF(changed);
            return NULL;
        }
        if (plain != item && changed == NULL) {
            changed = PySequence_List(value);
            if (changed == NULL) {
                Py_DECREF(plain);
                return NULL;
            }
        }
        if (changed == NULL) {
            Py_DECREF(plain);
        } else if (PyList_SetItem(changed, i, plain) < 0) {
            Py_DECREF(changed);
            return NULL;
        }
    }
    if (changed == NULL) {
        Py_INCREF(value);
        return value;
    }
    if (is_tuple) {
        PyObject *tuple = PyList_AsTuple(changed);
        Py_DECREF(changed);
        return tuple;
    }
    return changed;
}

static PyObject *unpack_dict(PyObject *value, PyObject **memo)
{
    PyObject *key, *item, *changed = NULL;
    Py_ssize_t position = 0;
    while (PyDict_Next(value, &position, &key, &item)) {
        PyObject *plain = unpack_nested(item, memo);
        if (plain == NULL) {
            Py_XDECREF(changed);
            return NULL;
        }
        if (plain != item && changed == NULL) {
            changed = PyDict_Copy(value);
        }
        if (plain != item && (changed == NULL || PyDict_SetItem(changed, key, plain) < 0)) {
            Py_DECREF(plain);
            Py_XDECREF(changed);
            return NULL;
        }
        Py_DECREF(plain);
    }
    if (changed == NULL) {
        Py_INCREF(value);
        return value;
    }
    return changed;
}

static PyObject *unpack_nested(PyObject *value, PyObject **memo)
{
    if (PyTuple_CheckExact(value) || PyList_CheckExact(value)) {
        return unpack_sequence(value, memo);
    }
    if (PyDict_CheckExact(value)) {
        return unpack_dict(value, memo);
    }
    if (awqpack_is_packed(value)) {
        return unpack_once(value, memo);
    }
    Py_INCREF(value);
    return value;
}

PyObject *packed_run_plain(PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *result = NULL, *memo = NULL;
    PyObject *plain_args = unpack_sequence(args, &memo);
    PyObject *plain_kwargs = plain_args == NULL || kwargs == NULL ? NULL : unpack_dict(kwargs, &memo);
    Py_XDECREF(memo); /* the arguments alone hold the codes while the op runs */
    if (plain_args != NULL && (kwargs == NULL || plain_kwargs != NULL)) {
        result = PyObject_Call(func, plain_args, plain_kwargs);
    }
    Py_XDECREF(plain_args);
    Py_XDECREF(plain_kwargs);
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

static PyObject *dispatch_special(long kind, PyObject *func, PyObject *args, PyObject *kwargs)
{
    PyObject *first = PyTuple_Size(args) > 0 ? PyTuple_GetItem(args, 0) : NULL;
    const int is_packed_first = first != NULL && awqpack_is_packed(first);
    switch (is_packed_first ? kind : 0) {
    case AWQPACK_PLAN_DECOMPOSE:
        return decompose(func, args, kwargs);
    case AWQPACK_PLAN_INCOMPATIBLE:
        Py_RETURN_FALSE;
    case AWQPACK_PLAN_ON_PAYLOAD:
        return run_on_payload(func, args, kwargs);
    case AWQPACK_PLAN_VIEW:
        return packed_run_view(func, args, kwargs);
    case AWQPACK_PLAN_PIN: {
        packed_fields fields;
        PyObject *result = NULL;
        PyObject *payload = run_on_payload(func, args, kwargs);
        if (payload != NULL && packed_fields_get(first, &fields) == 0) {
            result = packed_new((PyObject *)Py_TYPE(first), payload, fields.meta);
            packed_fields_clear(&fields);
        }
        Py_XDECREF(payload);
        return result;
    }
    default:
        return packed_run_plain(func, args, kwargs);
    }
}

PyObject *packed_torch_dispatch(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *op_kwargs = count > 4 ? args[4] : NULL, *empty = NULL, *result = NULL;
    PyObject *op_args = count > 3 ? args[3] : NULL;
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_Size(names); i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        if (PyUnicode_CompareWithASCIIString(name, "args") == 0 && op_args == NULL) {
            op_args = args[count + i];
        } else if (PyUnicode_CompareWithASCIIString(name, "kwargs") == 0 && op_kwargs == NULL) {
            op_kwargs = args[count + i];
        } else {
            return PyErr_Format(PyExc_TypeError, "__torch_dispatch__ got an unexpected argument %R", name);
        }
    }
    if (count < 3 || count > 5 || (op_args != NULL && !PyTuple_CheckExact(op_args)) ||
        (op_kwargs != NULL && op_kwargs != Py_None && !PyDict_Check(op_kwargs))) {
        return PyErr_Format(PyExc_TypeError, "__torch_dispatch__ expects (func, types, args=(), kwargs=None)");
    }
    PyObject *func = args[1];
    if (op_kwargs == Py_None || (op_kwargs != NULL && PyDict_Size(op_kwargs) == 0)) {
        op_kwargs = NULL;
    }
    if (op_args == NULL) {
        empty = op_args = PyTuple_New(0);
        if (empty == NULL) {
            return NULL;
        }
    }
    PyObject *first = PyTuple_Size(op_args) > 0 ? PyTuple_GetItem(op_args, 0) : NULL;
    const int is_packed_first = first != NULL && awqpack_is_packed(first);
    if (is_packed_first && func == awqpack.aten_detach) {
        result = packed_alias(first);
        goto done;
    }
    if (is_packed_first && func == awqpack.aten_to_copy) {
        result = dispatch_to_copy(func, first, op_kwargs);
        goto done;
    }
    PyObject *plan = awqpack_plan_of(func);
    if (plan == NULL) {
        goto done;
    }
    if (plan == Py_None) {
        result = packed_run_plain(func, op_args, op_kwargs);
    } else if (PyTuple_CheckExact(plan)) {
        result = packed_run_writing(func, plan, op_args, op_kwargs);
    } else {
        result = dispatch_special(PyLong_AsLong(plan), func, op_args, op_kwargs);
    }
    Py_DECREF(plan);
done:
    Py_XDECREF(empty);
    return result;
}

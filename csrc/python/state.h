/* Private header of the extension module: its one state, and what its files offer each other. */
#ifndef AWQPACK_STATE_H
#define AWQPACK_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "awqpack/error.h"
#include "awqpack/view.h"

/* Names looked up on every call, interned once. */
#define AWQPACK_NAMES(X) \
    X(_data)             \
    X(_meta)             \
    X(_is_param)         \
    X(_schema)           \
    X(alias_info)        \
    X(arguments)         \
    X(before_set)        \
    X(clone)             \
    X(copy)              \
    X(copy_)             \
    X(cpu)               \
    X(data_ptr)          \
    X(detach)            \
    X(device)            \
    X(dtype)             \
    X(f_back)            \
    X(is_inference)      \
    X(is_write)          \
    X(layout)            \
    X(memory_format)     \
    X(name)              \
    X(non_blocking)      \
    X(packing)           \
    X(pin_memory)        \
    X(requires_grad)     \
    X(resize_)           \
    X(returns)           \
    X(shape)             \
    X(stride)            \
    X(strides)           \
    X(to)                \
    X(type)              \
    X(value)

/* Objects of torch that the class works with; each is a strong reference. */
#define AWQPACK_OBJECTS(X)                                             \
    X(tensor_type)      /* torch.Tensor */                             \
    X(packed_type)      /* AWQPackedTensor */                          \
    X(make_wrapper)     /* torch.Tensor._make_wrapper_subclass */      \
    X(make_subclass)    /* torch.Tensor._make_subclass */              \
    X(tensor_detach)    /* torch.Tensor.detach, before the class hides it */ \
    X(tensor_to)        /* torch.Tensor.to, likewise */                \
    X(tensor_is_neg)    /* torch.Tensor.is_neg */                      \
    X(dispatch_off)     /* torch._C._DisableTorchDispatch, a guard */  \
    X(dispatch_off_init) /* its __init__, as a plain function */       \
    X(uint8)                                                           \
    X(int16)                                                           \
    X(int32)                                                           \
    X(strided)                                                         \
    X(contiguous_format)                                               \
    X(preserve_format)                                                 \
    X(inplace_view)     /* torch.Tag.inplace_view */                   \
    X(dispatch_depth)   /* torch._C._len_torch_dispatch_stack */       \
    X(function_depth)   /* torch._C._len_torch_function_stack */       \
    X(functorch_level)  /* torch._C._functorch.maybe_current_level */  \
    X(is_tracing)       /* torch._C._is_tracing */                     \
    X(is_inference_on)  /* torch.is_inference_mode_enabled */          \
    X(inference_mode)   /* torch.inference_mode */                     \
    X(increment_version) /* torch._C._increment_version */            \
    X(forbid_data_ptr)  /* torch._C._set_throw_on_mutable_data_ptr */  \
    X(device_type)      /* torch.device */                             \
    X(parameter_type)   /* torch.nn.Parameter */                       \
    X(symint_type)      /* torch.SymInt */                             \
    X(empty_strided)                                                   \
    X(transforms)       /* tuple: code of the functions that run torch.func's transforms; NULL until a view asks */ \
    X(view_codes)       /* awqpack.codes_view.view; likewise */        \
    X(meta_codes)       /* dict: what empty_strided is told of codes without memory */ \
    X(data_descriptor)  /* torch.Tensor.data, before the class hides it */ \
    X(op_pack)          /* torch.ops.awqpack.pack.default._op: one Python call less */ \
    X(op_unpack)                                                       \
    X(aten_detach)                                                     \
    X(aten_to_copy)                                                    \
    X(aten_copy_)                                                      \
    X(adopt_tensors)    /* makes tensors of handles; may be NULL */    \
    X(plans)            /* dict: OpOverload -> capsule of an op_plan */                 \
    X(device_kinds)     /* dict: torch.device -> awqpack_device_kind */

typedef struct awqpack_state {
#define AWQPACK_FIELD(name) PyObject *name;
    AWQPACK_OBJECTS(AWQPACK_FIELD)
    struct {
        AWQPACK_NAMES(AWQPACK_FIELD)
    } names;
#undef AWQPACK_FIELD
    struct {
        PyObject *member, *number; /* an AWQPacking and its value; strong references */
    } packings[AWQ_PACKING_COUNT];
    const struct awqpack_dlpack_exchange *dlpack; /* NULL where torch has none */
} awqpack_state;

/* The process has one torch, so it has one awqpack: methods of the class have no other way to their module. */
extern awqpack_state awqpack;

/* errors.c: the one place that turns an awq_error into a Python exception; returns NULL. */
PyObject *awqpack_raise(const awq_error *error);
/* A callable that calls `op` and raises ValueError where torch made RuntimeError of an op's own; in place of `op` here, too. */
PyObject *awqpack_keep_value_errors(PyObject *module, PyObject *op);

/* ndarray.c */
int awqpack_import_numpy(void);
PyObject *awqpack_pack_array(PyObject *module, PyObject *args);
PyObject *awqpack_unpack_array(PyObject *module, PyObject *args);
/* New ndarray with the codes of a payload that lies in CPU memory; NULL order means contiguous. */
PyObject *awqpack_unpack_to_array(const awq_view *payload, awq_packing packing, const int64_t *order);

/* packings.c: the packings as Python names them. */
/* Takes the members of AWQPacking, once; -1 with an exception where one is missing. */
int awqpack_set_packings(PyObject *packing_type);
int awqpack_is_packing(PyObject *object);
/* False, with an exception, unless packing is an AWQPacking; the functions below expect one. */
int awqpack_check_packing(PyObject *packing);
/* The row of a packing. */
awq_packing awqpack_packing_of(PyObject *packing, PyObject *reorder);
/* Packing as the ops number it: a borrowed int. */
PyObject *awqpack_packing_number(PyObject *packing);
/* The AWQPacking of a number, borrowed; NULL with an exception where there is none. */
PyObject *awqpack_packing_member(int64_t number);
/* torch's dtype of its payloads, borrowed. */
PyObject *awqpack_payload_dtype(PyObject *packing);

/* fields.c: what a packed tensor records: its payload, and a tuple that every copy shares. */
typedef struct packed_fields {
    PyObject *payload; /* a strong reference, as is meta */
    PyObject *meta;    /* (packing, reorder, order, size, stride); the fields below are borrowed from it */
    PyObject *packing; /* an AWQPacking */
    PyObject *reorder; /* a bool */
    PyObject *order;   /* None when contiguous, else the stride order as a tuple of ints, outermost first */
    PyObject *size;
    PyObject *stride;
} packed_fields;

int awqpack_is_packed(PyObject *object);
int packed_fields_get(PyObject *self, packed_fields *fields);
void packed_fields_clear(packed_fields *fields);
/* Makes `self` record these. */
int packed_fields_set(PyObject *self, PyObject *payload, PyObject *meta);
/* The tuple that a packed tensor records beside its payload: a new reference. */
PyObject *packed_meta_new(PyObject *packing, PyObject *reorder, PyObject *order, PyObject *size, PyObject *stride);
/* 1 and the sizes when `sequence` holds ndim plain ints, 0 when it holds symbolic ones, -1 with an exception. */
int awqpack_read_ints(PyObject *sequence, const char *what, int64_t *values, Py_ssize_t *count);
/* Stride order of a dense tensor: None when contiguous; NULL without an exception when the strides are not dense. */
PyObject *awqpack_stride_order(const int64_t *sizes, const int64_t *strides, Py_ssize_t ndim);
/* The ints of a stride order, which must be a tuple that permutes ndim dimensions. */
int awqpack_read_order(PyObject *order, Py_ssize_t ndim, int64_t *values);
/* False, with an exception that names the argument, unless value is a bool. */
int awqpack_check_bool(const char *name, PyObject *value);
/* Strides of a tuple of sizes that may be symbolic, in a stride order or None, as a tuple. */
PyObject *awqpack_ordered_strides(PyObject *size, PyObject *order);
/* A tuple of ints. */
PyObject *awqpack_int_tuple(const int64_t *values, Py_ssize_t count);
/* Strides of sizes in that order, as a tuple. */
PyObject *awqpack_dense_strides(const int64_t *sizes, Py_ssize_t ndim, PyObject *order);

/* The order and strides to record for a tuple of symbolic sizes: contiguous and transposed matrices, batches of them too, keep theirs,
   all others become contiguous. New references. */
int awqpack_symbolic_strides(PyObject *size, PyObject *stride, PyObject **order, PyObject **dense);

/* wrap.c: makes instances, without checks. */
PyObject *packed_new(PyObject *cls, PyObject *payload, PyObject *meta);
/* packed_new for a caller who has the payload's device at hand. */
PyObject *packed_new_on(PyObject *cls, PyObject *payload, PyObject *meta, PyObject *device);
/* An alias of `self` around its payload, of its size and strides: it shares the storage, by which torch tells what aliases what
   and which holds nothing and says so when asked, and the version counter. */
PyObject *packed_twin(PyObject *self, PyObject *payload, PyObject *meta);
/* A guard that keeps torch from __torch_dispatch__ while it lives. */
PyObject *awqpack_turn_dispatch_off(void);

/* class.c: what C adds to the class. */
PyObject *awqpack_install(PyObject *module, PyObject *args);

/* tensor.c */
PyObject *packed_construct(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *packed_flatten(PyObject *self, PyObject *unused);
PyObject *packed_unflatten(PyObject *module, PyObject *args, PyObject *kwargs);
/* True when data is a dense tensor of the packing's dtype; an exception otherwise. */
int packed_check_payload(PyObject *data, PyObject *packing);

/* again.c: AWQPackedTensor(packed, requires_grad=False). */
int packed_is_again(PyObject *args, PyObject *kwargs);
PyObject *packed_again(PyObject *args, PyObject *kwargs);
/* -1, with an exception unless there is one, when requires_grad is not 0. */
int packed_refuse_gradient(int requires_grad);

/* methods.c */
extern PyMethodDef packed_methods[];
PyObject *packed_unpack_fields(const packed_fields *fields);
PyObject *packed_unpack(PyObject *self, PyObject *unused);
PyObject *packed_pack(PyObject *module, PyObject *args);

/* payload.c: where a payload is, and its copy on the same device. */
typedef enum awqpack_device_kind {
    AWQPACK_OTHER_DEVICE = 0,
    AWQPACK_HOST,
    AWQPACK_CUDA, /* CUDA and XPU are the devices on which a packed weight works packed */
    AWQPACK_XPU,
    AWQPACK_META, /* no values, so none to unpack */
} awqpack_device_kind;
/* An awqpack_device_kind, or -1 with an exception. */
int awqpack_device_kind_of(PyObject *device);
/* True when a packed tensor moved between devices of these kinds stays packed. */
int awqpack_stays_packed(int from, int to);
/* 1 when no mode and no transform is on, -1 with an exception. */
int awqpack_is_unmoded(void);
/* The same, and no trace that should see what is done to a payload. */
int awqpack_is_unwatched(void);
/* -1 with an exception for a payload in host memory that has none, and for one that is not what its bytes say. */
int awqpack_refuse_without_values(PyObject *payload);
/* payload.to(its device, copy=True) without torch's dispatcher, for a caller who is unwatched. NULL without an exception
   when only torch can do it. */
PyObject *awqpack_copy_payload(PyObject *payload);

/* shortcuts.c: detach and to without torch's dispatcher, where nothing could see the difference. */
PyObject *packed_detach(PyObject *self, PyObject *unused);
PyObject *packed_to(PyObject *self, PyObject *args, PyObject *kwargs);

/* repr.c */
PyObject *packed_repr(PyObject *self, PyObject *args, PyObject *kwargs);

/* views.c: `self` again, as detach gives it. */
PyObject *packed_alias(PyObject *self);
/* A view op whose first argument is packed. */
PyObject *packed_run_view(PyObject *func, PyObject *args, PyObject *kwargs, int may_be_whole);

/* transforms.c */
/* 1 when one of torch.func's transforms has called what runs now, which only the call stack tells: torch puts a transform aside
   while it dispatches. -1 with an exception. */
int awqpack_is_transformed(void);
/* What a view op gives of `self`, its first argument: views that pass writes on, as long as awqpack_is_transformed. */
PyObject *awqpack_view_codes(PyObject *func, PyObject *self, PyObject *args, PyObject *kwargs);

/* dispatch.c */
PyObject *packed_torch_dispatch(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names);

/* copy.c: edit_codes(packed, change): change is called with the codes, which then go into the payload. */
PyObject *awqpack_edit_codes(PyObject *module, PyObject *args);

#endif

/* The bottom room: the one state of the module, exceptions made of errors, and the packings as Python names them. */
#ifndef AWQPACK_STATE_H
#define AWQPACK_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "awqpack/error.h"
#include "awqpack/view.h"

/* Names looked up on every call, interned once. */
#define AWQPACK_NAMES(X)                                                                                               \
    X(_data)                                                                                                           \
    X(_meta)                                                                                                           \
    X(_schema)                                                                                                         \
    X(alias_info)                                                                                                      \
    X(arguments)                                                                                                       \
    X(before_set)                                                                                                      \
    X(clone)                                                                                                           \
    X(copy)                                                                                                            \
    X(copy_)                                                                                                           \
    X(cpu)                                                                                                             \
    X(data_ptr)                                                                                                        \
    X(detach)                                                                                                          \
    X(device)                                                                                                          \
    X(dtype)                                                                                                           \
    X(f_back)                                                                                                          \
    X(is_inference)                                                                                                    \
    X(is_write)                                                                                                        \
    X(layout)                                                                                                          \
    X(memory_format)                                                                                                   \
    X(name)                                                                                                            \
    X(non_blocking)                                                                                                    \
    X(packing)                                                                                                         \
    X(pin_memory)                                                                                                      \
    X(requires_grad)                                                                                                   \
    X(resize_)                                                                                                         \
    X(returns)                                                                                                         \
    X(shape)                                                                                                           \
    X(stride)                                                                                                          \
    X(strides)                                                                                                         \
    X(to)                                                                                                              \
    X(type)                                                                                                            \
    X(value)

/* Objects of torch that the class works with, and where they are in it; each is a strong reference. */
#define AWQPACK_TORCH_OBJECTS(X)                                                                                       \
    X(tensor_type, "Tensor")                                                                                           \
    X(make_wrapper, "Tensor._make_wrapper_subclass")                                                                   \
    X(make_subclass, "Tensor._make_subclass")                                                                          \
    X(tensor_detach, "Tensor.detach") /* taken before the class hides it, as tensor_to and data are */                 \
    X(tensor_to, "Tensor.to")                                                                                          \
    X(tensor_is_neg, "Tensor.is_neg")                                                                                  \
    X(dispatch_off, "_C._DisableTorchDispatch")                        /* a guard */                                   \
    X(dispatch_off_init, "_C._DisableTorchDispatch.__init__.__func__") /* as a plain function */                       \
    X(uint8, "uint8")                                                                                                  \
    X(int16, "int16")                                                                                                  \
    X(int32, "int32")                                                                                                  \
    X(strided, "strided")                                                                                              \
    X(contiguous_format, "contiguous_format")                                                                          \
    X(preserve_format, "preserve_format")                                                                              \
    X(inplace_view, "Tag.inplace_view")                                                                                \
    X(dispatch_depth, "_C._len_torch_dispatch_stack")                                                                  \
    X(function_depth, "_C._len_torch_function_stack")                                                                  \
    X(functorch_level, "_C._functorch.maybe_current_level")                                                            \
    X(is_tracing, "_C._is_tracing")                                                                                    \
    X(is_inference_on, "is_inference_mode_enabled")                                                                    \
    X(inference_mode, "inference_mode")                                                                                \
    X(increment_version, "_C._increment_version")                                                                      \
    X(forbid_data_ptr, "_C._set_throw_on_mutable_data_ptr")                                                            \
    X(device_type, "device")                                                                                           \
    X(parameter_type, "nn.Parameter")                                                                                  \
    X(symint_type, "SymInt")                                                                                           \
    X(empty_strided, "empty_strided")                                                                                  \
    X(data_descriptor, "Tensor.data")                                                                                  \
    X(op_pack, "ops.awqpack.pack.default._op") /* ._op is one Python call less */                                      \
    X(op_unpack, "ops.awqpack.unpack.default._op")                                                                     \
    X(aten_detach, "ops.aten.detach.default")                                                                          \
    X(aten_to_copy, "ops.aten._to_copy.default")                                                                       \
    X(aten_copy_, "ops.aten.copy_.default")

/* What awqpack makes or is given itself; strong references, too. */
#define AWQPACK_OWN_OBJECTS(X)                                                                                         \
    X(packed_type)   /* AWQPackedTensor */                                                                             \
    X(transforms)    /* tuple: code of the functions that run torch.func's transforms; NULL until a view asks */       \
    X(view_codes)    /* awqpack.codes_view.view; likewise */                                                           \
    X(meta_codes)    /* dict: what empty_strided is told of codes without memory */                                    \
    X(adopt_tensors) /* makes tensors of handles; may be NULL */                                                       \
    X(plans)         /* dict: OpOverload -> capsule of an op_plan */                                                   \
    X(device_kinds)  /* dict: torch.device -> awqpack_device_kind */

typedef struct awqpack_state {
#define AWQPACK_FIELD(name) PyObject *name;
#define AWQPACK_TORCH_FIELD(name, path) PyObject *name;
    AWQPACK_TORCH_OBJECTS(AWQPACK_TORCH_FIELD)
    AWQPACK_OWN_OBJECTS(AWQPACK_FIELD)
    struct {
        AWQPACK_NAMES(AWQPACK_FIELD)
    } names;
#undef AWQPACK_FIELD
#undef AWQPACK_TORCH_FIELD
    struct {
        PyObject *member, *number; /* an AWQPacking and its value; strong references */
    } packings[AWQ_PACKING_COUNT];
    const struct awqpack_dlpack_exchange *dlpack; /* NULL where torch has none */
} awqpack_state;

/* The process has one torch, so it has one awqpack: methods of the class have no other way to their module. */
extern awqpack_state awqpack;

/* state.c: fills it in, once; -1 with an exception, and with nothing filled in. */
int awqpack_fill_state(void);

/* What is not there when awqpack is imported, or is seldom asked for: "a.b.c" of a module; a new reference. */
PyObject *awqpack_look_up(const char *module, const char *path);

/* errors.c: the one place that turns an awq_error into a Python exception; returns NULL. */
PyObject *awqpack_raise(const awq_error *error);
/* A callable that calls `op` and raises ValueError where torch made RuntimeError of an op's own; in place of `op` here,
   too. */
PyObject *awqpack_keep_value_errors(PyObject *module, PyObject *op);

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

#endif

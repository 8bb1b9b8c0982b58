/* The module itself: its state, its functions, and what it was built with. */
#include "claims.h"

#include "dlpack.h"
#include "kernels/cpu.h"
#include "torch/shim.h"

#ifndef AWQPACK_BUILT_WITH_TORCH
#error "setup.py defines AWQPACK_BUILT_WITH_TORCH"
#endif

awqpack_state awqpack;

static PyObject *module_variants(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names != NULL && awq_cpu_variant(i) != NULL; i++) {
        PyObject *name = PyUnicode_FromString(awq_cpu_name(awq_cpu_variant(i)));
        if (name == NULL || PyList_Append(names, name) < 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *module_build_info(PyObject *module, PyObject *unused)
{
    awq_error error;
    const awq_kernels *active = awq_active_kernels(&error);
    if (active == NULL) {
        return awqpack_raise(&error);
    }
    PyObject *variants = module_variants(module, unused);
    PyObject *names = PyUnicode_FromString(awq_cuda_arch_list());
    PyObject *archs = names == NULL ? NULL : PyObject_CallMethod(names, "split", NULL);
    Py_XDECREF(names);
    PyObject *info = variants == NULL || archs == NULL
                         ? NULL
                         : Py_BuildValue("{sssOsssO}", "torch", AWQPACK_BUILT_WITH_TORCH, "cpu_variants", variants,
                                         "cpu_active", awq_cpu_name(active), "cuda_archs", archs);
    Py_XDECREF(variants);
    Py_XDECREF(archs);
    return info;
}

static PyObject *module_register_cuda(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(awq_cuda_register());
}

static PyObject *module_unregister_cuda(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    awq_cuda_unregister();
    Py_RETURN_NONE;
}

/* None when the kernels run on the device, else the sentence that says why not. */
static PyObject *module_probe_cuda(PyObject *Py_UNUSED(module), PyObject *index)
{
    awq_error error = {AWQ_OK, "this build has no CUDA kernels"};
    const long device = PyLong_AsLong(index);
    if (device == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return awq_cuda_can_run((int)device, &error) ? Py_BuildValue("") : PyUnicode_FromString(error.text);
}

static PyMethodDef module_functions[] = {
    {"pack_array", awqpack_pack_array, METH_VARARGS,
     "pack_array(array, packing, reorder, validate, out, variant, /)\n--\n\nPacks a NumPy array; variant None is the active one."},
    {"unpack_array", awqpack_unpack_array, METH_VARARGS,
     "unpack_array(array, packing, reorder, out, variant, /)\n--\n\nUnpacks a NumPy array; variant None is the active one."},
    {"pack_tensor", packed_pack, METH_VARARGS,
     "pack_tensor(cls, t, packing, reorder, validate, /)\n--\n\nWhat AWQPackedTensor.pack calls."},
    {"variants", module_variants, METH_NOARGS, "variants()\n--\n\nNames of the kernels this CPU can run, slowest first."},
    {"build_info", module_build_info, METH_NOARGS, "build_info()\n--\n\nWhat the module was built with and what it uses."},
    {"register_cuda", module_register_cuda, METH_NOARGS,
     "register_cuda()\n--\n\nSends CUDA tensors to the CUDA kernels; false when this build has none."},
    {"unregister_cuda", module_unregister_cuda, METH_NOARGS,
     "unregister_cuda()\n--\n\nSends CUDA tensors to the portable kernels."},
    {"probe_cuda", module_probe_cuda, METH_O,
     "probe_cuda(device, /)\n--\n\nNone when the CUDA kernels run on this device, else why they do not."},
    {"keep_value_errors", awqpack_keep_value_errors, METH_O,
     "keep_value_errors(op, /)\n--\n\nCalls op, and raises ValueError where torch made RuntimeError of an op's own."},
    {"install", awqpack_install, METH_VARARGS,
     "install(cls, packing_enum, /)\n--\n\nAdds to AWQPackedTensor what C holds of it."},
    {"edit_codes", awqpack_edit_codes, METH_VARARGS,
     "edit_codes(packed, change, /)\n--\n\nCalls change(codes) and stores the codes; no other write comes between."},
    {NULL, NULL, 0, NULL},
};

static int intern_names(void)
{
#define AWQPACK_INTERN(name)                                      \
    awqpack.names.name = PyUnicode_InternFromString(#name);       \
    if (awqpack.names.name == NULL) {                             \
        return -1;                                                \
    }
    AWQPACK_NAMES(AWQPACK_INTERN)
#undef AWQPACK_INTERN
    return 0;
}

/* root.a.b.c for the path "a.b.c". */
static PyObject *attribute_at(PyObject *root, const char *path)
{
    PyObject *names = PyUnicode_FromString(path);
    PyObject *parts = names == NULL ? NULL : PyObject_CallMethod(names, "split", "s", ".");
    PyObject *object = parts == NULL ? NULL : root;
    Py_XINCREF(object);
    for (Py_ssize_t i = 0; object != NULL && i < PyList_Size(parts); i++) {
        PyObject *next = PyObject_GetAttr(object, PyList_GetItem(parts, i));
        Py_DECREF(object);
        object = next;
    }
    Py_XDECREF(names);
    Py_XDECREF(parts);
    return object;
}

static int import_torch_objects(void)
{
    const struct {
        PyObject **slot;
        const char *path;
    } objects[] = {
        {&awqpack.tensor_type, "Tensor"},
        {&awqpack.make_wrapper, "Tensor._make_wrapper_subclass"},
        {&awqpack.make_subclass, "Tensor._make_subclass"},
        {&awqpack.tensor_detach, "Tensor.detach"},
        {&awqpack.tensor_to, "Tensor.to"},
        {&awqpack.tensor_is_neg, "Tensor.is_neg"},
        {&awqpack.dispatch_off, "_C._DisableTorchDispatch"},
        {&awqpack.dispatch_off_init, "_C._DisableTorchDispatch.__init__.__func__"},
        {&awqpack.uint8, "uint8"},
        {&awqpack.int16, "int16"},
        {&awqpack.int32, "int32"},
        {&awqpack.strided, "strided"},
        {&awqpack.contiguous_format, "contiguous_format"},
        {&awqpack.preserve_format, "preserve_format"},
        {&awqpack.inplace_view, "Tag.inplace_view"},
        {&awqpack.dispatch_depth, "_C._len_torch_dispatch_stack"},
        {&awqpack.function_depth, "_C._len_torch_function_stack"},
        {&awqpack.functorch_level, "_C._functorch.maybe_current_level"},
        {&awqpack.is_tracing, "_C._is_tracing"},
        {&awqpack.is_inference_on, "is_inference_mode_enabled"},
        {&awqpack.inference_mode, "inference_mode"},
        {&awqpack.increment_version, "_C._increment_version"},
        {&awqpack.forbid_data_ptr, "_C._set_throw_on_mutable_data_ptr"},
        {&awqpack.device_type, "device"},
        {&awqpack.data_descriptor, "Tensor.data"},
        {&awqpack.parameter_type, "nn.Parameter"},
        {&awqpack.empty_strided, "empty_strided"},
        {&awqpack.symint_type, "SymInt"},
        {&awqpack.op_pack, "ops.awqpack.pack.default._op"},
        {&awqpack.op_unpack, "ops.awqpack.unpack.default._op"},
        {&awqpack.aten_detach, "ops.aten.detach.default"},
        {&awqpack.aten_to_copy, "ops.aten._to_copy.default"},
        {&awqpack.aten_copy_, "ops.aten.copy_.default"},
    };
    PyObject *torch = PyImport_ImportModule("torch");
    int status = torch == NULL ? -1 : 0;
    for (size_t i = 0; status == 0 && i < sizeof objects / sizeof objects[0]; i++) {
        *objects[i].slot = attribute_at(torch, objects[i].path);
        status = *objects[i].slot == NULL ? -1 : 0;
    }
    Py_XDECREF(torch);
    awqpack.plans = PyDict_New();
    awqpack.device_kinds = PyDict_New();
    awqpack.meta_codes = Py_BuildValue("{sOss}", "dtype", awqpack.uint8, "device", "meta");
    return status < 0 || awqpack.plans == NULL || awqpack.device_kinds == NULL ? -1 : 0;
}

/* Clears an AttributeError, -1 for any other exception. */
static int forgive_absence(void)
{
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return -1;
    }
    PyErr_Clear();
    return 0;
}

/* Optional: without them payloads are copied by torch. */
static int import_copying(void)
{
    PyObject *capsule = PyObject_GetAttrString(awqpack.tensor_type, "__dlpack_c_exchange_api__");
    PyObject *torch = capsule == NULL ? NULL : PyImport_ImportModule("torch");
    awqpack.adopt_tensors = torch == NULL ? NULL : attribute_at(torch, "_C._aoti.alloc_tensors_by_stealing_from_void_ptrs");
    const int status = awqpack.adopt_tensors == NULL ? forgive_absence() : 0;
    if (awqpack.adopt_tensors != NULL && PyCapsule_IsValid(capsule, AWQPACK_DLPACK_CAPSULE)) {
        const awqpack_dlpack_exchange *exchange = PyCapsule_GetPointer(capsule, AWQPACK_DLPACK_CAPSULE);
        awqpack.dlpack = exchange->major == AWQPACK_DLPACK_MAJOR ? exchange : NULL;
    }
    Py_XDECREF(torch);
    Py_XDECREF(capsule);
    return status;
}

/* Forgets what an import that fails has looked up, so that the next can begin. */
static void forget(void)
{
#define AWQPACK_FORGET(name) Py_CLEAR(awqpack.name);
    AWQPACK_OBJECTS(AWQPACK_FORGET)
#undef AWQPACK_FORGET
#define AWQPACK_FORGET(name) Py_CLEAR(awqpack.names.name);
    AWQPACK_NAMES(AWQPACK_FORGET)
#undef AWQPACK_FORGET
    awqpack.dlpack = NULL;
}

static int module_exec(PyObject *Py_UNUSED(module))
{
    awq_error error;
    if (awqpack.tensor_type != NULL) {
        PyErr_SetString(PyExc_ImportError, "awqpack._C can be loaded once in a process");
        return -1;
    }
    if (awq_active_kernels(&error) == NULL) {
        awqpack_raise(&error);
        return -1;
    }
    if (claims_prepare_for_fork() < 0 || intern_names() < 0 || awqpack_import_numpy() < 0 || import_torch_objects() < 0 ||
        import_copying() < 0) {
        forget();
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "awqpack._C",
    .m_doc = "awqpack's C layers: array packing, and the class AWQPackedTensor.",
    .m_size = 0,
    .m_methods = module_functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__C(void)
{
    return PyModuleDef_Init(&module_definition);
}

/* The module itself: its functions, and what it was built with. */
#include "claims.h"
#include "class.h"
#include "kernels/cpu.h"
#include "ndarray.h"
#include "state.h"
#include "tensors.h"
#include "torch/shim.h"
#include "writes.h"

#ifndef AWQPACK_BUILT_WITH_TORCH
#error "setup.py defines AWQPACK_BUILT_WITH_TORCH"
#endif

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
    PyObject *names = variants == NULL ? NULL : PyUnicode_FromString(awq_cuda_arch_list());
    PyObject *archs = names == NULL ? NULL : PyObject_CallMethod(names, "split", NULL);
    Py_XDECREF(names);
    PyObject *info = archs == NULL ? NULL
                                   : Py_BuildValue("{sssOsssO}", "torch", AWQPACK_BUILT_WITH_TORCH, "cpu_variants",
                                                   variants, "cpu_active", awq_cpu_name(active), "cuda_archs", archs);
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
     "pack_array(array, packing, reorder, validate, out, variant, /)\n--\n\nPacks a NumPy array; variant None is the "
     "active one."},
    {"unpack_array", awqpack_unpack_array, METH_VARARGS,
     "unpack_array(array, packing, reorder, out, variant, /)\n--\n\nUnpacks a NumPy array; variant None is the active "
     "one."},
    {"pack_tensor", packed_pack, METH_VARARGS,
     "pack_tensor(cls, t, packing, reorder, validate, /)\n--\n\nWhat AWQPackedTensor.pack calls."},
    {"variants", module_variants, METH_NOARGS,
     "variants()\n--\n\nNames of the kernels this CPU can run, slowest first."},
    {"build_info", module_build_info, METH_NOARGS,
     "build_info()\n--\n\nWhat the module was built with and what it uses."},
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
    return claims_prepare_for_fork() < 0 || awqpack_import_numpy() < 0 ? -1 : awqpack_fill_state();
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

/* The one state of the module: names, and what it looks up once in torch. */
#include "state.h"

#include "dlpack.h"

awqpack_state awqpack;

static int intern_names(void)
{
#define AWQPACK_INTERN(name)                                                                                           \
    awqpack.names.name = PyUnicode_InternFromString(#name);                                                            \
    if (awqpack.names.name == NULL) {                                                                                  \
        return -1;                                                                                                     \
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
    PyObject *object = parts == NULL ? NULL : Py_NewRef(root);
    for (Py_ssize_t i = 0; object != NULL && i < PyList_Size(parts); i++) {
        PyObject *next = PyObject_GetAttr(object, PyList_GetItem(parts, i));
        Py_DECREF(object);
        object = next;
    }
    Py_XDECREF(names);
    Py_XDECREF(parts);
    return object;
}

PyObject *awqpack_look_up(const char *module, const char *path)
{
    PyObject *root = PyImport_ImportModule(module);
    PyObject *object = root == NULL ? NULL : attribute_at(root, path);
    Py_XDECREF(root);
    return object;
}

static int import_torch_objects(void)
{
    static const struct {
        PyObject **slot;
        const char *path;
    } objects[] = {
#define AWQPACK_PLACE(name, path) {&awqpack.name, path},
        AWQPACK_TORCH_OBJECTS(AWQPACK_PLACE)
#undef AWQPACK_PLACE
    };
    PyObject *torch = PyImport_ImportModule("torch");
    int status = torch == NULL ? -1 : 0;
    for (size_t i = 0; status == 0 && i < sizeof objects / sizeof objects[0]; i++) {
        *objects[i].slot = attribute_at(torch, objects[i].path);
        status = *objects[i].slot == NULL ? -1 : 0;
    }
    Py_XDECREF(torch);
    if (status < 0) {
        return -1;
    }
    awqpack.plans = PyDict_New();
    awqpack.device_kinds = PyDict_New();
    awqpack.meta_codes = Py_BuildValue("{sOss}", "dtype", awqpack.uint8, "device", "meta");
    return awqpack.plans == NULL || awqpack.device_kinds == NULL || awqpack.meta_codes == NULL ? -1 : 0;
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
    awqpack.adopt_tensors =
        capsule == NULL ? NULL : awqpack_look_up("torch", "_C._aoti.alloc_tensors_by_stealing_from_void_ptrs");
    int status = awqpack.adopt_tensors == NULL ? forgive_absence() : 0;
    if (awqpack.adopt_tensors != NULL && PyCapsule_IsValid(capsule, AWQPACK_DLPACK_CAPSULE)) {
        const awqpack_dlpack_exchange *exchange = PyCapsule_GetPointer(capsule, AWQPACK_DLPACK_CAPSULE);
        awqpack.dlpack = exchange != NULL && exchange->major == AWQPACK_DLPACK_MAJOR ? exchange : NULL;
        status = exchange == NULL ? -1 : 0;
    }
    Py_XDECREF(capsule);
    return status;
}

/* Forgets what an import that fails has looked up, so that the next can begin. */
static void forget(void)
{
#define AWQPACK_FORGET(name, path) Py_CLEAR(awqpack.name);
    AWQPACK_TORCH_OBJECTS(AWQPACK_FORGET)
#undef AWQPACK_FORGET
#define AWQPACK_FORGET(name) Py_CLEAR(awqpack.name);
    AWQPACK_OWN_OBJECTS(AWQPACK_FORGET)
#undef AWQPACK_FORGET
#define AWQPACK_FORGET(name) Py_CLEAR(awqpack.names.name);
    AWQPACK_NAMES(AWQPACK_FORGET)
#undef AWQPACK_FORGET
    awqpack.dlpack = NULL;
}

int awqpack_fill_state(void)
{
    if (intern_names() < 0 || import_torch_objects() < 0 || import_copying() < 0) {
        forget();
        return -1;
    }
    return 0;
}

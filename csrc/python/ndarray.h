/* NumPy arrays in and out, with the GIL released. */
#ifndef AWQPACK_NDARRAY_H
#define AWQPACK_NDARRAY_H

#include "state.h"

int awqpack_import_numpy(void);
PyObject *awqpack_pack_array(PyObject *module, PyObject *args);
PyObject *awqpack_unpack_array(PyObject *module, PyObject *args);
/* New ndarray with the codes of a payload that lies in CPU memory; NULL order means contiguous. */
PyObject *awqpack_unpack_to_array(const awq_view *payload, awq_packing packing, const int64_t *order);

#endif

/* The packings as Python names them, AWQPacking's members and reorder, beside their rows in packing.h. */
#include "state.h"

int awqpack_set_packings(PyObject *packing_type)
{
    for (int i = 0; i < AWQ_PACKING_COUNT; i++) {
        PyObject *member = PyObject_GetAttrString(packing_type, awq_packings[i].name);
        PyObject *number = member == NULL ? NULL : PyLong_FromLong(awq_packings[i].number);
        if (number == NULL) {
            Py_XDECREF(member);
            return -1;
        }
        awqpack.packings[i].member = member;
        awqpack.packings[i].number = number;
    }
    return 0;
}

/* The first row of a member. What is none, in metadata that somebody replaced, is taken for the first of all: payloads
   are checked where they are read. */
static int first_row(PyObject *member)
{
    int i = AWQ_PACKING_COUNT - 1;
    while (i > 0 && (awqpack.packings[i].member != member || awqpack.packings[i - 1].member == member)) {
        i--;
    }
    return i;
}

int awqpack_is_packing(PyObject *object)
{
    return awqpack.packings[first_row(object)].member == object;
}

int awqpack_check_packing(PyObject *packing)
{
    if (awqpack_is_packing(packing)) {
        return 1;
    }
    char names[192];
    awq_packing_names(names, sizeof names);
    PyErr_Format(PyExc_TypeError, "packing expects %s; got %R", names, packing);
    return 0;
}

awq_packing awqpack_packing_of(PyObject *packing, PyObject *reorder)
{
    const int first = first_row(packing);
    return (awq_packing)(first + (awq_packings[first].has_order && reorder == Py_True));
}

PyObject *awqpack_packing_number(PyObject *packing)
{
    return awqpack.packings[first_row(packing)].number;
}

PyObject *awqpack_packing_member(int64_t number)
{
    awq_packing packing;
    awq_error error;
    return awq_packing_from_number(number, false, &packing, &error) ? awqpack.packings[packing].member
                                                                    : awqpack_raise(&error);
}

PyObject *awqpack_payload_dtype(PyObject *packing)
{
    return awq_packings[first_row(packing)].dtype == AWQ_DTYPE_INT16 ? awqpack.int16 : awqpack.int32;
}

"""Every call that awqpack._C makes of CPython, libtorch, NumPy and libc fails once, under each operation of a table.

`python tests/faults/failing_calls.py` runs them all and prints, for each operation, how many calls failed and what came
of it. Each must end in an exception or, where the code goes on without what failed, in the right result;
with no crash, no lost reference, nothing half written, and no turn of a thread kept.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import functools
import gc
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent

# What can fail, by what a failure returns. CPython's functions also set MemoryError.
GIVES_NULL = """
    PyCMethod_New PyCapsule_GetPointer PyCapsule_New PyDescr_NewGetSet PyDescr_NewMethod PyDict_Copy
    PyDict_GetItemWithError PyDict_Keys PyDict_New PyDict_Values PyImport_ImportModule PyList_AsTuple PyList_New
    PyLong_AsVoidPtr PyLong_FromLong PyLong_FromLongLong PyLong_FromVoidPtr PyNumber_Index PyNumber_Long
    PyNumber_Multiply PyObject_Call PyObject_CallFunction PyObject_CallFunctionObjArgs PyObject_CallMethod
    PyObject_CallMethodObjArgs PyObject_CallNoArgs PyObject_GetAttr PyObject_GetAttrString
    PyObject_RichCompare PyObject_Str PySequence_Concat PySequence_GetItem PySequence_List
    PySequence_Tuple PyTuple_GetSlice PyTuple_New PyTuple_Pack PyUnicode_AsUTF8AndSize PyUnicode_FromFormat
    PyUnicode_FromString PyUnicode_InternFromString PyUnicode_Split Py_BuildValue
"""
GIVES_MINUS_ONE = """
    PyDict_DelItem PyDict_SetItem PyErr_CheckSignals PyList_Append PyLong_AsLong PyLong_AsLongLong
    PyObject_IsTrue PyObject_Not PyObject_RichCompareBool PyObject_SetAttr PyObject_SetAttrString
    PySequence_Contains PySequence_Size Py_EnterRecursiveCall
"""
GIVES_ZERO = "PyArg_ParseTuple PyArg_ParseTupleAndKeywords"
GIVES_NULL_IN_SILENCE = "PyMem_Calloc PyMem_Malloc PyMem_Realloc PyThread_allocate_lock aligned_alloc"
GIVES_ONE_IN_SILENCE = """
    aoti_torch_empty_strided aoti_torch_get_data_ptr aoti_torch_get_device_index aoti_torch_get_device_type
    aoti_torch_get_dim aoti_torch_get_dtype aoti_torch_get_sizes aoti_torch_get_strides aoti_torch_new_tensor_handle
    torch_get_const_data_ptr torch_get_mutable_data_ptr torch_parallel_for __register_atfork
"""
# What does not fail as it is called here, or says so by a result that is no error.
CANNOT_FAIL = """
    PyBool_FromLong PyCFunction_GetFlags PyCFunction_GetFunction PyCFunction_GetSelf PyCapsule_IsValid PyDict_GetItem
    PyDict_GetItemString PyDict_Size PyErr_Clear PyErr_ExceptionMatches PyErr_Fetch PyErr_Format
    PyErr_NoMemory PyErr_NormalizeException PyErr_Occurred PyErr_Print PyErr_Restore PyErr_SetObject PyErr_SetString
    PyErr_WriteUnraisable PyEval_GetFrame PyEval_RestoreThread PyEval_SaveThread PyFrame_GetCode PyList_GetItem
    PyList_SetItem PyList_Size PyMem_Free PyModuleDef_Init PyOS_snprintf PyObject_HasAttrString PyThread_acquire_lock
    PyThread_acquire_lock_timed PyThread_free_lock PyThread_get_thread_ident PyThread_release_lock PyTuple_GetItem
    PyTuple_SetItem PyTuple_Size PyType_GetFlags PyType_GetSlot PyType_IsSubtype
    PyUnicode_CompareWithASCIIString PyUnicode_GetLength Py_LeaveRecursiveCall Py_Dealloc Py_DecRef Py_IncRef Py_NewRef
"""
FAILURES = {  # function -> what it returns, and whether it sets an exception
    name: (value, has_error)
    for names, value, has_error in (
        (GIVES_NULL, 0, True),
        (GIVES_MINUS_ONE, -1, True),
        (GIVES_ZERO, 0, True),
        (GIVES_NULL_IN_SILENCE, 0, False),
        (GIVES_ONE_IN_SILENCE, 1, False),
    )
    for name in names.split()
}
PYARRAY_NEW = 93  # its place in NumPy's table


def plain_name(name):
    """A function's name in the documentation: PY_SSIZE_T_CLEAN makes `_Py_BuildValue_SizeT` of Py_BuildValue."""
    return name.removeprefix("_").removesuffix("_SizeT").split("@")[0]


@functools.cache
def library():
    """The shared library of failing_calls.c, built on first use."""
    folder = Path(tempfile.mkdtemp(prefix="awqpack-faults-"))
    target = folder / "failing_calls.so"
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", HERE / "failing_calls.c"]
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer is none of gcc's
    subprocess.run([*command, "-o", target, "-ldl"], check=True, env=clean)
    loaded = ctypes.CDLL(str(target))
    target.unlink()
    folder.rmdir()
    loaded.slot_at.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_char_p)]
    loaded.slot_at.restype = ctypes.c_void_p
    loaded.watch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    loaded.arm.argtypes, loaded.arm.restype = [ctypes.c_long, ctypes.c_long], None
    loaded.disarm.restype = loaded.failures_of.restype = ctypes.c_long
    return loaded


def module_path():
    """The file of awqpack._C, without importing awqpack."""
    folders = importlib.util.find_spec("awqpack").submodule_search_locations
    return next(path for folder in folders for path in Path(folder).glob("_C*.so"))


def slots(module):
    """The slots of a loaded module, by function."""
    found, name, begin = {}, ctypes.c_char_p(), ctypes.cast(module.PyInit__C, ctypes.c_void_p)
    while slot := library().slot_at(begin, len(found), ctypes.byref(name)):
        found[name.value.decode()] = slot
    return found


def address_of(module, name):
    for loaded in (ctypes.CDLL(None), module):
        if hasattr(loaded, name):
            return ctypes.cast(getattr(loaded, name), ctypes.c_void_p)
    raise LookupError(f"expected {name} in what {module} is linked with; it is nowhere")


def watch():
    """Has awqpack._C's calls watched, before it is imported; the functions' numbers by name."""
    module = ctypes.CDLL(str(module_path()))
    numbers, unknown = {}, []
    for name, slot in slots(module).items():
        known = name if name in FAILURES else plain_name(name)
        if known in FAILURES:
            numbers[known] = library().watch(slot, address_of(module, name), *FAILURES[known])
        elif known.startswith("Py") and known not in CANNOT_FAIL.split():
            unknown.append(known)
    if unknown:
        raise LookupError(f"expected all that awqpack._C calls in one of the tables above; {unknown} are in none")
    table = ctypes.pythonapi.PyCapsule_GetPointer
    table.argtypes, table.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    slot = table(np._core._multiarray_umath._ARRAY_API, None) + PYARRAY_NEW * ctypes.sizeof(ctypes.c_void_p)
    numbers["PyArray_New"] = library().watch(slot, ctypes.c_void_p.from_address(slot), 0, True)
    assert min(numbers.values()) >= 0, numbers
    return numbers


# --- what comes of a failure ---


def picture(value):
    """What two results have in common that are the same."""
    if isinstance(value, torch.Tensor):
        values = value.numpy().tobytes() if value.device.type == "cpu" else None
        payload = value.payload.numpy().tobytes() if hasattr(value, "payload") else None
        return type(value).__name__, value.dtype, tuple(value.shape), value.stride(), values, payload
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return type(value).__name__, [picture(item) for item in value]
    if isinstance(value, dict):
        return {name: picture(item) for name, item in value.items()}
    return repr(value)


class Outcome:
    """An operation's end: its result, or the type and the text of what it raised; and what it left behind."""

    def __init__(self, operation, world, arm=None):
        self.calls, self.error, self.said = 0, None, []
        sys.unraisablehook = lambda unraisable: self.said.append(type(unraisable.exc_value).__name__)
        if arm:
            library().arm(*arm)
        try:
            result = operation(world)
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}"
            self.kind = type(error)
        finally:
            self.calls = library().disarm()
            sys.unraisablehook = sys.__unraisablehook__
        self.careless = library().called_carelessly()
        self.result = None if self.error else picture(result)
        self.contents = world.contents()


class Sweep:
    """An operation again and again: with its first call failing, then with its second, and so on."""

    def __init__(self, name, operation, functions, new_world, takes_turns, lesser=None):
        self.name, self.operation, self.functions = name, operation, functions
        self.new_world, self.takes_turns = new_world, takes_turns
        self.lesser = lesser and picture(lesser(new_world()))
        self.kinds = collections.Counter()
        self.faults = []

    def run(self):
        self.before = self.new_world().contents()
        for _ in range(2):  # the second time, what torch and we look up once is there
            count = next(number - 1 for number in itertools.count(1) if not self.fails(number))
        for number in self.calls_that_leak(count):
            self.fault(number, "leaks")
        return self

    def fails(self, number):
        """Whether there is a call of that number; what came of its failure is noted."""
        outcome = Outcome(self.operation, self.new_world(), (number, number))
        if outcome.calls < number:
            return False
        usual = Outcome(self.operation, self.new_world())
        self.kinds[outcome.kind.__name__ if outcome.error else "went on"] += 1
        if outcome.error is None and outcome.result not in (usual.result, self.lesser):
            self.fault(number, f"gave {outcome.result!r:.200} in place of {usual.result!r:.200}, {usual.error}")
        if outcome.error and outcome.kind is SystemError:
            self.fault(number, outcome.error)
        if outcome.careless >= 0:
            self.fault(number, f"{self.functions[outcome.careless]} was called with an exception set")
        # Where the op itself failed and what fails now is its undoing, Python's unraisable hook hears of it.
        if outcome.contents != usual.contents and outcome.contents != self.before and not outcome.said:
            self.fault(number, "left something half written")
        if outcome.error is None and outcome.contents != usual.contents:
            self.fault(number, "lost a write and said nothing")
        if self.takes_turns and not self.lets_others_write(number):
            self.fault(number, "keeps other threads from writing")
        return True

    def fault(self, number, text):
        self.faults.append(f"{self.name}, call {number}: {text}")

    def calls_that_leak(self, count):
        """Those of the first `count` calls whose failure leaves more behind each time."""

        def more_blocks(numbers):
            gc.collect()  # exceptions and torch's own Python code make cycles
            before = sys.getallocatedblocks()
            for number in numbers:
                Outcome(self.operation, self.new_world(), (number, number))
            gc.collect()
            return sys.getallocatedblocks() - before

        # What caches take in is less from batch to batch, and then nothing: after ten or so, not five.
        numbers = range(1, count + 1)
        if any(more_blocks(numbers) <= 0 for _ in range(8)):
            return []
        return [number for number in numbers if all(more_blocks([number] * 30) >= 30 for _ in range(20))]

    def lets_others_write(self, number):
        world = self.new_world()
        Outcome(self.operation, world, (number, number))
        thread = threading.Thread(target=lambda: world.packed.zero_(), daemon=True)
        thread.start()
        thread.join(10)
        return not thread.is_alive()


def sweep_import():
    """Imports awqpack with its first call failing, then with its second, and so on, each time upon what was left."""
    number = failed = 0
    is_loaded = False
    while True:
        number += 1
        library().arm(number, number)
        try:
            importlib.import_module("awqpack")
        except SystemError:
            raise
        except BaseException:
            failed += 1
        else:
            break
        finally:
            library().disarm()
        if not is_loaded and "awqpack._C" in sys.modules:  # what is left is what awqpack does with it
            number, is_loaded = 0, True
    assert failed > 200, failed
    return failed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of operations")
    parser.add_argument("--quick", action="store_true", help="some operations, with one packing")
    options = parser.parse_args(arguments)
    numbers = watch()
    if not options.quick:  # its tries at importing take long
        print(f"import: {sweep_import()} calls failed, and so did it")
    functions = {number: name for name, number in numbers.items()}
    import operations

    import awqpack

    packings = [(packing, False) for packing in awqpack.AWQPacking][: 1 if options.quick else None]
    gc.collect()
    gc.freeze()
    gc.disable()
    faults, total = [], 0
    begin = time.perf_counter()
    for name, function in {**operations.READS, **operations.WRITES}.items():
        if (options.only and name not in options.only) or (options.quick and name not in operations.QUICK):
            continue
        for packing, reorder in packings:
            world = functools.partial(operations.World, packing, reorder)
            started = time.perf_counter()
            sweep = Sweep(
                name, function, functions, world, name in operations.WRITES, operations.LESSER.get(name)
            ).run()
            seconds = time.perf_counter() - started
            print(
                f"{name:32} {packing.name:7} {sum(sweep.kinds.values()):5} {seconds:6.2f} s {dict(sweep.kinds)}",
                flush=True,
            )
            faults += sweep.faults
            total += sum(sweep.kinds.values())
            for fault in sweep.faults[:5]:
                print("    " + fault)
        gc.collect()
    unreached = [name for name, number in numbers.items() if library().failures_of(number) == 0]
    never = "" if options.quick or options.only else f"; never called or never failed: {', '.join(unreached) or 'none'}"
    print(f"{total} calls failed, {len(faults)} faults, {time.perf_counter() - begin:.0f} s{never}")
    return bool(faults)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())

"""Which of a process's interpreters this is: torch crashes in all but the main one, at the latest as they end."""

import ctypes


def is_main() -> bool:
    """Whether this is the main interpreter; needs no module that a subinterpreter cannot have."""
    state = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyInterpreterState_Get", ctypes.pythonapi))
    number = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(("PyInterpreterState_GetID", ctypes.pythonapi))
    return bool(number(state()) == 0)

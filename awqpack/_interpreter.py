"""Which of a process's interpreters this is: torch crashes in all but the main one, at the latest as they end."""


def is_main() -> bool:
    """Whether this is the main interpreter; needs no module that a subinterpreter cannot have."""
    try:
        import ctypes
    except ImportError as error:  # Python 3.12's loads in no interpreter that has a lock of its own
        if "subinterpreters" in str(error):
            return False
        raise
    state = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyInterpreterState_Get", ctypes.pythonapi))
    number = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(("PyInterpreterState_GetID", ctypes.pythonapi))
    return bool(number(state()) == 0)

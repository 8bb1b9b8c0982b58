"""Other processes. run() starts scripts that have torch already: forks of one that waits, as importing takes long.

Nothing of awqpack is imported before the script begins, and no thread of torch's has started. A script has the folder
and the environment of its run(); what Python and torch read of the latter as they start is that of the first.
multiprocessing's forkserver would not do: its children never finalize the interpreter, which some scripts test.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

SERVER = """
import atexit, ctypes, gc, json, os, signal, socket, sys, threading, warnings
import torch
if torch.distributed.is_available():
    import torch.distributed.tensor  # torch itself does so at the first op of a subclass, and it takes a second

gc.freeze()  # the scripts' collections pass over what was there before them
requests = socket.socket(fileno=int(sys.argv[1]))

def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's threads: OpenBLAS knows what to do in a fork
        return os.fork()

def next_job():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        files = socket.recv_fds(requests, 1, 5)[1]
        if not files:
            os._exit(0)
        if fork() == 0:
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    job, report = files.pop(), files.pop()
    if child := fork():
        os.write(report, b"%d\\n" % child)
        os.write(report, b"%d\\n" % os.waitpid(child, 0)[1])
        os._exit(0)
    os.close(report)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    with open(job) as job:
        return json.load(job)

def end(status):
    # As a process of multiprocessing's ends. Where output cannot be written, the interpreter is left to say so.
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush(), sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return
    ctypes.CDLL(None).fflush(None)  # what C and C++ libraries printed
    os._exit(status)

# It returns in each process that is to run a script, as python -c.
sys.argv, folder, environment, script, is_taken_apart = next_job()
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
try:
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
except SystemExit as error:
    if not is_taken_apart and type(error.code) in (int, type(None)):
        end(error.code or 0)
    raise
if not is_taken_apart:
    end(0)
"""


_starting = threading.Lock()


@functools.cache
def _server():
    """The process that waits, until this one ends, and the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(process.wait)
    atexit.register(process.kill)  # first: the last that is registered
    return process, ours


def _next_report(reports, deadline):
    """The next number that the server says of a script; None if it says none in time."""
    if not select.select([reports], [], [], max(0, deadline - time.monotonic()))[0]:
        return None
    line = reports.readline()
    if not line:
        raise EOFError
    return int(line)


def _run(job, deadline, files):
    """The status of a job that is told the server; None if it was killed as it took too long."""
    with _starting:
        server, requests = _server()
    reports, report = os.pipe()
    with open(reports, "rb", buffering=0) as reports:  # what lay in a buffer, select would not see
        try:
            with open(report, "wb") as report, open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as file:
                json.dump(job, file)
                file.seek(0)
                socket.send_fds(requests, [b"."], [file.fileno() for file in (nothing, *files, report, file)])
            child = _next_report(reports, deadline)
            status = child and _next_report(reports, deadline)
        except (ConnectionError, EOFError) as error:
            message = f"expected a script's status from the server of scripts, process {server.pid}; it is gone"
            raise RuntimeError(message) from error
        if child and status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            reports.readline()  # when the script is dead
        return status


def run(script, *arguments, timeout=120, is_taken_apart=False, **environment):
    """As subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=...).

    Once the script is over, its threads and what atexit knows, the process ends. Where `is_taken_apart`, the
    interpreter and all it holds are finalized as ever: for tests of that, as it takes most of a short script's time.
    """
    deadline = time.monotonic() + timeout
    arguments = ["-c", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        job = [arguments, os.getcwd(), {**os.environ, **environment}, script, is_taken_apart]
        status = _run(job, deadline, [out, err])
        for file in (out, err):
            file.seek(0)
        if status is None:
            raise subprocess.TimeoutExpired(arguments, timeout, out.read(), err.read())
        return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), out.read(), err.read())


def write_and_report(packed_in, report_out):
    """In a process that multiprocessing started: writes into each packed tensor that arrives, and says what it was."""
    for packed in iter(lambda: packed_in.get(timeout=120), None):
        report = (type(packed).__name__, packed.packing.name, packed.reorder, packed.sum().item())
        packed.fill_(9)
        if packed.is_cuda:
            import torch

            torch.cuda.synchronize()
        del packed
        report_out.put(report)

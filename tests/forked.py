"""Other processes. run() starts scripts that have torch already: forks of one that waits, as importing takes long.

Nothing of awqpack is imported before the script begins, and no thread of torch's has started.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile

SERVER = """
import gc, json, os, signal, socket, sys, warnings
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
        job, files, _, _ = socket.recv_fds(requests, 1 << 16, 4)
        if not job:
            os._exit(0)
        if fork() == 0:
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    report = files.pop()
    if child := fork():
        os.write(report, b"%d\\n" % child)
        os.write(report, b"%d\\n" % os.waitpid(child, 0)[1])
        os._exit(0)
    os.close(report)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return json.loads(job)

sys.argv, environment, script = next_job()  # returns in each process that is to run a script, as python -c would
os.environ.update(environment)
exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
"""


@functools.cache
def _server():
    """The socket of the process that waits, until this one ends."""
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
    return ours


def run(script, *arguments, timeout=120, **environment):
    """As subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)."""
    arguments = ["-c", *map(str, arguments)]
    reports, report = os.pipe()
    with open(reports) as reports, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with open(os.devnull) as nothing:
            job = json.dumps([arguments, environment, script]).encode()
            files = [nothing.fileno(), out.fileno(), err.fileno(), report]
            socket.send_fds(_server(), [job], files)
            os.close(report)
        child = int(reports.readline())
        if not select.select([reports], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(int(reports.readline()))
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read(), err.read())


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

"""The ends of processes, interpreters and threads: what lives then, and what comes after."""

import os

import forked
import pytest

BEGIN = """
import atexit, sys, threading, weakref, torch, awqpack
from awqpack import AWQPackedTensor
codes = torch.arange(256 * 512, dtype=torch.int32).remainder(13).to(torch.uint8).view(256, 512)
packed = AWQPackedTensor.pack(codes)
"""

# What is alive when the interpreter ends. No daemon thread within an op: there torch aborts, for plain tensors too.
AT_THE_END = {
    "a tensor": "view, twin, codes_view = packed[...], packed.detach(), packed[:3]",
    "a cycle": "box = [packed, packed.unpack()]; box.append(box); packed.itself = packed",
    "a parameter": "module = torch.nn.Linear(2, 2); module.w = torch.nn.Parameter(packed, requires_grad=False)",
    "an attribute of torch": "torch.kept_until_the_end = packed; AWQPackedTensor.kept = packed",
    "a weak reference": "ends = []; end = weakref.ref(packed, ends.append)",
    "a finalizer": "weakref.finalize(packed, lambda kept: kept.fill_(3), AWQPackedTensor.pack(codes))",
    "a handler that writes": "atexit.register(lambda: (packed.fill_(3), repr(packed), packed.numpy(), packed + 1))",
    "an object that writes as it goes": """
class Last:
    def __init__(self):
        self.packed, self.zeros = packed, torch.zeros_like(codes)
    def __del__(self):
        self.packed.zero_()
        self.packed.to("cpu", copy=True)
        assert torch.equal(self.packed.detach().unpack(), self.zeros)
last = Last()
sys.modules["last"] = last
last.__del__()  # what torch imports at the first call of an op, it cannot at the end
""",
}


@pytest.mark.parametrize("what", AT_THE_END)
def test_an_interpreter_ends_while_there_is(what):
    done = forked.run(BEGIN + AT_THE_END[what] + "\nprint('last')", is_taken_apart=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "last\n", "")


# What a forked child does. torch's own threads do not outlive a fork: a child asks for one, as for any work of torch's.
IN_A_CHILD = {
    "reads": "assert torch.equal(packed.unpack(), codes) and torch.equal(packed + 0, codes)",
    "packs": "assert torch.equal(AWQPackedTensor.pack(codes).unpack(), codes); assert packed.numpy().any()",
    "writes": "packed.fill_(5); packed[3] = 4; assert int(packed.sum()) == 5 * 255 * 512 + 4 * 512",
    "copies": "assert torch.equal(copy.deepcopy(packed).detach().to('cpu', copy=True).unpack(), codes)",
    "pickles": "assert torch.equal(pickle.loads(pickle.dumps(packed)).unpack(), codes)",
    "forks": "child = os.fork(); packed.fill_(child > 0); child and os._exit(os.waitpid(child, 0)[1])",
    "writes with threads of its own": """
threads = [threading.Thread(target=packed.add_, args=(0,)) for _ in range(4)]
[thread.start() for thread in threads], [thread.join(20) for thread in threads]
assert torch.equal(packed.unpack(), codes)
""",
    "writes into shared memory": "shared.fill_(7)",
    "ends as interpreters do": "sys.exit(0)",
}
FORK = """
import copy, os, pickle, signal
shared = packed.detach().clone().share_memory_()
packed.fill_(1), packed.copy_(codes)
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.set_num_threads(1)
    exec(sys.argv[1])
    os._exit(0)
status = os.waitpid(child, 0)[1]
assert status == 0, status
assert torch.equal(packed.unpack(), codes)
assert int(shared.sum()) == (7 * shared.numel() if "shared" in sys.argv[1] else int(codes.sum()))
packed.fill_(2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("what", IN_A_CHILD)
def test_a_forked_child(what):
    done = forked.run(BEGIN + FORK, IN_A_CHILD[what], is_taken_apart=True)
    assert done.returncode == 0, done.stderr


IN_A_SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
other = interpreters.create()
try:
    text = interpreters.run_string(other, "import awqpack").msg
except interpreters.RunFailedError as error:
    text = str(error)
interpreters.destroy(other)
assert "awqpack works in a process's main interpreter alone, as torch does" in text, text
"""


@pytest.mark.parametrize("is_first", [True, False])
def test_a_subinterpreter_is_told(is_first):
    script = IN_A_SUBINTERPRETER + BEGIN if is_first else BEGIN + IN_A_SUBINTERPRETER + "packed.fill_(3)"
    done = forked.run(script, is_taken_apart=True)
    assert (done.returncode, done.stderr) == (0, "")

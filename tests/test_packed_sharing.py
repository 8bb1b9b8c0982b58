"""Several packed tensors around one payload, several threads, signals: what plain tensors would hold, or an error."""

import itertools
import os
import signal
import threading

import forked
import pytest
import torch
from shared import PACKINGS, SHAPE, assert_same, packed_tensor, torch_codes
from torch.utils._python_dispatch import TorchDispatchMode

from awqpack import AWQPackedTensor, pack


def around(payload, packing, shape):
    return AWQPackedTensor(payload, *packing, shape, torch.empty(shape, device="meta").stride())


# --- one payload in several arguments: beside uint8 tensors that share memory as the payloads do ---

# Rows and columns that begin and end with a block of every packing: where a part of the codes is a part of the payload.
PARTS = {
    "the first rows": (slice(0, 64), slice(None)),
    "rows in the middle": (slice(64, 192), slice(None)),
    "columns": (slice(None), slice(64, 128)),
    "a corner": (slice(64, 128), slice(128, 192)),
    "all": (slice(None), slice(None)),
}
WHOLE = (256, 192)


def scaled(part, factor):
    return slice(*(None if end is None else int(end * factor) for end in (part.start, part.stop)))


def part_of(payload, part):
    """The part of the payload of WHOLE that holds a part of the codes."""
    runs_down = payload.shape[1] == 2 * WHOLE[0]  # Marlin's: rows of codes lie along a row of the payload
    lines, along = reversed(part) if runs_down else part
    sizes = WHOLE[::-1] if runs_down else WHOLE
    return payload[scaled(lines, payload.shape[0] / sizes[0]), scaled(along, payload.shape[1] / sizes[1])]


class Family:
    """A packed tensor and ones around parts of its payload, and plain codes of the same kin."""

    def __init__(self, packing, device, names):
        self.codes = torch_codes(WHOLE, device).clamp_(2, 12)
        payload = pack(self.codes, *packing)
        self.packed = around(payload, packing, WHOLE)
        self.plain_parts, self.packed_parts = [], []
        for name in names:
            part = self.codes[PARTS[name]]
            self.plain_parts.append(part)
            self.packed_parts.append(around(part_of(payload, PARTS[name]), packing, part.shape))

    def assert_same(self):
        assert_same(self.packed.unpack(), self.codes)
        for packed, plain in zip(self.packed_parts, self.plain_parts, strict=True):
            assert_same(packed.unpack(), plain.contiguous())


LIST_WRITES = {
    "add": lambda ts: torch._foreach_add_(ts, 1),
    "sub a list": lambda ts: torch._foreach_sub_(ts, [torch.ones_like(t) for t in ts]),
    "copy": lambda ts: torch._foreach_copy_(ts, [torch.full(t.shape, i, dtype=torch.uint8) for i, t in enumerate(ts)]),
    "zero": lambda ts: torch._foreach_zero_(ts),
    "clamp": lambda ts: torch._foreach_clamp_max_(ts, 5),
}


@pytest.mark.parametrize("write", LIST_WRITES.values(), ids=LIST_WRITES.keys())
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("is_part_first", [False, True])
def test_a_part_and_the_whole_in_one_list(write, name, is_part_first, packing):
    family = Family(packing, "cpu", [name])
    for whole, part in [(family.codes, family.plain_parts[0]), (family.packed, family.packed_parts[0])]:
        write([part, whole] if is_part_first else [whole, part])
    family.assert_same()


def test_parts_apart_and_the_whole_that_they_are_of(packing):
    names = ["columns", "a corner", "rows in the middle"]
    family = Family(packing, "cpu", names)
    torch._foreach_add_([*family.plain_parts, family.codes], 1)
    torch._foreach_add_([*family.packed_parts, family.packed], 1)
    family.assert_same()


def test_parts_side_by_side_are_apart(packing):
    # Their bytes interleave, but none is in both.
    family = Family(packing, "cpu", ["columns", "a corner"])
    torch._foreach_add_(family.plain_parts, 1)
    torch._foreach_add_(family.packed_parts, 1)
    family.assert_same()


def test_a_list_reads_what_it_wrote(packing):
    family = Family(packing, "cpu", ["the first rows"])
    rows = torch.zeros(64, 192, dtype=torch.uint8)
    plain, packed = rows.clone(), around(pack(rows, *packing), packing, rows.shape)
    torch._foreach_copy_([family.codes, plain], [family.codes // 2, family.plain_parts[0]])
    torch._foreach_copy_([family.packed, packed], [family.packed // 2, family.packed_parts[0]])
    family.assert_same()
    assert_same(packed.unpack(), plain)


ENTANGLED = {
    "its own payload": lambda p: ([p, p.payload], 1),
    "its own payload first": lambda p: ([p.payload, p], 1),
    "bytes of its payload": lambda p: ([p, p.payload.view(torch.uint8)], 1),
    "parts that overlap": lambda p: ([rows(p, 0, 128), rows(p, 64, 192)], 1),
    "a payload that is read": lambda p: ([p, torch.ones(1)], [p.payload.flatten()[:1], p.payload.flatten()[:1]]),
    "one that is written twice": lambda p: ([p, p], [p.payload.flatten()[:1], p.payload.flatten()[:1]]),
    "a packed one that is read": lambda p: ([p.payload, torch.ones(WHOLE)], [torch.ones(1), p]),
}


def rows(packed, start, stop):
    payload = part_of(packed.payload, (slice(start, stop), slice(None)))
    return AWQPackedTensor(payload, packed.packing, packed.reorder, (stop - start, WHOLE[1]), (WHOLE[1], 1))


@pytest.mark.parametrize("name", ENTANGLED)
def test_lists_that_only_their_order_could_tell_apart_are_refused(name, packing):
    packed = Family(packing, "cpu", []).packed
    before, (tensors, other) = packed.payload.clone(), ENTANGLED[name](packed)
    with pytest.raises(RuntimeError, match="share memory with the payload"):
        (torch._foreach_copy_ if isinstance(other, list) else torch._foreach_add_)(tensors, other)
    assert_same(packed.payload, before)


@pytest.mark.parametrize(
    "pair", [(a, b) for a, b in itertools.permutations(PACKINGS, 2) if PACKINGS[a].packing is PACKINGS[b].packing]
)
class TestOnePayloadReadInTwoWays:
    @pytest.fixture
    def twins(self, pair, device):
        payload = packed_tensor(PACKINGS[pair[0]], SHAPE, device).payload
        return [around(payload, PACKINGS[name], SHAPE) for name in pair]

    def test_each_is_read_in_its_own(self, twins, pair):
        a, b = twins
        expected, out = a.unpack() ^ b.unpack(), packed_tensor(PACKINGS[pair[0]], SHAPE, a.device, seed=8)
        assert_same(a ^ b, expected)
        torch.bitwise_xor(a, b, out=out)
        assert_same(out.unpack(), expected)

    @pytest.mark.parametrize("write", [torch.Tensor.bitwise_or_, torch.Tensor.bitwise_and_, torch.Tensor.copy_])
    def test_one_is_written_with_what_the_other_held(self, twins, write):
        expected = write(twins[0].unpack(), twins[1].unpack())
        write(*twins)
        assert_same(twins[0].unpack(), expected)

    def test_both_written_are_refused(self, twins):
        before = twins[0].payload.clone()
        with pytest.raises(RuntimeError, match="another packing"):
            torch._foreach_clamp_max_(twins, 3)
        assert_same(twins[0].payload, before)


# --- threads ---


def in_threads(count, work):
    failures = []

    def run(index):
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


ROW_WRITES = {
    "t[r] = code": lambda t, r, code: t.__setitem__(r, code),
    "t[r] = codes": lambda t, r, code: t.__setitem__(r, torch.full((t.shape[-1],), code, dtype=torch.uint8)),
    "index_fill_": lambda t, r, code: t.index_fill_(0, torch.tensor([r]), code),
    "masked_fill_": lambda t, r, code: t.masked_fill_((torch.arange(t.shape[0]) == r)[:, None], code),
    "foreach": lambda t, r, code: torch._foreach_add_([t], [only_row(t, r, code)]),
    "out=": lambda t, r, code: torch.add(t, only_row(t, r, code), out=t),
    "through an alias": lambda t, r, code: t.detach().__setitem__(r, code),
}


def only_row(t, r, code):
    """What to add to have the code in a row, whose codes no other thread writes, and the others as they are."""
    change = torch.zeros(t.shape, dtype=torch.uint8)
    change[r] = code - t[r]
    return change


@pytest.mark.parametrize("name", ROW_WRITES)
def test_threads_that_write_rows_of_their_own_lose_none(name, packing):
    packed = around(pack(torch.zeros(64, 1024, dtype=torch.uint8), *packing), packing, (64, 1024))

    def work(index):
        for step in range(3):
            for row in range(16 * index, 16 * index + 16):
                ROW_WRITES[name](packed, row, (step + row) % 16)

    in_threads(4, work)
    expected = ((2 + torch.arange(64)) % 16).to(torch.uint8)[:, None].expand(64, 1024)
    assert_same(packed.unpack(), expected.contiguous())


def test_threads_that_write_two_in_both_orders_end(packing):
    pair = [packed_tensor(packing, SHAPE, seed=seed).zero_() for seed in range(2)]

    def work(index):
        for _ in range(25):
            torch._foreach_clamp_min_(pair if index % 2 else pair[::-1], index)

    in_threads(4, work)
    assert [packed.unpack().unique().tolist() for packed in pair] == [[3], [3]]


class WritingAnother(TorchDispatchMode):
    """Writes another packed tensor while an op runs, and first waits for the other threads to be there too."""

    def __init__(self, other, barrier):
        super().__init__()
        self.other, self.barrier = other, barrier

    @classmethod
    def ignore_compile_internals(cls):
        """Else torch sets one flag for all threads, which stays set here: under 2.10 nothing compiles then."""
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.fill_.Scalar and not isinstance(args[0], AWQPackedTensor):
            self.barrier.wait(30)
            self.other.zero_()
        return func(*args, **(kwargs or {}))


def test_writes_within_writes_that_would_wait_for_each_other_are_refused(packing):
    pair = [packed_tensor(packing, SHAPE, seed=seed) for seed in range(2)]
    barrier, ends = threading.Barrier(2), []

    def work(index):
        with WritingAnother(pair[1 - index], barrier):
            try:
                AWQPackedTensor.__torch_dispatch__(torch.ops.aten.fill_.Scalar, (), (pair[index], 3))
            except RuntimeError as error:
                ends.append(str(error))

    in_threads(2, work)
    assert len(ends) == 1  # the other one got its turn
    assert "would wait for ever" in ends[0]
    for packed in pair:
        assert packed.unpack().unique().tolist() in ([0], [3])


# A process of its own: pytest's workers have a thread that may be in the allocator, and AddressSanitizer's is then
# locked in a fork for ever.
FORK_BESIDE_A_WRITE = """
import os, signal, sys, threading, warnings
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from awqpack import AWQPackedTensor, AWQPacking

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what this is about
packed = AWQPackedTensor.pack(torch.zeros(64, 128, dtype=torch.uint8), AWQPacking[sys.argv[1]], sys.argv[2] == "True")
busy, go_on = threading.Event(), threading.Event()

class Holding(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        busy.set()
        assert go_on.wait(30)
        return func(*args, **(kwargs or {}))

def hold():
    with Holding():
        AWQPackedTensor.__torch_dispatch__(torch.ops.aten.fill_.Scalar, (), (packed, 3))

thread = threading.Thread(target=hold)
thread.start()
assert busy.wait(30)
child = os.fork()
if child == 0:
    signal.alarm(20)
    packed.payload.zero_()
    packed.fill_(5)
    os._exit(0 if bool((packed == 5).all()) else 1)
status = os.waitpid(child, 0)[1]
go_on.set()
thread.join(30)
assert status == 0, status
assert bool((packed == 3).all())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_does_not_wait_for_threads_that_it_does_not_have(packing):
    done = forked.run(FORK_BESIDE_A_WRITE, packing.packing.name, packing.reorder)
    assert done.returncode == 0, done.stderr


# --- signals ---


class Interrupted(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts with setitimer")
def test_a_signal_leaves_a_list_written_whole_or_not_at_all():
    tensors = [packed_tensor(PACKINGS["v1"], SHAPE, seed=seed) for seed in range(6)]
    armed, interrupted, torn = [], 0, 0

    def interrupt(*_):
        if armed:
            raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for step in range(300):
            torch._foreach_zero_(tensors)
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + step % 60))
                torch._foreach_add_(tensors, 1)
                armed.clear()
            except Interrupted:
                armed.clear()
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            torn += len({int(code) for packed in tensors for code in packed.unpack().unique()}) > 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert torn == 0
    assert interrupted > 0


class Failing(TorchDispatchMode):
    """Fails after the n-th copy_ of a payload, which has been made by then."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            self.left -= 1
            if self.left == 0:
                raise Interrupted
        return result


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_a_mode_breaks_off_is_undone(count, packing):
    tensors = [packed_tensor(packing, SHAPE, seed=seed) for seed in range(3)]
    before = [packed.payload.clone() for packed in tensors]
    with Failing(count), pytest.raises(Interrupted):
        AWQPackedTensor.__torch_dispatch__(torch.ops.aten._foreach_zero_.default, (), (tensors,))
    for packed, payload in zip(tensors, before, strict=True):
        assert_same(packed.payload, payload)


def test_a_payload_that_cannot_be_written_leaves_the_list_as_it_was(packing):
    packed = packed_tensor(packing)
    expanded = around(packed.payload[:1].expand(packed.payload.shape), packing, SHAPE)
    tensors = [packed_tensor(packing, seed=1), expanded]
    before = [t.payload.clone() for t in tensors]
    with pytest.raises(RuntimeError, match="memory for each element"):
        torch._foreach_zero_(tensors)
    for t, payload in zip(tensors, before, strict=True):
        assert_same(t.payload, payload)

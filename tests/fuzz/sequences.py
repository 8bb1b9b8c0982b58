"""Sequences of ops on packed tensors that share payloads, beside plain codes that share memory in the same way.

`PYTHONPATH=tests python -m fuzz.sequences 1000000 --seed 7` runs a million. It stops at the first difference and says
which seed and op.
"""

from __future__ import annotations

import argparse
import collections
import copy
import pickle
import random
import signal
import threading
import time

import torch
from hypothesis import strategies as st
from shared import PACKINGS

from awqpack import AWQPackedTensor, pack

ROWS, COLS = 128, 128  # of what all else is a part
STEP = 64  # a multiple of every packing's blocks
FAMILIES, MEMBERS = 3, 7


class Member:
    """A packed tensor and its twin of plain codes."""

    def __init__(self, packed, plain):
        self.packed, self.plain = packed, plain

    def check(self, what):
        if not torch.equal(self.packed.unpack(), self.plain):
            raise AssertionError(f"{what}: {self.packed!r} holds other codes than its twin")


def part_of(payload, packing, part):
    """The part of the payload of ROWS x COLS codes that holds a part of them."""
    rows, cols = part
    sizes = (ROWS, COLS)
    if packing.payload_shape(sizes)[0] == COLS // 16:  # Marlin's blocks run down
        rows, cols, sizes = cols, rows, (COLS, ROWS)
    factor = [have / size for have, size in zip(payload.shape, sizes, strict=True)]
    return payload[
        int(rows.start * factor[0]) : int(rows.stop * factor[0]),
        int(cols.start * factor[1]) : int(cols.stop * factor[1]),
    ]


class Family:
    """Members around one payload: the first holds all of it."""

    def __init__(self, rng, packing=None, members=None):
        self.rng = rng
        self.packing = packing or rng.choice(list(PACKINGS.values()))
        if members is None:
            codes = torch.randint(0, 16, (ROWS, COLS), dtype=torch.uint8)
            payload = pack(codes, *self.packing)
            members = [Member(self.around(payload, codes.shape), codes)]
        self.members = members

    def around(self, payload, shape):
        return AWQPackedTensor(payload, *self.packing, tuple(shape), (shape[1], 1))

    def backup(self):
        return self.members[0].plain.clone()

    def add_part(self):
        rows, cols = (self.span(ROWS), self.span(COLS))
        whole = self.members[0]
        plain = whole.plain[rows, cols]
        self.members.append(
            Member(self.around(part_of(whole.packed.payload, self.packing, (rows, cols)), plain.shape), plain)
        )

    def span(self, size):
        start = self.rng.randrange(0, size, STEP)
        return slice(start, self.rng.randrange(start, size, STEP) + STEP)

    def add_twin(self):
        member = self.rng.choice(self.members)
        how = self.rng.choice(WHOLE_VIEWS)
        twin = how(member.packed)
        assert isinstance(twin, AWQPackedTensor), how
        self.members.append(Member(twin, how(member.plain)))


WHOLE_VIEWS = [
    lambda t: t.detach(),
    lambda t: t[...],
    lambda t: t[:],
    lambda t: t.view_as(t),
    lambda t: t.data,
    lambda t: t.narrow(0, 0, t.shape[0]),
    lambda t: t.expand(t.shape),
    lambda t: torch.ops.aten.alias(t),
    lambda t: torch.nn.Parameter(t, requires_grad=False).data,
    lambda t: copy.copy(t),
]


def in_place(rng):
    """A write into one tensor, which may read another of its shape."""
    value, low, high = rng.randrange(16), rng.randrange(4), rng.randrange(8, 17)
    first = rng.randrange(0, 60)
    key = rng.choice(
        [first, slice(first, first + 5), (slice(None), first), (slice(0, 9, 3), slice(first, None)), ..., (first, 3)]
    )
    return rng.choice(
        [
            lambda t, other: t.fill_(value),
            lambda t, other: t.zero_(),
            lambda t, other: t.copy_(other),
            lambda t, other: t.copy_(other[:1]),
            lambda t, other: t.add_(low),
            lambda t, other: t.sub_(low),
            lambda t, other: t.bitwise_xor_(other),
            lambda t, other: t.bitwise_and_(value),
            lambda t, other: t.clamp_(low, high),
            lambda t, other: t.masked_fill_(other > 7, value),
            lambda t, other: t.index_fill_(0, torch.tensor([first, 2]), value),
            lambda t, other: t.index_copy_(0, torch.tensor([first, 61]), other[:2]),
            lambda t, other: t.__setitem__(key, value),
            lambda t, other: t.__setitem__(slice(first, first + 2), other[:2]),
            lambda t, other: torch.bitwise_or(t, other, out=t),
            lambda t, other: torch.add(other, low, out=t),
            lambda t, other: torch.maximum(other, t, out=t),
            lambda t, other: t.triu_(),
            lambda t, other: t.fill_diagonal_(value),
        ]
    )


def foreach(rng):
    """A write into a list of tensors, which may read a list of others."""
    value = rng.randrange(4)
    return rng.choice(
        [
            lambda ts, others: torch._foreach_add_(ts, value),
            lambda ts, others: torch._foreach_sub_(ts, value),
            lambda ts, others: torch._foreach_clamp_max_(ts, 4 * value + 2),
            lambda ts, others: torch._foreach_zero_(ts),
            lambda ts, others: torch._foreach_copy_(ts, others),
            lambda ts, others: torch._foreach_mul_(ts, [other // 8 for other in others]),
            lambda ts, others: torch._foreach_maximum_(ts, others),
        ]
    )


def transformed(rng):
    """A write under vmap."""
    value, first = rng.randrange(17), rng.randrange(0, 60)
    write = rng.choice(
        [
            lambda r: r.fill_(value),
            lambda r: r.bitwise_and_(value),
            lambda r: r.__setitem__(slice(first, first + 3), value),
            lambda r: r.__setitem__(first, value),
            lambda r: r[first:].zero_(),
            lambda r: r[: first + 1].bitwise_xor_(3),
        ]
    )
    dim = rng.choice([0, 1, -1])
    return lambda t: torch.vmap(lambda r: (write(r), r.sum())[1], in_dims=dim)(t)


class Interruption(Exception):
    """What the handler of a signal raises."""


def interrupt(call, seconds):
    """Calls it, and has a signal's handler raise so much later; whether that came in time."""
    is_armed = True

    def handle(number, frame):
        if is_armed:
            raise Interruption

    before = signal.signal(signal.SIGALRM, handle)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
            call()
        finally:  # which the signal may interrupt too, once
            is_armed = False
    except Interruption:
        return True
    finally:
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


class Fuzz:
    def __init__(self, seed):
        self.seed, self.rng, self.count = seed, random.Random(seed), 0
        torch.manual_seed(seed)
        self.families = [Family(self.rng) for _ in range(FAMILIES)]
        self.seen = collections.Counter()

    def pick(self, shape=None):
        members = [m for f in self.families for m in f.members if shape is None or m.plain.shape == shape]
        return self.rng.choice(members)

    def both(self, name, packed_call, plain_call, again=None):
        """Runs both; where the packed one is refused the plain one must not have been, or is undone."""
        backups = [family.backup() for family in self.families]
        error = plain_error = None
        try:
            packed_call()
        except (ValueError, RuntimeError) as caught:
            error = caught
        try:
            plain_call()
        except RuntimeError as caught:
            plain_error = caught
            if again is not None and error is None:  # torch refuses overlap that a packed tensor reads before it writes
                self.restore(backups)
                again()
        too_large = any(int(family.members[0].plain.max()) > 15 for family in self.families)
        if isinstance(error, ValueError):
            assert too_large or plain_error is not None, f"{name} was refused without a reason: {error}"
        elif isinstance(error, RuntimeError):
            assert plain_error is not None or "share memory with the payload" in str(error), f"{name}: {error}"
        else:
            assert not too_large, f"{name} stored a code above 15"
            assert plain_error is None or again is not None, f"{name} should have been refused: {plain_error}"
        if error is not None:
            self.restore(backups)
        self.seen[name + (" refused" if error is not None else "")] += 1

    def restore(self, backups):
        for family, backup in zip(self.families, backups, strict=True):
            family.members[0].plain.copy_(backup)

    def write_one(self):
        member = self.pick()
        other, write = self.pick(member.plain.shape), in_place(self.rng)
        snapshot = other.plain.clone()
        self.both(
            "in place", lambda: write(member.packed, other.packed), lambda: write(member.plain, snapshot)
        )  # what one write reads it reads before

    def write_list(self):
        members = [self.pick() for _ in range(self.rng.randrange(1, 5))]
        others, write = [self.pick(member.plain.shape) for member in members], foreach(self.rng)
        self.both(
            "foreach",
            lambda: write([m.packed for m in members], [o.packed for o in others]),
            lambda: write([m.plain for m in members], [o.plain for o in others]),
            again=lambda: write([m.plain for m in members], [o.plain.clone() for o in others]),
        )

    def write_transformed(self):
        member, write = self.pick(), transformed(self.rng)
        self.both("vmap", lambda: write(member.packed), lambda: write(member.plain))

    def write_from_threads(self):
        family = self.rng.choice(self.families)
        whole = [m for m in family.members if m.plain.shape == (ROWS, COLS)]
        jobs = []
        for index in range(3):
            rows = self.rng.sample(range(40 * index, 40 * index + 40), 4)
            jobs.append([(self.rng.choice(whole).packed, row, self.rng.randrange(16)) for row in rows])
        failures = []

        def work(job):
            try:
                for packed, row, value in job:
                    packed[row] = value
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for job in jobs:
            for _, row, value in job:
                family.members[0].plain[row] = value
        self.seen["threads"] += 1

    def write_interrupted(self):
        """A signal whose handler raises, at any time: each write is whole or not begun, and so is that of a list."""
        if threading.current_thread() is not threading.main_thread():
            return
        if self.rng.random() < 0.5:
            members, write = [self.pick()], in_place(self.rng)
            other = self.pick(members[0].plain.shape)
            calls = [lambda: write(members[0].packed, other.packed), lambda: write(members[0].plain, other_before)]
            other_before = other.plain.clone()
        else:
            value = self.rng.randrange(16)
            members = [self.pick() for _ in range(self.rng.randrange(1, 5))]
            calls = [
                lambda: torch._foreach_copy_([m.packed for m in members], [twin + 0 for twin in values]),
                lambda: torch._foreach_copy_([m.plain for m in members], values),
            ]
            values = [torch.full_like(m.plain, value) for m in members]
        backups = [family.backup() for family in self.families]
        try:
            calls[1]()
        except RuntimeError:
            self.restore(backups)
            return
        after = [family.backup() for family in self.families]
        self.restore(backups)
        if any(int(codes.max()) > 15 for codes in after):
            return
        try:
            interrupted = interrupt(calls[0], self.rng.random() * 3e-4)
        except RuntimeError as error:  # parts of one payload in one call
            assert "share memory with the payload" in str(error), error
            interrupted, after = True, backups
        now = [family.members[0].packed.unpack() for family in self.families]
        is_whole = all(map(torch.equal, now, after))
        assert is_whole or (interrupted and all(map(torch.equal, now, backups))), "a write was half done"
        self.restore(after if is_whole else backups)
        self.seen["interrupted" if interrupted else "not interrupted in time"] += 1

    def read(self):
        a = self.pick()
        b = self.pick(a.plain.shape)
        read = self.rng.choice(
            [
                lambda x, y: x ^ y,
                lambda x, y: torch.cat([x, y, x]),
                lambda x, y: x[3:9].t() + 1,
                lambda x, y: torch.stack([x, y]).sum(0),
                lambda x, y: torch._foreach_add([x, y], 1)[1],
                lambda x, y: torch.where(x > y, x, y),
            ]
        )
        assert torch.equal(read(a.packed, b.packed), read(a.plain, b.plain)), "a read"
        self.seen["read"] += 1

    def copy_family(self):
        index = self.rng.randrange(FAMILIES)
        family = self.families[index]
        name, how = self.rng.choice(
            [("deepcopy", copy.deepcopy), ("pickle", lambda ts: pickle.loads(pickle.dumps(ts)))]
        )
        if name == "deepcopy":  # which keeps what shares memory together, packed and plain
            twins = [m for m in family.members if m.plain.shape == (ROWS, COLS)][:3]
        else:
            twins = [family.members[0]]
        packed, plain = how([m.packed for m in twins]), how([m.plain for m in twins])
        members = [Member(*pair) for pair in zip(packed, plain, strict=True)]
        self.families[index] = Family(self.rng, family.packing, members)
        self.seen[name] += 1

    def change_members(self):
        index = self.rng.randrange(FAMILIES)
        family = self.families[index]
        if len(family.members) >= MEMBERS:
            del family.members[self.rng.randrange(1, len(family.members))]
        if self.rng.random() < 0.1:
            self.families[index] = Family(self.rng)
        elif self.rng.random() < 0.5:
            family.add_part()
        else:
            family.add_twin()
        self.seen["members"] += 1

    def step(self):
        kinds = [
            (self.write_one, 40),
            (self.write_list, 20),
            (self.write_transformed, 8),
            (self.write_from_threads, 1),
            (self.write_interrupted, 2),
            (self.read, 15),
            (self.copy_family, 2),
            (self.change_members, 14),
        ]
        kind = self.rng.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        try:
            kind()
            if self.count % 8 == 0:
                for family in self.families:
                    for member in family.members:
                        member.check(kind.__name__)
        except Exception as error:
            raise AssertionError(f"seed {self.seed}, op {self.count}, {kind.__name__}: {error}") from error
        self.count += 1


def run(ops, seed):
    """Counts by kind of what was done; AssertionError at the first difference."""
    fuzz = Fuzz(seed)
    for _ in range(ops):
        fuzz.step()
    return fuzz.seen


CASES = st.integers(0, 1 << 32)  # seeds


def check(seed):
    run(200, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ops", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seen = run(options.ops, options.seed)
    print(
        f"{options.ops} ops, seed {options.seed}, {time.perf_counter() - begin:.0f} s, no difference:",
        dict(sorted(seen.items())),
    )


if __name__ == "__main__":
    main()

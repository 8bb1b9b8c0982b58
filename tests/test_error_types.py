"""The type of an error, under torch 2.15 and newer, too, which make RuntimeError of every error of a C++ op."""

import threading

import pytest
import torch
from shared import PACKET_ERROR, refused, torch_zeros

import awqpack
from awqpack import AWQPackedTensor

PACKET_CALLS = {
    "pack": lambda ops: ops.pack(torch_zeros().int(), 1, False),
    "unpack": lambda ops: ops.unpack(torch_zeros(), 1, False),
    "pack_out": lambda ops: ops.pack_out(torch_zeros(), 1, False, out=torch_zeros()),
    "unpack_out": lambda ops: ops.unpack_out(torch_zeros(), 1, False, out=torch_zeros()),
}


@pytest.mark.parametrize("name", PACKET_CALLS)
def test_packets_raise_what_torch_makes_of_it(name):
    refused(PACKET_CALLS[name], torch.ops.awqpack, error=PACKET_ERROR, words=["uint8", "int32"])


@pytest.mark.parametrize("name", ["pack", "unpack", "pack_out", "unpack_out"])
def test_overloads_raise_value_errors(name):
    class Overloads:
        """torch.ops.awqpack with the overload in place of each packet."""

        def __getattr__(self, op):
            return getattr(torch.ops.awqpack, op).default

    refused(PACKET_CALLS[name], Overloads(), words=["uint8", "int32"])


def raises(error):
    def call(*args, **kwargs):
        raise error

    return call


def test_only_an_error_that_an_op_raised_becomes_a_value_error():
    keep = awqpack._C.keep_value_errors
    with pytest.raises((ValueError, RuntimeError)) as caught:
        torch.ops.awqpack.pack(torch_zeros().int(), 1, False)
    text = str(caught.value)
    refused(keep(raises(RuntimeError(text))), 1, key=2, words=[text])
    for other in (
        RuntimeError("CUDA error"),
        RuntimeError(""),
        RuntimeError(),
        NotImplementedError(text),
        KeyError(text),
    ):
        with pytest.raises(type(other)) as kept:
            keep(raises(other))()
        assert kept.value is other


def test_an_error_of_another_thread_becomes_none():
    keep, texts = awqpack._C.keep_value_errors, []

    def fail_there():
        with pytest.raises((ValueError, RuntimeError)) as caught:
            torch.ops.awqpack.pack(torch.zeros(8, 24, dtype=torch.int16), 1, False)
        texts.append(str(caught.value))

    thread = threading.Thread(target=fail_there)
    thread.start()
    thread.join()
    refused(keep(raises(RuntimeError(texts[0]))), error=RuntimeError, words=["int16"])


def test_no_memory_is_a_memory_error(packing):
    payload = torch.zeros(1, 128, dtype=packing.payload_dtype).expand(2**50, 128)
    for call in (awqpack.unpack, lambda p, *how: AWQPackedTensor.pack(awqpack.unpack(p, *how))):
        refused(call, payload, *packing, error=MemoryError, words=["could not allocate", "torch.uint8"])


def test_results_and_keywords_pass_through():
    call = awqpack._C.keep_value_errors(lambda *args, **kwargs: (args, kwargs))
    assert call(1, [2], key=None) == ((1, [2]), {"key": None})
    assert call() == ((), {})

"""Pickles. Torch's own pickling of a plain tensor leaves cycles, so the collector runs here."""

import io
import pickle

import torch
from leaks import check, packed_tensors


def work(p):
    pickle.loads(pickle.dumps(p))
    p.__reduce_ex__(2)
    buffer = io.BytesIO()
    torch.save(p, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


check(work, packed_tensors(), rounds_share=2, has_cycles=True)

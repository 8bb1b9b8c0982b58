"""The arithmetic of csrc/include/awqpack/floats.h in NumPy: float32, each operation rounded once, nothing fast."""

import numpy as np
import torch

STEPS = {"asymmetric": 15, "asymmetric/zero": 15, "absmax/7": 7, "absmax/7.5": 7.5, "absmax/8": 8}


def wide(tensor):
    """Any float tensor as a float32 array: exact."""
    return tensor.detach().cpu().float().numpy()


def narrow(array, dtype):
    """A float32 array as a contiguous tensor of `dtype`, rounded half to even."""
    assert array.dtype == np.float32
    if dtype == torch.float32:
        return torch.from_numpy(np.ascontiguousarray(array))
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ascontiguousarray(array.astype(np.float16)))
    bits = np.ascontiguousarray(array).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return torch.from_numpy(rounded.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def spread(scales, shape):
    """An array of scales or zeros, each as often as its rectangle has codes."""
    if scales.size == 0:
        return np.zeros(shape, np.float32)
    rows, cols = shape[-2] // scales.shape[-2], shape[-1] // scales.shape[-1]
    return scales.repeat(rows, -2).repeat(cols, -1).astype(np.float32)


def zeros_of(zeros, scales):
    return np.full(scales.shape, 8, np.uint8) if zeros is None else zeros.cpu().numpy()


def dequantize(codes, scales, zeros, dtype):
    """Codes (an array) to a tensor of weights."""
    scale, zero = spread(wide(scales), codes.shape), spread(zeros_of(zeros, scales), codes.shape)
    with np.errstate(over="ignore"):
        return narrow((codes.astype(np.float32) - zero) * scale, dtype)


def quantize(weight, scales, zeros):
    """A tensor of weights to codes (an array)."""
    weight = wide(weight)
    scale, zero = spread(wide(scales), weight.shape), spread(zeros_of(zeros, scales), weight.shape)
    with np.errstate(all="ignore"):
        quotient = np.where(scale == 0, np.float32(0), weight / scale)
        quotient = np.where(np.isnan(quotient), np.float32(0), quotient)
        assert quotient.dtype == np.float32
        return np.clip(np.rint(quotient + zero), 0, 15).astype(np.uint8)


def min_max_scales(weight, rows, cols, mode, dtype):
    """Scales and zeros, tensors on the CPU."""
    array = wide(weight)
    *batch, height, width = array.shape
    groups = array.reshape(*batch, height // rows, rows, width // cols, cols)
    low, high = groups.min((-3, -1)), groups.max((-3, -1))
    if mode == "asymmetric/zero":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    is_symmetric = mode.startswith("absmax")
    span = np.maximum(-low, high) if is_symmetric else high - low
    scales = narrow(np.abs(span / np.float32(STEPS[mode])), dtype)
    if is_symmetric:
        return scales, torch.full(scales.shape, 8, dtype=torch.uint8)
    with np.errstate(all="ignore"):
        zeros = np.clip(np.rint(-low / wide(scales)), 0, 15)
    zeros = np.where(wide(scales) == 0, np.where(low < 0, 15, 0), zeros)
    return scales, torch.from_numpy(zeros.astype(np.uint8))

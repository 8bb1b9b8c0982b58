"""pack and unpack for torch tensors and NumPy arrays, relayout for torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from . import _C
from .formats import alternatives
from .packing import AWQPacking

if TYPE_CHECKING:
    import numpy.typing as npt

ArrayOrTensor = TypeVar("ArrayOrTensor", torch.Tensor, "npt.NDArray[Any]")


def require_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} expects True or False; got {value!r}")


def number_of(packing: AWQPacking, reorder: bool) -> int:
    """Packing as the ops number it, once both arguments are known to be what they should be."""
    if not isinstance(packing, AWQPacking):
        raise TypeError(f"packing expects {alternatives(AWQPacking)}; got {packing!r}")
    if reorder is not True and reorder is not False:
        require_bool("reorder", reorder)
    return packing._value_  # .value, at a fourth of its time


def require_tensor_out(out: object, given: torch.Tensor) -> None:
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out expects a torch.Tensor, as the input is one; got {type(out)}")
    if out.device != given.device:
        raise ValueError(f"out expects the device of the input, {given.device}; got {out.device}")
    if not torch.compiler.is_compiling() and out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("out expects a tensor made outside of inference mode, or a call inside of it; got neither")


def _require_array_out(out: object) -> None:
    if isinstance(out, torch.Tensor):
        raise TypeError("out expects a numpy.ndarray, as the input is no tensor; got a torch.Tensor")


def mark_written(out: torch.Tensor) -> None:
    """Lets autograd and views notice the write, as torch's own out= ops do."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(out)


def pack(
    codes: ArrayOrTensor,
    packing: AWQPacking = AWQPacking.V1,
    reorder: bool = False,
    *,
    validate: bool = True,
    out: ArrayOrTensor | None = None,
) -> ArrayOrTensor:
    """Packs 4-bit codes into the payload that AWQ kernels read.

    Args:
        codes: uint8 codes 0..15 of shape ``(..., out_features, in_features)``; a ``torch.Tensor`` or a
            ``numpy.ndarray`` of any strides. ``in_features`` must be a multiple of 8 (V1), 64 (V2) or 16 (Marlin),
            ``out_features`` of 4 (V2) or 64 (Marlin).
        packing: ``AWQPacking.V1`` (AutoAWQ gemm and gemv, compressed-tensors), ``AWQPacking.V2`` (llm-awq,
            AutoAWQ gemv_fast) or ``AWQPacking.MARLIN`` (what vLLM and others repack to).
        reorder: store the eight columns of a V1 word in the order 0, 2, 4, 6, 1, 3, 5, 7 (AutoAWQ gemm). It
            never changes another payload.
        validate: refuse codes above 15. When false only the low four bits of each code are packed.
        out: a buffer for the payload, of its exact shape and dtype, that does not overlap ``codes``; it saves the
            page faults of fresh memory. After an error its contents are unspecified.

    Returns:
        The payload: int32 ``(..., out_features, in_features / 8)`` for V1, int16
        ``(..., out_features / 4, in_features)`` for V2, int32 ``(..., in_features / 16, 2 * out_features)`` for Marlin;
        of the kind and on the device of ``codes``.

    Raises:
        ValueError: dtype, shape or strides do not fit, or a code is above 15 (the first one is named).
        TypeError: an argument is of another type.
    """
    number = number_of(packing, reorder)
    require_bool("validate", validate)
    if not isinstance(codes, torch.Tensor):
        _require_array_out(out)
        return _C.pack_array(codes, number, reorder, validate, out, None)
    if out is None:
        return torch.ops.awqpack.pack.default(codes, number, reorder, validate)  # type: ignore[no-any-return]
    require_tensor_out(out, codes)
    torch.ops.awqpack.pack_out.default(codes, number, reorder, validate, out=out)
    mark_written(out)
    return out


def unpack(
    payload: ArrayOrTensor,
    packing: AWQPacking = AWQPacking.V1,
    reorder: bool = False,
    *,
    out: ArrayOrTensor | None = None,
) -> ArrayOrTensor:
    """Unpacks a payload into its 4-bit codes: the inverse of :func:`pack`.

    Args:
        payload: int32 (V1, Marlin) or int16 (V2), of any strides; a ``torch.Tensor`` or a ``numpy.ndarray``.
        packing: how the payload was packed.
        reorder: whether it was packed with ``reorder``; only V1 heeds it.
        out: a uint8 buffer of the codes' exact shape that does not overlap ``payload``; may be column-major.

    Returns:
        uint8 codes 0..15, ``(..., out_features, in_features)``, contiguous unless ``out`` is not; of the kind and
        on the device of ``payload``.

    Raises:
        ValueError: dtype, shape or strides do not fit.
        TypeError: an argument is of another type.
    """
    number = number_of(packing, reorder)
    if not isinstance(payload, torch.Tensor):
        _require_array_out(out)
        return _C.unpack_array(payload, number, reorder, out, None)
    if out is None:
        return torch.ops.awqpack.unpack.default(payload, number, reorder)  # type: ignore[no-any-return]
    require_tensor_out(out, payload)
    torch.ops.awqpack.unpack_out.default(payload, number, reorder, out=out)
    mark_written(out)
    return out


Packed = AWQPacking | tuple[AWQPacking, bool]


def _both(name: str, packed: Packed) -> tuple[int, bool]:
    """A packing's number and its reorder."""
    if isinstance(packed, tuple):
        if len(packed) != 2:
            raise TypeError(f"{name} expects an AWQPacking, or one and its reorder; got {packed!r}")
        return number_of(*packed), packed[1]
    return number_of(packed, False), False


def relayout(
    payload: torch.Tensor,
    source: Packed,
    target: Packed,
    *,
    transpose: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Takes codes from one packing to another, without ever holding all of them on the CPU or on CUDA.

    Args:
        payload: a payload of ``source``, of any strides.
        source: an AWQPacking, or a pair of one and its ``reorder``, as the payload was packed.
        target: the same, for the result. The codes must be whole blocks of it, as for :func:`pack`.
        transpose: the result holds the codes transposed. AutoAWQ's gemm holds ``W.t()``, other layouts hold ``W``.
        out: a buffer for the result, of its exact shape and dtype, that does not overlap ``payload``.

    Returns:
        The payload in ``target``: what ``pack(unpack(payload, *source), *target)`` gives, with the codes transposed
        between the two where ``transpose`` asks for it.

    Raises:
        ValueError: dtype, shape or strides do not fit.
        TypeError: an argument is of another type.
    """
    given, wanted = _both("source", source), _both("target", target)
    require_bool("transpose", transpose)
    if not isinstance(payload, torch.Tensor):
        raise TypeError(f"relayout expects a torch.Tensor; got {type(payload)}")
    if out is None:
        return torch.ops.awqpack.relayout.default(payload, *given, *wanted, transpose)  # type: ignore[no-any-return]
    require_tensor_out(out, payload)
    torch.ops.awqpack.relayout_out.default(payload, *given, *wanted, transpose, out=out)
    mark_written(out)
    return out

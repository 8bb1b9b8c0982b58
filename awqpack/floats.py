"""quantize, dequantize and min_max_scales: from float weights to payloads and back, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor  # by a name of its own: to look it up in torch for each argument shows in a small call
from torch.autograd import forward_ad

from .functional import mark_written, number_of, require_bool, require_tensor_out
from .packing import AWQPacking

# Found once: to look one up by its names takes a third of a microsecond.
_quantize = torch.ops.awqpack.quantize.default
_quantize_out = torch.ops.awqpack.quantize_out.default
_dequantize = torch.ops.awqpack.dequantize.default
_dequantize_out = torch.ops.awqpack.dequantize_out.default
_min_max_scales = torch.ops.awqpack.min_max_scales.default
_min_max_scales_out = torch.ops.awqpack.min_max_scales_out.default

_unpack_dual: Callable[[Tensor], forward_ad.UnpackedDualTensor] = forward_ad.unpack_dual  # which torch leaves untyped

# torch's own numbers of dtypes, which calls take as well. Each dtype in a call is asked for its __torch_function__, and
# the error that says it has none takes a sixth of the time of a small call.
_DTYPE_NUMBERS: dict[torch.dtype | int, int] = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}

# An overload hands its arguments on from Python, with a dictionary, which shows in a small call's time; what it calls
# is asked for at each call, as torch 2.15 has it replaced. Compilers want the overload itself, and so would a torch
# without `_op`.
_is_compiled = torch.compiler.is_dynamo_compiling if hasattr(_quantize, "_op") else lambda: True


def _require_tensor(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} expects a torch.Tensor; got {type(tensor)}")


def _require_no_gradient(op: str, name: str, tensor: Tensor) -> None:
    """What is rounded to codes has no gradient, and what is made of codes gets none: better said than lost."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op} has no gradient, and {name} requires one: call it under torch.no_grad(), or with {name}.detach()"
        )


def _require_no_tangents(op: str, **tensors: Tensor) -> None:
    """The same of forward mode, in which nothing requires a gradient."""
    for name, tensor in tensors.items():
        if _unpack_dual(tensor).tangent is not None:
            raise ValueError(f"{op} has no derivative, and {name} has a tangent: call it with {name}.detach()")


def _require_out(op: str, name: str, out: Tensor, given: Tensor) -> None:
    require_tensor_out(out, given)
    _require_no_gradient(op, name, out)
    if not torch.compiler.is_compiling() and out.is_neg():
        raise ValueError(f"{name} expects a tensor that holds its values; got one that is read as their negatives")


def quantize(
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    packing: AWQPacking = AWQPacking.V1,
    reorder: bool = False,
    *,
    validate: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Rounds a weight to 4-bit codes and packs them, in one pass.

    ``code = clamp(rint(weight / scale + zero), 0, 15)`` in float32, the quotient correctly rounded and ``rint`` half to
    even: the same bits on every device. A scale of 0 gives the zero.

    Args:
        weight: float16, bfloat16 or float32 ``(..., out_features, in_features)``, such as a batch of experts, of any
            strides; sizes as for :func:`awqpack.pack`.
        scales: float16, bfloat16 or float32 ``(..., R, C)``, of any strides, finite and not negative. ``R`` divides
            out_features and ``C`` divides in_features: one scale for each rectangle, so that ``(N, K / 128)`` is one
            for 128 columns of a row, and ``(N, 1)`` one for a row. Leading dimensions are those of the weight.
        zeros: uint8 0..15 of the shape of ``scales``; None is 8 everywhere.
        packing: as for :func:`awqpack.pack`.
        reorder: as for :func:`awqpack.pack`.
        validate: refuse weights that are not finite, and scales and zeros that are not as they should be. When false,
            an infinite weight gives 0 or 15 and NaN gives the zero.
        out: a buffer for the payload, as for :func:`awqpack.pack`.

    Returns:
        The payload, as :func:`awqpack.pack` returns it.

    Raises:
        ValueError: dtypes, shapes, devices or values do not fit (the first such value is named), or the weight
            requires a gradient while gradients are recorded.
        TypeError: an argument is of another type.
    """
    if not isinstance(weight, Tensor) or not isinstance(scales, Tensor):
        _require_tensor("weight", weight)
        _require_tensor("scales", scales)
    if zeros is not None and not isinstance(zeros, Tensor):
        _require_tensor("zeros", zeros)
    number = number_of(packing, reorder)
    require_bool("validate", validate)
    if weight.requires_grad or scales.requires_grad:
        _require_no_gradient("quantize", "weight", weight)
        _require_no_gradient("quantize", "scales", scales)
    if forward_ad._current_level >= 0:
        _require_no_tangents("quantize", weight=weight, scales=scales)
    if out is None:
        op = _quantize if _is_compiled() else _quantize._op
        return op(weight, scales, zeros, number, reorder, validate)  # type: ignore[no-any-return]
    require_tensor_out(out, weight)
    op = _quantize_out if _is_compiled() else _quantize_out._op
    op(weight, scales, zeros, number, reorder, validate, out=out)
    mark_written(out)
    return out


def dequantize(
    payload: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    packing: AWQPacking = AWQPacking.V1,
    reorder: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The weight that a payload stands for, in one pass: ``(code - zero) * scale`` in float32, rounded to ``dtype``.

    Args:
        payload: int32 or int16, of any strides, as :func:`awqpack.pack` and :func:`quantize` return it.
        scales: as for :func:`quantize`, beside the codes ``(..., out_features, in_features)`` of the payload.
        zeros: uint8 0..15 of the shape of ``scales``; None is 8 everywhere.
        packing: how the payload was packed.
        reorder: whether it was packed with ``reorder``.
        dtype: float16, bfloat16 or float32; that of ``scales``, or of ``out``, when it is None.
        out: a buffer of the weight's exact shape, of any strides, that overlaps no input. ``W (N, K)`` of a payload of
            ``W.t()``, such as AutoAWQ's gemm, is ``dequantize(..., out=w.t())``, as fast as rows. On the CPU the
            pages of a new result cost more than the rest.

    Returns:
        The weight ``(..., out_features, in_features)``, contiguous unless ``out`` is not.

    Raises:
        ValueError: dtypes, shapes, devices or values do not fit (the first such value is named), or the scales
            require a gradient while gradients are recorded.
        TypeError: an argument is of another type.
    """
    is_exact = type(payload) is Tensor and type(scales) is Tensor and (zeros is None or type(zeros) is Tensor)
    if not is_exact:
        _require_tensor("payload", payload)
        _require_tensor("scales", scales)
        if zeros is not None:
            _require_tensor("zeros", zeros)
    number = number_of(packing, reorder)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype expects a torch.dtype; got {dtype!r}")
    if scales.requires_grad:
        _require_no_gradient("dequantize", "scales", scales)
    if forward_ad._current_level >= 0:
        _require_no_tangents("dequantize", scales=scales)
    if out is None:
        wanted: torch.dtype | int = scales.dtype if dtype is None else dtype
        if _is_compiled():
            return _dequantize(payload, scales, zeros, number, reorder, wanted)  # type: ignore[no-any-return]
        if is_exact and torch._C._len_torch_function_stack() == 0:  # nobody else is to see a number
            wanted = _DTYPE_NUMBERS.get(wanted, wanted)
        return _dequantize._op(payload, scales, zeros, number, reorder, wanted)  # type: ignore[no-any-return]
    _require_out("dequantize", "out", out, payload)
    if dtype is not None and out.dtype != dtype:
        raise ValueError(f"out expects dtype {dtype}, as dtype asks for it; got {out.dtype}")
    op = _dequantize_out if _is_compiled() else _dequantize_out._op
    op(payload, scales, zeros, number, reorder, out=out)
    mark_written(out)
    return out


def _group(name: str, size: object, whole: int) -> int:
    if not isinstance(size, (int, torch.SymInt)) or isinstance(size, bool):
        raise TypeError(f"group_size expects an int or a pair of ints (rows, columns); got {name} {size!r}")
    if size != -1 and size < 1:
        raise ValueError(f"group_size expects a positive number, or -1 for all of a dimension; got {name} {size}")
    return max(whole, 1) if size == -1 else int(size)


def min_max_scales(
    weight: Tensor,
    group_size: int | tuple[int, int] = 128,
    *,
    symmetric: bool = False,
    dtype: torch.dtype | None = None,
    formula: str | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Round-to-nearest's own scales and zeros, in one pass: ``quantize(w, *min_max_scales(w))`` needs no data.

    In float32, each operation rounded once; the scale is rounded to ``dtype`` before a zero is made of it.

    | formula | scale | zero |
    |---|---|---|
    | asymmetric | ``(max - min) / 15`` | ``clamp(rint(-min / scale), 0, 15)``: AutoAWQ's |
    | asymmetric/zero | the same, of 0 and the weights | the same: compressed-tensors' |
    | absmax/7 | ``max(abs(w)) / 7`` | 8: AutoAWQ's without zeros, ModelOpt's |
    | absmax/7.5 | ``max(abs(w)) / 7.5`` | 8: compressed-tensors', symmetric |
    | absmax/8 | ``max(abs(w)) / 8`` | 8 |

    Zeros are codes, so a group's range always holds 0. Where all of its weights have one sign, as those of linears
    hardly ever have, ``asymmetric`` makes the range too short and cuts them off; ``asymmetric/zero`` does not.
    Symmetric formulas return zeros too, 8 everywhere: what takes None for that, as layouts do, wants the scales alone.
    A group whose scale is 0 gets the zero 15 where its least weight is negative, else 0.

    Args:
        weight: float16, bfloat16 or float32 ``(..., out_features, in_features)``, of any strides, all finite.
        group_size: columns that share a scale, or ``(rows, columns)`` of a rectangle that does; -1 is all of them.
        symmetric: ``formula="absmax/7"`` instead of ``formula="asymmetric"``.
        dtype: of the scales, float16, bfloat16 or float32; that of the weight, or of ``out``, when it is None.
        formula: one of the above, by name.
        out: buffers for scales and zeros, of their exact shapes, that overlap neither each other nor the weight.

    Returns:
        Scales ``(..., out_features / rows, in_features / columns)``, and uint8 zeros of that shape.

    Raises:
        ValueError: dtypes or shapes do not fit, the groups do not divide the weight, a weight is not finite (the first
            one is named), or ``dtype`` cannot hold a scale; or the weight requires a gradient while gradients are
            recorded.
        TypeError: an argument is of another type.
    """
    _require_tensor("weight", weight)
    require_bool("symmetric", symmetric)
    if formula is not None and not isinstance(formula, str):
        raise TypeError(f"formula expects a str; got {formula!r}")
    if formula is not None and symmetric:
        raise ValueError(f"min_max_scales expects formula or symmetric=True, not both; got formula {formula}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype expects a torch.dtype; got {dtype!r}")
    _require_no_gradient("min_max_scales", "weight", weight)
    if forward_ad._current_level >= 0:
        _require_no_tangents("min_max_scales", weight=weight)
    chosen = formula if formula is not None else "absmax/7" if symmetric else "asymmetric"
    rows, cols = group_size if isinstance(group_size, tuple) and len(group_size) == 2 else (1, group_size)
    sizes = weight.shape if weight.dim() >= 2 else (1, 1)
    group = _group("rows", rows, sizes[-2]), _group("columns", cols, sizes[-1])
    if out is None:
        return _min_max_scales(  # type: ignore[no-any-return]
            weight, *group, chosen, weight.dtype if dtype is None else dtype
        )
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"out expects a pair of tensors, for scales and zeros; got {type(out)}")
    scales, zeros = out
    _require_out("min_max_scales", "out[0]", scales, weight)
    _require_out("min_max_scales", "out[1]", zeros, weight)
    if dtype is not None and scales.dtype != dtype:
        raise ValueError(f"out expects scales of dtype {dtype}, as dtype asks for it; got {scales.dtype}")
    _min_max_scales_out(weight, *group, chosen, scales=scales, zeros=zeros)
    mark_written(scales)
    mark_written(zeros)
    return scales, zeros

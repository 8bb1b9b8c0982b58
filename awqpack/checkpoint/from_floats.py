"""Layouts as targets of models in floats: every linear rounded to the nearest codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..layouts import HEAD, SCALE_DTYPES, Geometry, Layout, LayoutError, QuantizationConfig, TensorSpec, quantize_runs
from ..ops.floats import has_one_zero
from .config_files import ConfigFiles
from .errors import CheckpointError
from .files import Closing
from .float_linears import FloatLinear, float_linears
from .hub import located
from .linears import kept_linears
from .packed import holds_any_codes
from .stacked import stacked
from .tensor_files import TensorFiles
from .work import Job, Output, Sink, Work, prefixed, require_all
from .workers import Buffers

_TURNED = ("gpt2", "openai-gpt", "imagegpt")  # models whose linears are Conv1D, which hold (K, N)


class FloatCheckpoint(Closing):
    """A checkpoint in floats, opened. A context manager that closes its files.

    Attributes:
        path: as it was given.
        files: the safetensors files, and which has which tensor.
        configs: what its other files say.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises CheckpointError for what is no checkpoint, or one that is quantized already."""
        self.path = located(path)
        self.files = TensorFiles(self.path)
        try:
            if self.files.problems:
                raise CheckpointError(f"{self.path}: {'; '.join(self.files.problems[:3])}")
            self.configs = ConfigFiles(None if self.files.is_file else self.path)
            if self.configs.places:
                raise CheckpointError(
                    f"{self.path}: is quantized already, as {self.configs.places[0]} says; "
                    "convert --to bfloat16 gives a model in floats"
                )
            for tensor in self.files.where:
                if holds_any_codes(tensor, self.files.entry(tensor).spec):
                    raise CheckpointError(f"{self.path}: is quantized already, as {tensor} is")
            if self.configs.model_type in _TURNED:
                raise CheckpointError(f"{self.path}: {self.configs.model_type} has no linears but Conv1D, turned")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.files.close()


def from_floats(
    source: FloatCheckpoint,
    target: Layout,
    group_size: int,
    *,
    formula: str,
    scale_dtype: torch.dtype | None,
    ignore: Sequence[str],
    include: Sequence[str],
) -> tuple[Work, dict[str, str]]:
    """What it takes to quantize a checkpoint, and the linears that are kept, each with the reason.

    Args:
        source: what to quantize.
        target: the layout.
        group_size: columns that share a scale, -1 for a row.
        formula: of scales and zeros, as for awqpack.min_max_scales.
        scale_dtype: None is the weights' own, and float16 for float32.
        ignore, include: as for kept_linears.

    Raises:
        CheckpointError: no linear is left, or the layout cannot hold some, all of which are named.
    """
    files = source.files
    found, left_out = float_linears(files, source.configs.hidden_size, source.configs.model_type)
    kept = kept_linears([linear.name for linear in found], ignore, include)
    unread = _of_other_dtypes(found)
    kept |= _kept_with_others(found, kept)
    kept |= left_out | unread
    chosen = [linear for linear in found if linear.name not in kept]
    if not chosen:
        first = next((f": {name}: {reason}" for name, reason in (unread or kept).items()), "")
        raise CheckpointError(
            f"{source.path}: holds no linear to quantize ({len(files.where)} tensors, {len(kept)} kept{first})"
        )
    symmetric = has_one_zero(formula)
    if not symmetric and "zeros" not in target.names:
        raise CheckpointError(f"{target.name} has no zeros: it expects symmetric layers (--symmetric)")
    jobs = [_Quantize(files, linear, target, group_size, formula, scale_dtype) for linear in chosen]
    reasons = {job.name: target.reason_not_held(job.geometry) for job in jobs}
    require_all(target.name, reasons, "; --ignore keeps them in floats")
    exact = _names_of_kept(found, left_out, kept, chosen)
    config = QuantizationConfig(group_size, symmetric, None, {}, exact, HEAD in {linear.name for linear in chosen})
    reason = target.reason_not_said(config)
    if reason is not None:
        raise CheckpointError(f"{target.name} {reason}")
    weights = {job.weight for job in jobs}
    copies = [tensor for tensor in files.where if tensor not in weights]
    warnings = []
    for those, what in ((left_out, "tensors of several experts each"), (unread, "linears of other dtypes")):
        if those:
            first, reason = next(iter(those.items()))
            warnings.append(f"{len(those)} {what} are kept in floats, such as {first}: {reason}")
    caution = target.caution(config)
    if caution is not None:
        warnings.append(caution)
    written = stacked(jobs, set(copies), source.configs.model_type) if target.stacks_experts else list(jobs)
    return Work(written, copies, source.configs.with_quantization(target, config), warnings), kept


def _names_of_kept(
    found: Sequence[FloatLinear],
    left_out: Mapping[str, str],
    kept: Mapping[str, str],
    chosen: Sequence[FloatLinear],
) -> tuple[str, ...]:
    """What configurations name: modules, and that of the experts where none of them is quantized."""
    parent_of = {linear.name: linear.tensor.rpartition(".")[0] for linear in found if linear.experts is not None}
    parent_of |= {tensor: tensor.rpartition(".")[0] for tensor in left_out}
    partly = {None, *(parent_of.get(linear.name) for linear in chosen)}
    names = [name if parent_of.get(name) in partly else parent_of[name] for name in kept if name != HEAD]
    return tuple(dict.fromkeys(names))


def _of_other_dtypes(found: Sequence[FloatLinear]) -> dict[str, str]:
    """Linears that quantize does not read, each with the reason."""
    return {
        linear.name: f"its dtype is {str(linear.spec.dtype).removeprefix('torch.')}"
        for linear in found
        if linear.spec.dtype not in SCALE_DTYPES
    }


def _kept_with_others(found: Sequence[FloatLinear], kept: Mapping[str, str]) -> dict[str, str]:
    """Linears of experts that share a tensor with one that is kept, each with its reason."""
    reasons = {linear.tensor: kept[linear.name] for linear in found if linear.name in kept}
    return {linear.name: reasons[linear.tensor] for linear in found if linear.tensor in reasons}


class _Quantize(Job):
    """A float weight that becomes a layer; its bias stays."""

    def __init__(
        self,
        files: TensorFiles,
        linear: FloatLinear,
        target: Layout,
        group_size: int,
        formula: str,
        scale_dtype: torch.dtype | None,
    ) -> None:
        self._files, self._linear, self._target, self._formula = files, linear, target, formula
        self.name, self.weight = linear.name, linear.tensor
        name, spec = linear.name, linear.spec
        n, k = spec.shape
        self.geometry = Geometry(n, k, k if group_size == -1 else group_size)
        self._dtype = scale_dtype or (torch.float16 if spec.dtype == torch.float32 else spec.dtype)
        codes = TensorSpec(target.weight.dtype, target.weight.shape(n, k))
        specs = {target.names["weight"]: codes, **target.side_specs(self.geometry, self._dtype)}
        if has_one_zero(formula) and not target.stores_symmetric_zeros:
            specs.pop(target.names.get("zeros", ""), None)
        self.outputs = {prefixed(name, suffix): Output(spec, self.weight) for suffix, spec in specs.items()}

    def write(self, sink: Sink, buffers: Buffers) -> None:
        target, geometry = self._target, self.geometry
        n, k, _ = geometry
        scales = torch.empty(n, geometry.groups, dtype=self._dtype)
        zeros = torch.empty(n, geometry.groups, dtype=torch.uint8)
        rows = self._linear.reader(self._files.shard(self.weight))
        try:
            name, done = prefixed(self.name, target.names["weight"]), 0
            lowest = target.lowest_zero
            for run in quantize_runs(rows, (n, k), target.weight, scales, zeros, self._formula, lowest, buffers.take):
                sink.write(name, run, done)
                done += run.nbytes
            side = target.encode_side(geometry, scales, zeros)
        except LayoutError as error:
            raise CheckpointError(f"{self._files.path}: {self.name}: {error}") from None
        for suffix, value in (side | target.encode_order(geometry, None, scales.device)).items():
            name = prefixed(self.name, suffix)
            if name in self.outputs:
                sink.write(name, value)

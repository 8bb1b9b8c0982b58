"""What a layout is: where a quantized linear layer's codes, scales and zeros lie among the tensors of a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch

from .. import floats, functional
from .weight import WeightFormat

Role = Literal["weight", "zeros", "scales", "shape", "order", "activations"]

SYMMETRIC_ZERO = 8
HEAD = "lm_head"  # AWQ engines never quantize it, and AWQ configurations do not name it
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class LayoutError(ValueError):
    """Tensors, or a configuration, that do not fit the layout; the text says what was expected and what came."""


class AmbiguousGroupError(LayoutError):
    """The tensors fit, but only the values of the scales would tell the group size."""


class TensorSpec(NamedTuple):
    """What a checkpoint's header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """What a header would say of this tensor."""
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


class Geometry(NamedTuple):
    """Sizes of a layer: N = out_features, K = in_features, and the columns that share a scale."""

    out_features: int
    in_features: int
    group_size: int

    @property
    def groups(self) -> int:
        return self.in_features // self.group_size


@dataclass(frozen=True, init=False)
class Layer:
    """A quantized linear layer; a weight is ``(code - zero) * scale``. Its parts are checked when it is made.

    Attributes:
        codes: uint8 ``(N, K)``, 0..15, of any strides.
        scales: float16, bfloat16 or float32 ``(N, G)``, finite.
        zeros: uint8 ``(N, G)``, 0..15; all 8 in a symmetric layer.
        group_size: columns that share a scale and a zero: ``K / G``.
        bias: ``(N,)``, or None.
        order: int32 ``(K,)``, the group of each column, where columns are not in the order of their groups (GPTQ's
            desc_act); else None.
        has_zeros: zeros were given; of a layer without, layouts that can do without zeros store none.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_size: int
    bias: torch.Tensor | None
    order: torch.Tensor | None
    has_zeros: bool = field(compare=False)

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        group_size: int,
        bias: torch.Tensor | None = None,
        order: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            codes, scales, group_size, bias, order: as the attributes.
            zeros: None for a symmetric layer.

        Raises:
            LayoutError: a part that is of another dtype or shape, a scale that is no number, a zero above 15. Codes
                are read, and those above 15 named, when they are packed.
        """
        _require_codes(codes)
        _require_scales(codes, scales, group_size)
        has_zeros = zeros is not None
        if zeros is None:
            zeros = torch.full_like(scales, SYMMETRIC_ZERO, dtype=torch.uint8)
        else:
            _require_zeros(scales, zeros)
        if bias is not None and (not bias.is_floating_point() or bias.shape != codes.shape[:1]):
            raise LayoutError(f"bias expects floats of shape {tuple(codes.shape[:1])}; got {TensorSpec.of(bias)}")
        if order is not None and (order.dtype != torch.int32 or order.shape != codes.shape[1:]):
            raise LayoutError(f"order expects int32 {tuple(codes.shape[1:])}; got {TensorSpec.of(order)}")
        values = {
            "codes": codes,
            "scales": scales,
            "zeros": zeros,
            "group_size": group_size,
            "bias": bias,
            "order": order,
            "has_zeros": has_zeros,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # as dataclasses do it in a frozen one

    @property
    def geometry(self) -> Geometry:
        n, k = self.codes.shape
        return Geometry(n, k, self.group_size)

    @property
    def is_symmetric(self) -> bool:
        return bool((self.zeros == SYMMETRIC_ZERO).all())

    def dequantize(self) -> torch.Tensor:
        """The weight ``(N, K)`` in the scales' dtype: ``(code - zero) * scale`` in float32, rounded once."""
        scales, zeros = self.scales, self.zeros
        if self.order is not None:
            scales, zeros = (t[:, self.order.long()] for t in (scales, zeros))
        if self.codes.shape[1] % 8 == 0 and not scales.is_meta and not bool((scales < 0).any()):
            return floats.dequantize(functional.pack(self.codes), scales.detach(), zeros)
        columns = self.codes.shape[1] // scales.shape[1]
        scale, zero = (t.float().repeat_interleave(columns, 1) for t in (scales, zeros))
        return ((self.codes.float() - zero) * scale).to(self.scales.dtype)


def _require_codes(codes: torch.Tensor) -> None:
    if codes.dtype == torch.int8:
        raise LayoutError("codes expects uint8 with 0..15; got int8, which holds signed codes: (codes + 8) first")
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise LayoutError(f"codes expects uint8 (N, K), the codes of one layer or expert; got {TensorSpec.of(codes)}")


def _require_scales(codes: torch.Tensor, scales: torch.Tensor, group_size: int) -> None:
    n, k = codes.shape
    if type(group_size) is not int or group_size < 1 or k % group_size != 0:
        raise LayoutError(f"group_size expects a divisor of the {k} columns of codes; got {group_size!r}")
    if scales.dtype not in SCALE_DTYPES or scales.shape != (n, k // group_size):
        raise LayoutError(
            f"scales expects float16, bfloat16 or float32 {(n, k // group_size)} for groups of {group_size}; "
            f"got {TensorSpec.of(scales)}"
        )
    if not scales.is_meta and not bool(scales.isfinite().all()):
        row, group = (~scales.isfinite()).nonzero()[0].tolist()
        raise LayoutError(f"scales expects numbers; scales[{row}, {group}] is {float(scales[row, group])}")


def _require_zeros(scales: torch.Tensor, zeros: torch.Tensor) -> None:
    if zeros.dtype != torch.uint8 or zeros.shape != scales.shape:
        raise LayoutError(f"zeros expects uint8 {tuple(scales.shape)}, as scales; got {TensorSpec.of(zeros)}")
    if not zeros.is_meta and zeros.numel() > 0 and int(zeros.max()) > 15:
        row, group = (zeros > 15).nonzero()[0].tolist()
        raise LayoutError(f"zeros expects 0..15; zeros[{row}, {group}] is {int(zeros[row, group])}")


@dataclass(frozen=True)
class QuantizationConfig:
    """What a checkpoint's configuration says of its quantization, in the words of AutoAWQ.

    Attributes:
        group_size: -1 for one group a row; None where the configuration does not say.
        is_symmetric: every zero is 8 (``zero_point`` false).
        not_converted: parts of the names of linear modules that are not quantized; None where nothing is said.
        raw: the configuration as it stands in the file.
        exact: whole names of linear modules that are not quantized, where a part would name quantized ones as well.
        has_head: whether the head, which AWQ configurations need not name, is quantized.
    """

    group_size: int | None
    is_symmetric: bool
    not_converted: tuple[str, ...] | None
    raw: Mapping[str, Any]
    exact: tuple[str, ...] = ()
    has_head: bool = False


class Layout(ABC):
    """One way to store quantized linear layers. Subclasses fill in the class attributes and the abstract methods.

    Tensors are named by what follows the module's name: ``qweight`` for ``model.layers.0.mlp.up_proj.qweight``.
    """

    name: ClassVar[str]
    names: ClassVar[Mapping[Role, str]]
    weight: ClassVar[WeightFormat]
    source: ClassVar[str]  # the project, and the file in it, that defines the layout
    stores_scaled_zeros: ClassVar[bool] = False  # as floats, which not every zero survives
    ignores_by_name: ClassVar[bool] = False  # its readers leave out whatever a name matches, quantized or not
    config_keys: ClassVar[tuple[str, ...]] = ("quantization_config",)  # of config.json, under which it stands
    config_files: ClassVar[tuple[str, ...]] = ()  # beside config.json, that hold its configuration and nothing else
    has_scaled_activations: ClassVar[bool] = False  # its readers divide what an activation gives by its act.scales
    names_no_modules: ClassVar[bool] = False  # its readers take for quantized what has a quantized layer's tensors
    has_embeddings: ClassVar[bool] = False  # its readers take embeddings that are quantized
    keeps_order: ClassVar[bool] = False  # says of each column which group it is in
    stores_symmetric_zeros: ClassVar[bool] = True  # zeros are stored where the configuration says that all are 8, too

    # round-to-nearest's scales, as awqpack.min_max_scales names them: with zeros, and symmetric
    formulas: ClassVar[tuple[str, str]] = ("asymmetric", "absmax/7")

    # --- what each layout says ---

    @abstractmethod
    def groups(self, specs: Mapping[str, TensorSpec]) -> int | None:
        """Groups of a row, where the shapes alone tell."""

    @abstractmethod
    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        """Every tensor but the weight and the bias, for scales of this dtype."""

    @abstractmethod
    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those tensors, from scales and zeros ``(N, G)``."""

    @abstractmethod
    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scales ``(N, G)``, of any strides."""

    @abstractmethod
    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        """Zeros uint8 ``(N, G)``, of any strides. Raises LayoutError when one is none of 0..15."""

    def encode_order(
        self, geometry: Geometry, order: torch.Tensor | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """The tensor that says which group each column is in, where the layout has one; without an order, its own."""
        return {}

    def decode_order(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The group of each column, int32 ``(K,)``; None where columns are in the order of their groups."""
        return None

    @abstractmethod
    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a quantization_config is of this layout."""

    @abstractmethod
    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        """Raises LayoutError for what no AWQ layout holds, such as other than 4 bits."""

    @abstractmethod
    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """The quantization_config of this layout."""

    # --- what few layouts say ---

    def reason_not_said(self, config: QuantizationConfig) -> str | None:
        """Why the configuration cannot say this; None when it can."""
        return None

    def own_files(self, config: QuantizationConfig) -> dict[str, dict[str, Any]]:
        """Content of the files beside config.json that a checkpoint of this layout needs, by name."""
        return {}

    # --- what follows from it ---

    def reason_not_held(self, geometry: Geometry) -> str | None:
        """Why no layer of these sizes can be stored this way; None when it can."""
        n, k, group = geometry
        unit_n, unit_k = self.weight.unit()
        if n % max(unit_n, 8) != 0:
            return f"out_features {n} is not a multiple of {max(unit_n, 8)}"
        if k % unit_k != 0:
            return f"in_features {k} is not a multiple of {unit_k}"
        if group < 1 or k % group != 0:
            return f"in_features {k} is not a multiple of the group size {group}"
        return None

    def reason_without_order(self) -> str | None:
        """Why no layer can be stored this way whose columns are not in the order of their groups; None when it can."""
        return None if self.keeps_order else "its columns are not in the order of their groups (g_idx, desc_act)"

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        """Keys that engines ask for, and that this quantization_config does not have."""
        return [] if "quant_method" in config else ["quant_method"]

    def is_optional(self, role: Role) -> bool:
        """Whether a layer may come without the tensor of this role, whatever the configuration says."""
        return role == "shape"

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        """Whether no zero can be lost beside these scales; false does not mean that one is."""
        return True

    def candidate_groups(self, specs: Mapping[str, TensorSpec], in_features: int) -> list[int]:
        """Group sizes that the shapes allow."""
        groups = self.groups(specs)
        if groups is not None:
            return [in_features // groups] if groups > 0 and in_features % groups == 0 else []
        sizes = [size for size in (32, 64, 128, 256, 512, 1024, in_features) if in_features % size == 0]
        return sorted(set(sizes))

    def geometry(
        self,
        specs: Mapping[str, TensorSpec],
        group_size: int | None = None,
        is_symmetric: bool | None = None,
    ) -> Geometry:
        """Sizes of a layer, from what the header says of its tensors.

        Args:
            specs: by the names of this layout, and ``bias``.
            group_size: what the configuration says; -1 is one group a row.
            is_symmetric: what it says; a symmetric layer may lack its zeros, another one may not.

        Raises:
            LayoutError: a tensor is missing, or has another dtype or shape than the others ask for.
            AmbiguousGroupError: without group_size, several fit.
        """
        for role, name in self.names.items():
            is_optional = is_symmetric if role == "zeros" and is_symmetric is not None else self.is_optional(role)
            if name not in specs and not is_optional:
                raise LayoutError(f"{name} is missing")
        weight = specs[self.names["weight"]]
        if weight.dtype != self.weight.dtype or len(weight.shape) != 2:
            expected = str(self.weight.dtype).removeprefix("torch.")
            raise LayoutError(f"{self.names['weight']} expects {expected} with 2 dimensions; got {weight}")
        n, k = self.weight.features(weight.shape)
        scales = specs[self.names["scales"]]
        if scales.dtype not in SCALE_DTYPES:
            raise LayoutError(f"{self.names['scales']} expects float16, bfloat16 or float32; got {scales}")
        if n == 0 or k == 0:
            raise LayoutError(f"{self.names['weight']} expects at least one row and column; got {weight}")
        if group_size is None:
            possible = self.candidate_groups(specs, k)
            candidates = [size for size in possible if self._mismatch(Geometry(n, k, size), specs) is None]
            if len(candidates) > 1:
                raise AmbiguousGroupError(f"the shapes allow groups of {', '.join(map(str, candidates))}")
            if not candidates:
                raise LayoutError(f"the shapes fit no group size: {', '.join(f'{m} {s}' for m, s in specs.items())}")
            group_size = candidates[0]
        elif group_size == -1:
            group_size = k
        geometry = Geometry(n, k, group_size)
        reason = self._mismatch(geometry, specs)
        if reason is not None:
            raise LayoutError(reason)
        return geometry

    def used_group_size(self, in_features: int, scales: torch.Tensor) -> int:
        """Group size by the zero tail of the scales as they are stored, where the layout pads them."""
        raise LayoutError(f"{self.name} does not pad its scales")

    def _mismatch(self, geometry: Geometry, specs: Mapping[str, TensorSpec]) -> str | None:
        """The first tensor that is not as the geometry asks for."""
        reason = self.reason_not_held(geometry)
        if reason is not None:
            return reason
        expected = self.side_specs(geometry, specs[self.names["scales"]].dtype)
        for name, spec in expected.items():
            if name in specs and not self._fits(name, specs[name], spec):
                return f"{name} expects {spec} for groups of {geometry.group_size}; got {specs[name]}"
        bias = specs.get("bias")
        if bias is not None and bias.shape != (geometry.out_features,):
            return f"bias expects shape {(geometry.out_features,)}; got {bias.shape}"
        return None

    def _fits(self, name: str, spec: TensorSpec, expected: TensorSpec) -> bool:
        return spec == expected

    def decode(self, tensors: Mapping[str, torch.Tensor], group_size: int | None = None) -> Layer:
        """The layer that these tensors store.

        Args:
            tensors: by the names of this layout, and ``bias``; without zeros the layer is symmetric.
            group_size: what the configuration says; None asks the shapes.

        Raises:
            LayoutError: the tensors do not fit each other, a scale is no number, or a zero is none of 0..15.
        """
        specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
        has_zeros = self.names.get("zeros") in tensors
        is_symmetric = None if has_zeros else True
        try:
            geometry = self.geometry(specs, group_size, is_symmetric)
        except AmbiguousGroupError:
            _, k = self.weight.features(specs[self.names["weight"]].shape)
            used = self.used_group_size(k, tensors[self.names["scales"]])
            geometry = self.geometry(specs, used, is_symmetric)
        scales, zeros = self.decode_side(geometry, tensors)
        codes = self.weight.unpack(tensors[self.names["weight"]])
        order = self.decode_order(geometry, tensors)
        return Layer(codes, scales, zeros if has_zeros else None, geometry.group_size, tensors.get("bias"), order)

    def decode_side(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros ``(N, G)``; without a tensor of zeros, all 8. Raises LayoutError as decode does."""
        scales = self.decode_scales(geometry, tensors)
        if self.names.get("zeros") not in tensors:
            return scales, torch.full_like(scales, SYMMETRIC_ZERO, dtype=torch.uint8)
        return scales, self.decode_zeros(geometry, tensors, scales)

    def encode(self, layer: Layer) -> dict[str, torch.Tensor]:
        """The tensors of a layer, by the names of this layout, and ``bias`` where it has one.

        Zeros that were never given are left out where readers of symmetric layers look for none.

        Raises:
            LayoutError: the layout cannot hold a layer of these sizes, or a zero would be lost.
            ValueError: a code is above 15.
        """
        self._require_held(layer.geometry, layer.order)
        return self._assemble(self.weight.pack(layer.codes), layer)

    def encode_float(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The tensors of a layer whose weight is not quantized yet, as encode gives them: awqpack.quantize on the way.

        Args:
            weight: float16, bfloat16 or float32 ``(N, K)``.
            scales: float16, bfloat16 or float32 ``(N, G)``, finite and not negative.
            zeros: uint8 ``(N, G)``, 0..15; None for a symmetric layer.
            bias: ``(N,)``, or None.

        Raises:
            LayoutError: the layout cannot hold a layer of these sizes, parts do not fit, or a zero would be lost.
            ValueError: a weight is not finite, or a scale is negative.
        """
        if weight.dim() != 2 or weight.dtype not in SCALE_DTYPES:
            raise LayoutError(f"weight expects float16, bfloat16 or float32 (N, K); got {TensorSpec.of(weight)}")
        if scales.dim() != 2 or scales.shape[1] == 0 or weight.shape[1] % scales.shape[1] != 0:
            raise LayoutError(
                f"scales expects (N, G), G a divisor of K in {tuple(weight.shape)}; got {TensorSpec.of(scales)}"
            )
        # The codes are only looked at for their shape.
        codes = torch.empty((), dtype=torch.uint8, device=weight.device).expand(weight.shape)
        layer = Layer(codes, scales, zeros, weight.shape[1] // scales.shape[1], bias)
        self._require_held(layer.geometry, None)
        return self._assemble(self.weight.quantize(weight, scales, zeros), layer)

    def _require_held(self, geometry: Geometry, order: torch.Tensor | None) -> None:
        reason = self.reason_not_held(geometry)
        if reason is None and order is not None:
            reason = self.reason_without_order()
        if reason is not None:
            raise LayoutError(f"{self.name} cannot hold the layer: {reason}")

    def _assemble(self, weight: torch.Tensor, layer: Layer) -> dict[str, torch.Tensor]:
        """The tensors of a layer whose codes are stored already."""
        tensors = {self.names["weight"]: weight}
        tensors |= self.encode_side(layer.geometry, layer.scales, layer.zeros)
        tensors |= self.encode_order(layer.geometry, layer.order, layer.codes.device)
        if not layer.has_zeros and not self.stores_symmetric_zeros:
            tensors.pop(self.names.get("zeros", ""), None)
        if layer.bias is not None:
            tensors["bias"] = layer.bias
        return tensors


def quantize_layer(
    weight: torch.Tensor,
    layout: Layout,
    group_size: int = 128,
    *,
    symmetric: bool = False,
    formula: str | None = None,
    dtype: torch.dtype | None = None,
    bias: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a float weight in any layout, rounded to the nearest: awqpack.min_max_scales and encode_float.

    Args:
        weight: float16, bfloat16 or float32 ``(N, K)``.
        layout: one of LAYOUTS.
        group_size: columns that share a scale; -1 is all of a row.
        symmetric, formula, dtype: as for :func:`awqpack.min_max_scales`. Symmetric layers have no zeros of their own.
        bias: ``(N,)``, or None.

    Raises:
        LayoutError: the layout cannot hold a layer of these sizes, or a zero would be lost.
        ValueError: what awqpack.min_max_scales refuses.
    """
    scales, zeros = floats.min_max_scales(weight, group_size, symmetric=symmetric, formula=formula, dtype=dtype)
    is_symmetric = symmetric or (formula or "").startswith("absmax/")
    return layout.encode_float(weight, scales, None if is_symmetric else zeros, bias)


def padded(values: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """Contiguous 2-D values with a zero tail up to this length; the values themselves where they are that already."""
    if values.shape[dim] == length:
        return values.contiguous()
    shape = list(values.shape)
    shape[dim] = length
    result = torch.zeros(shape, dtype=values.dtype, device=values.device)
    result.narrow(dim, 0, values.shape[dim]).copy_(values)
    return result

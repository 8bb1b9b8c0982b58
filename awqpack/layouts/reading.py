"""What it takes to read a layout: where a quantized linear layer's codes, scales and zeros lie among the tensors of a
checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from ..formats import alternatives
from .parts import (
    SCALE_DTYPES,
    SYMMETRIC_ZERO,
    AmbiguousGroupError,
    Geometry,
    LayoutError,
    QuantizationConfig,
    TensorSpec,
)
from .weight import WeightFormat

Role = Literal["weight", "zeros", "scales", "shape", "order", "activations", "global scale"]


class StoredLayout(ABC):
    """One way to store quantized linear layers, as far as reading goes. Subclasses fill in the class attributes and the
    abstract methods.

    Tensors are named by what follows the module's name: ``qweight`` for ``model.layers.0.mlp.up_proj.qweight``.
    """

    name: ClassVar[str]
    names: ClassVar[Mapping[Role, str]]
    weight: ClassVar[WeightFormat]
    source: ClassVar[str]  # the project, and the file in it, that defines the layout
    group_dim: ClassVar[int] = 1  # of the scales as they are stored
    scale_dtypes: ClassVar[tuple[torch.dtype, ...]] = SCALE_DTYPES  # that scales are stored in
    stores_scaled_zeros: ClassVar[bool] = False  # as floats, which not every zero survives
    ignores_by_name: ClassVar[bool] = False  # its readers leave out whatever a name matches, quantized or not
    floats_are_turned: ClassVar[bool] = False  # a model in floats has its experts as (E, in_features, out_features)
    names_no_modules: ClassVar[bool] = False  # its readers take for quantized what has a quantized layer's tensors

    # --- what each layout says ---

    @abstractmethod
    def side_specs(self, geometry: Geometry, dtype: torch.dtype) -> dict[str, TensorSpec]:
        """Every tensor but the weight and the bias, for scales of this dtype."""

    @abstractmethod
    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether a quantization_config is of this layout."""

    @abstractmethod
    def read_config(self, config: Mapping[str, Any]) -> QuantizationConfig:
        """Raises LayoutError for what no AWQ layout holds, such as other than 4 bits."""

    # --- what few layouts say ---

    def groups(self, specs: Mapping[str, TensorSpec]) -> int | None:
        """Groups of a row, where the shapes alone tell."""
        shape = specs[self.names["scales"]].shape
        return shape[self.group_dim] if len(shape) == 2 else 0

    def decode_scales(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Scales ``(N, G)``, of any strides."""
        stored = tensors[self.names["scales"]]
        return stored if self.group_dim == 1 else stored.t()

    def decode_zeros(
        self, geometry: Geometry, tensors: Mapping[str, torch.Tensor], scales: torch.Tensor
    ) -> torch.Tensor:
        """Zeros uint8 ``(N, G)``, of any strides. Raises LayoutError when one is none of 0..15, or there are none."""
        raise LayoutError(f"{self.name} stores no zeros")

    def decode_order(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The group of each column, int32 ``(K,)``; None where columns are in the order of their groups."""
        return None

    def missing_keys(self, config: Mapping[str, Any]) -> list[str]:
        """Keys that engines ask for, and that this quantization_config does not have."""
        return [] if "quant_method" in config else ["quant_method"]

    def is_optional(self, role: Role) -> bool:
        """Whether a layer may come without the tensor of this role, whatever the configuration says."""
        return role == "shape"

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

    # --- what follows from it ---

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
        if scales.dtype not in self.scale_dtypes:
            expected = alternatives(str(dtype).removeprefix("torch.") for dtype in self.scale_dtypes)
            raise LayoutError(f"{self.names['scales']} expects {expected}; got {scales}")
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

    def decode_side(self, geometry: Geometry, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros ``(N, G)``; without a tensor of zeros, all 8. Raises LayoutError as decode does."""
        scales = self.decode_scales(geometry, tensors)
        if self.names.get("zeros") not in tensors:
            return scales, torch.full_like(scales, SYMMETRIC_ZERO, dtype=torch.uint8)
        return scales, self.decode_zeros(geometry, tensors, scales)

"""What a layout is: how quantized linear layers are read from the tensors of a checkpoint, and written as such."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .. import floats
from ..ops.floats import has_one_zero
from .parts import SCALE_DTYPES, AmbiguousGroupError, Geometry, Layer, LayoutError, QuantizationConfig, TensorSpec
from .reading import StoredLayout
from .rounding import lift_zeros


class Layout(StoredLayout):
    """One way to store quantized linear layers whose weights are ``(code - zero) * scale``."""

    config_keys: ClassVar[tuple[str, ...]] = ("quantization_config",)  # of config.json, under which it stands
    config_files: ClassVar[tuple[str, ...]] = ()  # beside config.json, that hold its configuration and nothing else
    has_scaled_activations: ClassVar[bool] = False  # its readers divide what an activation gives by its act.scales
    has_embeddings: ClassVar[bool] = False  # its readers take embeddings that are quantized
    stacks_experts: ClassVar[bool] = False  # its readers have the same layer of all experts in one tensor
    keeps_order: ClassVar[bool] = False  # says of each column which group it is in
    stores_symmetric_zeros: ClassVar[bool] = True  # zeros are stored where the configuration says that all are 8, too

    # round-to-nearest's scales, as awqpack.min_max_scales names them: with zeros, and symmetric
    formulas: ClassVar[tuple[str, str]] = ("asymmetric", "absmax/7")
    lowest_zero: ClassVar[int] = 0  # that it holds

    # --- what each layout says ---

    @abstractmethod
    def encode_side(self, geometry: Geometry, scales: torch.Tensor, zeros: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those tensors, from scales and zeros ``(N, G)``."""

    @abstractmethod
    def write_config(self, config: QuantizationConfig) -> dict[str, Any]:
        """The quantization_config of this layout."""

    # --- what few layouts say ---

    def encode_order(
        self, geometry: Geometry, order: torch.Tensor | None, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """The tensor that says which group each column is in, where the layout has one; without an order, its own."""
        return {}

    def reason_not_said(self, config: QuantizationConfig) -> str | None:
        """Why the configuration cannot say this; None when it can."""
        return None

    def caution(self, config: QuantizationConfig) -> str | None:
        """What readers may stumble over in a checkpoint that says this, a sentence; None where it is nothing."""
        return None

    def own_files(self, config: QuantizationConfig) -> dict[str, dict[str, Any]]:
        """Content of the files beside config.json that a checkpoint of this layout needs, by name."""
        return {}

    def holds_every_zero(self, scales: torch.Tensor) -> bool:
        """Whether no zero can be lost beside these scales; false does not mean that one is."""
        return True

    # --- what follows from it ---

    def reason_without_order(self) -> str | None:
        """Why no layer can be stored this way whose columns are not in the order of their groups; None when it can."""
        return None if self.keeps_order else "its columns are not in the order of their groups (g_idx, desc_act)"

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

    Where a layout holds no zero of 0 (gptq), groups that would have it get the zero 1 and the scale ``max / 14``.

    Args:
        weight: float16, bfloat16 or float32 ``(N, K)``.
        layout: one of LAYOUTS.
        group_size: columns that share a scale; -1 is all of a row.
        symmetric, formula, dtype: as for :func:`awqpack.min_max_scales`. Symmetric layers have no zeros of their own.
        bias: ``(N,)``, or None.

    Raises:
        LayoutError: the layout cannot hold a layer of these sizes, or a zero would be lost.
        ValueError: what awqpack.min_max_scales refuses.
        TypeError: the layout is none.
    """
    if not isinstance(layout, Layout):
        raise TypeError(f"layout expects one of LAYOUTS, such as LAYOUTS['gemm']; got {layout!r}")
    if weight.dim() > 2:
        raise LayoutError(f"weight expects (N, K), of one layer or expert at a time; got {TensorSpec.of(weight)}")
    is_symmetric = symmetric or has_one_zero(formula or "")
    if not is_symmetric and "zeros" not in layout.names:
        raise LayoutError(f"{layout.name} has no zeros: it expects symmetric=True")
    scales, zeros = floats.min_max_scales(weight, group_size, symmetric=symmetric, formula=formula, dtype=dtype)
    lift_zeros(weight, scales, zeros, layout.lowest_zero)
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

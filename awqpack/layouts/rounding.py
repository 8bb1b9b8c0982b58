"""Round-to-nearest's own scales and zeros, within the zeros that a layout holds."""

from __future__ import annotations

import torch

from .parts import LayoutError


def lift_zeros(
    weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, lowest: int, first_row: int = 0
) -> None:
    """Makes zeros below ``lowest`` that one, in place, beside scales by which the codes above it reach each group's
    largest weight: ``max(weight) / (15 - lowest)``. What is negative in such a group was, and is, next to nothing.

    Args:
        weight: ``(N, K)``.
        scales, zeros: ``(N, G)``, as awqpack.min_max_scales gives them.
        lowest: zero that a layout holds.
        first_row: of the layer's, in messages.

    Raises:
        LayoutError: a scale is none in its dtype; the first one is named.
    """
    if lowest == 0:
        return
    is_below = zeros < lowest
    if not bool(is_below.any()):
        return
    groups = weight.reshape(*scales.shape, -1)[is_below]
    largest = groups.amax(1).float()
    # Divided by a tensor, as a GPU multiplies by the reciprocal of a number; the largest of zeros can be -0.
    lifted = torch.where(largest > 0, largest / torch.full_like(largest, 15 - lowest), 0.0).to(scales.dtype)
    is_none = ~lifted.isfinite()
    if bool(is_none.any()):
        name = str(scales.dtype).removeprefix("torch.")
        row, group = is_below.nonzero()[is_none][0].tolist()
        raise LayoutError(
            f"no {name} is {float(largest[is_none][0]) / (15 - lowest):g}, the scale of row {first_row + row}, group "
            f"{group}, beside a zero of {lowest}"
        )
    scales[is_below] = lifted
    zeros[is_below] = lowest

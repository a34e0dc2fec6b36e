"""Several objectives at once: multipliers that hold bounds, and mixtures of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def raised_multipliers(
    multipliers: Float[Tensor, " m"], bounds: Sequence[float], values: Float[Tensor, " m"], rate: float
) -> Float[Tensor, " m"]:
    """RCPO: c_i <- [c_i + rate (C_i - V_i)]_+ for the auxiliary responses; the main one's stays 1.

    Args:
        bounds: C_i, m - 1 least means of a step; values: V_i of all m responses.
    """
    short = torch.tensor(list(bounds), device=values.device) - values[1:]
    return torch.cat([multipliers[:1], (multipliers[1:] + rate * short).clamp(min=0)])


def pareto_step(weights: Float[Tensor, " k"], gradients: Float[Tensor, "k P"], rate: float) -> Float[Tensor, " k"]:
    """w_i <- [w_i - rate g_i.sum_j w_j g_j]_+, divided by its sum: towards the shortest mix of gradients.

    The products are relative to the longest gradient's square, so that `rate` has no unit, and centred: without that
    the shortest mix is no fixed point, and all weight drifts to one response.
    """
    inner = gradients @ (weights @ gradients)
    longest = gradients.square().sum(1).max().clamp(min=1e-30)
    moved = (weights - rate * (inner - inner.mean()) / longest).clamp(min=0)
    return torch.where(moved.sum() > 0, moved / moved.sum().clamp(min=1e-30), weights)

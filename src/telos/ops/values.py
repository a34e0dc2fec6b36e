"""Value learning: targets, regressions, advantage weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def td_target(
    rewards: Float[Tensor, " B"], terminated: Bool[Tensor, " B"], next_values: Float[Tensor, " B"], discount: float
) -> Float[Tensor, " B"]:
    """r + discount * V(s'), without the second term where the task itself ended; truncation plays no part."""
    return rewards + discount * torch.where(terminated, 0.0, next_values)


def smoothed_actions(
    actions: Float[Tensor, "B A"],
    noise: Float[Tensor, "B A"],
    std: float,
    clip: float,
    low: Float[Tensor, " A"],
    high: Float[Tensor, " A"],
) -> Float[Tensor, "B A"]:
    """TD3's target smoothing: actions + clip(std * noise), kept within [low, high].

    Args:
        noise: standard normal.
        std, clip: in units of half the range high - low.
    """
    half = (high - low) / 2
    return torch.clamp(actions + half * torch.clamp(std * noise, -clip, clip), low, high)


def ensemble_mse(values: Float[Tensor, "members B"], targets: Float[Tensor, " B"]) -> tuple[Float[Tensor, ""], int]:
    """Squared errors summed over members and rows, and the number of rows: mean over rows, sum over members."""
    return (values - targets).square().sum(), values.shape[1]


def expectile_loss(errors: Float[Tensor, " B"], tau: float) -> tuple[Float[Tensor, ""], int]:
    """|tau - 1(error < 0)| * error^2 summed, and the count; `errors` are target minus prediction.

    tau = 0.5 is half the squared error; tau -> 1 estimates the maximum.
    """
    return (torch.where(errors < 0, 1 - tau, tau) * errors.square()).sum(), len(errors)


def advantage_weights(advantages: Float[Tensor, " B"], beta: float, clip: float) -> Float[Tensor, " B"]:
    """min(exp(beta * advantage), clip); no gradient should reach the advantages."""
    return torch.exp(beta * advantages).clamp(max=clip)

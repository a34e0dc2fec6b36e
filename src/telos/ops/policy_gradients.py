"""Policy gradients for language models: baselines, advantages, clipped surrogates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def leave_one_out(rewards: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """Reward minus the mean of the *other* samples of the same prompt (Ahmadian et al. 2024, arXiv 2402.14740).

    Unbiased, since a sample's baseline does not contain the sample; rows sum to 0; n >= 2.
    """
    n = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * (n / (n - 1))


def reinforce(log_probs: Float[Tensor, "b"], advantages: Float[Tensor, "b"]) -> tuple[Float[Tensor, ""], int]:
    """-advantage * log pi(y|x) summed, and the count; advantages carry no gradient."""
    return -(advantages.detach() * log_probs).sum(), len(log_probs)


def gae(
    rewards: Float[Tensor, "b t"],
    values: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    discount: float,
    trace: float,
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Advantages and returns, both 0 off the mask (Schulman et al. 2016, arXiv 1506.02438).

    delta_t = r_t + discount V_{t+1} - V_t, A_t = delta_t + discount trace A_{t+1}, R_t = A_t + V_t; V is 0 after a
    row's last masked place. trace = 1 gives rewards-to-go minus values, trace = 0 one-step errors.

    Args:
        mask: one run of True a row: the places that are actions.
        discount, trace: gamma and lambda, in [0, 1].
    """
    advantages = torch.zeros_like(rewards)
    following = carried = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        inside = mask[:, t]
        delta = rewards[:, t] + discount * following - values[:, t]
        carried = torch.where(inside, delta + discount * trace * carried, 0.0)
        following = torch.where(inside, values[:, t], 0.0)
        advantages[:, t] = carried
    return advantages, (advantages + values) * mask


def clipped_surrogate(
    log_ratio: Float[Tensor, "b t"], advantages: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], clip: float
) -> tuple[Float[Tensor, ""], Tensor]:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A) summed over masked tokens, and their number.

    PPO (Schulman et al. 2017, arXiv 1707.06347). No gradient flows once rho A has grown past the clipped value.

    Args:
        log_ratio: log rho = log pi(token) - log pi_old(token), 0 off the mask.
        clip: epsilon > 0.
    """
    ratio = log_ratio.exp()
    kept = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -(kept * mask).sum(), mask.sum()


def clipped_value_loss(
    values: Float[Tensor, "b t"],
    old_values: Float[Tensor, "b t"],
    returns: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    clip: float,
) -> tuple[Float[Tensor, ""], Tensor]:
    """Half the larger of the squared errors of V and of V kept within +-clip of its old value; sum and number.

    clip = inf is half the squared error.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * (errors * mask).sum(), mask.sum()


def whiten(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Values minus their mean over the mask, divided by their standard deviation there; 0 off the mask."""
    mean, variance = masked_moments(values, mask)
    return (values - mean) / (variance.sqrt() + 1e-8) * mask


def masked_moments(
    values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and variance over the mask; 0 and 0 where nothing is in it."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    return mean, ((values - mean).square() * mask).sum() / count

"""What Q-learning, CQL, BCQ and CRR compute from values and logits of actions, and their filters and weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def of_actions(values: Float[Tensor, "B K"], actions: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The entry of each row that its action names."""
    return values.gather(-1, actions[:, None]).squeeze(-1)


def chosen_values(
    values: Float[Tensor, "B K"], preferences: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, " B"]:
    """`values` of the action that `preferences` rank first among those allowed: max Q' (of Q' itself), or Double DQN's
    target (of the trained Q). At least one action a row must be allowed."""
    if allowed is not None:
        preferences = preferences.masked_fill(~allowed, -torch.inf)
    return of_actions(values, preferences.argmax(-1))


def eligible(logits: Float[Tensor, "B K"], threshold: float) -> Bool[Tensor, "B K"]:
    """BCQ's constraint: actions whose probability is more than `threshold` times the largest one of their row.

    Args:
        threshold: 0 (all actions) to below 1 (towards 1: the most probable action only).
    """
    log_ratios = logits - logits.amax(-1, keepdim=True)
    return log_ratios > (math.log(threshold) if threshold > 0 else -math.inf)


def cloning_loss(
    logits: Float[Tensor, "B K"], actions: Int[Tensor, " B"], weight: float
) -> tuple[Float[Tensor, ""], int]:
    """-log softmax(logits)(a) + weight * (mean over actions of logits^2), summed over rows, and their number."""
    nll = -of_actions(torch.log_softmax(logits, -1), actions).sum()
    return nll + weight * logits.square().mean(-1).sum(), len(actions)


def conservative_gap(values: Float[Tensor, "B K"], actions: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], int]:
    """CQL(H)'s regulariser logsumexp Q(s, .) - Q(s, a), summed over rows, and their number.

    Its gradient is softmax(Q) - onehot(a): it is 0 only where all of softmax(Q) lies on the recorded action.
    """
    return (torch.logsumexp(values, -1) - of_actions(values, actions)).sum(), len(actions)


def soft_minimum(values: Float[Tensor, "members *B"], weight: float) -> Float[Tensor, "*B"]:
    """BCQ's value of an ensemble: weight * the smallest + (1 - weight) * the largest."""
    return weight * values.amin(0) + (1 - weight) * values.amax(0)


def normal_kl(mean: Float[Tensor, "*B Z"], log_std: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B"]:
    """KL(N(mean, std^2) || N(0, 1)), averaged over dimensions."""
    return -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)


def sampled_logsumexp(
    values: Float[Tensor, "members n B"], log_densities: Float[Tensor, "n B"]
) -> Float[Tensor, "members B"]:
    """log of the integral of exp Q(s, .) over actions, estimated by importance sampling.

    Args:
        values: Q of n actions a row.
        log_densities: with which each was drawn, in the measure of the integral.
    """
    return torch.logsumexp(values - log_densities, 1) - math.log(len(log_densities))


def categorical_actions(logits: Float[Tensor, "B K"], uniform: Float[Tensor, "B m"]) -> Int[Tensor, "B m"]:
    """`m` actions a row with the probabilities softmax(logits), from uniform numbers in [0, 1) (inverse transform)."""
    bounds = logits.softmax(-1).cumsum(-1)[:, :-1].contiguous()
    return torch.searchsorted(bounds, uniform.contiguous(), right=True)


def advantage_filter(
    advantages: Float[Tensor, " B"], kind: Literal["binary", "exp"], temperature: float, clip: float
) -> Float[Tensor, " B"]:
    """CRR's weights of recorded actions: 1[A > 0], or min(exp(A / temperature), clip)."""
    if kind == "binary":
        return (advantages > 0).to(advantages.dtype)
    return torch.exp(advantages / temperature).clamp(max=clip)

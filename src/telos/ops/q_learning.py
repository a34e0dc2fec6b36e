"""What Q-learning and its relatives compute from values and logits of actions, and their filters and weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def of_actions(values: Float[Tensor, "B K"], actions: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The entry of each row that its action names."""
    return values.gather(-1, actions[:, None]).squeeze(-1)


def of_action_heads(values: Float[Tensor, "B H K"], actions: Int[Tensor, " B"]) -> Float[Tensor, "B H"]:
    """The same of each head."""
    return values.gather(-1, actions[:, None, None].expand(-1, values.shape[1], 1)).squeeze(-1)


def chosen_values(
    values: Float[Tensor, "B K"], preferences: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, " B"]:
    """`values` of the action that `preferences` rank first among those allowed: max Q' (of Q' itself), or Double DQN's
    target (of the trained Q). At least one action a row must be allowed."""
    if allowed is not None:
        preferences = preferences.masked_fill(~allowed, -torch.inf)
    return of_actions(values, preferences.argmax(-1))


def quantile_levels(count: int, device: torch.device | str = "cpu") -> Float[Tensor, " N"]:
    """The middles of `count` equal parts of [0, 1]: the levels at which quantiles are nearest to a distribution."""
    return (torch.arange(count, device=device) + 0.5) / count


def quantile_huber(
    quantiles: Float[Tensor, "B N"], targets: Float[Tensor, "B M"], levels: Float[Tensor, " N"], delta: float
) -> tuple[Float[Tensor, ""], int]:
    """QR-DQN's loss |level - 1(u < 0)| H(u), u = target - quantile: mean over targets, summed over quantiles and rows,
    and the number of rows.

    Args:
        quantiles: at `levels`, each between 0 and 1.
        targets: samples of what is estimated; no gradient should reach them.
        delta: where H turns from a parabola to a line, > 0; towards 0 the minimiser is the quantile.
    """
    shape = (len(quantiles), quantiles.shape[1], targets.shape[1])
    estimates, samples = quantiles[:, :, None].expand(shape), targets[:, None].expand(shape)
    below = (samples < estimates).to(levels.dtype)
    losses = (levels[:, None] - below).abs() * huber_loss(estimates, samples, reduction="none", delta=delta)
    return losses.mean(-1).sum(), len(quantiles)


def convex_weights(uniform: Float[Tensor, " H"]) -> Float[Tensor, " H"]:
    """REM's random mixture: numbers in [0, 1) as weights that are positive and add up to 1."""
    positive = 1 - uniform
    return positive / positive.sum()


def mixture(values: Float[Tensor, "B H K"], weights: Float[Tensor, " H"]) -> Float[Tensor, "B K"]:
    """The heads' values, weighted and added up."""
    return weights @ values


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

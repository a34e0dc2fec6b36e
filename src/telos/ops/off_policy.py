"""Off-policy evaluation: what a target policy would earn, from the log of another one.

Every estimator returns one term a row (or an episode) whose mean is the estimate and whose spread gives its standard
error. For the self-normalised ones these are the linearised terms of the delta method.

Horvitz and Thompson 1952 (inverse propensities); Precup, Sutton and Singh 2000 (per decision, weighted); Swaminathan
and Joachims 2015 (self-normalised); Dudik, Langford and Li 2011, arXiv 1103.4601 (doubly robust).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def effective_sample_size(weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """(sum w)^2 / sum w^2: N for equal weights, 1 for a single one that is not zero, 0 if all are."""
    square = weights.square().sum()
    return torch.where(square > 0, weights.sum().square() / square, torch.zeros_like(square))


def inverse_propensity(weights: Float[Tensor, " N"], rewards: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """w r with w = pi(a | x) / b(a | x): unbiased where b takes every action that pi takes."""
    return weights * rewards


def self_normalised(weights: Float[Tensor, " N"], rewards: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """v + w (r - v) / mean(w) with v = sum w r / sum w: within the range of the rewards, biased by order 1/N.

    All terms are NaN if no weight is above zero.
    """
    value = (weights * rewards).sum() / weights.sum()
    return value + weights * (rewards - value) / weights.mean()


def direct(target: Float[Tensor, "N K"], predictions: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """sum_a pi(a | x) f(x, a): as good as the reward model f; actions with probability 0 play no part."""
    return torch.where(target > 0, target * predictions, 0.0).sum(-1)


def doubly_robust(
    weights: Float[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    taken: Float[Tensor, " N"],
    expected: Float[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """sum_a pi(a | x) f(x, a) + w (r - f(x, a)): right if f or the propensities are.

    Args:
        taken: f(x, a) of the logged action, from a model that has not seen the row.
        expected: as `direct` gives it.
    """
    return expected + weights * (rewards - taken)


def cumulative_weights(log_ratios: Float[Tensor, "E T"], alive: Bool[Tensor, "E T"]) -> Float[Tensor, "E T"]:
    """prod_{s <= t} pi(a_s | x_s) / b(a_s | x_s); after an episode's end the last weight stays.

    Args:
        log_ratios: of each step, -inf where the target never takes the action.
        alive: True at the steps of the episode.
    """
    return torch.where(alive, log_ratios, 0.0).cumsum(-1).exp()


def per_decision(
    weights: Float[Tensor, "E T"], rewards: Float[Tensor, "E T"], alive: Bool[Tensor, "E T"], discount: float
) -> Float[Tensor, " E"]:
    """sum_t discount^t w_t r_t of each episode with cumulative weights: no reward is weighted by later actions."""
    return (discounts(rewards, discount) * torch.where(alive, weights * rewards, 0.0)).sum(-1)


def per_decision_self_normalised(
    weights: Float[Tensor, "E T"], rewards: Float[Tensor, "E T"], alive: Bool[Tensor, "E T"], discount: float
) -> Float[Tensor, " E"]:
    """The same with each step's weights divided by their mean over episodes; terms of the delta method.

    An episode that has ended counts with reward 0 and its last weight, as if it stayed in a state without reward.
    Steps at which all weights are 0 add nothing.
    """
    earned = torch.where(alive, rewards, 0.0)
    mean_weight = weights.mean(0)
    share = torch.where(mean_weight > 0, weights / mean_weight, 0.0)
    mean = (share * earned).mean(0)
    return (discounts(rewards, discount) * (mean + share * (earned - mean))).sum(-1)


def discounts(rewards: Float[Tensor, "E T"], discount: float) -> Float[Tensor, " T"]:
    """discount^t."""
    return discount ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)


def ncis(
    log_ratios: Float[Tensor, " N"], responses: Float[Tensor, "N m"], clip: float
) -> tuple[Float[Tensor, "N m"], Float[Tensor, ""]]:
    """Normalised capped importance sampling of single steps: terms of sum w r / sum w, w = min(pi / b, clip).

    Swaminathan and Joachims 2015; capped and per step as recommenders are compared (arXiv 2302.01680). States are as
    the logging policy visits them: for what an action changes later, see `per_decision`.

    Args:
        log_ratios: log pi(a | s) - log b(a | s) of the logged actions.
        responses: m numbers a step.
        clip: > 0, the most that a ratio counts for.

    Returns:
        (N, m) terms of each response, as `self_normalised` gives them, and the weights' effective sample size.
    """
    weights = log_ratios.exp().clamp(max=clip)
    terms = [self_normalised(weights, column) for column in responses.unbind(-1)]
    return torch.stack(terms, -1), effective_sample_size(weights)


def truncated_ratios(
    log_policy: Float[Tensor, " B"], log_behaviour: Float[Tensor, " B"], clip: float
) -> Float[Tensor, " B"]:
    """min(clip, pi / b), which cannot overflow."""
    return (log_policy - log_behaviour).clamp(max=math.log(clip)).exp()

"""Exploration: from predicted rewards and the allowed actions to the probabilities with which each is taken.

Every rule maps predictions (B, K) and allowed (B, K), of which each row has at least one, to probabilities (B, K) in
float64: rows sum to 1, and an action that is not allowed has exactly 0. "The best" is the allowed action of highest
prediction, the first of equals; n is the number of allowed actions of the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

LEAST_LOSS = 1e-6
"""FastCB takes the best action's predicted loss for at least this."""


def best(predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """The index of the best allowed action, the first of equals."""
    return predictions.masked_fill(~allowed, -torch.inf).argmax(-1)


def uniform(predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """1/n for each allowed action."""
    return allowed.double() / allowed.sum(-1, keepdim=True)


def greedy(predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """1 for the best action."""
    chosen = torch.zeros_like(predictions, dtype=torch.float64)
    return chosen.scatter_(-1, best(predictions, allowed)[:, None], 1.0)


def epsilon_greedy(
    predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"], epsilon: float
) -> Float[Tensor, "B K"]:
    """1 - epsilon for the best action, and epsilon/n for each allowed one, the best included."""
    return (1 - epsilon) * greedy(predictions, allowed) + epsilon * uniform(predictions, allowed)


def softmax(
    predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"], temperature: float
) -> Float[Tensor, "B K"]:
    """Proportional to exp(prediction / temperature)."""
    return torch.softmax(predictions.double().masked_fill(~allowed, -torch.inf) / temperature, -1)


def inverse_gap(
    predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"], gamma: Float[Tensor, "#B 1"]
) -> Float[Tensor, "B K"]:
    """1/(n + gamma * gap) for every allowed action but the best, which takes the rest (at least 1/n)."""
    index = best(predictions, allowed)[:, None]
    values = predictions.double()
    gaps = values.gather(-1, index) - values
    count = allowed.sum(-1, keepdim=True)
    # A disallowed action may be predicted above the best: its (negative) gap must not meet the division.
    shares = torch.where(allowed, 1 / (count + gamma * gaps.clamp(min=0)), 0.0).scatter_(-1, index, 0.0)
    shares = shares.scatter_(-1, index, (1 - shares.sum(-1, keepdim=True)).clamp(min=0))
    return shares / shares.sum(-1, keepdim=True)


def square_cb(predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"], gamma: float) -> Float[Tensor, "B K"]:
    """Inverse gap weighting (Foster and Rakhlin 2020, arXiv 2002.04926); gamma >= 0, per unit of reward.

    The predicted regret, the mean of prediction of the best minus prediction of the taken, is at most (n - 1)/gamma.
    """
    return inverse_gap(predictions, allowed, torch.tensor([[gamma]], dtype=torch.float64, device=predictions.device))


def fast_cb(predictions: Float[Tensor, "B K"], allowed: Bool[Tensor, "B K"], gamma: float) -> Float[Tensor, "B K"]:
    """Inverse gap weighting relative to the best action's loss (Foster and Krishnamurthy 2021, arXiv 2107.02237).

    With losses 1 - prediction, l of the best: l/(n l + gamma * gap) for the others; so it explores less where the best
    action hardly ever fails. Predictions are at most 1; l counts as at least 1e-6.
    """
    values = predictions.double()
    losses = (1 - values.gather(-1, best(predictions, allowed)[:, None])).clamp(min=LEAST_LOSS)
    return inverse_gap(predictions, allowed, gamma / losses)


def probabilities(
    rule: str,
    predictions: Float[Tensor, "B K"],
    allowed: Bool[Tensor, "B K"],
    *,
    gamma: float,
    epsilon: float,
    temperature: float,
) -> Float[Tensor, "B K"]:
    """The probabilities of a rule by name (one of `RULES`); each takes the parameter that is its own."""
    function, parameter = RULES[rule]
    own = {"gamma": gamma, "epsilon": epsilon, "temperature": temperature}
    return function(predictions, allowed, *([own[parameter]] if parameter else []))


def sample(shares: Float[Tensor, "B K"], draws: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """One action a row from probabilities and draws uniform in [0, 1): never one of probability 0."""
    cumulated = shares.double().cumsum(-1)
    # Below the row's own sum, which rounding may leave a little under 1.
    points = draws.double().clamp(max=1 - 2.0**-50)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, points, right=True)[:, 0]


RULES = {
    "uniform": (uniform, None),
    "greedy": (greedy, None),
    "epsilon": (epsilon_greedy, "epsilon"),
    "softmax": (softmax, "temperature"),
    "squarecb": (square_cb, "gamma"),
    "fastcb": (fast_cb, "gamma"),
}
"""Name -> the rule, and which parameter it takes."""

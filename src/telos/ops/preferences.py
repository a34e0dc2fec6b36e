"""Losses of pairwise and ranked preferences, as functions of log-probs: no model, no data, no reduction.

All of them see the policy through log-ratios to one or several anchors a with weights w, and through their difference
between two responses, the margin h. With one anchor, the reference, of weight 1 it is DPO's (Rafailov et al. 2023,
arXiv 2305.18290); iterated methods add the policy that the round began with.

    u(y) = log pi(y|x) - sum_k w_k log a_k(y|x),        h = u(y_1) - u(y_2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def anchored(log_probs: Float[Tensor, "b k"], *anchors: tuple[float, Float[Tensor, "b k"]]) -> Float[Tensor, "b k"]:
    """u: log-ratios of K responses to weighted anchors, in nats; no anchor at all gives the log-probs themselves.

    Args:
        anchors: (weight, log-probs of the same responses); constants, no gradient reaches them.
    """
    for weight, anchor in anchors:
        log_probs = log_probs - weight * anchor.detach()
    return log_probs


def margin(ratios: Float[Tensor, "b 2"]) -> Float[Tensor, "b"]:
    """h: how much more the policy has moved towards the first response than towards the second, in nats."""
    return ratios[:, 0] - ratios[:, 1]


def sigmoid(h: Float[Tensor, "b"], beta: float) -> Float[Tensor, "b"]:
    """DPO: -log sigma(beta h). Equals log 2 at h = 0; its slope there is -beta / 2."""
    return -F.logsigmoid(beta * h)


def smoothed_sigmoid(h: Float[Tensor, "b"], beta: float, label_smoothing: float) -> Float[Tensor, "b"]:
    """cDPO: labels wrong with probability e in [0, 0.5): -(1-e) log sigma(beta h) - e log sigma(-beta h)."""
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def soft_sigmoid(h: Float[Tensor, "b"], beta: float, probability: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Cross-entropy of sigma(beta h) to the probability, in [0, 1], that the first response is preferred."""
    return -probability * F.logsigmoid(beta * h) - (1 - probability) * F.logsigmoid(-beta * h)


def squared(h: Float[Tensor, "b"], beta: float) -> Float[Tensor, "b"]:
    """IPO (Azar et al. 2023, arXiv 2310.12036): (h - 1 / (2 beta))^2."""
    return (h - 1 / (2 * beta)) ** 2


def hinge(h: Float[Tensor, "b"], beta: float) -> Float[Tensor, "b"]:
    """max(0, 1 - beta h): no loss and no gradient once beta h >= 1 (Zhao et al. 2023, arXiv 2305.10425)."""
    return F.relu(1 - beta * h)


def regression(h: Float[Tensor, "b"], beta: float, difference: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """(difference - beta h)^2 / (2 beta): least squares of the implicit on the given difference of rewards."""
    return (difference - beta * h) ** 2 / (2 * beta)


def plackett_luce(rewards: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """Negative log-likelihood of the order best to worst under Plackett-Luce with the given rewards.

    -sum_k log( exp r_k / sum_{j >= k} exp r_j ); log K! when all rewards are equal.
    """
    tails = torch.logcumsumexp(rewards.flip(-1), dim=-1).flip(-1)
    return (tails - rewards).sum(-1)

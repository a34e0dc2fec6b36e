"""Losses of pairwise and ranked preferences, as functions of log-probs: no model, no data, no reduction.

All of them see the policy through the margin h of log-ratios to a reference (Rafailov et al. 2023, arXiv 2305.18290):

    h = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def margin(
    chosen: Float[Tensor, "b"],
    rejected: Float[Tensor, "b"],
    reference_chosen: Float[Tensor, "b"] | float = 0.0,
    reference_rejected: Float[Tensor, "b"] | float = 0.0,
) -> Float[Tensor, "b"]:
    """The margin h of log-ratios, in nats. References are constants: pass them detached, or 0 for none."""
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def sigmoid(h: Float[Tensor, "b"], beta: float) -> Float[Tensor, "b"]:
    """DPO: -log sigma(beta h). Equals log 2 at h = 0; its slope there is -beta / 2."""
    return -F.logsigmoid(beta * h)


def smoothed_sigmoid(h: Float[Tensor, "b"], beta: float, label_smoothing: float) -> Float[Tensor, "b"]:
    """cDPO: labels wrong with probability e in [0, 0.5): -(1-e) log sigma(beta h) - e log sigma(-beta h)."""
    return -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)


def squared(h: Float[Tensor, "b"], beta: float) -> Float[Tensor, "b"]:
    """IPO (Azar et al. 2023, arXiv 2310.12036): (h - 1 / (2 beta))^2."""
    return (h - 1 / (2 * beta)) ** 2


def plackett_luce(rewards: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """Negative log-likelihood of the order best to worst under Plackett-Luce with the given rewards.

    -sum_k log( exp r_k / sum_{j >= k} exp r_j ); log K! when all rewards are equal.
    """
    tails = torch.logcumsumexp(rewards.flip(-1), dim=-1).flip(-1)
    return (tails - rewards).sum(-1)

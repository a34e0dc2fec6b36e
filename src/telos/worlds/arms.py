"""A few arms: bandits without context on which objectives, optima and regrets are exact.

With rewards r, a reference mu and beta > 0 the regularised objective and its maximiser are

    J(pi) = sum_a pi(a) r(a) - beta KL(pi || mu),    pi* = mu exp(r / beta) / Z,    J(pi*) = beta log Z

`maximin` solves RPO's problem (arXiv 2405.16436, algorithm 1) for a reward in a box, where min and max may be swapped:

    max_pi min_{0 <= r <= top}  eta (E_pi r - E_base r - beta KL(pi || mu)) + L_D(r)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from telos.ops.games import kl

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def objective(
    log_policy: Float[Tensor, "*b n"], rewards: Float[Tensor, "n"], log_reference: Float[Tensor, "n"], beta: float
) -> Float[Tensor, "*b"]:
    """J(pi)."""
    return (log_policy.exp() * rewards).sum(-1) - beta * kl(log_policy, log_reference)


def optimum(rewards: Float[Tensor, "n"], log_reference: Float[Tensor, "n"], beta: float) -> Float[Tensor, "n"]:
    """log pi*, the maximiser of J."""
    return (log_reference + rewards / beta).log_softmax(-1)


def regret(
    log_policy: Float[Tensor, "*b n"], rewards: Float[Tensor, "n"], log_reference: Float[Tensor, "n"], beta: float
) -> Float[Tensor, "*b"]:
    """J(pi*) - J(pi) = beta KL(pi || pi*), at least 0."""
    return beta * kl(log_policy, optimum(rewards, log_reference, beta))


def maximin(
    pairs: Int[Tensor, "c 2"],
    log_reference: Float[Tensor, "n"],
    log_base: Float[Tensor, "n"],
    *,
    beta: float,
    eta: float,
    top: float,
    steps: int = 20_000,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """log pi and the adversary's r of RPO's problem, by projected gradient on r; the inner maximum is closed.

    Args:
        pairs: (chosen, rejected) arms; L_D is their mean Bradley-Terry loss, 0 without any.
        top: rewards lie in [0, top].
    """
    rewards = torch.full_like(log_reference, top / 2).requires_grad_()
    for _ in range(steps):
        value = eta * beta * (log_reference + rewards / beta).logsumexp(-1) - eta * (log_base.exp() * rewards).sum()
        if len(pairs):
            value = value - F.logsigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]]).mean()
        (slope,) = torch.autograd.grad(value, rewards)
        with torch.no_grad():
            # The curvature is at most eta / beta for the log of Z, and 1/2 for the pairs.
            rewards.sub_(slope / (eta / beta + 0.5)).clamp_(0, top)
    return optimum(rewards.detach(), log_reference, beta), rewards.detach()

"""Preference games over finitely many responses: equilibria, exploitability and steps of mirror descent, exactly.

P[i, j] is the chance that response i is preferred to j, P + P^T = 1. Policies are probabilities [n] or batches [..., n]
given by their logarithms. With a reference mu and a temperature tau the regularised game (Munos et al. 2023,
arXiv 2312.00886) is

    J(pi, pi') = P(pi > pi') - tau KL(pi || mu) + tau KL(pi' || mu),    P(pi > pi') = pi^T P pi'

and its equilibrium is the one pi with pi = mu exp(P pi / tau) / Z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

ROUNDING = 1e-13


def win_rates(preferences: Float[Tensor, "n n"], log_policy: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """P(i > pi) for each response i."""
    return log_policy.exp() @ preferences.T


def mixture(
    log_policy: Float[Tensor, "*b n"], log_reference: Float[Tensor, "*b n"], weight: float
) -> Float[Tensor, "*b n"]:
    """log of pi^(1 - weight) mu^weight / Z: pi at 0, mu at 1."""
    return ((1 - weight) * log_policy + weight * log_reference).log_softmax(-1)


def kl(log_p: Float[Tensor, "*b n"], log_q: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """KL(p || q), nats; responses to which p gives no probability count 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(-1)


def total_variation(log_p: Float[Tensor, "*b n"], log_q: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """Half the sum of absolute differences of probabilities, in [0, 1]."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def exploitability(preferences: Float[Tensor, "n n"], log_policy: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """max_i P(i > pi) - 1/2, in [0, 1/2]: what the best response wins; 0 at an equilibrium of the plain game."""
    return win_rates(preferences, log_policy).amax(-1) - 0.5


def best_response(
    preferences: Float[Tensor, "n n"], log_policy: Float[Tensor, "*b n"], log_reference: Float[Tensor, "n"], tau: float
) -> Float[Tensor, "*b n"]:
    """log of mu exp(P pi / tau) / Z: the best answer to pi in the regularised game; the equilibrium answers itself."""
    return (log_reference + win_rates(preferences, log_policy) / tau).log_softmax(-1)


def duality_gap(
    preferences: Float[Tensor, "n n"], log_policy: Float[Tensor, "*b n"], log_reference: Float[Tensor, "n"], tau: float
) -> Float[Tensor, "*b"]:
    """max_a J(a, pi) - min_b J(pi, b) >= 0, and 0 at the equilibrium alone.

    By the symmetry of the game 2 [tau log sum_y mu(y) exp(P(y > pi) / tau) + tau KL(pi || mu) - 1/2].
    """
    value = tau * (log_reference + win_rates(preferences, log_policy) / tau).logsumexp(-1)
    return 2 * (value + tau * kl(log_policy, log_reference.expand_as(log_policy)) - 0.5)


def equilibrium(
    preferences: Float[Tensor, "n n"], log_reference: Float[Tensor, "n"], tau: float, tolerance: float = 1e-12
) -> Float[Tensor, "n"]:
    """log of the regularised equilibrium, until it differs from its own best response by no more than the tolerance.

    Newton's steps on pi = best_response(pi) where they lower the duality gap; else a step from pi towards its best
    response, along which the gap falls in every game with P + P^T = 1 (smooth fictitious play). In float64; tau > 0.
    """
    p, mu = preferences.double(), log_reference.double().log_softmax(-1)
    # A small tau makes Newton's region small: come from the equilibrium at a larger one.
    policy = mu.exp() if tau > 0.05 else equilibrium(p, mu, 1.4 * tau).exp()
    for _ in range(1_000):
        answer = best_response(p, policy.log(), mu, tau).exp()
        if (answer - policy).abs().sum() / 2 <= tolerance:
            break
        gap = duality_gap(p, policy.log(), mu, tau)
        slope = (torch.diag(answer) - torch.outer(answer, answer)) @ p / tau
        newton = policy + torch.linalg.solve(torch.eye(len(policy), dtype=p.dtype) - slope, answer - policy)
        if newton.min() > 0 and duality_gap(p, newton.log(), mu, tau) <= gap + ROUNDING:
            policy = newton / newton.sum()
            continue
        step = 0.5
        while step > 1e-9 and duality_gap(p, (policy + step * (answer - policy)).log(), mu, tau) >= gap:
            step /= 2
        if step <= 1e-9:
            break
        policy = policy + step * (answer - policy)
    return policy.log().to(log_reference.dtype)


def mirror_step(
    win_rate: Float[Tensor, "*b n"], log_centre: Float[Tensor, "*b n"], rate: float
) -> Float[Tensor, "*b n"]:
    """log of centre exp(rate win_rate) / Z: maximises rate E[win_rate] - KL(pi || centre)."""
    return (log_centre + rate * win_rate).log_softmax(-1)

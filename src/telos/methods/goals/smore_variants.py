"""SMORe on tables: its own losses minimised entry by entry, and the same backbone on a discriminator's reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.methods.goals.smore import LOSSES, SMORe

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class Tables:
    """Scores (S, A, G), and M (S, G)."""

    scores: Tensor
    values: Tensor


def expectiles(
    scores: Float[Tensor, "S A G"], shares: Float[Tensor, "S A G"], expectile: float, missing: float
) -> Float[Tensor, "S G"]:
    """M: the minimiser of (1) over the actions of each state and goal; `missing` where there are none."""
    mean = torch.where(shares > 0, scores, -torch.inf).amax(1)
    # Weighted means with the weights of the step before: a few steps are exact, for few actions.
    for _ in range(10):
        weights = shares * torch.where(scores < mean[:, None], 1 - expectile, expectile)
        mean = (weights * scores).sum(1) / weights.sum(1)
    return torch.where(shares.sum(1) > 0, mean, missing)


def newton(method: SMORe, scores: Tensor, later: Tensor, rho: Tensor, q: Tensor) -> Tensor:
    """The minimiser of rho l_rho + q l_q in each score, both losses being squares; where neither has weight, NaN."""
    at_goal, elsewhere = LOSSES[method.loss]

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        (found,) = torch.autograd.grad((q * at_goal(at, later, method) + rho * elsewhere(at, later, method)).sum(), at)
        return found

    here = slope(scores)
    return scores - here / (slope(scores + 1) - here)


def constant(method: SMORe) -> float:
    """What all scores are where no step of q ever comes in: the fixed point of S -> newton(S), which is a line."""
    none, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    at_zero, at_one = newton(method, none, method.discount * torch.tensor([0.0, 1.0]).double(), one, none).tolist()
    return at_zero / (1 - (at_one - at_zero))


def solve(
    method: SMORe,
    rho: Float[Tensor, "S A G"],
    q: Float[Tensor, "S A G"],
    nexts: Int[Tensor, "S A"],
    sweeps: int = 100,
) -> Tables:
    """SMORe's fixed point on a deterministic world.

    Args:
        rho, q: shares of (state, action, goal) among the steps of each; float64.
        nexts: where each action leads.
    """
    lowest = constant(method)
    scores, seen = torch.full_like(rho, lowest), rho + q > 0
    values = torch.full_like(rho[:, 0], lowest)
    for _ in range(sweeps):
        scores = torch.where(seen, newton(method, scores, method.discount * values[nexts], rho, q), lowest)
        values = expectiles(scores, rho, method.expectile, lowest)
    return Tables(scores, values)


def solve_rewards(
    rewards: Float[Tensor, "S A G"], rho: Float[Tensor, "S A G"], nexts: Int[Tensor, "S A"], expectile: float,
    discount: float, sweeps: int = 100,
) -> Tables:  # fmt: skip
    """The fixed point of S = reward + discount M(s') on the same steps: IQL for every goal; nothing terminates."""
    lowest = float(rewards.min()) / (1 - discount)
    scores, values = torch.full_like(rho, lowest), torch.full_like(rho[:, 0], lowest)
    for _ in range(sweeps):
        scores = torch.where(rho > 0, rewards + discount * values[nexts], lowest)
        values = expectiles(scores, rho, expectile, lowest)
    return Tables(scores, values)


def policy(tables: Tables, rho: Float[Tensor, "S A G"], temperature: float, clip: float) -> Float[Tensor, "S A G"]:
    """(5) at its minimum, up to a factor for each state and goal: recorded shares times the advantages' weights."""
    advantages = tables.scores - tables.values[:, None]
    return rho * torch.exp(temperature * advantages).clamp(max=clip)

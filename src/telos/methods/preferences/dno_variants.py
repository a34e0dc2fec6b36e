"""DNO on finite games, exactly: soft policy iteration, which the soft loss estimates, and averages of its policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from telos.ops import games

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def soft_step(chances: Float[Tensor, "n n"], log_current: Float[Tensor, "n"], eta: float) -> Float[Tensor, "n"]:
    """log of pi_t exp(P(y > pi_t) / eta) / Z; it beats pi_t with at least 1/2 + eta KL(new || pi_t).

    Args:
        chances: P[i, j], that i is preferred to j.
    """
    return games.mirror_step(games.win_rates(chances, log_current), log_current, 1 / eta)


def soft_iteration(
    chances: Float[Tensor, "n n"], log_first: Float[Tensor, "n"], eta: float, count: int
) -> Float[Tensor, "count n"]:
    """log pi_1 .. pi_count."""
    found = [log_first]
    while len(found) < count:
        found.append(soft_step(chances, found[-1], eta))
    return torch.stack(found)


def running_average(log_policies: Float[Tensor, "t n"]) -> Float[Tensor, "t n"]:
    """log of the even mixture of the first 1, 2, .. t policies."""
    return log_policies.logcumsumexp(0).log_softmax(-1)

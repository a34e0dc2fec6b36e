"""INPO on finite games, exactly: the recursion of online mirror descent whose step the sampled loss estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from telos.methods.preferences.inpo import INPO
from telos.ops import games

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def omd_step(
    chances: Float[Tensor, "n n"], log_current: Float[Tensor, "n"], log_reference: Float[Tensor, "n"],
    eta: float, tau: float,
) -> Float[Tensor, "n"]:  # fmt: skip
    """log pi_{t+1} of a finite game, exactly.

    Args:
        chances: P[i, j], that i is preferred to j.
    """
    centre = games.mixture(log_current, log_reference, tau / eta)
    return games.mirror_step(games.win_rates(chances, log_current), centre, 1 / eta)


def plan_exactly(
    method: INPO, chances: Float[Tensor, "n n"], log_reference: Float[Tensor, "n"], steps: int
) -> Float[Tensor, "steps n"]:
    """log pi_2 .. pi_{steps + 1} from pi_1 = pi_ref, with the method's eta, tau and schedule."""
    policy, found = log_reference, []
    for number in range(1, steps + 1):
        policy = omd_step(chances, policy, log_reference, method.eta_at(number), method.tau)
        found.append(policy)
    return torch.stack(found)

"""Cliff bandit: one step, mostly poor records, the best actions close to an edge behind which nothing was recorded.

A state s in [-1, 1] says nothing. Nine of ten recorded actions are poor, N(-.5, .15^2), one is good, N(.5, .08^2); all
are clipped to [-1, .7]. Actions may go up to 1:

    r(s, a) = 2 + a  for a <= .75,   -3  above,   recorded with noise N(0, .1^2)

So an unconstrained policy follows its critic's extrapolation over the edge, and one that is pulled to the actions
recorded at a state is pulled to poor ones. The world is the dossier's of A2PR, arXiv 2405.19909.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.products import Policy
from telos.core.rng import Rng
from telos.data.records import Box, Transitions

if TYPE_CHECKING:
    from jaxtyping import Float

EDGE, BEST_RECORDED, GOOD_SHARE = 0.75, 0.7, 0.1


def reward(actions: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """What actions earn, without noise."""
    return torch.where(actions <= EDGE, 2 + actions, -3.0)


def dataset(n: int = 5000, rng: Rng | None = None) -> Transitions:
    """`n` episodes of one step.

    Args:
        rng: the stream of states, actions and noise; Rng(0) without it.
    """
    generator = (rng or Rng(0)).at("cliff_bandit").torch()
    states, which = 2 * torch.rand(n, generator=generator) - 1, torch.rand(n, generator=generator)
    spread, noise = torch.randn(2, n, generator=generator)
    actions = torch.where(which < GOOD_SHARE, 0.5 + 0.08 * spread, -0.5 + 0.15 * spread).clamp(-1, BEST_RECORDED)
    return Transitions.validated(
        observations=states[:, None], actions=actions[:, None], rewards=reward(actions) + 0.1 * noise,
        next_observations=states[:, None], terminated=torch.ones(n), truncated=torch.zeros(n),
        action_space=Box((-1.0,), (1.0,)),
    )  # fmt: skip


def measure(policy: Policy, n: int = 2000) -> dict[str, float]:
    """The gold measure on `n` evenly spaced states, without exploration.

    Returns:
        `reward`: mean, without noise, at most 2.75; `fallen`: share of states with an action behind the edge;
        `action`: mean.
    """
    actions = policy.act(torch.linspace(-1, 1, n)[:, None]).action[:, 0].cpu()
    return {
        "reward": reward(actions).mean().item(),
        "fallen": (actions > EDGE).float().mean().item(),
        "action": actions.mean().item(),
    }

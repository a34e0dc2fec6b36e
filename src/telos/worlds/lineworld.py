"""Lineworld: a line to walk along, whose data recommend the wrong direction in every other cell.

The position is x in [0, 10], the action u moves it: x' = clip(x + u, 0, 10); reward 1 and the end at x' >= 9.5.
With the trap, u is in [-2, 2] and |u| > 1.5 crashes (the episode ends without reward); no record shows that.
Without it, u is in [-1, 1] and nothing crashes. The records have |u| in [0.5, 1]: to the right in even cells
floor(x), to the left in odd ones. So imitation gets stuck, and a value alone extrapolates into the trap.
In the spirit of the toy of arXiv 2306.06569.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.products import Policy
from telos.core.rng import Rng
from telos.data.records import Box, Transitions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

LENGTH, GOAL, CRASH = 10.0, 9.5, 1.5


def action_space(trap: bool = True) -> Box:
    """[-2, 2] with the trap, [-1, 1] without."""
    bound = 2.0 if trap else 1.0
    return Box((-bound,), (bound,))


def step(
    x: Float[Tensor, " B"], u: Float[Tensor, " B"], trap: bool = True
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """Next positions, rewards and whether each crashed. A reward of 1 ends the episode; so does a crash."""
    crashed = (u.abs() > CRASH) if trap else torch.zeros_like(u, dtype=torch.bool)
    nexts = torch.clamp(x + u, 0.0, LENGTH)
    rewards = ((nexts >= GOAL) & ~crashed).float()
    return nexts, rewards, crashed


def dataset(n: int = 1000, rng: Rng | None = None, trap: bool = True) -> Transitions:
    """`n` single steps from positions drawn uniformly; each is an episode of its own.

    Args:
        rng: the stream of positions and sizes; Rng(0) without it.
    """
    draws = torch.rand((2, n), generator=(rng or Rng(0)).at("lineworld").torch())
    x = LENGTH * draws[0]
    sign = torch.where(x.floor().long() % 2 == 0, 1.0, -1.0)
    u = sign * (0.5 + 0.5 * draws[1])
    nexts, rewards, _ = step(x, u, trap)
    terminated = rewards > 0
    return Transitions.validated(
        observations=x[:, None],
        actions=u[:, None],
        rewards=rewards,
        next_observations=nexts[:, None],
        terminated=terminated,
        truncated=~terminated,
        action_space=action_space(trap),
    )


def reach(policy: Policy, starts: Sequence[float] = (0.0,), trap: bool = True, limit: int = 60) -> dict[str, float]:
    """The gold measure: whether the policy, without exploration, gets from `starts` to the goal within `limit` steps.

    Returns:
        means over starts: `reached` and `crashed` (0 or 1 each), `steps` until the end of the episode (`limit` if
        there was none), and `mean_action` over the steps taken.
    """
    x = torch.tensor(list(starts), dtype=torch.float32)
    active = torch.ones_like(x, dtype=torch.bool)
    reached, crashed = ~active, ~active
    steps, moved = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(limit):
        u = policy.act(x[:, None]).action[:, 0].cpu()
        nexts, rewards, crash = step(x, u, trap)
        steps, moved = steps + active, moved + torch.where(active, u, 0.0)
        reached, crashed = reached | (active & (rewards > 0)), crashed | (active & crash)
        active = active & ~reached & ~crashed
        x = torch.where(active, nexts, x)
    return {
        "reached": reached.float().mean().item(),
        "crashed": crashed.float().mean().item(),
        "steps": steps.mean().item(),
        "mean_action": (moved / steps).mean().item(),
    }

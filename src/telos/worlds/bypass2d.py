"""Bypass2D: a plane with a disc in the middle, which demonstrators pass on either side to reach one of three goals.

The position is p in [0, 1]^2 and an action a in [-1, 1]^2 moves it: p' = clip(p + 0.1 a, 0, 1). The disc has centre
(.5, .5) and radius .17: to enter it is a failure, but does not stop the point. Starts are x in [.16, .20] and
y in [.47, .53], goals x = .92 and y in {.3, .5, .7} with a deviation of .02. A demonstrator picks a side at random,
makes for (.5, .5 +- .35) until x = .48, for (.76, .5 +- .3) until x = .72 and then for the goal, with noise of
deviation .15 on its actions; 25 steps.

So the mean of the actions recorded near a start points at the disc, three steps away. The dossier of BESO, which the
world comes from, starts at x in [.02, .12], y in [.4, .6] with steps of half the size. There a regression on the
position alone has the time to drift to a side, and succeeds in 96 of 100 attempts: that world tells nothing apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.products import Policy
from telos.core.rng import Rng
from telos.data.records import Box, Transitions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

SPEED, RADIUS, REACH = 0.1, 0.17, 0.07
DEMONSTRATION, LIMIT = 25, 40
"""Steps of a demonstration, and of an attempt to reach a goal."""


def step(positions: Float[Tensor, "B 2"], actions: Float[Tensor, "B 2"]) -> Float[Tensor, "B 2"]:
    """Positions after one step."""
    return torch.clamp(positions + SPEED * actions.clamp(-1, 1), 0, 1)


def collides(positions: Float[Tensor, "B 2"]) -> Bool[Tensor, " B"]:
    """Whether a position lies in the disc."""
    return (positions - 0.5).norm(dim=-1) < RADIUS


def starts_and_goals(n: int, rng: Rng) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """`n` starts and goals."""
    generator = rng.torch()
    u = torch.rand(n, 2, generator=generator)
    starts = torch.stack([0.16 + 0.04 * u[:, 0], 0.47 + 0.06 * u[:, 1]], 1)
    heights = torch.tensor([0.3, 0.5, 0.7])[torch.randint(3, (n,), generator=generator)]
    heights = heights + 0.02 * torch.randn(n, generator=generator)
    return starts, torch.stack([torch.full((n,), 0.92), heights], 1)


def expert(positions: Float[Tensor, "B 2"], goals: Float[Tensor, "B 2"], sides: Float[Tensor, " B"]) -> Tensor:
    """The demonstrator's actions (B, 2) without noise; `sides` are -1 (below) and 1 (above)."""
    x = positions[:, :1]
    beside = torch.stack([torch.full_like(sides, 0.5), 0.5 + 0.35 * sides], 1)
    behind = torch.stack([torch.full_like(sides, 0.76), 0.5 + 0.3 * sides], 1)
    way = torch.where(x < 0.48, beside, torch.where(x < 0.72, behind, goals)) - positions
    return way / way.norm(dim=-1, keepdim=True).clamp(min=SPEED)


def dataset(n: int = 400, rng: Rng | None = None) -> Transitions:
    """`n` demonstrations of 25 steps, one after another: positions and actions; rewards are zero.

    Args:
        rng: the stream of starts, goals, sides and noise; Rng(0) without it.
    """
    rng = (rng or Rng(0)).at("bypass2d")
    positions, goals = starts_and_goals(n, rng.at("places"))
    generator = rng.at("acts").torch()
    sides = 2.0 * torch.randint(2, (n,), generator=generator) - 1
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(DEMONSTRATION):
        noise = 0.15 * torch.randn(n, 2, generator=generator)
        actions = (expert(positions, goals, sides) + noise).clamp(-1, 1)
        nexts = step(positions, actions)
        rows.append((positions, actions, nexts))
        positions = nexts
    observations, actions, nexts = (torch.stack(column, 1).flatten(0, 1) for column in zip(*rows))
    last = torch.arange(len(observations)) % DEMONSTRATION == DEMONSTRATION - 1
    return Transitions.validated(
        observations=observations, actions=actions, rewards=torch.zeros(len(actions)), next_observations=nexts,
        terminated=torch.zeros_like(last), truncated=last, action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )  # fmt: skip


@dataclass(frozen=True)
class Attempts:
    """Attempts to reach goals.

    Args:
        paths: (n, steps + 1, 2) positions; after the goal is reached a path goes on.
        goals: (n, 2).
        reached: (n,) bool: came within .07 of its goal, and touched no disc before.
        collided: (n,) bool: touched the disc before it reached its goal.
        above: (n,) bool: was above the disc when it first passed its middle.
        passed: (n,) bool: passed the middle at all.
    """

    paths: Tensor
    goals: Tensor
    reached: Tensor
    collided: Tensor
    above: Tensor
    passed: Tensor

    def measures(self) -> dict[str, float]:
        """`success` and `collided` as shares; `above`, the share of passes above the disc, .5 if none passed."""
        share = (self.above & self.passed).float().sum() / self.passed.float().sum().clamp(min=1)
        return {
            "success": self.reached.float().mean().item(),
            "collided": self.collided.float().mean().item(),
            "above": share.item() if self.passed.any() else 0.5,
        }


def attempt(policy: Policy, n: int = 200, rng: Rng | None = None, limit: int = LIMIT) -> Attempts:
    """The gold measure: the policy's way from fresh starts to fresh goals, `limit` steps at most."""
    rng = (rng or Rng(0)).at("bypass2d")
    positions, goals = starts_and_goals(n, rng.at("places"))
    generator, state = rng.at("policy").torch(), None
    path = [positions]
    reached = torch.zeros(n, dtype=torch.bool)
    collided, above, passed = reached, reached, reached
    for _ in range(limit):
        act = policy.act(positions, goal=goals, state=state, rng=generator)
        nexts, state = step(positions, act.action.cpu()), act.state
        collided = collided | (collides(nexts) & ~reached)
        reached = reached | ((nexts - goals).norm(dim=-1) < REACH) & ~collided
        above = torch.where(~passed & (nexts[:, 0] >= 0.5), nexts[:, 1] > 0.5, above)
        passed = passed | (nexts[:, 0] >= 0.5)
        positions = nexts
        path.append(positions)
    return Attempts(torch.stack(path, 1), goals, reached, collided, above, passed)

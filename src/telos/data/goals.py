"""Goals of single steps, drawn as row numbers over a whole data set; and batches of steps with goals.

Rows are in time order and an episode ends where a row is terminated or truncated (`windows.episode_bounds`). A goal is
named by a row j and means the state that row j leads to, `next_observations[j]`; the row t of a step is its own next
state. -1 means the state in which the step is taken. All that is drawn comes from uniform numbers of the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.data.records import Record, Transitions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

HERE = -1
"""The goal that is the state itself."""


@dataclass(frozen=True)
class GoalSteps(Record):
    """A batch of steps, each with a goal.

    Args:
        observations, next_observations: (B, O); actions (B, A) or (B,).
        goals: (B, G) the goal's part of a state (all of it, or chosen columns).
        reached: (B,) bool: the step leads to the very row that the goal was taken from.
    """

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    goals: Tensor
    reached: Tensor


@dataclass(frozen=True)
class Episodes:
    """What samplers know of the rows: the last row of each row's episode, how many rows there are, the discount."""

    last: Tensor
    discount: float = 0.99

    def __len__(self) -> int:
        return len(self.last)


def future(rows: Int[Tensor, " B"], episodes: Episodes, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Uniform over what the episode still holds, the step's own next state included."""
    left = episodes.last[rows] - rows + 1
    return rows + torch.minimum((u * left).long(), left - 1)


def geometric(rows: Int[Tensor, " B"], episodes: Episodes, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """k >= 1 steps ahead with probability (1 - discount) discount^(k - 1), cut at the episode's end."""
    ahead = (torch.log1p(-u) / math.log(episodes.discount)).long() if episodes.discount > 0 else torch.zeros_like(rows)
    return torch.minimum(rows + ahead, episodes.last[rows])


def final(rows: Int[Tensor, " B"], episodes: Episodes, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The episode's last state."""
    return episodes.last[rows]


def random(rows: Int[Tensor, " B"], episodes: Episodes, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Uniform over all rows of the data."""
    return (u * len(episodes)).long().clamp(max=len(episodes) - 1)


def entered(rows: Int[Tensor, " B"], episodes: Episodes, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The state that the step itself leads to: its transition enters the goal."""
    return rows


def here(rows: Int[Tensor, " B"], episodes: Episodes, u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The state in which the step is taken."""
    return torch.full_like(rows, HERE)


GOALS: dict[str, Callable[[Tensor, Episodes, Tensor], Tensor]] = {
    "future": future, "geometric": geometric, "final": final, "random": random, "entered": entered, "here": here,
}  # fmt: skip


def goal_rows(
    rows: Int[Tensor, " B"], episodes: Episodes, shares: Mapping[str, float], draws: Float[Tensor, "2 B"]
) -> Int[Tensor, " B"]:
    """The row of each step's goal, from one of the named samplers.

    Args:
        shares: sampler -> its probability; they sum to 1.
        draws: uniform in [0, 1): which sampler, and what it draws.

    Raises:
        TelosError: an unknown sampler, or shares that are no distribution.
    """
    wrong = [name for name in shares if name not in GOALS]
    if wrong or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise TelosError(
            "shares of goals are wrong", expected=f"probabilities of {', '.join(GOALS)} that sum to 1", got=str(shares)
        )
    found, edge = rows, 0.0
    for name, share in shares.items():
        found = torch.where(draws[0] >= edge, GOALS[name](rows, episodes, draws[1]), found)
        edge += share
    return found


@dataclass(frozen=True)
class Clusters:
    """Groups of states that count as the same place.

    Args:
        label: (N,) the group of each row's next state.
        order: (N,) rows, group by group; start: (K + 1,) where each group begins in `order`.
    """

    label: Tensor
    order: Tensor
    start: Tensor

    @classmethod
    def of(cls, label: Int[Tensor, " N"]) -> Clusters:
        """From the groups 0..K-1 of all rows."""
        counts = torch.bincount(label)
        start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(label, torch.argsort(label, stable=True), start)


def junctions(
    rows: Int[Tensor, " B"],
    episodes: Episodes,
    clusters: Clusters,
    draws: Float[Tensor, "2 B"],
    law: Callable[[Tensor, Episodes, Tensor], Tensor] = future,
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """A state that the step's episode still reaches, by `law`, and any state of its cluster: two rows a step."""
    between = law(rows, episodes, draws[0])
    group = clusters.label[between]
    first, count = clusters.start[group], clusters.start[group + 1] - clusters.start[group]
    return between, clusters.order[first + torch.minimum((draws[1] * count).long(), count - 1)]


def take_steps(
    data: Transitions, rows: Int[Tensor, " B"], goals: Int[Tensor, " B"], columns: list[int] | None = None
) -> GoalSteps:
    """The batch of these rows with these goals.

    Args:
        columns: which columns of a state are a goal; None: all.
    """
    own: Bool[Tensor, " B"] = goals == HERE
    states = torch.where(own[:, None], data.observations[rows], data.next_observations[goals.clamp(min=0)])
    return GoalSteps(
        data.observations[rows], data.actions[rows], data.next_observations[rows],
        states if columns is None else states[:, columns], goals == rows,
    )  # fmt: skip

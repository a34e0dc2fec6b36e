"""A policy of one state and one goal: chosen columns of observations, and an actor over both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.data.records import Box, Discrete, Transitions
from telos.nets.normaliser import Normaliser
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy, GaussianPolicy, box

if TYPE_CHECKING:
    from jaxtyping import Float

Columns = tuple[int, ...] | list[int] | None
"""Columns of an observation; None for all."""


def goal_space(data: Any, method: str, columns: dict[str, Columns]) -> Box | Discrete:
    """The action space of a data set, if it is bounded or discrete.

    Args:
        columns: options of the method by name, whose columns the observations must have.

    Raises:
        TelosError: no data set in memory, unbounded actions, columns that observations lack, or none at all.
    """
    if not isinstance(getattr(data, "action_space", None), Discrete):
        box(data, method)
    size = data.observations.shape[1]
    for name, chosen in columns.items():
        if chosen is not None and (not chosen or not all(0 <= column < size for column in chosen)):
            raise TelosError(
                f"{method}: option {name} is wrong", expected=f"column numbers 0 to {size - 1}", got=str(chosen)
            )
    return data.action_space


class ReachingPolicy(Policy):
    """An actor on the way to a goal. Scaling is inside.

    Args:
        observation_size: O.
        observation_columns: those that are the state, S of them.
        goal_columns: those that are a goal, G of them: what a goal shows of a state.
        kind: of the actor: "gaussian", "deterministic" or "categorical".
        space: [low (A,), high (A,)], or the number of discrete actions.
        hidden: widths of the hidden layers.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    _observation_columns: Tensor
    _goal_columns: Tensor

    def __init__(
        self,
        observation_size: int,
        observation_columns: Columns,
        goal_columns: Columns,
        kind: str,
        space: Any,
        hidden: Sequence[int],
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.observation_size, self.kind_of_actor, self.space, self.hidden = observation_size, kind, space, list(hidden)
        every = range(observation_size)
        self.observation_columns = list(every if observation_columns is None else observation_columns)
        self.goal_columns = list(every if goal_columns is None else goal_columns)
        for name in ("observation_columns", "goal_columns"):
            self.register_buffer(f"_{name}", torch.tensor(getattr(self, name)), persistent=False)
        self.input_size = len(self.observation_columns) + len(self.goal_columns)
        if kind == "categorical":
            self.actions: int = space
            self.actor = CategoricalPolicy(self.input_size, space, hidden, rng)
        else:
            self.low, self.high = tuple(space[0]), tuple(space[1])
            make = GaussianPolicy if kind == "gaussian" else DeterministicPolicy
            self.actor = make(self.input_size, self.low, self.high, hidden, rng=rng)

    @classmethod
    def of(
        cls, data: Transitions, columns: tuple[Columns, Columns], kind: str, hidden: Sequence[int], normalise: bool,
        rng: torch.Generator,
    ) -> ReachingPolicy:  # fmt: skip
        """A fresh policy for the spaces of `data`, on its device.

        Args:
            columns: of observations, and of goals.
            kind: of the actor where actions are continuous.
            normalise: whether states and goals are standardised with the data's mean and std + 0.001.
        """
        space, size = data.action_space, data.observations.shape[1]
        discrete = isinstance(space, Discrete)
        bounds = space.size if discrete else [list(space.low), list(space.high)]
        policy = cls(size, *columns, "categorical" if discrete else kind, bounds, hidden, rng)
        if normalise:
            whole, chosen = Normaliser.fitted(data.observations), policy.observation_columns + policy.goal_columns
            policy.actor.normaliser = Normaliser(whole.mean[chosen], whole.std[chosen])
        return policy.to(data.observations.device)

    def states(self, observations: Float[Tensor, "B O"], goals: Float[Tensor, "B G"]) -> Float[Tensor, "B SG"]:
        """What networks see of raw observations and raw goals."""
        return self.actor.normaliser(torch.cat([observations[:, self._observation_columns], goals], -1))

    def achieved(self, observations: Float[Tensor, "B O"]) -> Float[Tensor, "B G"]:
        """The goals that raw observations are."""
        return observations[:, self._goal_columns]

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: Any = None,
        mask: Any = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B, A) or (B,), without B for one observation; the actor's mean or mode unless it explores.

        Args:
            goal: raw, (G,) for all or (B, G): the goal's columns of an observation.

        Raises:
            TelosError: no goal, or shapes that do not fit.
        """
        return self.actor.act(self.seen(obs, goal), mask=mask, rng=rng, explore=explore)

    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-probabilities or log-densities of given actions on the way to the goal."""
        return self.actor.log_prob(self.seen(obs, goal), action, mask=mask)

    def seen(self, obs: Any, goal: Any) -> Float[Tensor, "*B SG"]:
        """Raw observations (B, O) or (O,) with raw goals, before scaling."""
        if goal is None:
            raise TelosError("the policy needs a goal", expected=f"goal of {len(self.goal_columns)} values")
        rows = self.raw(obs, self.observation_size, "observations")
        goals = self.raw(goal, len(self.goal_columns), "goal")
        if len(goals) not in (1, len(rows)):
            raise TelosError("goals do not fit", expected=f"1 or {len(rows)}", got=str(len(goals)))
        joined = torch.cat([rows[:, self.observation_columns], goals.expand(len(rows), -1)], -1)
        return joined[0] if torch.as_tensor(obs).dim() == 1 else joined

    def raw(self, values: Any, size: int, what: str) -> Float[Tensor, "B n"]:
        """Numbers as rows of `size`, where the policy lives."""
        tensor = torch.as_tensor(values, dtype=torch.float32, device=self.actor.normaliser.mean.device)
        rows = tensor[None] if tensor.dim() == 1 else tensor
        if rows.dim() != 2 or rows.shape[1] != size or not rows.isfinite().all():
            raise TelosError(
                f"{what}: the shape does not fit the policy, or numbers are not finite", got=str(tuple(tensor.shape)),
                expected=f"({size},) or (B, {size})" + (f": columns {self.goal_columns}" if what == "goal" else ""),
            )  # fmt: skip
        return rows

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": self.observation_size, "observation_columns": self.observation_columns,
            "goal_columns": self.goal_columns, "kind": self.kind_of_actor, "space": self.space, "hidden": self.hidden,
        }  # fmt: skip

    def probe(self) -> dict[str, Tensor]:
        return self.actor.probe()

"""What goes into and out of a goal-conditioned policy over windows of steps: columns, scaling, the past, the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.data.records import Transitions
from telos.nets.normaliser import Normaliser

if TYPE_CHECKING:
    from jaxtyping import Float

State = dict[str, Tensor]
"""The past of each environment: scaled `states` (B, k, S) and `actions` (B, k-1, A), and its `steps` (B,)."""


def standardise(values: Float[Tensor, "N D"]) -> Normaliser:
    """To mean 0 and standard deviation 1."""
    return Normaliser(values.mean(0), positive(values.std(0, correction=0)))


def minmax(values: Float[Tensor, "N D"]) -> Normaliser:
    """The smallest value to -1 and the largest to 1."""
    low, high = values.amin(0), values.amax(0)
    return Normaliser((low + high) / 2, positive((high - low) / 2))


def unscaled(values: Float[Tensor, "N D"]) -> Normaliser:
    """As they are."""
    return Normaliser.identity(values.shape[1])


SCALINGS: dict[str, Callable[[Tensor], Normaliser]] = {"standardise": standardise, "minmax": minmax, "none": unscaled}


def positive(widths: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """1 in place of a width below 1e-6: a column that never changes becomes zeros and is left at its own unit."""
    return torch.where(widths < 1e-6, 1.0, widths)


@dataclass(frozen=True)
class Window:
    """What a policy decides on, scaled; the newest step last.

    Args:
        states: (B, k, S); past: (B, k-1, A) executed actions; mask: (B, k) bool, False before the episode's start.
        goals: (B, G, g), or None.
        steps: (B,) int64 actions taken before.
        single: whether one observation (O,) was given.
    """

    states: Tensor
    past: Tensor
    mask: Tensor
    goals: Tensor | None
    steps: Tensor
    single: bool


class Play(nn.Module):
    """Selects and scales observations, goals and actions; constants that are saved with the policy.

    Args:
        observation_size: O, the whole observation.
        low, high: (A,) range of the training actions; what is returned is clipped to it.
        observation_columns, goal_columns: which columns are the state and the goal; None for all.
        window: k states that the policy sees.
        goal_length: G consecutive states that a goal has.
    """

    def __init__(
        self,
        observation_size: int,
        low: Sequence[float],
        high: Sequence[float],
        observation_columns: Sequence[int] | None = None,
        goal_columns: Sequence[int] | None = None,
        window: int = 1,
        goal_length: int = 1,
    ):
        super().__init__()
        self.observation_size, self.low, self.high = observation_size, tuple(low), tuple(high)
        self.observation_columns, self.goal_columns, self.window, self.goal_length = (
            checked_columns("observation_columns", observation_columns, observation_size),
            checked_columns("goal_columns", goal_columns, observation_size),
            window,
            goal_length,
        )
        self.state_size = observation_size if observation_columns is None else len(observation_columns)
        self.goal_size = observation_size if goal_columns is None else len(goal_columns)
        self.observations = Normaliser.identity(self.state_size)
        self.goals = Normaliser.identity(self.goal_size)
        self.actions = Normaliser.identity(len(self.low))

    @classmethod
    def fitted(cls, data: Transitions, scaling: str, **options: Any) -> Play:
        """Scaled to the data; goals as the observations that they are columns of."""
        least, most = data.actions.amin(0), data.actions.amax(0)
        play = cls(data.observations.shape[1], least.tolist(), most.tolist(), **options).to(least.device)
        whole = SCALINGS[scaling](data.observations)
        for part, columns in ((play.observations, play.observation_columns), (play.goals, play.goal_columns)):
            for name in ("mean", "std"):
                getattr(part, name).copy_(select(getattr(whole, name), columns))
        play.actions = SCALINGS[scaling](data.actions).to(least.device)
        return play

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON."""
        return {
            "observation_size": self.observation_size, "low": list(self.low), "high": list(self.high),
            "observation_columns": listed(self.observation_columns), "goal_columns": listed(self.goal_columns),
            "window": self.window, "goal_length": self.goal_length,
        }  # fmt: skip

    def scaled_states(self, observations: Float[Tensor, "*B O"]) -> Float[Tensor, "*B S"]:
        """Whole observations as scaled states."""
        return self.observations(select(observations, self.observation_columns))

    def scaled_goals(self, observations: Float[Tensor, "*B O"]) -> Float[Tensor, "*B g"]:
        """Whole observations as scaled goals."""
        return self.goals(select(observations, self.goal_columns))

    def look(self, obs: Any, goal: Any, state: State | None) -> Window:
        """The window at new raw observations.

        Args:
            obs: (B, O), or (O,) for one.
            goal: raw values of the goal's columns, (g,) for all or (B, g), or G states of them, (B, G, g) or flat;
                one state stands for all G. None for no goal.
            state: what `finish` gave at the step before; None at the start.

        Raises:
            TelosError: widths or numbers of rows that do not fit.
        """
        device = self.actions.mean.device
        batch = torch.as_tensor(obs, dtype=torch.float32, device=device)
        single = batch.dim() == 1
        batch = batch[None] if single else batch
        if batch.dim() != 2 or batch.shape[1] != self.observation_size:
            raise TelosError(
                "observations do not fit the policy", got=str(tuple(batch.shape)),
                expected=f"shape (batch, {self.observation_size}) or ({self.observation_size},)",
                fix="use the environment or the data that the policy was trained for",
            )  # fmt: skip
        rows, newest = len(batch), self.scaled_states(batch)[:, None]
        if state is None:
            states = newest.expand(-1, self.window, -1)
            past = newest.new_zeros(rows, self.window - 1, len(self.low))
            steps = torch.zeros(rows, dtype=torch.int64, device=device)
        else:
            past, steps = state["actions"], state["steps"]
            if len(steps) != rows:
                raise TelosError(
                    "the state does not fit the observations", expected=f"{rows} rows", got=f"{len(steps)}"
                )
            states = torch.cat([state["states"][:, 1:], newest], 1)
        mask = torch.arange(self.window, device=device) >= self.window - 1 - steps[:, None]
        wanted = None if goal is None else self.wanted(goal, rows)
        return Window(states, past, mask, wanted, steps, single)

    def wanted(self, goal: Any, rows: int) -> Float[Tensor, "B G g"]:
        """A raw goal as `look` takes it, scaled."""
        tensor = torch.as_tensor(goal, dtype=torch.float32, device=self.goals.mean.device)
        flat = tensor[None] if tensor.dim() == 1 else tensor.flatten(1) if tensor.dim() == 3 else tensor
        sizes = (self.goal_size, self.goal_size * self.goal_length)
        if flat.dim() != 2 or flat.shape[1] not in sizes or len(flat) not in (1, rows):
            raise TelosError(
                "the goal does not fit the policy", got=f"shape {tuple(tensor.shape)} for {rows} observations",
                expected=f"({self.goal_size},) or ({rows}, {self.goal_size}): {columns_text(self.goal_columns)}",
                fix="give the goal as the columns of an observation that the policy was trained with",
            )  # fmt: skip
        if not flat.isfinite().all():
            raise TelosError("the goal is not finite", expected="finite numbers", got=str(flat[0].tolist()))
        states = flat.view(len(flat), -1, self.goal_size).expand(rows, self.goal_length, -1)
        return self.goals(states)

    def finish(self, window: Window, action: Float[Tensor, "B A"]) -> tuple[Tensor, State]:
        """The raw action, clipped to the training range, and the state to pass on; from a scaled action."""
        low, high = (action.new_tensor(bound) for bound in (self.low, self.high))
        raw = torch.clamp(self.raw(action), low, high)
        executed = self.actions(raw)[:, None]
        past = torch.cat([window.past[:, 1:], executed], 1) if self.window > 1 else window.past
        state = {"states": window.states, "actions": past, "steps": window.steps + 1}
        return raw[0] if window.single else raw, state

    def raw(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """Scaled actions in the units of the environment."""
        return actions * self.actions.std + self.actions.mean

    def probe(self, slots: int) -> tuple[Window, Float[Tensor, "4 slots A"]]:
        """Four fixed whole windows with goals, and as many actions for them, all scaled."""
        device, action_size = self.actions.mean.device, len(self.low)

        def grid(steps: int, width: int) -> Tensor:
            return torch.cos(torch.arange(4.0 * steps * width)).view(4, steps, width).to(device)

        states, goals = grid(self.window, self.state_size), grid(self.goal_length, self.goal_size)
        mask = torch.ones(4, self.window, dtype=torch.bool, device=device)
        window = Window(states, grid(self.window - 1, action_size), mask, goals, mask.sum(-1) - 1, False)
        return window, grid(slots, action_size)

    def probed(self, window: Window, outputs: Tensor) -> dict[str, Tensor]:
        """What a policy computed on such windows, with everything in raw units, so that changed scales are noticed."""
        assert window.goals is not None
        return {
            "states": window.states * self.observations.std + self.observations.mean,
            "goals": window.goals * self.goals.std + self.goals.mean,
            "actions": self.raw(outputs),
        }


def select(values: Float[Tensor, "*B O"], columns: Sequence[int] | None) -> Float[Tensor, "*B S"]:
    """The named columns, all for None."""
    return values if columns is None else values[..., list(columns)]


def checked_columns(name: str, columns: Sequence[int] | None, size: int) -> tuple[int, ...] | None:
    """Columns as a tuple; TelosError for one that an observation of `size` does not have, or none at all."""
    if columns is None:
        return None
    if not columns or any(not 0 <= column < size for column in columns):
        raise TelosError(f"option {name} is wrong", expected=f"column numbers 0 to {size - 1}", got=str(list(columns)))
    return tuple(columns)


def columns_text(columns: tuple[int, ...] | None) -> str:
    """What a goal consists of, for messages."""
    return "a whole observation" if columns is None else f"columns {list(columns)} of an observation"


def listed(columns: tuple[int, ...] | None) -> list[int] | None:
    """As JSON."""
    return None if columns is None else list(columns)

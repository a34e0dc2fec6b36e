"""Sources over data sets that are in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telos.core.method import Source
from telos.core.products import Product
from telos.core.rng import Rng
from telos.data.goals import Episodes, GoalSteps, take_steps
from telos.data.goals import goal_rows as step_goals
from telos.data.records import Record, Transitions
from telos.data.windows import Windows, episode_bounds, goal_rows, take_windows, window_rows


class Uniform(Source):
    """Rows drawn uniformly with replacement, indexed on the device where the data lives."""

    def __init__(self, data: Record, batch_size: int):
        self.data, self.batch_size = data, batch_size
        self.device = next(c for c in data.columns().values() if isinstance(c, Tensor)).device

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Record:
        index = torch.randint(len(self.data), (self.batch_size,), generator=rng.torch(self.device), device=self.device)
        return self.data.take(index)


class UniformWindows(Source):
    """Windows of steps with goals from their future, every row equally often the newest; see telos.data.windows.

    Args:
        length: steps of a window.
        goal_length: consecutive states of a goal.
        goals: how goals are drawn, sampler -> probability.
    """

    def __init__(self, data: Transitions, batch_size: int, length: int, goal_length: int, goals: Mapping[str, float]):
        self.data, self.batch_size, self.length = data, batch_size, length
        self.goal_length, self.goals = goal_length, dict(goals)
        self.first, self.last = episode_bounds(data)

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Windows:
        device = self.first.device
        generator = rng.torch(device)
        newest = torch.randint(len(self.data), (self.batch_size,), generator=generator, device=device)
        draws = torch.rand((2, self.batch_size), generator=generator, device=device)
        rows, mask = window_rows(newest, self.first[newest], self.length)
        goals, has_goal = goal_rows(newest, self.last[newest], self.goal_length, self.goals, draws)
        return take_windows(self.data, rows, mask, goals, has_goal)


class UniformGoals(Source):
    """Steps drawn uniformly, each with a goal from a mix of samplers; see telos.data.goals.

    Args:
        goals: sampler -> its probability.
        discount: of the geometric sampler.
        columns: which columns of a state are a goal; None: all.
    """

    def __init__(
        self,
        data: Transitions,
        batch_size: int,
        goals: Mapping[str, float],
        discount: float = 0.99,
        columns: Sequence[int] | None = None,
    ):
        self.data, self.batch_size, self.goals = data, batch_size, dict(goals)
        self.columns = None if columns is None else list(columns)
        self.episodes = Episodes(episode_bounds(data)[1], discount)

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> GoalSteps:
        device = self.data.observations.device
        generator = rng.torch(device)
        rows = torch.randint(len(self.data), (self.batch_size,), generator=generator, device=device)
        draws = torch.rand((2, self.batch_size), generator=generator, device=device)
        goals = step_goals(rows, self.episodes, self.goals, draws)
        return take_steps(self.data, rows, goals, self.columns)


@dataclass(frozen=True)
class Both(Record):
    """A batch of each of two sources, of equal length: expert and offline data, or two mixes of goals."""

    first: Record
    second: Record


class Beside(Source):
    """Draws from two sources with the same batch size."""

    def __init__(self, first: Source, second: Source):
        self.first, self.second = first, second

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Both:
        return Both(self.first.next(behaviour, rng.at("first")), self.second.next(behaviour, rng.at("second")))


class Epochs(Source):
    """Every item once an epoch in a new order, items of like length together, the last short batch included.

    Args:
        data: has `len` and `batch(index) -> Record`.
        lengths: (N,) sizes of the items, for buckets; None for a plain shuffle.
        order: the stream that fixes each epoch's order (the source's own, not a step's).
    """

    def __init__(self, data: Any, batch_size: int, order: Rng, lengths: np.ndarray | None = None):
        self.data, self.batch_size, self.order, self.lengths = data, batch_size, order, lengths
        self.cursor = 0
        self.batches_per_epoch = -(-len(data) // batch_size)
        self._epoch, self._plan = -1, [np.zeros(0, int)]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches of indices: shuffled, sorted by length within windows of 16 batches, shuffled."""
        rng = self.order.at(epoch).numpy()
        order = rng.permutation(len(self.data))
        if self.lengths is None:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        batches: list[np.ndarray] = []
        window = 16 * self.batch_size
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Any:
        epoch, place = divmod(self.cursor, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self.plan(epoch)
        self.cursor += 1
        return self.data.batch(self._plan[place])

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return {}, {"cursor": self.cursor}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.cursor = int(numbers["cursor"])

"""Tiny worlds with discrete actions whose values are closed forms, and a loop without the package's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from telos.core.method import Learner, Method, Spec
from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions

LENGTH, DISCOUNT = 5, 0.8
TABLE = {"hidden": (), "learning_rate": 0.03, "batch_size": 64, "target_every": 20, "discount": DISCOUNT}
"""A linear layer on one-hot observations is a table."""


def record(states: Tensor, actions: Tensor, rewards: Tensor, nexts: Tensor, ended: Tensor, sizes: tuple[int, int]):
    """States by number, as one-hot observations; what did not end was cut."""
    return Transitions.validated(
        observations=torch.nn.functional.one_hot(states, sizes[0]).float(),
        actions=actions,
        rewards=rewards.float(),
        next_observations=torch.nn.functional.one_hot(nexts, sizes[0]).float(),
        terminated=ended,
        truncated=~ended,
        action_space=Discrete(sizes[1]),
    )


def chain(right: int = 1, left: int = 1) -> Transitions:
    """Cells 0 to 4 in a line: action 1 goes right and earns 1 at the end, where the episode ends; 0 goes left. Each
    cell's moves were recorded that often, every row an episode of its own, cut after it."""
    cells = torch.arange(LENGTH).repeat_interleave(right + left)
    moves = (torch.arange(right + left) < right).long().repeat(LENGTH)
    ended = (cells == LENGTH - 1) & (moves == 1)
    nexts = (cells + 2 * moves - 1).clamp(0, LENGTH - 1)
    return record(cells, moves, ended, nexts, ended, (LENGTH, 2))


def optimal() -> Tensor:
    """(5, 2) Q* of the chain: V = 0.8^(steps to go - 1)."""
    values = DISCOUNT ** torch.arange(LENGTH - 1, -1, -1.0)
    return torch.stack([DISCOUNT * values[[0, *range(LENGTH - 1)]], values], -1)


def bandit(counts: tuple[int, ...], rewards: tuple[float, ...]) -> Transitions:
    """One state, one step, with each action recorded that often."""
    actions = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    zeros = torch.zeros(len(actions), dtype=torch.int64)
    return record(actions * 0, actions, torch.tensor(rewards)[actions], zeros, zeros == 0, (1, len(counts)))


def learner(method: Method, data: Any, steps: int = 100) -> Any:
    """A learner as `fit` makes it, from Rng(0)."""
    return method.learner(method.prepare(Spec(data, {}, steps, torch.device("cpu"), Rng(0))), Rng(0))


def train(made: Learner, data: Transitions, steps: int, batch_size: int = 64) -> Learner:
    """Uniform batches; the same for every learner."""
    for step in range(steps):
        rows = torch.randint(len(data), (batch_size,), generator=Rng(step).torch())
        made.update(data[rows], Rng(0).at(step))
    return made


def parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def states(size: int = LENGTH) -> Tensor:
    """Each cell once."""
    return torch.eye(size)

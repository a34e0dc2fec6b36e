"""Four rooms: a grid of 9 x 9 with walls, four deterministic moves, exact distances, and records of walks.

A move into a wall stays where it is. Cells are numbered row by row, walls left out; moves are 0 up, 1 down, 2 left and
3 right. Rewards of all records are 0: what is wanted is up to the method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAP = (
    "#########", "#...#...#", "#.......#", "#...#...#", "##.###.##", "#...#...#", "#.......#", "#...#...#", "#########",
)  # fmt: skip
CELLS: list[tuple[int, int]] = [(i, j) for i, row in enumerate(MAP) for j, mark in enumerate(row) if mark == "."]
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
COUNT = len(CELLS)
START, GOAL = CELLS.index((1, 1)), CELLS.index((7, 7))


def _moved(cell: tuple[int, int], move: tuple[int, int]) -> int:
    there = (cell[0] + move[0], cell[1] + move[1])
    return CELLS.index(there if there in CELLS else cell)


NEXT: Tensor = torch.tensor([[_moved(cell, move) for move in MOVES] for cell in CELLS])
"""(C, 4) where each move leads."""


def _distances() -> Tensor:
    steps = torch.full((COUNT, COUNT), COUNT)
    steps[torch.arange(COUNT), torch.arange(COUNT)] = 0
    for _ in range(COUNT):
        steps = torch.minimum(steps, 1 + steps[NEXT].amin(1))
    return steps


DISTANCES: Tensor = _distances()
"""(C, C) int64: least number of moves from one cell to another."""


def one_hot(cells: Int[Tensor, "*B"]) -> Float[Tensor, "*B C"]:
    """Observations that say nothing about neighbourhood."""
    return torch.nn.functional.one_hot(cells, COUNT).float()


def coordinates(cells: Int[Tensor, "*B"]) -> Float[Tensor, "*B 2"]:
    """Observations as row and column, in [-1, 1]."""
    return torch.tensor(CELLS, dtype=torch.float32)[cells] / 4 - 1


def shortest(cells: Int[Tensor, " B"], goals: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """A move that brings each cell nearer to its goal, the first of several; at the goal any move."""
    return DISTANCES[NEXT[cells], goals[:, None]].argmin(-1)


def walks(
    episodes: int, length: int, rng: Rng, expert: float = 0.0
) -> tuple[Int[Tensor, "E T1"], Int[Tensor, "E T"], Int[Tensor, " E"]]:
    """Cells (episodes, length + 1), moves (episodes, length) and each episode's goal, from uniform starts.

    Args:
        expert: share of episodes, the first ones, that take a shortest way to their goal and then stay as near as they
            can; the others move uniformly at random.
    """
    generator = rng.torch()
    cell = torch.randint(COUNT, (episodes,), generator=generator)
    goals = torch.randint(COUNT, (episodes,), generator=generator)
    random = torch.randint(4, (episodes, length), generator=generator)
    skilled = torch.arange(episodes) < round(expert * episodes)
    cells, moves = [cell], []
    for t in range(length):
        move = torch.where(skilled, shortest(cell, goals), random[:, t])
        cell = NEXT[cell, move]
        cells.append(cell)
        moves.append(move)
    return torch.stack(cells, 1), torch.stack(moves, 1), goals


def transitions(
    cells: Int[Tensor, "E T1"], moves: Int[Tensor, "E T"], observe: Callable[[Tensor], Tensor] = one_hot
) -> Transitions:
    """Walks as records: each episode is cut (truncated) at its last step, nothing terminates, rewards are 0."""
    episodes, length = moves.shape
    ends = torch.zeros(episodes, length, dtype=torch.bool)
    ends[:, -1] = True
    return Transitions.validated(
        observations=observe(cells[:, :-1].flatten()),
        actions=moves.flatten(),
        rewards=torch.zeros(episodes * length),
        next_observations=observe(cells[:, 1:].flatten()),
        terminated=torch.zeros(episodes * length, dtype=torch.bool),
        truncated=ends.flatten(),
        action_space=Discrete(4),
    )


def reach(
    policy: Callable[[Tensor, Tensor], Tensor], starts: Int[Tensor, " B"], goals: Int[Tensor, " B"], limit: int
) -> Int[Tensor, " B"]:
    """Steps that a policy takes from each start to its goal; limit + 1 where it does not get there.

    Args:
        policy: (cells (B,), goals (B,)) -> moves (B,).
    """
    cell, steps = starts, torch.where(starts == goals, 0, limit + 1)
    for t in range(1, limit + 1):
        cell = NEXT[cell, policy(cell, goals)]
        steps = torch.where((cell == goals) & (steps > limit), t, steps)
    return steps

"""Corridor: 20 cells in a line bent to a U, recorded in two parts that share the bend.

The top arm is (0, 0) to (0, 6), the bend (0, 7) to (5, 7), the bottom arm (5, 6) to (5, 0). Cells are numbered along
the line; moves are 0 up, 1 down, 2 left and 3 right, and a move into a wall stays where it is. Demonstrations are
shortest ways between two cells of one context, top arm and bend or bend and bottom arm, so no recorded way joins the
arms. In coordinates the arms lie next to each other: from the top arm, the bottom one is down, but the way there is
right. Built after the dossier's experiment on Ghugare et al. 2024, arXiv 2401.11237.
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

BEND = 7
"""The bend's column."""
CELLS: list[tuple[int, int]] = (
    [(0, column) for column in range(BEND)] + [(row, BEND) for row in range(6)]
    + [(5, column) for column in reversed(range(BEND))]
)  # fmt: skip
COUNT = len(CELLS)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
TOP, BOTTOM = range(7), range(13, 20)
"""The arms, without the bend's cells 7 to 12."""
CONTEXTS = (range(13), range(7, 20))
LIMIT = 40
"""Steps of an attempt."""


def _moved(cell: tuple[int, int], move: tuple[int, int]) -> int:
    there = (cell[0] + move[0], cell[1] + move[1])
    return CELLS.index(there if there in CELLS else cell)


NEXT: Tensor = torch.tensor([[_moved(cell, move) for move in MOVES] for cell in CELLS])
"""(20, 4) where each move leads."""


def one_hot(cells: Int[Tensor, "*B"]) -> Float[Tensor, "*B 20"]:
    """Observations that say nothing about neighbourhood."""
    return torch.nn.functional.one_hot(cells, COUNT).float()


def coordinates(cells: Int[Tensor, "*B"]) -> Float[Tensor, "*B 2"]:
    """Row and column, each in [-1, 1]."""
    return torch.tensor(CELLS, dtype=torch.float32)[cells] / torch.tensor([2.5, 3.5]) - 1


def shortest(cells: Int[Tensor, "*B"], goals: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """The move along the line towards the goal; at the goal any move."""
    return (NEXT[cells] - goals[..., None]).abs().argmin(-1)


def demonstrations(episodes: int, rng: Rng, observe: Callable[[Tensor], Tensor] = one_hot) -> Transitions:
    """Shortest ways between random pairs of different cells, in the two contexts by turns; rewards are 0."""
    generator = rng.torch()
    first = torch.tensor([context.start for context in CONTEXTS])[torch.arange(episodes) % 2]
    size = len(CONTEXTS[0])
    starts = torch.randint(size, (episodes,), generator=generator)
    apart = torch.randint(1, size, (episodes,), generator=generator)
    goals = first + (starts + apart) % size
    starts = first + starts
    lengths = (goals - starts).abs()
    episode = torch.arange(episodes).repeat_interleave(lengths)
    step = torch.arange(len(episode)) - (lengths.cumsum(0) - lengths)[episode]
    cells = starts[episode] + (goals - starts).sign()[episode] * step
    moves = shortest(cells, goals[episode])
    return Transitions.validated(
        observations=observe(cells), actions=moves, rewards=torch.zeros(len(moves)),
        next_observations=observe(NEXT[cells, moves]), terminated=torch.zeros(len(moves), dtype=torch.bool),
        truncated=step == lengths[episode] - 1, action_space=Discrete(4),
    )  # fmt: skip


def pairs(starts: range, goals: range) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Every pair of different cells, a start and a goal."""
    both = torch.cartesian_prod(torch.tensor(starts), torch.tensor(goals))
    both = both[both[:, 0] != both[:, 1]]
    return both[:, 0], both[:, 1]


def reached(
    policy: Callable[[Tensor, Tensor], Tensor], starts: Int[Tensor, " P"], goals: Int[Tensor, " P"], limit: int = LIMIT
) -> float:
    """The share of pairs whose goal a policy comes to within `limit` steps.

    Args:
        policy: (cells (P,), goals (P,)) -> moves (P,); asked at each step in turn.
    """
    cell, there = starts, starts == goals
    for _ in range(limit):
        cell = NEXT[cell, policy(cell, goals)]
        there = there | (cell == goals)
    return float(there.float().mean())


def measures(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> dict[str, float]:
    """The share of goals reached: `down` (top to bottom), `up`, `unseen` (both), `seen` (pairs within a context).

    Args:
        make: gives a policy as `reached` takes it, for one attempt.
    """
    down, up = reached(make(), *pairs(TOP, BOTTOM)), reached(make(), *pairs(BOTTOM, TOP))
    seen = [reached(make(), *pairs(context, context)) for context in CONTEXTS]
    return {"down": down, "up": up, "unseen": (down + up) / 2, "seen": sum(seen) / len(seen)}

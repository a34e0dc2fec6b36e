"""Four rooms as tables: how often each move was taken in hindsight of each goal, and how well tables of moves do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from telos.worlds.four_rooms import COUNT, DISTANCES, reach

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def hindsight(cells: Int[Tensor, "E T1"], moves: Int[Tensor, "E T"]) -> Float[Tensor, "C 4 C"]:
    """Shares of (cell, move, goal) where a walk's step is drawn uniformly, and its goal from what follows in the walk.

    It is what `telos.data.goals.future` draws, in expectation. The shares sum to 1; they are float64.
    """
    shares = torch.zeros(COUNT * 4 * COUNT, dtype=torch.float64)
    length = moves.shape[1]
    weights = (1.0 / torch.arange(length, 0, -1, dtype=torch.float64)).expand(moves.shape)
    for gap in range(1, length + 1):
        upto = length + 1 - gap
        where = (cells[:, :upto] * 4 + moves[:, :upto]) * COUNT + cells[:, gap:]
        shares.index_add_(0, where.flatten(), weights[:, :upto].flatten())
    return (shares / moves.numel()).view(COUNT, 4, COUNT)


def entering(cells: Int[Tensor, "E T1"], moves: Int[Tensor, "E T"]) -> Float[Tensor, "C 4 C"]:
    """Shares of (cell, move, goal) where a walk's step is drawn uniformly, and the goal is the cell it leads to."""
    where = (cells[:, :-1] * 4 + moves) * COUNT + cells[:, 1:]
    counts = torch.bincount(where.flatten(), minlength=COUNT * 4 * COUNT).double()
    return (counts / moves.numel()).view(COUNT, 4, COUNT)


def pairs() -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """All ways from one cell to another: starts and goals."""
    starts, goals = (DISTANCES > 0).nonzero().T
    return starts, goals


def walked(table: Float[Tensor, "C 4 C"], limit: int) -> Int[Tensor, " P"]:
    """Steps from each of `pairs` by the most preferred moves, table[cell, :, goal]; limit + 1 where none arrives."""
    preferred = table.argmax(1)
    return reach(lambda cells, goals: preferred[cells, goals], *pairs(), limit)

"""Tables of hindsight against what the samplers draw, and walks by tables."""

import torch

from telos.core.rng import Rng
from telos.data.goals import Episodes, future
from telos.worlds import four_rooms as rooms
from telos.worlds import four_rooms_tables as tables


def test_shares_by_hand():
    # Two moves: 0 -> 1 by 3, 1 -> 1 by 0 (a wall).
    cells, moves = torch.tensor([[0, 1, 1]]), torch.tensor([[3, 0]])
    shares = tables.hindsight(cells, moves)
    assert float(shares[0, 3, 1]) == 0.5 and float(shares[1, 0, 1]) == 0.5 and float(shares.sum()) == 1
    assert torch.equal(tables.entering(cells, moves), shares)


def test_shares_are_what_the_sampler_draws():
    cells, moves, _ = rooms.walks(6, 5, Rng(1))
    rows = torch.arange(30).repeat_interleave(20_000)
    goals = future(rows, Episodes(torch.arange(30) // 5 * 5 + 4), torch.rand(len(rows), generator=Rng(2).torch()))
    drawn = torch.zeros(rooms.COUNT, 4, rooms.COUNT, dtype=torch.float64)
    where = cells[:, :-1].flatten()[rows], moves.flatten()[rows], cells[:, 1:].flatten()[goals]
    drawn.index_put_(where, torch.tensor(1.0, dtype=torch.float64), accumulate=True)
    assert (drawn / len(rows) - tables.hindsight(cells, moves)).abs().max() < 1e-3


def test_entering_counts_transitions():
    cells, moves, _ = rooms.walks(50, 20, Rng(1))
    shares = tables.entering(cells, moves)
    start, move, goal = shares.nonzero().T
    assert torch.equal(rooms.NEXT[start, move], goal) and abs(float(shares.sum()) - 1) < 1e-12


def test_walks_by_a_table_of_distances_are_shortest():
    table = -rooms.DISTANCES[rooms.NEXT].double()
    starts, goals = tables.pairs()
    assert len(starts) == 1560 and torch.equal(tables.walked(table, 40), rooms.DISTANCES[starts, goals])

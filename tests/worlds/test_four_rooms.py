"""The grid: distances, moves, walks."""

import torch

from telos.core.rng import Rng
from telos.worlds import four_rooms as rooms


def test_distances_are_those_of_the_map():
    assert rooms.COUNT == 40
    d = rooms.DISTANCES
    assert torch.equal(d, d.T) and (d.diagonal() == 0).all() and int(d.max()) == 12
    assert int(d[rooms.START, rooms.GOAL]) == 12
    near = rooms.CELLS.index((1, 3)), rooms.CELLS.index((1, 5))
    assert int(d[near]) == 4  # the wall between them is passed by the door below


def test_each_move_changes_the_distance_by_one_at_most_and_a_wall_holds():
    change = rooms.DISTANCES[rooms.NEXT] - rooms.DISTANCES[:, None]
    assert int(change.abs().max()) == 1
    assert int(rooms.NEXT[rooms.START, 0]) == rooms.START and int(rooms.NEXT[rooms.START, 2]) == rooms.START


def test_the_shortest_way_takes_as_many_steps_as_the_distance():
    starts, goals = torch.meshgrid(torch.arange(rooms.COUNT), torch.arange(rooms.COUNT), indexing="ij")
    steps = rooms.reach(rooms.shortest, starts.flatten(), goals.flatten(), 40)
    assert torch.equal(steps, rooms.DISTANCES.flatten())
    far = rooms.reach(rooms.shortest, torch.tensor([rooms.START]), torch.tensor([rooms.GOAL]), 5)
    assert far.tolist() == [6]


def test_walks_follow_the_moves_and_experts_arrive():
    cells, moves, goals = rooms.walks(20, 30, Rng(1), expert=0.25)
    assert torch.equal(rooms.NEXT[cells[:, :-1], moves], cells[:, 1:])
    arrived = (cells == goals[:, None]).any(1)
    assert arrived[:5].all() and torch.equal(rooms.walks(20, 30, Rng(1), 0.25)[0], cells)
    data = rooms.transitions(cells, moves, rooms.coordinates)
    assert len(data) == 600 and int(data.truncated.sum()) == 20 and not data.terminated.any()
    assert float(data.observations.abs().max()) <= 0.75

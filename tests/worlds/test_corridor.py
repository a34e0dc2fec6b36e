"""The corridor: its line, its demonstrations, its measures."""

import pytest
import torch

from telos.core.rng import Rng
from telos.data.windows import episode_bounds
from telos.worlds import corridor


def test_moves_lead_along_the_line_and_walls_hold():
    there = torch.arange(corridor.COUNT)
    assert corridor.COUNT == 20 and len(set(corridor.CELLS)) == 20
    for goal, step in ((19, 1), (0, -1)):
        assert torch.equal(
            corridor.NEXT[there, corridor.shortest(there, torch.full((20,), goal))], (there + step).clamp(0, 19)
        )
    assert int((there[:, None] == corridor.NEXT).sum()) == 4 * 20 - 2 * 19
    assert [corridor.CELLS[c] for c in (0, 6, 7, 12, 13, 19)] == [(0, 0), (0, 6), (0, 7), (5, 7), (5, 6), (5, 0)]


def test_demonstrations_are_shortest_ways_within_a_context():
    data = corridor.demonstrations(400, Rng(1))
    cells, nexts = data.observations.argmax(-1), data.next_observations.argmax(-1)
    first, last = episode_bounds(data)
    starts, goals = cells[first], nexts[last]
    assert int(data.truncated.sum()) == 400 and not data.terminated.any()
    assert torch.equal((goals - starts).abs(), last - first + 1)  # no step is lost
    assert torch.equal((nexts - cells).abs(), torch.ones_like(cells))
    lower, upper = torch.minimum(starts, goals), torch.maximum(starts, goals)
    inside = [(lower >= c.start) & (upper < c.stop) for c in corridor.CONTEXTS]
    assert (inside[0] | inside[1]).all() and (~inside[0]).any() and (~inside[1]).any()
    assert set(cells.tolist()) == set(range(20))
    assert torch.equal(data.observations, corridor.demonstrations(400, Rng(1)).observations)


def test_measures_of_the_best_and_of_a_still_policy():
    assert corridor.measures(lambda: corridor.shortest) == {"down": 1, "up": 1, "unseen": 1, "seen": 1}
    assert corridor.measures(lambda: lambda cells, goals: torch.zeros_like(cells))["down"] == 0
    starts, goals = corridor.pairs(corridor.TOP, corridor.BOTTOM)
    assert len(starts) == 49 and len(corridor.pairs(range(13), range(13))[0]) == 13 * 12
    # 13 to 19 steps from the first cell, so 15 steps reach 3 of 7 goals.
    from_the_end = starts == 0
    share = corridor.reached(corridor.shortest, starts[from_the_end], goals[from_the_end], 15)
    assert share == pytest.approx(3 / 7)


def test_coordinates_fill_the_square():
    seen = corridor.coordinates(torch.arange(20))
    assert seen.amin(0).tolist() == [-1, -1] and seen.amax(0).tolist() == [1, 1]
    assert torch.equal(corridor.one_hot(torch.arange(20)), torch.eye(20))

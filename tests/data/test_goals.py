"""Goal samplers: where goals lie, and how often."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.core.sources import Beside, UniformGoals
from telos.data import goals
from telos.data.records import Discrete, Transitions

LAST = torch.tensor([3, 3, 3, 3, 6, 6, 6])
"""Two episodes, of 4 and 3 rows."""


def data() -> Transitions:
    n = len(LAST)
    return Transitions.validated(
        observations=torch.arange(n)[:, None], actions=torch.zeros(n), rewards=torch.zeros(n),
        next_observations=torch.arange(n)[:, None] + 100.0, terminated=torch.zeros(n, dtype=torch.bool),
        truncated=torch.arange(n) == LAST, action_space=Discrete(2),
    )  # fmt: skip


def frequencies(sampler: str, row: int, discount: float = 0.5, n: int = 40000) -> torch.Tensor:
    u = torch.rand(n, generator=Rng(0).torch())
    found = goals.GOALS[sampler](torch.full((n,), row), goals.Episodes(LAST, discount), u)
    return torch.bincount(found, minlength=len(LAST)) / n


def test_a_future_goal_is_uniform_over_the_rest_of_the_episode():
    assert torch.allclose(frequencies("future", 1), torch.tensor([0, 1, 1, 1, 0, 0, 0]) / 3, atol=0.01)
    assert frequencies("future", 6).tolist() == [0] * 6 + [1]


def test_a_geometric_goal_has_its_law_and_ends_with_the_episode():
    found = frequencies("geometric", 0)
    assert torch.allclose(found, torch.tensor([0.5, 0.25, 0.125, 0.125, 0, 0, 0]), atol=0.01)
    assert frequencies("geometric", 0, discount=0.0)[0] == 1  # always the next state


def test_random_final_entered_and_here():
    assert torch.allclose(frequencies("random", 2), torch.full((7,), 1 / 7), atol=0.01)
    assert frequencies("final", 4)[6] == 1 and frequencies("entered", 4)[4] == 1
    rows = torch.tensor([0, 5])
    assert goals.here(rows, goals.Episodes(LAST), torch.rand(2)).tolist() == [-1, -1]


def test_uniform_numbers_near_one_stay_inside():
    for u in (0.0, 1 - 2**-24):
        for sampler in goals.GOALS.values():
            found = sampler(torch.arange(7), goals.Episodes(LAST), torch.full((7,), u))
            assert ((found >= torch.arange(7)) | (found == goals.HERE) | (sampler is goals.random)).all()
            assert (found <= LAST).all() or sampler is goals.random


def test_shares_are_kept_and_wrong_ones_refused():
    rows = torch.zeros(20000, dtype=torch.int64)
    draws = torch.rand((2, 20000), generator=Rng(1).torch())
    found = goals.goal_rows(rows, goals.Episodes(LAST), {"final": 0.25, "here": 0.0, "entered": 0.75}, draws)
    assert float((found == 3).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert set(found.tolist()) == {0, 3}
    for wrong in ({"final": 0.5}, {"finale": 1.0}, {"final": 1.5, "here": -0.5}):
        with pytest.raises(TelosError, match="shares of goals"):
            goals.goal_rows(rows, goals.Episodes(LAST), wrong, draws)


def swapped(rows: torch.Tensor, clusters: goals.Clusters, draws: torch.Tensor) -> torch.Tensor:
    """Goals through another episode: a future of any state that shares a cluster with a future of the step."""
    episodes = goals.Episodes(LAST)
    return goals.future(goals.junctions(rows, episodes, clusters, draws[:2])[1], episodes, draws[2])


def test_a_swapped_goal_goes_through_the_shared_cluster():
    # Row 3 (the end of episode one) and row 4 (in episode two) are the same place; all others are alone.
    label = torch.tensor([0, 1, 2, 3, 3, 4, 5])
    clusters = goals.Clusters.of(label)
    rows = torch.zeros(60000, dtype=torch.int64)
    draws = torch.rand((3, 60000), generator=Rng(2).torch())
    found = torch.bincount(swapped(rows, clusters, draws), minlength=7) / 60000
    # w is 0..3 with 1/4 each; from 3 the swap takes 3 or 4 with 1/2; from 4 the future is 4, 5, 6 with 1/3.
    assert torch.allclose(found[4:], torch.full((3,), 1 / 24), atol=0.005)
    # Within episode one: the future of 0..3, each with 1/4 but for 3, which has 1/8.
    own = torch.tensor([1 / 4, 1 / 4 + 1 / 3, 1 / 4 + 1 / 3 + 1 / 2, 1 / 4 + 1 / 3 + 1 / 2 + 1 / 2]) / 4
    assert torch.allclose(found[:4], own, atol=0.005)


def test_without_shared_clusters_a_swap_stays_in_its_episode():
    clusters = goals.Clusters.of(torch.arange(7))
    draws = torch.rand((3, 5000), generator=Rng(3).torch())
    rows = torch.randint(7, (5000,), generator=Rng(4).torch())
    found = swapped(rows, clusters, draws)
    assert ((found >= rows) & (found <= LAST[rows])).all()


def test_steps_carry_their_goals_and_know_when_they_enter_them():
    batch = goals.take_steps(data(), torch.tensor([0, 2, 5]), torch.tensor([0, 3, goals.HERE]))
    assert batch.goals[:, 0].tolist() == [100, 103, 5] and batch.reached.tolist() == [True, False, False]


def test_sources_draw_by_their_stream():
    source = UniformGoals(data(), 64, {"future": 0.5, "random": 0.5}, columns=[0])
    batch = source.next(lambda: None, Rng(5))  # type: ignore[arg-type, return-value]
    again = UniformGoals(data(), 64, {"future": 0.5, "random": 0.5}).next(lambda: None, Rng(5))  # type: ignore[arg-type, return-value]
    assert torch.equal(batch.goals, again.goals) and batch.goals.shape == (64, 1)
    both = Beside(source, UniformGoals(data(), 64, {"entered": 1.0})).next(lambda: None, Rng(5))  # type: ignore[arg-type, return-value]
    assert both.second.reached.all() and len(both) == 64  # type: ignore[attr-defined]
    assert not torch.equal(both.first.observations, both.second.observations)  # type: ignore[attr-defined]

"""Windows and goals by hand on two short episodes, and their distributions."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.core.sources import UniformWindows
from telos.data.records import Box, Transitions
from telos.data.windows import GOALS, episode_bounds, goal_rows, take_windows, window_rows

ENDS = (2, 6, 7)
"""Last rows of episodes of 3, 4 and 1 rows."""


def play() -> Transitions:
    """Row i has observation i, action i / 10 and next observation 100 + i."""
    rows = torch.arange(8.0)[:, None]
    ended = torch.tensor([i in ENDS for i in range(8)])
    return Transitions.validated(
        observations=rows, actions=rows / 10, rewards=torch.zeros(8), next_observations=100 + rows,
        terminated=ended & (rows[:, 0] == 2), truncated=ended & (rows[:, 0] != 2), action_space=Box((-1.0,), (1.0,)),
    )  # fmt: skip


def test_episode_bounds():
    first, last = episode_bounds(play())
    assert first.tolist() == [0, 0, 0, 3, 3, 3, 3, 7]
    assert last.tolist() == [2, 2, 2, 6, 6, 6, 6, 7]
    data = play()
    first, last = episode_bounds(data[3:6])  # cut within an episode: the last row ends it
    assert first.tolist() == [0, 0, 0] and last.tolist() == [2, 2, 2]
    assert not data[3:6].truncated.any()


def test_windows_end_at_their_row_and_repeat_the_first_before_the_start():
    newest = torch.tensor([0, 2, 4, 6, 7])
    first, _ = episode_bounds(play())
    rows, mask = window_rows(newest, first[newest], 3)
    assert rows.tolist() == [[0, 0, 0], [0, 1, 2], [3, 3, 4], [4, 5, 6], [7, 7, 7]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]]


def test_future_goals_are_uniform_over_the_slices_that_follow():
    newest, last = torch.tensor([3]), torch.tensor([6])
    u = torch.arange(0, 1, 0.01)
    starts = GOALS["future"](newest.expand(100), last.expand(100), 1, u)
    assert starts.bincount().tolist() == [0, 0, 0, 25, 25, 25, 25]
    starts = GOALS["future"](newest.expand(90), last.expand(90), 2, torch.arange(0, 1, 1 / 90)[:90])
    assert starts.bincount().tolist() == [0, 0, 0, 30, 30, 30]
    assert GOALS["future"](newest, last, 1, torch.tensor([0.99999999])).item() == 6
    assert GOALS["final"](newest, last, 2, u[:1]).item() == 5 and GOALS["final"](newest, last, 1, u[:1]).item() == 6


def test_goals_too_long_for_what_follows_are_zero():
    newest = torch.tensor([4, 5, 6, 7])
    first, last = (bound[newest] for bound in episode_bounds(play()))
    goals, has = goal_rows(newest, last, 2, {"future": 1.0}, torch.rand(2, 4, generator=Rng(0).torch()))
    assert has.tolist() == [True, True, False, False] and goals[1].tolist() == [5, 6] and goals.max() <= 7
    rows, mask = window_rows(newest, first, 1)
    batch = take_windows(play(), rows, mask, goals, has)
    assert batch.goals[1, :, 0].tolist() == [105.0, 106.0] and batch.goals[2:].abs().max() == 0
    assert batch.actions[:, 0, 0].tolist() == pytest.approx([0.4, 0.5, 0.6, 0.7])


def test_shares_of_goals():
    many = torch.full((20_000,), 3)
    draws = torch.rand(2, 20_000, generator=Rng(1).torch())
    goals, has = goal_rows(many, torch.full((20_000,), 6), 1, {"future": 0.6, "final": 0.4}, draws)
    shares = goals[:, 0].bincount(minlength=7)[3:] / 20_000
    assert torch.allclose(shares, torch.tensor([0.15, 0.15, 0.15, 0.55]), atol=0.012) and has.all()
    with pytest.raises(TelosError, match="shares of goals"):
        goal_rows(many, many, 1, {"future": 0.5, "final": 0.4}, draws)
    with pytest.raises(TelosError, match="future, final"):
        goal_rows(many, many, 1, {"past": 1.0}, draws)


def test_the_source_draws_every_row_and_depends_on_the_stream_only():
    source = UniformWindows(play(), 4000, 2, 1, {"future": 1.0})
    batch, again, other = (source.next(lambda: None, Rng(seed)) for seed in (3, 3, 4))  # type: ignore[arg-type, return-value]
    assert batch.fingerprint() == again.fingerprint() != other.fingerprint()
    assert batch.observations.shape == (4000, 2, 1) and batch.goals.shape == (4000, 1, 1)
    newest = batch.observations[:, -1, 0].long()
    assert ((newest.bincount(minlength=8) / 4000 - 1 / 8).abs() < 0.03).all()
    # A goal lies at or after the newest step and in its episode; a window never reaches into another.
    goal = batch.goals[:, 0, 0] - 100
    _, last = episode_bounds(play())
    assert (goal >= newest).all() and (goal <= last[newest]).all()
    before = batch.observations[:, 0, 0]
    assert torch.equal(before == newest, ~batch.mask[:, 0]) and (newest - before).max() == 1
    parts = batch.split(3)
    assert sum(len(part) for part in parts) == 4000 and parts[0].mask.shape[1] == 2

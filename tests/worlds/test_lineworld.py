import math

import pytest
import torch

from telos.core.rng import Rng
from telos.nets.policies import DeterministicPolicy
from telos.worlds import lineworld


def constant(u: float, bound: float = 2.0) -> DeterministicPolicy:
    policy = DeterministicPolicy(1, (-bound,), (bound,), ())
    policy.net.layers[-1].bias.data.fill_(math.atanh(u / bound) if abs(u) < bound else math.copysign(20.0, u))
    return policy


@pytest.mark.parametrize("trap", [True, False])
def test_the_data_recommend_the_wrong_direction_in_odd_cells(trap: bool):
    data = lineworld.dataset(2000, Rng(1000), trap)
    x, u = data.observations[:, 0], data.actions[:, 0]
    assert ((u > 0) == (x.floor() % 2 == 0)).all()
    assert (u.abs() >= 0.5).all() and (u.abs() <= 1.0).all() and abs(u.abs().mean().item() - 0.75) < 0.02
    assert data.action_space.high == ((2.0,) if trap else (1.0,))
    assert torch.allclose(data.next_observations[:, 0], (x + u).clamp(0, 10))
    assert torch.equal(data.rewards == 1, data.next_observations[:, 0] >= 9.5)
    # From cell 8 only: x in [8.5, 9) with u >= 9.5 - x, a quarter of the 10 %.
    assert 0.01 < data.terminated.float().mean() < 0.045
    assert torch.equal(data.truncated, ~data.terminated) and torch.equal(data.terminated, data.rewards == 1)


def test_data_depend_on_the_stream_only():
    assert lineworld.dataset(50, Rng(3)).fingerprint() == lineworld.dataset(50, Rng(3)).fingerprint()
    assert lineworld.dataset(50, Rng(3)).fingerprint() != lineworld.dataset(50, Rng(4)).fingerprint()


def test_a_crash_pays_nothing():
    nexts, rewards, crashed = lineworld.step(torch.tensor([9.0, 9.0, 9.0]), torch.tensor([1.6, 1.4, -1.6]))
    assert (rewards.tolist(), crashed.tolist()) == ([0.0, 1.0, 0.0], [True, False, True])
    nexts, rewards, crashed = lineworld.step(torch.tensor([9.0]), torch.tensor([1.0]), trap=False)
    assert (nexts.item(), rewards.item(), crashed.item()) == (10.0, 1.0, False)


def test_steady_steps_reach_the_goal_large_ones_crash_and_standing_still_does_neither():
    walk = lineworld.reach(constant(1.0))
    assert (walk["reached"], walk["crashed"], walk["steps"]) == (1.0, 0.0, 10.0)
    assert math.isclose(walk["mean_action"], 1.0, abs_tol=1e-5)
    leap = lineworld.reach(constant(2.0))
    assert (leap["reached"], leap["crashed"], leap["steps"]) == (0.0, 1.0, 1.0)
    stand = lineworld.reach(constant(0.0))
    assert (stand["reached"], stand["crashed"], stand["steps"]) == (0.0, 0.0, 60.0)
    assert lineworld.reach(constant(1.0, 1.0), trap=False)["reached"] == 1.0


def test_starts_are_averaged():
    measures = lineworld.reach(constant(0.5), starts=(0.0, 9.0), limit=10)
    assert (measures["reached"], measures["steps"]) == (0.5, 5.5)

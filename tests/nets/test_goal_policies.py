"""Policies that are told a goal: their probabilities sum to 1, and are judged from records that hold goals."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.nets.goal_policies import ReachingPolicy


def reaching(kind: str, space: object, columns: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 2), (1,))):
    return ReachingPolicy(3, *columns, kind, space, (8,), Rng(0).torch())


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=Rng(1).torch())


def test_probabilities_of_discrete_actions_sum_to_one():
    policy, seen, goals = reaching("categorical", 5), draw(6, 3), draw(7, 1)[1:]
    found = torch.stack([policy.log_prob(seen, torch.full((6,), a), goal=goals) for a in range(5)], 1)
    assert torch.allclose(found.exp().sum(1), torch.ones(6), atol=1e-6)
    assert torch.equal(found.argmax(1), policy.act(seen, goal=goals).action)
    drawn = policy.act(seen, goal=goals, explore=True, rng=Rng(2).torch())
    assert drawn.log_prob is not None
    assert torch.allclose(policy.log_prob(seen, drawn.action, goal=goals), drawn.log_prob)
    # Of the whole observation the state's columns are read, and the goal is its own.
    moved = seen.clone()
    moved[:, 1] += 1
    assert torch.equal(policy.log_prob(moved, drawn.action, goal=goals), drawn.log_prob)
    assert not torch.equal(found[:, 0], policy.log_prob(seen, torch.zeros(6), goal=goals + 1))


def test_the_density_of_continuous_actions_integrates_to_one():
    policy = reaching("gaussian", [[-2.0, -1.0], [2.0, 3.0]])
    with torch.no_grad():
        policy.actor.log_std.fill_(-1.0)  # type: ignore[union-attr]
    axes = torch.linspace(-7, 7, 281), torch.linspace(-6, 8, 281)  # the density before clipping, so beyond the range
    grid = torch.cartesian_prod(*axes)
    for seen, goal in ((draw(3), [0.3]), (draw(4)[1:], [-2.0])):
        density = policy.log_prob(seen.expand(len(grid), 3), grid, goal=goal).exp()
        assert float(density.detach().sum() * 0.05**2) == pytest.approx(1, abs=1e-4)
        mean = (density[:, None] * grid).sum(0) * 0.05**2
        assert torch.allclose(mean, policy.act(seen, goal=goal).action, atol=1e-3)
        assert policy.log_prob(seen, [0.0, 0.0], goal=goal).shape == ()


def test_what_has_no_probability_says_so():
    with pytest.raises(TelosError, match="no action probabilities"):
        reaching("deterministic", [[-1.0], [1.0]]).log_prob(draw(2, 3), draw(2, 1), goal=[0.0])
    with pytest.raises(TelosError, match="needs a goal"):
        reaching("categorical", 2).log_prob(draw(2, 3), torch.zeros(2))

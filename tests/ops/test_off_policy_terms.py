"""Off-policy estimators against values that are known exactly."""

import math

import pytest
import torch

from telos.core.rng import Rng
from telos.ops.off_policy import (
    cumulative_weights,
    direct,
    discounts,
    doubly_robust,
    effective_sample_size,
    inverse_propensity,
    ncis,
    per_decision,
    per_decision_self_normalised,
    self_normalised,
)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_effective_sample_size():
    assert effective_sample_size(vector(2, 2, 2, 2)).item() == pytest.approx(4)
    assert effective_sample_size(vector(0, 3, 0)).item() == 1
    assert effective_sample_size(vector(0, 0)).item() == 0
    assert effective_sample_size(vector(1, 2, 3)).item() == pytest.approx(36 / 14)


def test_closed_forms_of_decisions():
    weights, rewards = vector(0.5, 2, 0), vector(1, 3, 7)
    assert inverse_propensity(weights, rewards).tolist() == [0.5, 6, 0]
    terms = self_normalised(weights, rewards)
    assert terms.mean().item() == pytest.approx(6.5 / 2.5)
    # The delta method: w (r - v) / mean(w), around v.
    assert (terms - 2.6).tolist() == pytest.approx([0.5 * (1 - 2.6) / (2.5 / 3), 2 * 0.4 / (2.5 / 3), 0])
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    assert direct(target, torch.tensor([[4.0, 8.0], [3.0, math.nan]], dtype=torch.float64)).tolist() == [7, 3]
    assert doubly_robust(vector(2, 0), vector(1, 9), vector(0.5, 4), vector(7, 3)).tolist() == [8, 3]


def test_weights_of_one_give_the_mean_reward_exactly():
    rewards = torch.randn(50, generator=Rng(1).torch(), dtype=torch.float64)
    ones = torch.ones_like(rewards)
    for terms in (inverse_propensity(ones, rewards), self_normalised(ones, rewards)):
        assert torch.allclose(terms, rewards, atol=1e-14)
    alive = torch.ones(5, 10, dtype=torch.bool)
    weights = cumulative_weights(torch.zeros(5, 10, dtype=torch.float64), alive)
    returns = (0.9 ** torch.arange(10) * rewards.view(5, 10)).sum(1)
    for function in (per_decision, per_decision_self_normalised):
        assert torch.allclose(function(weights, rewards.view(5, 10), alive, 0.9), returns, atol=1e-12)


def test_invariances():
    rng = Rng(2).torch()
    weights = torch.rand(20, generator=rng, dtype=torch.float64)
    rewards = torch.randn(20, generator=rng, dtype=torch.float64)
    mean = self_normalised(weights, rewards).mean()
    # Self-normalised: the scale of the weights plays no part, a shift of the rewards shifts the value, and it stays
    # within the rewards.
    assert torch.allclose(self_normalised(7 * weights, rewards), self_normalised(weights, rewards))
    assert self_normalised(weights, rewards + 5).mean().item() == pytest.approx(mean.item() + 5)
    assert rewards.min() < mean < rewards.max()
    order = torch.randperm(20, generator=rng)
    assert torch.allclose(self_normalised(weights[order], rewards[order]), self_normalised(weights, rewards)[order])
    # A perfect model leaves nothing to correct, a model of zero leaves the inverse propensities.
    taken = rewards.clone()
    assert torch.equal(doubly_robust(weights, rewards, taken, rewards), rewards)
    nothing = torch.zeros_like(rewards)
    assert torch.equal(doubly_robust(weights, rewards, nothing, nothing), inverse_propensity(weights, rewards))


def test_cumulative_weights_stay_after_the_end():
    log_ratios = torch.tensor([[math.log(2), math.log(3), math.log(5)], [math.log(0.5), -math.inf, 9.0]]).double()
    alive = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.allclose(
        cumulative_weights(log_ratios, alive), torch.tensor([[2.0, 6.0, 6.0], [0.5, 0.0, 0.0]]).double()
    )


def test_closed_forms_of_episodes():
    weights = torch.tensor([[2.0, 6.0, 6.0], [0.5, 0.25, 1.0]], dtype=torch.float64)
    rewards = torch.tensor([[1.0, 2.0, 99.0], [4.0, 8.0, 1.0]], dtype=torch.float64)
    alive = torch.tensor([[True, True, False], [True, True, True]])
    assert discounts(rewards, 0.5).tolist() == [1, 0.5, 0.25]
    assert per_decision(weights, rewards, alive, 0.5).tolist() == [2 + 6, 2 + 1 + 0.25]
    # Step by step: (2 + 2)/2.5, (12 + 2)/6.25, (0 + 1)/7; the ended episode counts with reward 0.
    value = 4 / 2.5 + 0.5 * 14 / 6.25 + 0.25 / 7
    assert per_decision_self_normalised(weights, rewards, alive, 0.5).mean().item() == pytest.approx(value)
    zero = torch.zeros_like(weights)
    assert per_decision_self_normalised(zero, rewards, alive, 0.5).tolist() == [0, 0]


def test_episodes_of_one_step_are_decisions():
    rng = Rng(3).torch()
    weights, rewards = (torch.rand(30, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    alive = torch.ones(30, 1, dtype=torch.bool)
    assert torch.allclose(per_decision(weights, rewards, alive, 0.3), (weights * rewards)[:, 0])
    terms = per_decision_self_normalised(weights, rewards, alive, 0.3)
    assert torch.allclose(terms, self_normalised(weights[:, 0], rewards[:, 0]))


def test_ncis_caps_ratios_and_normalises():
    log_ratios = vector(0.5, 2.0, 20.0, 1.0).log()
    responses = torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 5.0], [7.0, -1.0]], dtype=torch.float64)
    terms, size = ncis(log_ratios, responses, 10.0)
    weights = [0.5, 2, 10, 1]
    for index in range(2):
        exact = sum(w * r for w, r in zip(weights, responses[:, index].tolist())) / sum(weights)
        assert float(terms[:, index].mean()) == pytest.approx(exact)
    assert float(size) == pytest.approx(13.5**2 / (0.25 + 4 + 100 + 1))
    # The same policy: the plain means; an unbounded cap: the self-normalised estimate; a tiny one: the plain means.
    same, all_of_them = ncis(torch.zeros(4, dtype=torch.float64), responses, 10.0)
    assert torch.allclose(same, responses) and float(all_of_them) == pytest.approx(4)
    assert torch.allclose(ncis(log_ratios, responses, 1e9)[0][:, 0], self_normalised(log_ratios.exp(), responses[:, 0]))
    assert torch.allclose(ncis(log_ratios, responses, 0.1)[0], responses)

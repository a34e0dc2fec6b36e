"""Arms: the paper's numbers of CoPG's bandit, and the maximin problem against its closed loss."""

import math

import pytest
import torch

from telos.worlds import arms

UNIFORM = torch.full((3,), -math.log(3), dtype=torch.float64)
REWARDS = torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)


def test_objective_optimum_and_regret_of_three_arms():
    best = arms.optimum(REWARDS, UNIFORM, 0.5)
    assert best.exp().tolist() == pytest.approx([0.7054, 0.2595, 0.0351], abs=5e-5)
    assert arms.objective(best, REWARDS, UNIFORM, 0.5).item() == pytest.approx(2.1252, abs=5e-5)
    assert arms.objective(UNIFORM, REWARDS, UNIFORM, 0.5).item() == pytest.approx(5.5 / 3, abs=1e-12)
    assert arms.regret(UNIFORM, REWARDS, UNIFORM, 0.5).item() == pytest.approx(0.2919, abs=5e-5)


def test_regret_is_the_difference_of_objectives():
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    best = arms.optimum(REWARDS, UNIFORM, 0.7)
    difference = arms.objective(best, REWARDS, UNIFORM, 0.7) - arms.objective(policy, REWARDS, UNIFORM, 0.7)
    assert arms.regret(policy, REWARDS, UNIFORM, 0.7).item() == pytest.approx(difference.item(), abs=1e-12)


def test_without_pairs_and_with_the_reference_as_baseline_the_maximin_policy_is_the_reference():
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    pairs = torch.zeros((0, 2), dtype=torch.int64)
    policy, rewards = arms.maximin(pairs, reference, reference, beta=0.5, eta=0.3, top=4.0, steps=500)
    assert torch.allclose(policy, reference, atol=1e-6) and torch.allclose(rewards, rewards[:1].expand(3), atol=1e-6)


def test_the_box_bounds_what_the_adversary_can_do():
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    base = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64).log()
    pairs = torch.zeros((0, 2), dtype=torch.int64)
    free, _ = arms.maximin(pairs, reference, base, beta=0.5, eta=1.0, top=20.0, steps=1500)
    held, rewards = arms.maximin(pairs, reference, base, beta=0.5, eta=1.0, top=0.4, steps=1500)
    assert torch.allclose(free, base, atol=1e-5)  # it makes the baseline optimal
    assert rewards.tolist() == pytest.approx([0.4, 0.0, 0.0], abs=1e-9)
    assert torch.allclose(held, arms.optimum(rewards, reference, 0.5))

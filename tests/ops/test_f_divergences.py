"""f-divergences: the table of the paper, limits, gradients by full enumeration; targets in closed form."""

import math

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.ops import f_divergences as ops
from telos.ops.f_divergences import DIVERGENCES, alpha_divergence, divergence

ROWS = {**DIVERGENCES, "alpha": alpha_divergence(0.3)}
each_row = pytest.mark.parametrize("name", ROWS)
INF = math.inf
U = torch.tensor([-3.0, -1.0, -0.2, 0.3, 1.0, 2.5], dtype=torch.float64)

BY_HAND = {
    "kl": (lambda t: -torch.log(t), lambda t: 1 / t),
    "reverse_kl": (lambda t: t * torch.log(t), lambda t: -torch.log(t) - 1),
    "tv": (lambda t: 0.5 * (1 - t).abs(), lambda t: -0.5 * torch.sign(t - 1)),
    "js": (
        lambda t: t * torch.log(2 * t / (t + 1)) + torch.log(2 / (t + 1)),
        lambda t: -torch.log(2 * t / (t + 1)),
    ),
    "chi2": (lambda t: (1 - t) ** 2 / t, lambda t: t**-2 - 1),
    "reverse_chi2": (lambda t: (t - 1) ** 2, lambda t: -2 * (t - 1)),
    "alpha": (lambda t: (0.3 * t + 0.7 - t**0.3) / 0.3, lambda t: t ** (0.3 - 1) - 1),
}
"""f and -f' as the paper's table writes them, in t."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=Rng(seed).torch(), dtype=torch.float64)


@each_row
def test_generator_and_reward_are_the_table(name):
    t = (-U).exp().requires_grad_()
    f, reward = BY_HAND[name]
    assert torch.allclose(ROWS[name].generator(-U), f(t), atol=1e-12)
    assert torch.allclose(ROWS[name].pseudo_reward(U), reward(t), atol=1e-12)
    (slope,) = torch.autograd.grad(f(t).sum(), t)
    assert torch.allclose(ROWS[name].pseudo_reward(U), -slope, atol=1e-12)


# At t = 0, t = 1 and t = inf: f(0), f(1) = 0, and the rewards -f'.
LIMITS = {
    "kl": (INF, INF, 1.0, 0.0),
    "reverse_kl": (0.0, INF, -1.0, -INF),
    "tv": (0.5, 0.5, 0.0, -0.5),
    "js": (math.log(2), INF, 0.0, -math.log(2)),
    "chi2": (INF, INF, 0.0, -1.0),
    "reverse_chi2": (1.0, 2.0, 0.0, -INF),
    "alpha": (0.7 / 0.3, INF, 0.0, -1.0),
}


@each_row
def test_limits_and_the_match(name):
    f_0, reward_0, reward_1, reward_inf = LIMITS[name]
    row = ROWS[name]
    assert float(row.generator(torch.tensor(-INF, dtype=torch.float64))) == pytest.approx(f_0, abs=1e-12)
    assert float(row.generator(torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(0.0, abs=1e-12)
    rewards = row.pseudo_reward(torch.tensor([INF, 0.0, -INF], dtype=torch.float64))
    assert rewards.tolist() == pytest.approx([reward_0, reward_1, reward_inf], abs=1e-12)
    assert row.slope == pytest.approx(-reward_inf)


@each_row
def test_divergence_is_zero_at_the_target_only_and_counts_mass_outside(name):
    row = ROWS[name]
    log_p, log_pi = draw(5).log_softmax(-1), draw(5, seed=1).log_softmax(-1)
    assert float(divergence(row, log_p, log_p)) == pytest.approx(0.0, abs=1e-12)
    assert float(divergence(row, log_pi, log_p)) > 1e-3
    # Half of pi lies where p has nothing.
    log_p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    log_pi = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    inside = float(row.generator(torch.tensor(math.log(0.5), dtype=torch.float64)))
    assert float(divergence(row, log_pi, log_p)) == pytest.approx(inside + row.slope * 0.5)
    assert float(divergence(row, log_p, log_p)) == 0.0
    # And the other way round: half of p is missed.
    half = torch.tensor(math.log(2.0), dtype=torch.float64)
    expected = 0.5 * float(row.generator(half)) + 0.5 * LIMITS[name][0]
    log_two = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    log_one = torch.tensor([1.0, 0.0], dtype=torch.float64).log()
    assert float(divergence(row, log_one, log_two)) == pytest.approx(expected)


def test_known_values():
    log_p, log_q = draw(3, 6).log_softmax(-1), draw(3, 6, seed=1).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    expected = {
        "kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "tv": (p - q).abs().sum(-1) / 2,
        "js": (p * (2 * p / (p + q)).log()).sum(-1) + (q * (2 * q / (p + q)).log()).sum(-1),
        "chi2": ((p - q) ** 2 / q).sum(-1),
        "reverse_chi2": ((p - q) ** 2 / p).sum(-1),
    }
    for name, value in expected.items():
        assert torch.allclose(divergence(DIVERGENCES[name], log_q, log_p), value, atol=1e-12), name
    apart = torch.eye(2, dtype=torch.float64).log()
    assert ops.jensen_shannon(apart[:1], apart[1:]).item() == pytest.approx(math.log(2))
    assert divergence(DIVERGENCES["tv"], apart[:1], apart[1:]).item() == 1.0


def test_alpha_goes_to_both_kls():
    log_p, log_q = draw(6).log_softmax(-1), draw(6, seed=1).log_softmax(-1)
    forward, backward = (divergence(DIVERGENCES[name], log_q, log_p) for name in ("kl", "reverse_kl"))
    assert float(divergence(alpha_divergence(1e-5), log_q, log_p)) == pytest.approx(float(forward), rel=1e-4)
    near_one = divergence(alpha_divergence(1 - 1e-5), log_q, log_p) / 1e-5
    assert float(near_one) == pytest.approx(float(backward), rel=1e-4)
    assert torch.allclose(alpha_divergence(1e-7).pseudo_reward(U), U.exp() - 1, rtol=1e-5)
    assert torch.allclose(alpha_divergence(1 - 1e-7).pseudo_reward(U) / 1e-7, U, rtol=1e-5)


@each_row
def test_the_gradient_by_full_enumeration_is_autograds(name):
    """Four states, a softmax policy, and a target that may leave one of them out."""
    for excluded in (False, True):
        row = ROWS[name]
        if excluded and row.slope == INF:
            continue
        logits = draw(4).requires_grad_()
        log_p = draw(4, seed=1)
        if excluded:
            log_p[2] = -INF
        log_p = log_p.log_softmax(-1)
        log_pi = logits.log_softmax(-1)
        (expected,) = torch.autograd.grad(divergence(row, log_pi, log_p), logits, retain_graph=True)
        rewards = row.pseudo_reward(log_p - log_pi).detach()
        (found,) = torch.autograd.grad(-(log_pi.exp().detach() * rewards * log_pi).sum(), logits)
        assert expected.abs().max() > 1e-3
        assert torch.allclose(found, expected, atol=1e-12)


def test_factors_of_a_target():
    assert ops.tilt(torch.tensor([1.0, -2.0]), 0.5).tolist() == [2.0, -4.0]
    assert ops.constraint(torch.tensor([1.0, 0.0, 0.5])).tolist() == pytest.approx([0.0, -INF, math.log(0.5)])
    phi = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    assert ops.moments(phi, torch.tensor([3.0, -1.0])).tolist() == [1.0, -1.0]
    for bad in (-0.1, 1.5):
        with pytest.raises(TelosError, match="not an indicator"):
            ops.constraint(torch.tensor([1.0, bad]))


def test_coefficients_of_a_coin_are_the_difference_of_log_odds():
    """phi is 1 for 200 of 1,000 samples; a mean of 0.7 needs lambda = logit 0.7 - logit 0.2."""
    features = (torch.arange(1000) < 200).double()[None, :, None]
    found = ops.fit_coefficients(features, torch.tensor([0.7]), torch.zeros(1, 1000))
    assert found.tolist() == pytest.approx([math.log(7 / 3) - math.log(2 / 8)], abs=1e-3)


def test_coefficients_of_a_gaussian_are_the_shift_over_the_variance():
    features = draw(1, 4000, 1, seed=3)
    features = (features - features.mean()) / features.std(correction=0)
    found = ops.fit_coefficients(features, torch.tensor([0.5]), torch.zeros(1, 4000))
    assert found.tolist() == pytest.approx([0.5], abs=0.05)


def test_several_moments_other_factors_and_contexts():
    features, log_weights = draw(3, 500, 2, seed=4), 0.5 * draw(3, 500, seed=5)
    features = features + torch.arange(3)[:, None, None]
    log_weights[:, ::7] = -INF
    means = torch.tensor([1.2, 0.7], dtype=torch.float64)
    found = ops.fit_coefficients(features, means, log_weights)
    shares = (log_weights + ops.moments(features, found)).softmax(-1)
    assert torch.allclose((shares[..., None] * features).sum(1).mean(0), means, atol=1e-5)
    assert (shares[:, ::7] == 0).all()
    # A context in which nothing is allowed has no part in it.
    empty = torch.cat([log_weights, torch.full((1, 500), -INF, dtype=torch.float64)])
    again = ops.fit_coefficients(torch.cat([features, features[:1]]), means, empty)
    assert torch.allclose(again, found, atol=1e-4)


def test_impossible_moments_are_named():
    features = (torch.arange(10) < 2).double()[None, :, None]
    with pytest.raises(TelosError, match="no coefficients give the moments"):
        ops.fit_coefficients(features, torch.tensor([1.5]), torch.zeros(1, 10))
    with pytest.raises(TelosError, match="no sample of the base model"):
        ops.fit_coefficients(features, torch.tensor([0.5]), torch.full((1, 10), -INF))


def test_grouped_logsumexp():
    values = torch.tensor([0.0, 800.0, 801.0, -INF], dtype=torch.float64)
    found = ops.grouped_logsumexp(values, torch.tensor([2, 0, 0, 3]), 4)
    assert found.tolist() == pytest.approx([801 + math.log1p(math.exp(-1)), -INF, 0.0, -INF])

"""Margins and losses against closed forms: the dossier's checks 1 to 5."""

import math
from itertools import permutations

import pytest
import torch

from telos.ops.preferences import (
    anchored,
    hinge,
    margin,
    plackett_luce,
    regression,
    sigmoid,
    smoothed_sigmoid,
    soft_sigmoid,
    squared,
)

ZERO = torch.zeros(5)
MARGINS = torch.tensor([-40.0, -3.0, -0.2, 0.0, 0.7, 5.0, 60.0], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
def test_every_loss_at_the_reference(beta):
    assert torch.allclose(sigmoid(ZERO, beta), torch.full((5,), 0.693147), atol=1e-6)
    for smoothing in (0.0, 0.1, 0.49):
        assert torch.allclose(smoothed_sigmoid(ZERO, beta, smoothing), torch.full((5,), 0.693147), atol=1e-6)
    assert torch.allclose(squared(ZERO, beta), torch.full((5,), 1 / (4 * beta**2)), rtol=1e-6)


def test_margin_is_a_difference_of_log_ratios_and_ignores_shifts():
    log_probs, reference = torch.tensor([[-10.0, -12.0]]), torch.tensor([[-11.0, -9.0]])
    assert margin(anchored(log_probs, (1.0, reference))).item() == (-10.0 + 11.0) - (-12.0 + 9.0) == 4.0
    assert margin(anchored(log_probs + 7, (1.0, reference - 3))).item() == 4.0
    assert margin(anchored(log_probs)).item() == margin(log_probs).item() == 2.0  # no reference


def test_anchors_are_weighted_and_constant():
    log_probs = torch.tensor([[-3.0, -5.0, -1.0]], requires_grad=True)
    anchors = [torch.tensor([[-4.0, -2.0, 0.5]], requires_grad=True), torch.tensor([[1.0, 2.0, 3.0]])]
    ratios = anchored(log_probs, (0.25, anchors[0]), (0.75, anchors[1]))
    assert torch.allclose(ratios, torch.tensor([[-3 + 1 - 0.75, -5 + 0.5 - 1.5, -1 - 0.125 - 2.25]]))
    ratios.sum().backward()
    assert torch.equal(log_probs.grad, torch.ones(1, 3)) and anchors[0].grad is None
    # Anchors whose weights sum to 1 and that are equal are one.
    same = anchors[1]
    assert torch.allclose(anchored(log_probs, (0.3, same), (0.7, same)), anchored(log_probs, (1.0, same)))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_hinge_regression_and_soft_labels(beta):
    h = MARGINS.clone().requires_grad_()
    assert torch.allclose(hinge(h, beta), (1 - beta * MARGINS).clamp(min=0))
    hinge(h, beta).sum().backward()
    assert torch.allclose(h.grad, torch.where(beta * MARGINS < 1, -beta, 0.0).double())
    target = torch.linspace(-1, 2, len(MARGINS), dtype=torch.float64)
    assert torch.allclose(regression(MARGINS, beta, target), (target - beta * MARGINS) ** 2 / (2 * beta))
    assert regression(target / beta, beta, target).abs().max() < 1e-12
    # Rewards of 1/4 and -1/4: IPO up to the factor beta / 2.
    half = torch.full_like(MARGINS, 0.5)
    assert torch.allclose(regression(MARGINS, beta, half), beta / 2 * squared(MARGINS, beta))
    one = torch.ones_like(MARGINS)
    assert torch.allclose(soft_sigmoid(MARGINS, beta, one), sigmoid(MARGINS, beta))
    assert torch.allclose(soft_sigmoid(MARGINS, beta, 0.9 * one), smoothed_sigmoid(MARGINS, beta, 0.1))
    # Least where sigma(beta h) is the label, with the label's entropy.
    label = 0.3 * one
    least = soft_sigmoid(torch.logit(label) / beta, beta, label)
    assert torch.allclose(least, -(0.3 * math.log(0.3) + 0.7 * math.log(0.7)) * one)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_swapping_the_pair_negates_the_margin_and_costs_beta_h(beta):
    zeros = torch.zeros_like(MARGINS)
    h, swapped = (margin(torch.stack(pair, -1)) for pair in ((MARGINS, zeros), (zeros, MARGINS)))
    assert torch.equal(swapped, -h)
    assert torch.allclose(sigmoid(swapped, beta) - sigmoid(h, beta), beta * h, atol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_gradient_is_minus_beta_sigmoid_of_minus_beta_h(beta):
    chosen, rejected = (MARGINS / 2).clone().requires_grad_(), (-MARGINS / 2).clone().requires_grad_()
    sigmoid(margin(torch.stack([chosen, rejected], -1)), beta).mean().backward()
    expected = -beta / (1 + (beta * MARGINS).exp()) / len(MARGINS)
    assert torch.allclose(chosen.grad, expected, atol=1e-12)
    assert torch.equal(rejected.grad, -chosen.grad)


def test_loss_is_finite_where_the_naive_form_is_not():
    h = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = sigmoid(h, 1.0)
    assert loss.tolist() == [1e4, 0.0]
    loss.sum().backward()
    assert h.grad.tolist() == [-1.0, 0.0]
    assert not torch.sigmoid(h.detach()).log().isfinite().all()


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0])
def test_ipo_is_least_at_its_target_margin(beta):
    h = torch.tensor([1 / (2 * beta)], dtype=torch.float64, requires_grad=True)
    loss = squared(h, beta)
    loss.sum().backward()
    assert loss.item() < 1e-20 and abs(h.grad.item()) < 1e-10
    # The form (beta h - 1/2)^2 / beta^2 is the same parabola.
    assert torch.allclose(squared(MARGINS, beta), (beta * MARGINS - 0.5) ** 2 / beta**2)


@pytest.mark.parametrize("smoothing", [0.05, 0.2, 0.4])
def test_cdpo_is_least_at_the_log_odds_of_a_right_label(smoothing):
    beta = 0.3
    best = math.log((1 - smoothing) / smoothing) / beta
    h = torch.linspace(best - 2, best + 2, 4001, dtype=torch.float64)
    assert h[smoothed_sigmoid(h, beta, smoothing).argmin()].item() == pytest.approx(best, abs=1e-3)
    entropy = -smoothing * math.log(smoothing) - (1 - smoothing) * math.log(1 - smoothing)
    assert smoothed_sigmoid(torch.tensor([best]), beta, smoothing).item() == pytest.approx(entropy, abs=1e-6)


def test_cdpo_without_noise_is_dpo():
    assert torch.equal(smoothed_sigmoid(MARGINS, 0.3, 0.0), sigmoid(MARGINS, 0.3))


def test_plackett_luce_of_equal_rewards_two_items_and_all_orders():
    for k in (2, 3, 5):
        assert plackett_luce(torch.full((1, k), 2.5)).item() == pytest.approx(math.log(math.factorial(k)), abs=1e-5)
    pair = torch.stack([MARGINS, torch.zeros_like(MARGINS)], dim=-1)
    assert torch.allclose(plackett_luce(pair), sigmoid(MARGINS, 1.0), atol=1e-12)
    rewards = torch.tensor([0.3, -1.2, 2.0, 0.5], dtype=torch.float64)
    orders = torch.stack([rewards[list(order)] for order in permutations(range(4))])
    assert (-plackett_luce(orders)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    first = torch.tensor([order[0] == 2 for order in permutations(range(4))])
    assert (-plackett_luce(orders)).exp()[first].sum().item() == pytest.approx(rewards.softmax(0)[2].item(), abs=1e-12)


def minimise(loss, logits):
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        value = loss(logits.log_softmax(-1))
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    return logits.detach().softmax(-1)


def test_population_limit_of_two_arms_is_odds_of_e():
    log_reference = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    prefer = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))

    def loss(log_policy):
        h = margin(anchored(log_policy[None], (1.0, log_reference[None])))
        return (prefer * sigmoid(h, 1.0) + (1 - prefer) * sigmoid(-h, 1.0)).sum()

    policy = minimise(loss, torch.zeros(2, dtype=torch.float64, requires_grad=True))
    assert (policy[0] / policy[1]).item() == pytest.approx(math.e, abs=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_population_limit_of_four_arms_is_the_tilted_reference(beta):
    rewards = torch.tensor([1.0, -0.5, 0.2, 2.0], dtype=torch.float64)
    log_reference = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
    # Any distribution over pairs with full support has the same minimiser.
    weights = torch.tensor([[0, 1, 2, 5], [1, 0, 1, 1], [3, 1, 0, 9], [1, 2, 1, 0]], dtype=torch.float64)

    def loss(log_policy):
        ratios = log_policy - log_reference
        h = (ratios[:, None] - ratios[None, :]).flatten()
        prefer = torch.sigmoid((rewards[:, None] - rewards[None, :]).flatten())
        return (weights.flatten() * (prefer * sigmoid(h, beta) + (1 - prefer) * sigmoid(-h, beta))).sum()

    policy = minimise(loss, torch.zeros(4, dtype=torch.float64, requires_grad=True))
    assert torch.allclose(policy, (log_reference + rewards / beta).softmax(-1), atol=1e-6)

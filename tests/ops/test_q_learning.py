import math

import pytest
import torch

from telos.core.rng import Rng
from telos.ops.q_learning import (
    advantage_filter,
    categorical_actions,
    chosen_values,
    cloning_loss,
    conservative_gap,
    convex_weights,
    eligible,
    mixture,
    normal_kl,
    of_action_heads,
    of_actions,
    quantile_huber,
    quantile_levels,
    sampled_logsumexp,
    soft_minimum,
)

VALUES = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]])
OTHERS = torch.tensor([[9.0, 1.0, 2.0], [0.0, 2.0, 1.0]])


def test_the_next_action_is_chosen_by_one_network_and_valued_by_the_other():
    assert of_actions(VALUES, torch.tensor([2, 0])).tolist() == [2.0, 0.0]
    assert chosen_values(VALUES, VALUES).tolist() == [3.0, 5.0]
    assert chosen_values(VALUES, OTHERS).tolist() == [1.0, -1.0]
    allowed = torch.tensor([[False, True, True], [True, False, True]])
    assert chosen_values(VALUES, OTHERS, allowed).tolist() == [2.0, 5.0]


def test_each_head_gives_its_value_of_the_action():
    heads = torch.stack([VALUES, OTHERS], 1)
    assert of_action_heads(heads, torch.tensor([2, 1])).tolist() == [[2.0, 2.0], [-1.0, 2.0]]


def test_quantile_huber_by_hand():
    # Levels 1/4 and 3/4, quantiles 0 and 2, targets 1 and 4: u = 1 and 4 over the first, -1 and 2 over the second. With
    # delta 1, H = 0.5 and 3.5, 0.5 and 1.5; weights 1/4 and 1/4, 1/4 (below) and 3/4.
    levels = quantile_levels(2)
    assert levels.tolist() == [0.25, 0.75]
    loss, count = quantile_huber(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 4.0]]), levels, 1.0)
    assert math.isclose(loss.item(), (0.125 + 0.875) / 2 + (0.125 + 1.125) / 2, rel_tol=1e-6) and count == 1
    # Rows add up, whatever the number of targets.
    twice = quantile_huber(torch.tensor([[0.0, 2.0]] * 2), torch.tensor([[1.0, 4.0, 1.0, 4.0]] * 2), levels, 1.0)
    assert math.isclose(twice[0].item(), 2 * loss.item(), rel_tol=1e-6) and twice[1] == 2


def test_the_minimiser_of_the_quantile_loss_is_the_quantile():
    # Of the integers 0 to 99, at 0.05, 0.15, ...: between two of them the pinball loss is flat, at 4.5 it has its kink.
    targets, levels = torch.arange(100.0)[None], quantile_levels(10)
    grid = torch.arange(-0.5, 100, 1.0)
    losses = torch.stack([quantile_huber(torch.full((1, 10), x), targets, levels, 1e-4)[0] for x in grid.tolist()])
    assert losses.argmin() == 50  # all ten equal: the median
    found = [
        min(grid.tolist(), key=lambda x: quantile_huber(torch.tensor([[x]]), targets, level[None], 1e-4)[0].item())
        for level in levels
    ]
    assert all(abs(x - (100 * level.item() - 0.5)) <= 0.5 for x, level in zip(found, levels))
    # Its gradient there is 0; with a large delta the loss is the expectile's, whose minimiser at 1/2 is the mean.
    quantiles = (100 * levels - 0.5)[None].requires_grad_()
    quantile_huber(quantiles, targets, levels, 1e-4)[0].backward()
    assert quantiles.grad is not None and quantiles.grad.abs().max() < 1e-6
    mean = torch.tensor([[11.0 / 3]], requires_grad=True)
    quantile_huber(mean, torch.tensor([[0.0, 1.0, 10.0]]), torch.tensor([0.5]), 100.0)[0].backward()
    assert mean.grad is not None and mean.grad.abs().item() < 1e-5


def test_mixtures_are_convex_and_of_equal_heads_the_head():
    weights = convex_weights(torch.tensor([0.0, 0.5, 0.75]))
    assert torch.allclose(weights, torch.tensor([4 / 7, 2 / 7, 1 / 7]))
    drawn = convex_weights(torch.rand(200, generator=Rng(5).torch()))
    assert (drawn > 0).all() and abs(drawn.sum().item() - 1) < 1e-5
    assert torch.equal(convex_weights(torch.zeros(1)), torch.ones(1))
    heads = torch.stack([VALUES, OTHERS, 0 * VALUES], 1)
    assert torch.allclose(mixture(heads, weights), (4 * VALUES + 2 * OTHERS) / 7)
    assert torch.allclose(mixture(VALUES[:, None].expand(-1, 200, -1), drawn), VALUES, atol=1e-5)


def test_eligible_compares_with_the_most_probable_action():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]).log() + torch.tensor([[4.0], [-3.0]])
    # Ratios are 1, 0.6, 0.4 and 1, 2/7, 1/7.
    for threshold, expected in [
        (0.0, [[True] * 3] * 2),
        (0.2, [[True] * 3, [True, True, False]]),
        (0.3, [[True] * 3, [True, False, False]]),
        (0.5, [[True, True, False], [True, False, False]]),
        (0.999, [[True, False, False]] * 2),
    ]:
        assert eligible(logits, threshold).tolist() == expected
    # Threshold 0 allows actions whose probability has underflown, too.
    assert eligible(torch.tensor([[0.0, -500.0]]), 0.0).all()


def test_cloning_loss_by_hand():
    logits = torch.tensor([[1.0, -1.0]])
    loss, count = cloning_loss(logits, torch.tensor([0]), 0.01)
    assert math.isclose(loss.item(), math.log(1 + math.exp(-2)) + 0.01, rel_tol=1e-5) and count == 1


def test_the_conservative_gradient_is_softmax_minus_onehot():
    values = torch.randn(5, 4, generator=Rng(0).torch(), requires_grad=True)
    actions = torch.tensor([0, 3, 1, 1, 2])
    gap, count = conservative_gap(values, actions)
    gap.backward()
    assert values.grad is not None and count == 5
    expected = values.detach().softmax(-1) - torch.nn.functional.one_hot(actions, 4)
    assert torch.allclose(values.grad, expected, atol=1e-6)
    # Equal values of K actions: log K; one value far above the others: 0 if it is the recorded one.
    assert math.isclose(conservative_gap(torch.zeros(1, 4), actions[:1])[0].item(), math.log(4), rel_tol=1e-6)
    assert conservative_gap(torch.tensor([[50.0, 0.0]]), actions[:1])[0].item() == 0.0


def test_categorical_actions_have_their_probabilities_and_never_leave_the_range():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    uniform = torch.rand((1, 60_000), generator=Rng(1).torch())
    shares = torch.bincount(categorical_actions(logits, uniform)[0], minlength=3) / 60_000
    assert torch.allclose(shares, logits[0].exp(), atol=0.008)
    ends = torch.tensor([[0.0, 0.4999, 0.5001, 0.7999, 0.8001, 1 - 1e-7]])
    assert categorical_actions(logits, ends).tolist() == [[0, 0, 1, 1, 2, 2]]
    # Sums that round to less than 1 do not matter: the last bound is not asked.
    assert categorical_actions(torch.zeros(1, 7), torch.tensor([[1.0]])).tolist() == [[6]]
    assert categorical_actions(torch.zeros(1, 1), torch.tensor([[0.3]])).tolist() == [[0]]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_filters_are_a_step_at_0_and_a_clipped_exponential(temperature: float):
    advantages = torch.tensor([-1.0, 0.0, 1e-6, 1.0, 99.0])
    assert advantage_filter(advantages, "binary", temperature, 20.0).tolist() == [0, 0, 1, 1, 1]
    expected = torch.tensor([math.exp(-1 / temperature), 1.0, 1.0, math.exp(1 / temperature), 20.0])
    assert torch.allclose(advantage_filter(advantages, "exp", temperature, 20.0), expected)


def test_sampled_logsumexp_estimates_the_integral_over_the_box():
    # Integral of e^(2 a1 + a2) over [-1, 1]^2: 2 sinh(2) / 2 * 2 sinh(1).
    expected = math.log(math.sinh(2) * 2 * math.sinh(1))
    rng = Rng(3).torch()
    uniform = 2 * torch.rand(40_000, 1, 2, generator=rng) - 1
    values = (2 * uniform[..., 0] + uniform[..., 1])[None]
    flat = torch.full((40_000, 1), -2 * math.log(2))
    assert abs(sampled_logsumexp(values, flat).item() - expected) < 0.03
    # The same from draws that lie where the integrand is large: the triangular density (1 + a1) / 2 * 1 / 2.
    skewed = torch.stack([2 * torch.rand(40_000, 1, generator=rng).sqrt() - 1, uniform[..., 1]], -1)
    values = (2 * skewed[..., 0] + skewed[..., 1])[None]
    assert abs(sampled_logsumexp(values, ((1 + skewed[..., 0]) / 4).log()).item() - expected) < 0.03
    # A constant over the unit cube of 2 dimensions: c + 2 log 2, from a single draw, for each member.
    constant = torch.tensor([1.0, -3.0])[:, None, None]
    assert torch.allclose(sampled_logsumexp(constant, flat[:1])[:, 0], constant[:, 0, 0] + 2 * math.log(2))


def test_soft_minimum_and_normal_kl_by_hand():
    values = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert soft_minimum(values, 0.75).tolist() == [1.5, 2.75]
    assert torch.equal(soft_minimum(values, 1.0), values.amin(0))
    mean, log_std = torch.tensor([[0.3, -1.0]]), torch.tensor([[-0.5, 0.2]])
    normal = torch.distributions.Normal(mean, log_std.exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(-1)
    assert torch.allclose(normal_kl(mean, log_std), expected)

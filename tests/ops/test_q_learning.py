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
    eligible,
    normal_kl,
    of_actions,
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

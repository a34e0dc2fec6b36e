"""The rules of exploration against their closed forms, limits and invariances."""

import math

import pytest
import torch

from telos.core.rng import Rng
from telos.ops import exploration
from telos.ops.exploration import RULES, best, epsilon_greedy, fast_cb, greedy, sample, softmax, square_cb, uniform

PARAMETERS = {"gamma": 30.0, "epsilon": 0.2, "temperature": 0.1}


def inputs(rows: int = 500, actions: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random predictions in (0, 1), and allowed actions of which each row has one to all."""
    rng = Rng(1000).torch()
    allowed = torch.rand(rows, actions, generator=rng) < 0.6
    allowed[torch.arange(rows), torch.randint(actions, (rows,), generator=rng)] = True
    return torch.rand(rows, actions, generator=rng), allowed


def all_allowed(predictions: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(predictions, dtype=torch.bool)


def regret(predictions: torch.Tensor, allowed: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    top = predictions.double().gather(-1, best(predictions, allowed)[:, None])
    return (shares * torch.where(allowed, top - predictions.double(), 0.0)).sum(-1)


def test_square_cb_by_hand():
    predictions = torch.tensor([[0.5, 0.9, 0.9, 0.1]])
    allowed = torch.tensor([[True, True, True, False]])
    # n = 3 of 4; action 1 is the first of the best two, its twin gets 1/n.
    expected = [1 / (3 + 10 * 0.4), 1 - 1 / (3 + 10 * 0.4) - 1 / 3, 1 / 3, 0.0]
    assert square_cb(predictions, allowed, 10.0)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_disallowed_action_does_not_count_even_if_it_is_predicted_best():
    predictions, allowed = torch.tensor([[0.99, 0.4, 0.2]]), torch.tensor([[False, True, True]])
    assert best(predictions, allowed).tolist() == [1]
    assert square_cb(predictions, allowed, 50.0)[0].tolist() == pytest.approx([0, 11 / 12, 1 / 12], abs=1e-6)
    assert greedy(predictions, allowed)[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("rule", RULES)
def test_rows_sum_to_one_and_disallowed_actions_have_exactly_zero(rule: str):
    predictions, allowed = inputs()
    shares = exploration.probabilities(rule, predictions, allowed, **PARAMETERS)
    assert shares.dtype == torch.float64 and (shares >= 0).all() and (shares[~allowed] == 0).all()
    assert torch.allclose(shares.sum(-1), torch.ones(len(shares), dtype=torch.float64), atol=1e-15, rtol=0)
    only = torch.zeros(3, 6, dtype=torch.bool)
    only[:, 4] = True
    assert exploration.probabilities(rule, predictions[:3], only, **PARAMETERS)[:, 4].tolist() == [1, 1, 1]


@pytest.mark.parametrize("rule", [square_cb, fast_cb])
def test_gamma_zero_is_uniform_and_gamma_to_infinity_is_greedy(rule):
    predictions, allowed = inputs()
    assert torch.allclose(rule(predictions, allowed, 0.0), uniform(predictions, allowed), atol=1e-15, rtol=0)
    assert torch.allclose(rule(predictions, allowed, 1e15), greedy(predictions, allowed), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("rule", [square_cb, fast_cb])
def test_equal_predictions_are_uniform_whatever_gamma(rule, gamma: float):
    _, allowed = inputs()
    predictions = torch.full(allowed.shape, 0.7)
    assert torch.allclose(rule(predictions, allowed, gamma), uniform(predictions, allowed), atol=1e-15, rtol=0)


def test_a_constant_changes_nothing_and_a_factor_is_a_factor_of_gamma():
    predictions, allowed = inputs()
    predictions = predictions.double()  # so that the shift itself does not round
    shares = square_cb(predictions, allowed, 40.0)
    assert torch.allclose(square_cb(predictions + 2.5, allowed, 40.0), shares, atol=1e-12, rtol=0)
    assert torch.allclose(square_cb(3 * predictions, allowed, 40.0), square_cb(predictions, allowed, 120.0), atol=1e-12)
    assert not torch.allclose(square_cb(3 * predictions, allowed, 40.0), shares, atol=1e-2)


@pytest.mark.parametrize("gamma", [0.5, 20.0, 1000.0])
def test_predicted_regret_is_bounded_and_the_best_keeps_its_share(gamma: float):
    predictions, allowed = inputs()
    shares, count = square_cb(predictions, allowed, gamma), allowed.sum(-1)
    assert (regret(predictions, allowed, shares) <= (count - 1) / gamma + 1e-12).all()
    top = shares.gather(-1, best(predictions, allowed)[:, None])[:, 0]
    assert (top >= 1 / count - 1e-12).all() and (top >= shares.amax(-1) - 1e-12).all()
    # The bound is tight as the gaps grow: each other action costs gap/(n + gamma gap) -> 1/gamma.
    far = torch.tensor([[1000.0, 0.0, 0.0]])
    assert regret(far, all_allowed(far), square_cb(far, all_allowed(far), gamma)).item() == pytest.approx(
        2 / gamma, rel=0.01
    )


def test_fast_cb_is_square_cb_with_gamma_over_the_best_loss():
    predictions, allowed = inputs()
    for loss in (0.05, 0.3):
        top = predictions.gather(-1, best(predictions, allowed)[:, None])
        shifted = (predictions.double() - top + 1 - loss).clamp(max=1.0)
        expected = square_cb(shifted, allowed, 20.0 / loss)
        assert torch.allclose(fast_cb(shifted, allowed, 20.0), expected, atol=1e-10, rtol=0)
    # By hand, l = 0.1 and 0.4: 0.1 / (2 * 0.1 + 5 * 0.3).
    shares = fast_cb(torch.tensor([[0.9, 0.6]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool), 5.0)
    assert shares[0].tolist() == pytest.approx([1 - 0.1 / 1.7, 0.1 / 1.7], abs=1e-12)


def test_fast_cb_survives_a_best_action_that_never_fails():
    predictions = torch.tensor([[1.0, 1.0, 0.5], [1.3, 0.2, 0.1]])
    shares = fast_cb(predictions, all_allowed(predictions), 10.0)
    assert shares.isfinite().all() and shares[0, 1].item() == pytest.approx(1 / 3) and shares[1, 0] > 0.999


def test_epsilon_and_softmax_by_hand():
    predictions = torch.tensor([[0.2, 0.8, 0.5, 0.9]])
    allowed = torch.tensor([[True, True, True, False]])
    assert epsilon_greedy(predictions, allowed, 0.3)[0].tolist() == pytest.approx([0.1, 0.8, 0.1, 0.0])
    weights = [math.exp(0.2 / 0.5), math.exp(0.8 / 0.5), math.exp(0.5 / 0.5)]
    expected = [w / sum(weights) for w in weights] + [0.0]
    assert softmax(predictions, allowed, 0.5)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(softmax(predictions, allowed, 1e-4), greedy(predictions, allowed))
    assert torch.allclose(softmax(predictions, allowed, 1e6), uniform(predictions, allowed), atol=1e-5)


def test_samples_have_the_frequencies_of_their_probabilities():
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).expand(100_000, 6)
    drawn = sample(shares, torch.rand(100_000, generator=Rng(1000).torch(), dtype=torch.float64))
    counts = torch.bincount(drawn, minlength=6) / 100_000
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    # 4 standard errors of a share of one half: 0.0063.
    assert torch.allclose(counts.double(), shares[0].double(), atol=0.0063)


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-53])
def test_no_draw_takes_an_action_of_probability_zero(draw: float):
    shares = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.1 + 0.2, 0.7], [0.3, 0.7, 0.0], [0.1, 0.9, 0.0]])
    drawn = sample(shares, torch.full((4,), draw, dtype=torch.float64))
    assert drawn.tolist() == ([1, 1, 0, 0] if draw == 0 else [1, 2, 1, 1])

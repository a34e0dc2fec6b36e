import pytest
import torch
from torch import Tensor

from telos.core.rng import Rng
from telos.ops.conjugates import (
    CONJUGATES,
    chi2_maximiser,
    exact_maximiser,
    expectile_maximiser,
    gumbel_maximiser,
    gumbel_shift,
    tv_maximiser,
)

GRID = torch.linspace(-12, 12, 240_001, dtype=torch.float64)
"""Candidates for V, and for y, 1e-4 apart."""


def noisy(rows: int = 2001) -> Tensor:
    return 1 + 2 * torch.randn(rows, dtype=torch.float64, generator=Rng(1000).torch())


def minimiser(loss, q: Tensor, low: float = -12.0, high: float = 20.0) -> float:
    """The V at which the mean of a convex loss of d = q - V turns, by bisection on its slope."""
    for _ in range(60):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(q - middle).mean(), middle)
        place = middle.item()
        low, high = (low, place) if slope > 0 else (place, high)
    return (low + high) / 2


@pytest.mark.parametrize("name", CONJUGATES)
def test_conjugates_are_the_maxima_that_they_stand_for(name: str):
    row = CONJUGATES[name]
    w = torch.linspace(0, 20, 200_001, dtype=torch.float64)
    for y in (-5.0, -2.0, -0.7, -0.3, 0.0, 0.2, 0.5):
        at = torch.tensor(y, dtype=torch.float64)
        values = w * y - row.generator(w)
        assert abs(float(row.positive(at) - values.max())) < 1e-6
        reached = row.ratio(at)
        assert abs(float(reached * y - row.generator(reached) - values.max())) < 1e-6
        # Over all w the maximum is at least that over w >= 0, and the same where the latter is inside.
        if row.conjugate(at).isfinite():
            assert row.conjugate(at) >= row.positive(at) - 1e-12
            if 0 < reached < 20:
                assert abs(float(row.conjugate(at) - row.positive(at))) < 1e-12
    assert float(row.generator(torch.ones(()))) == 0.0


def test_closed_forms_of_the_table():
    y = torch.tensor([-3.0, -2.0, 0.0, 1.0], dtype=torch.float64)
    assert CONJUGATES["chi2"].positive(y).tolist() == [-1.0, -1.0, 0.0, 1.25]
    assert CONJUGATES["chi2"].conjugate(y).tolist() == [-0.75, -1.0, 0.0, 1.25]
    assert CONJUGATES["tv"].positive(torch.tensor([-3.0, -0.2, 0.5, 0.6])).tolist() == pytest.approx(
        [-0.5, -0.2, 0.5, torch.inf]
    )
    assert CONJUGATES["tv"].conjugate(torch.tensor([-0.6, 0.5])).tolist() == [torch.inf, 0.5]
    assert CONJUGATES["rkl"].conjugate(torch.ones(1)).tolist() == [1.0]


def test_at_zero_the_conjugate_of_chi2_is_zero_with_slope_one():
    y = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for function in (CONJUGATES["chi2"].positive, CONJUGATES["chi2"].conjugate):
        (slope,) = torch.autograd.grad(function(y), y)
        assert (float(function(y.detach())), float(slope)) == (0.0, 1.0)
    assert float(CONJUGATES["chi2"].ratio(y.detach())) == 1.0


@pytest.mark.parametrize("weight", [2 / 3, 0.7, 0.8, 0.95])
def test_tv_finds_a_quantile(weight: float):
    q = noisy()
    found = minimiser(lambda d: tv_maximiser(d, weight), q)
    assert abs(found - float(q.quantile((2 * weight - 1) / weight))) < 0.02
    # Its share above is (1 - weight) / weight: 1/2, the median, for 2/3 and a quarter for 0.8.
    assert abs(float((q > found).double().mean()) - (1 - weight) / weight) < 2e-3


def test_tv_at_weight_one_is_the_maximum():
    q = noisy()
    assert abs(minimiser(lambda d: tv_maximiser(d, 1 - 1e-6), q) - float(q.max())) < 1e-6


@pytest.mark.parametrize("weight", [0.5, 1.0, 3.0])
def test_the_gumbel_loss_finds_log_mean_exp_whatever_its_shift(weight: float):
    q = noisy()
    expected = weight * float(torch.logsumexp(q / weight, 0) - torch.log(torch.tensor(float(len(q)))))
    for shift in (0.0, 3.0):
        found = minimiser(lambda d, shift=shift: gumbel_maximiser(d, weight, shift=shift), q)
        assert abs(found - expected) < 1e-6


def test_the_gumbel_loss_tends_to_the_maximum_and_to_the_mean():
    q = noisy()
    cold = minimiser(lambda d: gumbel_maximiser(d, 0.05, shift=gumbel_shift(d, 0.05)), q)
    assert float(q.max()) - 0.05 * 7.7 < cold < float(q.max())
    assert abs(minimiser(lambda d: gumbel_maximiser(d, 1e4), q) - float(q.mean())) < 1e-3


@pytest.mark.parametrize("weight", [0.55, 0.8, 0.99])
def test_on_a_constant_the_codes_losses_give_it_back_and_the_exact_ones_do_not(weight: float):
    q = torch.full((1,), 3.0, dtype=torch.float64)
    losses = [chi2_maximiser, tv_maximiser, expectile_maximiser, gumbel_maximiser]
    for loss in losses:
        values = loss(q - GRID, weight)
        assert abs(float(GRID[values.argmin()]) - 3) < 1e-3, loss
    exact = minimiser(lambda d: exact_maximiser("chi2", d, weight), q)
    assert abs(exact - (3 + 2 * (2 * weight - 1) / weight)) < 1e-6 and exact > 3
    assert abs(minimiser(lambda d: exact_maximiser("tv", d, weight), q) - 3.5) < 1e-6


def test_the_exact_tv_is_the_codes_with_a_half_more():
    d = GRID[::100]
    shifted = tv_maximiser(d + 0.5, 0.8) - exact_maximiser("tv", d, 0.8)
    assert torch.allclose(shifted, shifted[:1].expand_as(shifted))


def test_the_exact_rkl_finds_a_soft_maximum_with_an_offset():
    q, weight = noisy(), 0.8
    soft = float(torch.logsumexp(q, 0) - torch.log(torch.tensor(float(len(q)))))
    expected = soft - 1 + float(torch.log(torch.tensor(weight / (1 - weight))))
    assert abs(minimiser(lambda d: exact_maximiser("rkl", d, weight), q) - expected) < 1e-6


def test_the_codes_chi2_is_flat_at_weight_one_and_rises_beyond_four():
    d = torch.tensor([-6.0, -4.0, -2.0, 0.0, 2.0], dtype=torch.float64)
    assert chi2_maximiser(d, 1.0).tolist() == [3.0, 0.0, 0.0, 0.0, 3.0]
    assert exact_maximiser("chi2", d, 1.0).tolist() == [-1.0, -1.0, -1.0, 0.0, 3.0]


def test_the_expectile_loss_is_a_mixture_of_a_maximising_and_a_plain_square():
    d, tau = GRID[::100], 0.8
    mixture = (2 * tau - 1) * d.clamp(min=0).square() + (1 - tau) * d.square()
    assert torch.allclose(expectile_maximiser(d, tau), mixture)


def test_a_clip_bounds_the_gumbel_loss_and_biases_it_downwards():
    q = noisy() * 5
    free = minimiser(lambda d: gumbel_maximiser(d, 1.0), q, high=40.0)
    # With a clip the loss is not convex any more: descend from the mean.
    value = q.mean().clone().requires_grad_()
    for _ in range(2000):
        (slope,) = torch.autograd.grad(gumbel_maximiser(q - value, 1.0, clip=5.0).mean(), value)
        with torch.no_grad():
            value -= 0.02 * slope
    assert value.item() < free - 1
    assert torch.isfinite(gumbel_maximiser(torch.tensor([1e4]), 1.0, clip=5.0)).all()
    big = torch.tensor([200.0, 1.0])
    assert torch.isfinite(gumbel_maximiser(big, 1.0, shift=gumbel_shift(big, 1.0))).all()
    assert float(gumbel_shift(torch.tensor([-9.0]), 1.0)) == -1.0

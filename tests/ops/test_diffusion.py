"""Diffusion against closed forms: identities, exact solutions for Gaussian data, orders of accuracy, densities."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from telos.core.rng import Rng
from telos.ops.diffusion import (
    DENSITIES,
    SAMPLERS,
    SCHEDULES,
    ancestral,
    chain_alpha_bars,
    chain_step,
    churned,
    guided,
    levels,
    masked_mse,
    preconditioning,
)

LOW, HIGH, DATA = 0.05, 1.0, 0.5
MEAN, SPREAD = 0.7, 0.3


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """D for data N(MEAN, SPREAD^2)."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(x: Tensor, start: float, end: float) -> Tensor:
    """The solution of the probability flow for these data."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


def normal(*shape: int, stream: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Rng(1000).at(stream).torch())


def test_preconditioning_identities():
    sigma = torch.tensor([1e-6, 0.05, 0.5, 1.0, 80.0])
    skip, out, into = preconditioning(sigma, DATA)
    assert torch.allclose(into**2 * (sigma**2 + DATA**2), torch.ones(5))
    assert torch.allclose(skip + out**2 / DATA**2, torch.ones(5))
    x = normal(5)
    assert torch.allclose((skip * x + out * 3.0)[0], x[0], atol=1e-5)  # at sigma -> 0, D(a) -> a
    # Inputs of the network, and its targets, have variance 1 whatever sigma.
    data, noise = DATA * normal(100_000, stream=1), normal(100_000, stream=2)
    for level in (0.05, 0.5, 2.0):
        skip, out, into = preconditioning(torch.tensor(level), DATA)
        noisy = data + level * noise
        assert abs((into * noisy).std() - 1) < 0.01 and abs(((data - skip * noisy) / out).std() - 1) < 0.01


def test_uniform_weight_on_the_output_is_one_over_c_out_squared_on_the_denoiser():
    data, noise, output = normal(6, 1, 2), normal(6, 1, 2, stream=1), normal(6, 1, 2, stream=2)
    sigma = torch.tensor([0.05, 0.1, 0.3, 0.5, 1.0, 2.0])[:, None, None]
    skip, out, _ = preconditioning(sigma, DATA)
    noisy, mask = data + sigma * noise, torch.ones(6, 1, dtype=torch.bool)
    loss, count = masked_mse(output, (data - skip * noisy) / out, mask)
    denoised = skip * noisy + out * output
    assert torch.isclose(loss, ((denoised - data) ** 2 / out**2).mean(-1).sum(), rtol=1e-4) and count == 6


def test_masked_steps_count_for_nothing():
    output, target = normal(2, 3, 2), normal(2, 3, 2, stream=1)
    mask = torch.tensor([[False, True, True], [False, False, True]])
    loss, count = masked_mse(output, target, mask)
    expected = sum((output[b, j] - target[b, j]).square().mean() for b, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.isclose(loss, torch.as_tensor(expected)) and count == 3


def test_schedules_by_hand():
    assert levels("exponential", 3, LOW, HIGH) == pytest.approx([1, math.sqrt(0.05), 0.05, 0])
    assert round(levels("exponential", 3, LOW, HIGH)[1], 4) == 0.2236
    assert levels("linear", 3, LOW, HIGH) == pytest.approx([1, 0.525, 0.05, 0])
    middle = ((1 + 0.05**0.2) / 2) ** 5
    assert levels("karras", 3, LOW, HIGH) == pytest.approx([1, middle, 0.05, 0])
    assert levels("cosine", 3, LOW, HIGH)[1] == pytest.approx(math.tan((math.atan(1) + math.atan(0.05)) / 2))
    assert levels("ve", 5, LOW, HIGH) == levels("exponential", 5, LOW, HIGH)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 30])
def test_schedules_fall_from_the_highest_level_to_zero(name: str, n: int):
    for low, high in ((0.05, 1.0), (0.005, 80.0)):
        found = levels(name, n, low, high)
        assert len(found) == n + 1 and found[-1] == 0 and all(a > b for a, b in pairwise(found))
        # iddpm takes levels of a fixed chain, the others end where they are told to.
        assert found[0] == pytest.approx(high, rel=0.35 if name == "iddpm" else 1e-9)
        if n > 1:
            assert found[-2] == pytest.approx(low, rel=0.35 if name == "iddpm" else 1e-6)


def test_iddpm_levels_are_those_of_the_cosine_chain():
    # Far from the chain's clipped end, 1 + sigma_j^2 = 1 / sin^2 (pi / 2 j / 1008) times a constant near 1.
    found = levels("iddpm", 5, 0.05, 1.0)
    for sigma in found[:-1]:
        j = 1008 * 2 / math.pi * math.asin(1 / math.sqrt(1 + sigma**2))
        assert min(abs(j - round(j)), 0.3) < 0.25


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_stay_in_the_range_and_have_their_distribution(name: str):
    u = torch.linspace(1e-4, 1 - 1e-4, 4001)
    sigma = DENSITIES[name](u, LOW, HIGH, DATA)
    assert (sigma.diff() > 0).all() and sigma.min() >= LOW - 1e-6 and sigma.max() <= HIGH + 1e-6

    def distribution(s: Tensor) -> Tensor:
        log = s.log()
        return {
            "loglogistic": torch.sigmoid((log - math.log(DATA)) / 0.5),
            "lognormal": 0.5 + 0.5 * torch.erf((log + 1.2) / 1.2 / math.sqrt(2)),
            "loguniform": log,
            "uniform": s,
            "v_diffusion": torch.atan(s / DATA),
        }[name]

    low, high = distribution(torch.tensor(LOW)), distribution(torch.tensor(HIGH))
    assert torch.allclose((distribution(sigma) - low) / (high - low), u, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n", [1, 3, 10])
def test_an_ideal_denoiser_of_one_action_gives_it_exactly(sampler: str, schedule: str, n: int):
    target = torch.tensor([[0.3, -0.9]]).expand(7, 2)
    rng = Rng(1).torch()
    found = SAMPLERS[sampler](lambda x, sigma: target, normal(7, 2), levels(schedule, n, LOW, HIGH), rng, 0.5)
    assert torch.equal(found, target)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_returns_the_denoiser_at_the_highest_level_and_zero_is_never_asked_for(sampler: str):
    asked = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return gaussian(x, sigma)

    x = HIGH * normal(5, 2)
    assert torch.equal(SAMPLERS[sampler](denoise, x, [HIGH, 0.0], None, 0.0), gaussian(x, HIGH))
    assert asked == [HIGH]
    SAMPLERS[sampler](denoise, x, levels("exponential", 6, LOW, HIGH), Rng(0).torch(), 0.0)
    assert min(asked) > 0


ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2s": 2, "dpmpp_2m": 2}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_of_accuracy_on_gaussian_data(name: str):
    x = (HIGH * normal(64, stream=3)).double()
    errors = []
    for n in (20, 40, 80):
        found = SAMPLERS[name](gaussian, x, SCHEDULES["exponential"](n + 1, LOW, HIGH), None, 0.0)
        errors.append((found - exact(x, HIGH, LOW)).abs().max().item())
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    # The first step of 2M is of first order, which is felt a little.
    assert all(abs(rate - ORDERS[name]) < 0.15 for rate in rates), (errors, rates)
    assert errors[-1] < {1: 7e-3, 2: 2e-4}[ORDERS[name]]


@pytest.mark.parametrize("name", ["euler_ancestral", "heun", "euler"])
def test_stochastic_samplers_keep_the_marginals(name: str):
    churn = 0.0 if name == "euler_ancestral" else 20.0
    x = math.sqrt(HIGH**2 + SPREAD**2) * normal(40_000) + MEAN
    found = SAMPLERS[name](gaussian, x, SCHEDULES["karras"](200, 0.02, HIGH), Rng(2).torch(), churn)
    assert abs(found.mean() - MEAN) < 0.006
    assert abs(found.std() - math.sqrt(SPREAD**2 + 0.02**2)) < (0.012 if name == "euler" else 0.008)
    again = SAMPLERS[name](gaussian, x, SCHEDULES["karras"](200, 0.02, HIGH), Rng(3).torch(), churn)
    assert not torch.equal(found, again)


def test_ddim_is_eulers_method():
    x, sigmas = normal(9, 2), levels("karras", 7, LOW, HIGH)
    a, b = (SAMPLERS[name](gaussian, x, sigmas, None, 0.0) for name in ("ddim", "euler"))
    assert torch.equal(a, b)
    by_hand = x
    for now, then in pairwise(sigmas):
        by_hand = by_hand + (by_hand - gaussian(by_hand, now)) / now * (then - now)
    assert torch.allclose(a, by_hand, atol=1e-6)


def test_ancestral_levels():
    for now, then in ((1.0, 0.5), (0.2236, 0.05), (0.05, 0.0)):
        down, up = ancestral(now, then)
        assert down**2 + up**2 == pytest.approx(then**2) and 0 <= up <= then
    assert ancestral(1.0, 0.5)[1] == pytest.approx(math.sqrt(0.25 * 0.75))
    x, higher = churned(torch.zeros(50_000), 0.5, 10, 2.0, Rng(0).torch())
    assert higher == pytest.approx(0.6) and abs(x.std() - math.sqrt(0.36 - 0.25)) < 0.005
    assert churned(x, 0.5, 10, 0.0, None) == (x, 0.5)
    assert churned(x, 0.5, 1, 9.0, Rng(0).torch())[1] == pytest.approx(0.5 * math.sqrt(2))


def test_guidance():
    a, b = normal(4, 2), normal(4, 2, stream=1)
    assert torch.allclose(guided(a, b, 1.0), a) and torch.equal(guided(a, b, 0.0), b)
    assert torch.allclose(guided(a, b, 2.0), 2 * a - b)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [2, 10, 50, 1000])
def test_chains_end_in_noise(kind: str, steps: int):
    bars = chain_alpha_bars(steps, kind)
    assert bars.shape == (steps,) and (bars.diff() < 0).all() and 0 < bars[-1] < 0.02
    assert bars[0] > 0.99 - 8 / steps


def test_a_chain_step_has_the_posteriors_moments_and_the_chain_the_data():
    now, then = 0.3, 0.6
    data, noise = 0.4, normal(200_000)
    start = math.sqrt(now) * data + math.sqrt(1 - now) * normal(200_000, stream=1)
    found = chain_step(start, torch.full_like(start, data), noise, now, then)
    # Given the data, x at `then` has mean sqrt(then) data and variance 1 - then.
    assert abs(found.mean() - math.sqrt(then) * data) < 0.01 and abs(found.var() - (1 - then)) < 0.01
    assert torch.allclose(chain_step(start, torch.full_like(start, data), noise, now, 1.0), torch.tensor(data))
    bars = [*chain_alpha_bars(400).tolist()[::-1], 1.0]
    x = normal(20_000, stream=2)
    for step, (now, then) in enumerate(pairwise(bars)):
        sigma = math.sqrt(1 / now - 1)
        x = chain_step(x, gaussian(x / math.sqrt(now), sigma), normal(20_000, stream=10 + step), now, then)
    assert abs(x.mean() - MEAN) < 0.01 and abs(x.std() - SPREAD) < 0.02

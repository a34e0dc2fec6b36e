"""Finite preference games against closed forms and the numbers of the dossiers of INPO, Nash-MD and DNO."""

import math

import pytest
import torch

from telos.core.rng import Rng
from telos.ops import games

UNEVEN = torch.tensor([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]], dtype=torch.float64)
EVEN = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)
REFERENCE = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()


def random_game(n, seed):
    generator = Rng(seed).torch()
    upper = torch.rand((n, n), generator=generator, dtype=torch.float64).triu(1)
    preferences = upper + (1 - upper).triu(1).mT + 0.5 * torch.eye(n, dtype=torch.float64)
    return preferences, torch.randn(n, generator=generator, dtype=torch.float64).log_softmax(0)


def value(preferences, one, other, reference, tau):
    """J by hand."""
    return (
        one.exp() @ preferences @ other.exp()
        - tau * (one.exp() * (one - reference)).sum()
        + tau * (other.exp() * (other - reference)).sum()
    )


def test_win_rates_mixture_kl_and_distance_by_hand():
    policy = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    assert torch.allclose(games.win_rates(UNEVEN, policy), torch.tensor([0.47, 0.52, 0.5]).double())
    assert (policy.exp() @ games.win_rates(UNEVEN, policy)).item() == pytest.approx(0.5)
    assert torch.allclose(games.mixture(policy, REFERENCE, 0.0), policy)
    assert torch.allclose(games.mixture(policy, REFERENCE, 1.0), REFERENCE)
    half = (policy.exp() * REFERENCE.exp()).sqrt()
    assert torch.allclose(games.mixture(policy, REFERENCE, 0.5).exp(), half / half.sum())
    by_hand = 0.2 * math.log(0.2 / 0.6) + 0.5 * math.log(0.5 / 0.1)
    assert games.kl(policy, REFERENCE).item() == pytest.approx(by_hand)
    assert games.total_variation(policy, REFERENCE).item() == pytest.approx(0.4)
    certain = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log()
    assert games.kl(certain, REFERENCE).item() == pytest.approx(-math.log(0.6))
    both = torch.stack([policy, REFERENCE])
    assert torch.allclose(games.win_rates(UNEVEN, both)[1], games.win_rates(UNEVEN, REFERENCE))


def test_exploitability():
    aim = (torch.tensor([2, 3, 4], dtype=torch.float64) / 9).log()
    assert abs(float(games.exploitability(UNEVEN, aim))) < 1e-15
    uniform = torch.zeros(3, dtype=torch.float64).log_softmax(0)
    assert float(games.exploitability(UNEVEN, uniform)) == pytest.approx(1 / 30)  # 0.033 in DNO's dossier
    vertex = torch.tensor([0.0, -1e9, -1e9], dtype=torch.float64)
    assert float(games.exploitability(UNEVEN, vertex)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("preferences", "printed"),
    [(UNEVEN, (0.45348, 0.14884, 0.39767)), (EVEN, (0.46066, 0.21266, 0.32668))],
    ids=["inpo", "nash_md"],
)
def test_the_printed_equilibria(preferences, printed):
    found = games.equilibrium(preferences, REFERENCE, 0.1)
    assert (found.exp() - torch.tensor(printed).double()).abs().max() < 6e-6
    assert games.total_variation(games.best_response(preferences, found, REFERENCE, 0.1), found) < 1e-12
    assert abs(float(games.duality_gap(preferences, found, REFERENCE, 0.1))) < 1e-12


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.02, 0.005])
@pytest.mark.parametrize("seed", range(3))
def test_the_equilibrium_answers_itself_in_random_games_down_to_small_tau(tau, seed):
    preferences, reference = random_game(30, seed)
    found = games.equilibrium(preferences, reference, tau)
    assert float(found.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    assert games.total_variation(games.best_response(preferences, found, reference, tau), found) < 1e-10
    assert float(games.exploitability(preferences, found)) < tau * float((found - reference).abs().max())


def test_the_limits_of_the_equilibrium():
    assert games.total_variation(games.equilibrium(UNEVEN, REFERENCE, 1e4), REFERENCE) < 1e-4
    even = torch.full((3, 3), 0.5, dtype=torch.float64)
    assert games.total_variation(games.equilibrium(even, REFERENCE, 0.1), REFERENCE) < 1e-12
    plain = torch.tensor([2, 3, 4], dtype=torch.float64).log() - math.log(9)
    assert games.total_variation(games.equilibrium(UNEVEN, REFERENCE, 0.002), plain) < 0.02
    assert games.equilibrium(UNEVEN.float(), REFERENCE.float(), 0.1).dtype == torch.float32


def test_the_game_is_even_against_oneself_and_the_gap_is_two_best_responses():
    preferences, reference = random_game(6, 5)
    tau, policy = 0.2, Rng(6).torch()
    policy = torch.randn(6, generator=policy, dtype=torch.float64).log_softmax(0)
    assert value(preferences, policy, policy, reference, tau).item() == pytest.approx(0.5)
    answer = games.best_response(preferences, policy, reference, tau)
    gap = value(preferences, answer, policy, reference, tau) - value(preferences, policy, answer, reference, tau)
    assert float(games.duality_gap(preferences, policy, reference, tau)) == pytest.approx(gap.item(), abs=1e-12)
    for seed in range(50):  # no other answer is better
        other = torch.randn(6, generator=Rng(seed).torch(), dtype=torch.float64).log_softmax(0)
        assert value(preferences, other, policy, reference, tau) <= value(preferences, answer, policy, reference, tau)
        assert float(games.duality_gap(preferences, other, reference, tau)) > 0


def test_a_mirror_step_maximises_gain_less_distance():
    centre, gain = REFERENCE, torch.tensor([0.1, 0.9, 0.4], dtype=torch.float64)
    step = games.mirror_step(gain, centre, 2.5)

    def objective(policy):
        return 2.5 * (policy.exp() @ gain) - games.kl(policy, centre)

    for seed in range(50):
        other = torch.randn(3, generator=Rng(seed).torch(), dtype=torch.float64).log_softmax(0)
        assert objective(other) <= objective(step)
    assert torch.allclose(games.mirror_step(gain, centre, 0.0), centre)


def test_the_dice_step_of_nash_md():
    dice = torch.tensor([[9, 10, 8], [8, 9, 10], [10, 8, 9]], dtype=torch.float64) / 18
    uniform = torch.zeros(3, dtype=torch.float64).log_softmax(0)
    mixed = games.mixture(REFERENCE, uniform, 5 * 0.1)
    assert (mixed.exp() - torch.tensor([0.4727, 0.3343, 0.1930]).double()).abs().max() < 6e-5
    step = games.mirror_step(games.win_rates(dice, mixed), mixed, 5.0)
    assert (step.exp() - torch.tensor([0.4909, 0.3088, 0.2003]).double()).abs().max() < 6e-5

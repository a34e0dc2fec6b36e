"""The payments world: its constants, and its measures against hand-made cases."""

import math

import pytest
import torch

from telos.core.rng import Rng
from telos.methods.decisions.squarecb_adyen import SquareCBAdyen
from telos.worlds import payments
from telos.worlds.payments import Payments, Requests, area_under_curve, calibration_error, diagnose, effective_share


class Fixed:
    """Predictions and probabilities that are given."""

    def __init__(self, predictions: torch.Tensor):
        self.predictions = predictions

    def rewards(self, obs: torch.Tensor) -> torch.Tensor:
        return self.predictions[: len(obs)]

    def probabilities(self, obs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask / mask.sum(-1, keepdim=True)


def test_success_by_hand():
    world = Payments.draw(Rng(1000))
    x = torch.zeros(1, 8)
    assert torch.allclose(world.success(x)[0], torch.sigmoid(world.bias))
    x[0, 2] = 2.0
    expected = torch.sigmoid(0.7 * 2 * world.weights[:, 2] + 0.6 * 4 * world.quadratic[:, 2, 2] + world.bias)
    assert torch.allclose(world.success(x)[0], expected, atol=1e-6)


def test_the_world_is_the_one_that_is_described():
    best, uniform, allowed = [], [], []
    for seed in range(1000, 1020):
        requests = Payments.draw(Rng(seed)).requests(2000, Rng(seed).at("requests"))
        assert requests.allowed.any(-1).all()
        allowed.append(requests.allowed.float().mean().item())
        best.append(requests.success.masked_fill(~requests.allowed, 0).amax(-1).mean().item())
        uniform.append(((requests.success * requests.allowed).sum(-1) / requests.allowed.sum(-1)).mean().item())
    assert sum(best) / 20 == pytest.approx(0.93, abs=0.02) and sum(uniform) / 20 == pytest.approx(0.58, abs=0.03)
    # 0.75, and one of 8 forced.
    assert sum(allowed) / 20 == pytest.approx(0.75 + 0.25 / 8, abs=0.005)


def test_requests_are_a_function_of_their_stream_and_outcomes_follow_their_probabilities():
    world = Payments.draw(Rng(1000))
    one, two = world.requests(4000, Rng(3)), world.requests(4000, Rng(3))
    assert torch.equal(one.contexts, two.contexts) and torch.equal(one.outcomes, two.outcomes)
    assert not torch.equal(one.contexts, world.requests(4000, Rng(4)).contexts)
    assert one.outcomes.mean().item() == pytest.approx(one.success.mean().item(), abs=0.01)
    actions = torch.arange(4000) % 8
    assert one.reward(actions)[11] == one.outcomes[11, 3]


def test_a_log_is_uniform_over_what_is_allowed():
    log = Payments.draw(Rng(1000)).log(4000, Rng(5))
    assert log.propensities is not None
    assert torch.allclose(log.propensities, 1 / log.allowed.sum(-1).float())
    assert effective_share(log.propensities, log.allowed) == pytest.approx(1.0)
    assert torch.bincount(log.actions, minlength=8).float().std() < 60


def test_serving_tells_every_outcome():
    world = Payments.draw(Rng(1000))
    online = SquareCBAdyen(generation=50, epochs=1).online(context_size=8, n_actions=8)
    requests = world.requests(80, Rng(6))
    rewards, propensities = payments.serve(online, requests)
    log = online.log()
    assert torch.equal(log.rewards, rewards[-len(log) :]) and log.propensities is not None
    assert torch.allclose(propensities[-len(log) :].float(), log.propensities)
    assert torch.equal(
        log.rewards, requests.reward(torch.cat([torch.zeros(80 - len(log)).long(), log.actions]))[-len(log) :]
    )


def test_diagnoses_by_hand():
    allowed = torch.ones(2, 8, dtype=torch.bool)
    allowed[0, 0] = False
    success = torch.full((2, 8), 0.5)
    success[0, 0], success[0, 1], success[1, 2] = 0.99, 0.7, 0.9
    requests = Requests(torch.zeros(2, 8), allowed, success, torch.zeros(2, 8))
    log = Payments.draw(Rng(1000)).log(2, Rng(5))
    right = diagnose(Fixed(success), requests, log)
    assert right["value"] == pytest.approx((0.7 + 0.9) / 2) and right["rmse"] == 0
    wrong = diagnose(Fixed(1 - success), requests, log)
    assert wrong["value"] == pytest.approx(0.5)
    assert wrong["rmse"] == pytest.approx(math.sqrt((0.4**2 + 0.8**2) / 15))


def test_entropy_and_effective_share_by_hand():
    allowed = torch.zeros(2, 8, dtype=torch.bool)
    allowed[0, :4], allowed[1, 3] = True, True
    requests = Requests(torch.zeros(2, 8), allowed, torch.zeros(2, 8), torch.zeros(2, 8))
    assert payments.entropy(Fixed(torch.zeros(2, 8)), requests) == pytest.approx(math.log(4) / 2)
    # Weights 1/(2 p) = 1 and 2: 9 / 5 of 2 rows.
    two = torch.ones(2, 2, dtype=torch.bool)
    assert effective_share(torch.tensor([0.5, 0.25]), two) == pytest.approx(9 / 5 / 2)


def test_area_under_curve_by_hand():
    rewards = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert area_under_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), rewards) == 0.75
    assert area_under_curve(torch.tensor([0.1, 0.9, 0.2, 0.8]), rewards) == 1.0
    assert area_under_curve(torch.full((4,), 0.3), rewards) == 0.5
    assert area_under_curve(torch.tensor([0.5, 0.5, 0.2, 0.9]), rewards) == (1 + 0.5 + 1 + 1) / 4
    assert area_under_curve(torch.rand(3), torch.ones(3)) == 0.5


def test_calibration_error_by_hand():
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(torch.tensor([0.55, 0.51, 0.95, 1.0]), rewards) == pytest.approx(
        (0.06 + 0.05) / 4, abs=1e-6
    )
    draws = torch.rand(50_000, generator=Rng(1000).torch())
    outcomes = (torch.rand(50_000, generator=Rng(1001).torch()) < draws).float()
    assert calibration_error(draws, outcomes) < 0.01 < 0.2 < calibration_error(draws, 1 - outcomes)

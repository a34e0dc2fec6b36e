import math
from pathlib import Path

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.methods.goals.ddpm_policy import ChainPolicy, DDPMPolicy, noise_loss
from telos.nets.denoisers import Denoiser
from telos.worlds import bypass2d

OPTIONS = {"network": "mlp", "hidden": (64, 64), "window": 4, "batch_size": 256, "learning_rate": 3e-3, "chain": 30}


class Ideal(Denoiser):
    """The noise that is in actions which were all `target`; or its expectation for actions N(target, spread^2)."""

    slots = 1

    def __init__(self, target: float, spread: float = 0.0):
        super().__init__()
        self.target, self.spread = target, spread

    def forward(self, actions, states, goals, noise, mask, draws=None):
        level = (1 / (1 + torch.exp(8 * noise)))[:, None, None]
        total = level * self.spread**2 + 1 - level
        return (1 - level).sqrt() * (actions - level.sqrt() * self.target) / total


def test_one_action_in_all_demonstrations_is_what_the_chain_returns():
    policy = DDPMPolicy(**{**OPTIONS, "chain": 10}).fit(bypass2d.dataset(5), steps=0, device="cpu")
    policy.net = Ideal(0.25)
    found = policy.act(torch.zeros(3, 2), goal=(0.9, 0.5), rng=Rng(0).torch()).action
    expected = policy.play.raw(torch.full((3, 2), 0.25))
    assert torch.allclose(found, expected, atol=1e-4)


def test_gaussian_actions_keep_their_mean_and_spread():
    policy = DDPMPolicy(**{**OPTIONS, "chain": 200}).fit(bypass2d.dataset(5), steps=0, device="cpu")
    policy.net = Ideal(0.2, 0.15)
    actions = policy.play.actions(policy.act(torch.zeros(4000, 2), goal=(0.9, 0.5), rng=Rng(0).torch()).action)
    assert abs(actions.mean() - 0.2) < 0.01 and abs(actions.std() - 0.15) < 0.015


def test_the_loss_of_the_ideal_network_is_the_variance_that_is_left():
    rows, spread = 100_000, 0.5
    actions = spread * torch.randn(rows, 1, 1, generator=Rng(0).torch())
    noise = torch.randn(rows, 1, 1, generator=Rng(1).torch())
    nothing, mask = torch.zeros(rows, 1, 1), torch.ones(rows, 1, dtype=torch.bool)
    for level in (0.1, 0.5, 0.95):
        loss, count = noise_loss(Ideal(0.0, spread), actions, nothing, nothing, mask, torch.full((rows,), level), noise)
        expected = level * spread**2 / (level * spread**2 + 1 - level)
        assert float(loss / count) == pytest.approx(expected, rel=0.02)
        assert math.isfinite(expected)


def test_it_passes_the_obstacle_on_both_sides(tmp_path: Path):
    record = bypass2d.dataset(200, Rng(1000))
    policy = DDPMPolicy(final_goals=0.5, **OPTIONS).fit(record, steps=500, seed=1000, device="cpu")
    assert isinstance(policy, ChainPolicy) and len(policy.levels) == 31
    measures = bypass2d.attempt(policy, 100, Rng(1000)).measures()
    assert measures["success"] > 0.5 and 0.2 < measures["above"] < 0.8
    loaded = load_product(policy.save(tmp_path / "product"))
    same = [p.act(torch.zeros(2, 2), goal=(0.9, 0.5), rng=Rng(1).torch()).action for p in (policy, loaded)]
    assert torch.equal(*same)


def test_wrong_options_and_missing_inputs_are_refused():
    record = bypass2d.dataset(3)
    with pytest.raises(TelosError, match="out of range"):
        DDPMPolicy(chain=1).fit(record, steps=1)
    policy = DDPMPolicy(**OPTIONS).fit(record, steps=0, device="cpu")
    with pytest.raises(TelosError, match="needs a goal"):
        policy.act(torch.zeros(1, 2), rng=Rng(0).torch())
    with pytest.raises(TelosError, match="generator"):
        policy.act(torch.zeros(1, 2), goal=(0.9, 0.5))

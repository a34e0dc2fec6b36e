"""The bandit: frequencies and closed forms."""

import pytest
import torch

from telos.core.rng import Rng
from telos.worlds import bernoulli_bandit as bandit


@pytest.mark.parametrize(("p", "nats"), [(0.1, 0.146), (0.2, 0.126), (0.3, 0.069)])
def test_frequencies_and_closed_forms(p: float, nats: float):
    data = bandit.dataset(200_000, p, Rng(1))
    worse = data.actions == 1
    assert float(worse.float().mean()) == pytest.approx(1 - p, abs=0.005)
    assert float(data.rewards[worse].mean()) == pytest.approx(p, abs=0.005)
    assert float(data.rewards[~worse].mean()) == pytest.approx(1 - p, abs=0.01)
    assert float(data.rewards.mean()) == pytest.approx(bandit.imitation(p), abs=0.005)
    assert float(worse[data.rewards == 1].float().mean()) == pytest.approx(0.5, abs=0.01)
    assert bandit.conditioned(p).tolist() == pytest.approx([0.5, 0.5])
    assert bandit.expected_reward(bandit.conditioned(p), p) == pytest.approx(0.5)
    assert bandit.information(p) == pytest.approx(nats, abs=6e-4)
    assert data.terminated.all() and torch.equal(data.observations, data.next_observations)

from pathlib import Path

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.methods.goals.gcbc import GCBC, squared_error
from telos.nets.mlp import MLP


def walks(noise: float = 0.0) -> Transitions:
    """Episodes of 5 steps on a line, each to the right or to the left at .1 a step from a random start."""
    rng = Rng(1000).torch()
    starts, way = torch.rand(200, 1, generator=rng), (torch.rand(200, 1, generator=rng) < 0.5).float() * 2 - 1
    steps = torch.arange(5.0)
    positions = starts + 0.1 * way * steps
    actions = way.expand(-1, 5) * (1 + noise * torch.randn(200, 5, generator=rng)).clamp(0, 2)
    last = (steps == 4).expand(200, 5)
    return Transitions.validated(
        observations=positions.reshape(-1, 1), actions=actions.reshape(-1, 1) / 2, rewards=torch.zeros(1000),
        next_observations=(positions + 0.1 * way).reshape(-1, 1), terminated=torch.zeros(1000, dtype=torch.bool),
        truncated=last.reshape(-1), action_space=Box((-1.0,), (1.0,)),
    )  # fmt: skip


OPTIONS = {"hidden": (32, 32), "learning_rate": 3e-3, "batch_size": 128}


def test_it_goes_where_the_goal_is():
    policy = GCBC(**OPTIONS).fit(walks(), steps=400, seed=0, device="cpu")
    here = torch.tensor([[0.5], [0.5], [0.3], [0.7]])
    actions = policy.act(here, goal=torch.tensor([[0.9], [0.1], [0.6], [0.4]])).action[:, 0]
    assert torch.allclose(actions, torch.tensor([0.5, -0.5, 0.5, -0.5]), atol=0.12)


def test_ambiguous_data_are_averaged():
    data = walks()
    blind = Transitions.validated(
        **{**data.columns(), "next_observations": torch.full((1000, 1), 0.5)}, action_space=data.action_space
    )
    policy = GCBC(**OPTIONS).fit(blind, steps=300, seed=0, device="cpu")
    assert policy.act(torch.tensor([[0.5]]), goal=(0.5,)).action.abs() < 0.2


def test_squared_error_by_hand():
    net = MLP((3, 2))
    torch.nn.init.ones_(net.layers[0].bias)
    loss, count = squared_error(net, torch.zeros(2, 1, 2), torch.zeros(2, 1, 1), torch.tensor([[1.0, 3.0], [0.0, 1.0]]))
    assert (float(loss.detach()), count) == (4 / 2 + 1 / 2, 2)


def test_one_goal_or_one_each_and_the_window_of_the_past(tmp_path: Path):
    policy = GCBC(window=3, **OPTIONS).fit(walks(0.3), steps=30, seed=0, device="cpu")
    here = torch.tensor([[0.5], [0.2]])
    first = policy.act(here, goal=(0.9,))
    assert torch.equal(first.action, policy.act(here, goal=torch.full((2, 1), 0.9)).action)
    later = policy.act(here + 0.1, goal=(0.9,), state=first.state).action
    assert not torch.equal(later, policy.act(here + 0.1, goal=(0.9,)).action)
    loaded = load_product(policy.save(tmp_path / "product"))
    assert torch.equal(loaded.act(here + 0.1, goal=(0.9,), state=first.state).action, later)
    with pytest.raises(TelosError, match="needs a goal"):
        policy.act(here)
    with pytest.raises(TelosError, match="out of range"):
        GCBC(window=0).fit(walks(), steps=1)

import math
from pathlib import Path

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.nets.normaliser import Normaliser
from telos.nets.squashed import SquashedGaussianPolicy

LOW, HIGH = (-2.0, 0.0), (2.0, 0.5)


def policy(seed: int = 0) -> SquashedGaussianPolicy:
    return SquashedGaussianPolicy(3, LOW, HIGH, (16,), rng=Rng(seed).torch())


def test_the_density_is_that_of_the_transformed_gaussian():
    made, rng = policy(), Rng(1).torch()
    states, noise = torch.randn(5, 3, generator=rng), torch.randn(4, 5, 2, generator=rng)
    mean, log_std = made(states)
    actions, unit = made.draw(states, noise)
    box = torch.distributions.AffineTransform(torch.tensor([0.0, 0.25]), torch.tensor([2.0, 0.25]))
    tanh = torch.distributions.TanhTransform()
    normal = torch.distributions.Normal(mean, log_std.exp())
    whole = torch.distributions.TransformedDistribution(normal, [tanh, box])
    expected = whole.log_prob(actions).sum(-1)
    assert torch.allclose(unit - math.log(2.0) - math.log(0.25), expected, atol=1e-3)
    for index in range(4):
        assert torch.allclose(made.log_likelihood(states, actions[index]), expected[index], atol=1e-3)


def test_the_density_integrates_to_1():
    made = SquashedGaussianPolicy(1, (-3.0,), (1.0,), ())
    made.net.layers[-1].bias.data = torch.tensor([0.4, -0.5])
    grid = torch.linspace(-3, 1, 20_001)[1:-1, None]
    density = made.log_likelihood(torch.zeros(len(grid), 1), grid).exp()
    assert abs(density.sum().item() * 4 / 20_000 - 1) < 1e-3


def test_far_out_densities_stay_finite_with_gradients():
    made = SquashedGaussianPolicy(1, (-1.0,), (1.0,), ())
    made.net.layers[-1].bias.data = torch.tensor([30.0, 1.0])
    actions, unit = made.draw(torch.zeros(1, 1), torch.ones(1, 1, 1))
    unit.sum().backward()
    gradient = made.net.layers[-1].bias.grad
    # There log(1 - tanh(u)^2) is -2 u: the log-density grows with the mean by 2.
    assert actions.item() == 1.0 and unit.isfinite() and gradient is not None and abs(gradient[0].item() - 2) < 1e-4
    assert made.log_likelihood(torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]])).isfinite().all()


def test_actions_stay_in_the_box_and_the_mean_is_taken_without_exploration():
    obs = 1e4 * torch.randn(500, 3, generator=Rng(2).torch())
    for explore in (False, True):
        actions = policy().act(obs, explore=explore, rng=Rng(3).torch()).action
        assert actions.shape == (500, 2)
        assert (actions >= torch.tensor(LOW)).all() and (actions <= torch.tensor(HIGH)).all()
        assert (actions[:, 0].min(), actions[:, 0].max()) == (-2.0, 2.0)
    mean = policy()(torch.zeros(1, 3))[0]
    assert torch.allclose(policy().act(torch.zeros(3)).action, policy().scale(torch.tanh(mean))[0])
    with pytest.raises(TelosError, match="generator"):
        policy().act(obs, explore=True)


def test_it_reports_the_log_prob_of_what_it_draws_and_loads_again(tmp_path: Path):
    made = policy()
    made.normaliser = Normaliser(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    obs = 3 + torch.randn(30, 3, generator=Rng(4).torch())
    act = made.act(obs, explore=True, rng=Rng(5).torch())
    assert act.log_prob is not None and torch.allclose(act.log_prob, made.log_prob(obs, act.action), atol=1e-3)
    assert torch.allclose(made.log_prob(obs[0], act.action[0]), act.log_prob[0], atol=1e-3)
    loaded = load_product(made.save(tmp_path / "policy"))
    assert loaded.config() == made.config() and torch.equal(loaded.act(obs).action, made.act(obs).action)

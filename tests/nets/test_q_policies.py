import math
from pathlib import Path

import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.q_policies import ActivatedMLP, QPolicy, discrete

SHARES = torch.tensor([0.5, 0.3, 0.2])


def policy(threshold: float | None = None, epsilon: float = 0.3) -> QPolicy:
    """Values 1, 2, 3 everywhere; the behaviour has the probabilities SHARES."""
    made = QPolicy(1, 3, (), "relu", epsilon, threshold)
    made.net.layers[-1].bias.data = torch.tensor([1.0, 2.0, 3.0])
    if made.behaviour is not None:
        made.behaviour.layers[-1].bias.data = SHARES.log()
    return made


def test_with_relu_it_is_the_house_mlp_and_with_selu_it_stays_normalised():
    x = torch.randn(4000, 300, generator=Rng(0).torch())
    ours, house = ActivatedMLP((300, 8, 2), "relu", Rng(1).torch()), MLP((300, 8, 2), Rng(1).torch())
    assert torch.equal(ours(x.clone()), house(x.clone()))
    deep = ActivatedMLP((300, *[256] * 8, 50), "selu", Rng(2).torch())(x)
    assert abs(deep.std().item() - 1) < 0.15 and abs(deep.mean().item()) < 0.1
    tanh = ActivatedMLP((300, 8, 2), "tanh", Rng(1).torch())
    assert torch.allclose(tanh(x), tanh.layers[1](torch.tanh(tanh.layers[0](x))))
    assert not ActivatedMLP((300, 8, 2), "selu")(x).any()


@pytest.mark.parametrize(("threshold", "best"), [(None, 2), (0.0, 2), (0.5, 1), (0.99, 0)])
def test_the_best_eligible_action_is_taken(threshold: float | None, best: int):
    obs = torch.zeros(4, 1)
    assert policy(threshold).act(obs).action.tolist() == [best] * 4
    assert policy(threshold).act(obs[0]).action.item() == best


def test_a_mask_comes_before_eligibility():
    mask = torch.tensor([[False, True, True]])
    # Among the two that are left, 0.2 is 2/3 of 0.3.
    assert policy(0.6).act(torch.zeros(1, 1), mask=mask).action.item() == 2
    assert policy(0.7).act(torch.zeros(1, 1), mask=mask).action.item() == 1


def test_exploration_is_epsilon_greedy_and_reports_its_probabilities():
    obs = torch.zeros(20_000, 1)
    act = policy().act(obs, explore=True, rng=Rng(3).torch())
    shares = torch.bincount(act.action, minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.1, 0.1, 0.8]), atol=0.01)
    assert act.log_prob is not None and math.isclose(
        act.log_prob[act.action == 2][0].item(), math.log(0.8), abs_tol=1e-5
    )
    assert torch.allclose(act.log_prob, policy().log_prob(obs, act.action))
    assert torch.allclose(policy().probabilities(obs[0]), torch.tensor([0.1, 0.1, 0.8]))
    # Actions that are not eligible are not explored.
    assert torch.allclose(policy(0.5).probabilities(obs[0]), torch.tensor([0.15, 0.85, 0.0]))
    assert policy(0.5).log_prob(obs[0], torch.tensor(2)).item() == -math.inf
    with pytest.raises(TelosError, match="generator"):
        policy().act(obs, explore=True)


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_saved_and_loaded_it_acts_the_same(threshold: float | None, tmp_path: Path):
    made = QPolicy(3, 4, (16,), "selu", threshold=threshold, rng=Rng(4).torch())
    made.normaliser = Normaliser(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    loaded = load_product(made.save(tmp_path / "policy"))
    obs = torch.randn(50, 3, generator=Rng(5).torch())
    assert type(loaded) is QPolicy and loaded.config() == made.config()
    assert torch.equal(made.act(obs).action, loaded.act(obs).action)


def test_heads_share_hidden_layers_and_act_by_their_mean(tmp_path: Path):
    made = QPolicy(3, 4, (16,), "selu", heads=5, rng=Rng(4).torch())
    obs = torch.randn(50, 3, generator=Rng(5).torch())
    outputs = made.net(obs)
    # Head h of action k is output 4 h + k.
    assert torch.equal(made.head_values(outputs)[:, 2, 3], outputs[:, 11])
    assert torch.allclose(made(obs), sum(outputs[:, 4 * h : 4 * h + 4] for h in range(5)) / 5)
    assert torch.equal(made.act(obs).action, made(obs).argmax(-1))
    loaded = load_product(made.save(tmp_path / "policy"))
    assert loaded.config() == made.config() and torch.equal(loaded(obs), made(obs))


def test_values_start_alike_with_and_without_a_behaviour():
    plain, bounded = (QPolicy(3, 4, (16,), "selu", threshold=t, rng=Rng(6).torch()) for t in (None, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(plain.net.parameters(), bounded.net.parameters()))


def test_it_acts_in_an_environment():
    pytest.importorskip("gymnasium")
    made = QPolicy(4, 2, (16,), rng=Rng(7).torch())
    result = telos.evaluate(made, "CartPole-v1", episodes=2, seed=1000)
    assert result.mean >= 1
    with pytest.raises(TelosError, match="action space"):
        telos.evaluate(QPolicy(4, 3, (16,), rng=Rng(7).torch()), "CartPole-v1", episodes=1)


def data(space: Box | Discrete) -> Transitions:
    columns = {name: torch.zeros(2) for name in ("rewards", "terminated", "truncated", "observations", "actions")}
    return Transitions.validated(**columns, next_observations=columns["observations"], action_space=space)


def test_continuous_actions_are_refused():
    assert discrete(data(Discrete(3)), "DQN") == Discrete(3)
    with pytest.raises(TelosError, match="needs discrete actions"):
        discrete(data(Box((-1.0,), (1.0,))), "DQN")
    with pytest.raises(TelosError, match="data set"):
        discrete([1, 2], "DQN")

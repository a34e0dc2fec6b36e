import math
from pathlib import Path

import pytest
import torch
from value_toys import parameters

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.methods.online_rl.sac import SAC, SACLearner

SMALL = {"hidden": (16,), "batch_size": 32}


def transitions(rows: int = 60) -> Transitions:
    rng = Rng(1000).torch()
    return Transitions.validated(
        observations=torch.randn(rows, 3, generator=rng),
        actions=torch.tensor([2.0, 0.25]) * (2 * torch.rand(rows, 2, generator=rng) - 1),
        rewards=torch.randn(rows, generator=rng),
        next_observations=torch.randn(rows, 3, generator=rng),
        terminated=torch.arange(rows) % 3 == 0,
        truncated=torch.arange(rows) % 3 == 1,
        action_space=Box((-2.0, -0.25), (2.0, 0.25)),
    )


def parabola(rows: int = 600) -> Transitions:
    """One state, one step, actions spread over [-2, 2]: reward -2 (a - 0.5)^2."""
    actions = 4 * torch.rand(rows, 1, generator=Rng(1001).torch()) - 2
    return Transitions.validated(
        observations=torch.zeros(rows, 1),
        actions=actions,
        rewards=-2 * (actions - 0.5).square(),
        next_observations=torch.zeros(rows, 1),
        terminated=torch.ones(rows),
        truncated=torch.zeros(rows),
        action_space=Box((-2.0,), (2.0,)),
    )


def learner(method: SAC, data: Transitions) -> SACLearner:
    return method.learner(method.prepare(Spec(data, {}, 100, torch.device("cpu"), Rng(0))), Rng(0))


def test_targets_are_soft_and_bootstrap_through_time_limits_only():
    data = transitions()
    mine = learner(SAC(temperature=0.3, discount=0.5, reward_scale=2.0, **SMALL), data)
    noise = torch.randn(60, 2, generator=Rng(1).torch())
    mean, log_std = mine.policy(data.next_observations)
    u = mean + log_std.exp() * noise
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - (1 - torch.tanh(u) ** 2).log()
    q = mine.target_critic(data.next_observations, torch.tensor([2.0, 0.25]) * torch.tanh(u)).amin(0)
    soft = q - 0.3 * density.sum(-1)
    got = mine.targets(data, noise)
    assert torch.equal(got[data.terminated], 2 * data.rewards[data.terminated])
    assert data.truncated.any() and soft.abs().min() > 1e-4
    kept = ~data.terminated
    assert torch.allclose(got[kept], 2 * data.rewards[kept] + 0.5 * soft[kept], atol=1e-4)


def test_metrics_are_the_losses_and_the_entropy():
    data = transitions()
    mine = learner(SAC(temperature=0.3, **SMALL), data)
    noise = torch.randn(60, 2, generator=Rng(2).torch())
    actions, log_probs = mine.policy.draw(data.observations, noise[None])
    values = mine.critic(data.observations, actions[0]).amin(0)
    got = mine.improve_policy([data], [noise], 60)
    assert math.isclose(float(got["policy_loss"]), (0.3 * log_probs[0] - values).mean().item(), rel_tol=1e-4)
    expected = -math.log(0.3) * (log_probs.mean().item() - 2)
    assert math.isclose(float(got["temperature_loss"]), expected, rel_tol=1e-4)
    assert math.isclose(float(got["entropy"]), -log_probs.mean().item(), rel_tol=1e-5)


def test_the_policys_step_leaves_the_critics_alone_and_the_targets_follow():
    data = transitions()
    mine = learner(SAC(tau=0.1, **SMALL), data)
    noise = torch.randn(60, 2, generator=Rng(3).torch())
    mine.improve_policy([data], [noise], 60)
    assert all(p.grad is None for p in mine.critic.parameters())
    old = parameters(mine.target_critic)
    mine.update(data, Rng(4))
    assert torch.allclose(parameters(mine.target_critic), 0.9 * old + 0.1 * parameters(mine.critic), atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_at_a_fixed_temperature_it_is_the_boltzmann_policy(temperature: float):
    # exp(r / eta) is Gaussian around 0.5 with variance eta / 4, nearly all of it within the range for a small eta.
    method = SAC(temperature=temperature, train_temperature=False, hidden=(64, 64), learning_rate=3e-3, batch_size=128)
    policy = method.fit(parabola(), steps=700, seed=1000, device="cpu")
    grid = torch.linspace(-2, 2, 4001)[1:-1]
    weights = torch.exp(-2 * (grid - 0.5) ** 2 / temperature)
    mean = (weights * grid).sum() / weights.sum()
    std = ((weights * (grid - mean) ** 2).sum() / weights.sum()).sqrt()
    drawn = policy.act(torch.zeros(4000, 1), explore=True, rng=Rng(5).torch()).action
    assert abs(drawn.mean().item() - mean.item()) < 0.15 and abs(drawn.std().item() - std.item()) < 0.12


def test_the_temperature_holds_the_entropy_at_its_target():
    data = parabola()
    mine = learner(SAC(hidden=(64, 64), learning_rate=3e-3, target_entropy=-0.5, batch_size=128), data)
    entropies = []
    for step in range(700):
        rows = torch.randint(len(data), (128,), generator=Rng(step).torch())
        entropies.append(float(mine.update(data[rows], Rng(0).at(step))["entropy"]))
    assert abs(sum(entropies[-100:]) / 100 + 0.5) < 0.15
    assert abs(mine.policy.act([0.0]).action.item() - 0.5) < 0.2
    assert learner(SAC(**SMALL), transitions()).target_entropy == -2.0


def test_parts_of_a_batch_agree_with_the_whole():
    data = transitions()
    whole, parts = learner(SAC(**SMALL), data), learner(SAC(**SMALL), data)
    for step in range(3):
        whole.update(data, Rng(step), 1)
        parts.update(data, Rng(step), 8)
    assert torch.allclose(parameters(whole.policy), parameters(parts.policy), atol=1e-5)
    assert torch.allclose(parameters(whole.critic), parameters(parts.critic), atol=1e-5)
    assert torch.allclose(whole.log_temperature, parts.log_temperature)


def test_a_killed_run_resumes_bit_for_bit_and_loads(tmp_path: Path):
    method, data = SAC(**SMALL), transitions()
    whole = method.fit(data, steps=20, seed=3, device="cpu")

    def kill(step: int, product: object) -> dict[str, float]:
        raise KeyboardInterrupt

    run = {"steps": 20, "seed": 3, "device": "cpu", "out": tmp_path / "run", "checkpoint_every": 9}
    with pytest.raises(KeyboardInterrupt):
        method.fit(data, **run, evaluate=kill, evaluate_every=15)
    assert torch.equal(parameters(whole), parameters(method.fit(data, **run, resume=True)))
    assert torch.equal(parameters(whole), parameters(load_product(tmp_path / "run")))


def test_what_it_cannot_learn_from_is_refused():
    data = transitions()
    discrete = Transitions.validated(**{**data.columns(), "actions": torch.zeros(60)}, action_space=Discrete(2))
    with pytest.raises(TelosError, match="continuous"):
        SAC().fit(discrete, steps=1)
    with pytest.raises(TelosError, match="temperature"):
        SAC(temperature=0.0).fit(data, steps=1)
